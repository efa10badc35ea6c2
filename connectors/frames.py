"""Frames on their way out of a store, as `pm.domain.History` lays them out: the same columns and types when empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def times_column(times_us: NDArray[np.int64]) -> pd.Series:
    """Microseconds since the epoch as datetime64[us, UTC]."""
    return pd.Series(times_us.view("datetime64[us]")).dt.tz_localize("UTC")


def readings_frame(
    assets: Sequence[str],
    times_us: Sequence[NDArray[np.int64]],
    values: Sequence[NDArray[np.float64]],
    points: Sequence[str],
) -> pd.DataFrame:
    """Readings of `assets`, one block each, already in order.

    times_us: rows of each asset. values: rows x points of each asset, NaN where nothing was read.
    """
    lengths = [len(block) for block in times_us]
    starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.intp)))
    times = np.empty(starts[-1], dtype=np.int64)
    columns = np.empty((len(points), starts[-1]))  # by point, so that each column of the frame lies in one piece
    for start, stop, time_block, block in zip(starts[:-1], starts[1:], times_us, values, strict=True):
        times[start:stop] = time_block
        columns[:, start:stop] = block.T
    frame = pd.DataFrame(columns.T, columns=pd.Index(list(points), dtype="str"), copy=False)
    frame.insert(0, "time", times_column(times))
    frame.insert(1, "asset", pd.Series(list(assets), dtype="str").repeat(lengths).reset_index(drop=True))
    return frame


def step_us(step: timedelta) -> int:
    """A step of downsampling in microseconds. Raises ValueError where it is not whole milliseconds."""
    us = step // timedelta(microseconds=1)
    if us <= 0 or us % 1000:
        raise ValueError(f"a step of {step} cannot be summed up; take whole milliseconds, at least one")
    return us


class Summary(NamedTuple):
    """What one point of one asset read in one stretch of time, which ends at `end_us`."""

    asset: str
    point: str
    end_us: int
    lowest: float
    mean: float
    highest: float
    reads: int


def downsampled_frame(rows: Sequence[Summary]) -> pd.DataFrame:
    """Stretches as `ReadingStore.downsampled` lays out, from rows in any order."""
    types = {"asset": "str", "point": "str", "lowest": "f8", "mean": "f8", "highest": "f8", "count": "i8"}
    return timed_frame([(row.end_us, row.asset, row.point, *row[3:]) for row in sorted(rows)], types)


def events_frame(rows: Sequence[tuple[int, str, str, str]]) -> pd.DataFrame:
    """Events from (microseconds, asset, kind, code), already in order."""
    return timed_frame(rows, {"asset": "str", "kind": "str", "code": "str"})


def timed_frame(rows: Sequence[tuple[Any, ...]], types: Mapping[str, Any]) -> pd.DataFrame:
    """A frame of rows that begin with a time in microseconds; `types` names and types the columns after it."""
    times, *others = zip(*rows, strict=True) if rows else [()] * (1 + len(types))
    frame = pd.DataFrame({"time": times_column(np.array(times, dtype=np.int64))})
    for (name, dtype), column in zip(types.items(), others, strict=True):
        frame[name] = pd.Series(list(column), dtype=dtype)
    return frame
