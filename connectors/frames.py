"""Frames on their way out of a store, as `pm.domain.History` lays them out: the same columns and types when empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def times_column(times_us: NDArray[np.int64]) -> pd.Series:
    """Microseconds since the epoch as datetime64[us, UTC]."""
    return pd.Series(times_us.view("datetime64[us]")).dt.tz_localize("UTC")


class Summary(NamedTuple):
    """What one point of one asset read in one stretch of time, which ends at `end_us`."""

    asset: str
    point: str
    end_us: int
    lowest: float
    mean: float
    highest: float
    reads: int


@dataclass(frozen=True, slots=True)
class Block:
    """One asset's readings in a stretch of time, as they lie in its rows.

    points: the points asked for. times: of each row, in order, each once. values: rows x the asset's own points, NaN
    where nothing was read. where: for each point asked for its column in `values`, -1 where the asset has it not.
    """

    asset: str
    points: Sequence[str]
    times: NDArray[np.int64]
    values: NDArray[np.float64]
    where: NDArray[np.intp]

    def without_empty_rows(self) -> Block:
        """The rows in which at least one of the points was read."""
        asked = self.values[:, self.where[self.where >= 0]]
        read = ~np.isnan(asked).all(axis=1)
        return self if read.all() else replace(self, times=self.times[read], values=self.values[read])

    def put(self, columns: NDArray[np.float64]) -> None:
        """Fill `columns`, points asked for x rows."""
        if np.array_equal(self.where, np.arange(self.values.shape[1])):
            columns[:] = self.values.T
            return
        has = self.where >= 0
        columns[~has] = np.nan
        columns[has] = self.values[:, self.where[has]].T

    def summed_up(self, size_us: int) -> list[Summary]:
        """Lowest, mean, highest and number of readings of each point in each stretch of `size_us`, its end inside."""
        ends = self.times - 1 - (self.times - 1) % size_us + size_us
        starts = np.flatnonzero(np.diff(ends, prepend=ends[0] - 1))
        rows: list[Summary] = []
        for point, column in zip(self.points, self.where.tolist(), strict=True):
            if column < 0:
                continue
            values = self.values[:, column]
            reads = np.add.reduceat((~np.isnan(values)).astype(np.int64), starts)
            some = reads > 0
            lowest, highest = np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts)
            mean = np.add.reduceat(np.nan_to_num(values, nan=0.0), starts)[some] / reads[some]
            columns = ends[starts][some], lowest[some], mean, highest[some], reads[some]
            cells = zip(*(one.tolist() for one in columns), strict=True)
            rows += [Summary(self.asset, point, *row) for row in cells]
        return rows


def blocks_frame(blocks: Sequence[Block], points: Sequence[str]) -> pd.DataFrame:
    """Readings of some assets, one block each, already in order."""
    lengths = [len(block.times) for block in blocks]
    starts = np.concatenate(([0], np.cumsum(lengths, dtype=np.intp)))
    times = np.empty(starts[-1], dtype=np.int64)
    columns = np.empty((len(points), starts[-1]))  # by point, so that each column of the frame lies in one piece
    for start, stop, block in zip(starts[:-1], starts[1:], blocks, strict=True):
        times[start:stop] = block.times
        block.put(columns[:, start:stop])
    frame = pd.DataFrame(columns.T, columns=pd.Index(list(points), dtype="str"), copy=False)
    frame.insert(0, "time", times_column(times))
    assets = pd.Series([block.asset for block in blocks], dtype="str")
    frame.insert(1, "asset", assets.repeat(lengths).reset_index(drop=True))
    return frame


def readings_frame(
    assets: Sequence[str],
    times_us: Sequence[NDArray[np.int64]],
    values: Sequence[NDArray[np.float64]],
    points: Sequence[str],
) -> pd.DataFrame:
    """Readings of `assets`, already in order, as blocks of rows x all `points`, NaN where nothing was read."""
    where = np.arange(len(points))
    return blocks_frame(
        [Block(name, points, own, read, where) for name, own, read in zip(assets, times_us, values, strict=True)],
        points,
    )


def step_us(step: timedelta) -> int:
    """A step of downsampling in microseconds. Raises ValueError where it is not whole milliseconds."""
    us = step // timedelta(microseconds=1)
    if us <= 0 or us % 1000:
        raise ValueError(f"a step of {step} cannot be summed up; take whole milliseconds, at least one")
    return us


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
