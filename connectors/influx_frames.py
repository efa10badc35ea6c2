"""Answers of InfluxDB joined into one frame of readings, one row for each asset and time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from connectors.frames import readings_frame
from connectors.influxql import Answer


def answers_frame(answers: Sequence[Answer], asked: Sequence[str], wanted: Sequence[str]) -> pd.DataFrame:
    """Readings in canonical order, with the columns `wanted` of the fields `asked` for.

    Rows of one asset and time, which further tags set apart in the database, become one; of two values the greater.
    """
    names = sorted({name for answer in answers for name in answer.assets})
    if not names:
        return readings_frame((), (), (), wanted)
    rank = {name: place for place, name in enumerate(names)}
    codes = np.concatenate([np.array([rank[a] for a in x.assets], dtype=np.intp)[x.asset_of] for x in answers])
    times = np.concatenate([answer.times for answer in answers])
    place = {name: column for column, name in enumerate(asked)}
    in_order = bool(np.all((np.diff(codes) > 0) | ((np.diff(codes) == 0) & (np.diff(times) > 0))))
    order = slice(None) if in_order else np.lexsort((times, codes))
    codes, times = codes[order], times[order]
    starts = np.flatnonzero(np.concatenate(([True], (np.diff(codes) != 0) | (np.diff(times) != 0))))
    values = np.full((len(wanted), len(starts)), np.nan)
    for row, name in enumerate(wanted):
        if name in place:
            column = np.concatenate([answer.values[:, place[name]] for answer in answers])[order]
            values[row] = column if len(starts) == len(column) else np.fmax.reduceat(column, starts)
    codes, times = codes[starts], times[starts]
    bounds = np.flatnonzero(np.diff(codes)) + 1
    present = [names[code] for code in codes[np.concatenate(([0], bounds))]]
    return readings_frame(present, np.split(times, bounds), np.split(values.T, bounds), wanted)


def row_count(answer: Answer) -> int:
    """How many rows an answer makes in a frame."""
    order = np.lexsort((answer.times, answer.asset_of))
    codes, times = answer.asset_of[order], answer.times[order]
    return int(np.count_nonzero((np.diff(codes) != 0) | (np.diff(times) != 0))) + bool(len(times))
