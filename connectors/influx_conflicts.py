"""Two different values for one asset, point and time: neither is lost, and their order does not matter.

InfluxDB overwrites in silence, so what may meet something stored is read before it is written. Readings that are newer
than all that is stored of their asset, which is nearly all in a plant, meet nothing and cost no question.

The greater value becomes the reading. The other goes to measurement `conflicts`, tag `asset`, a field per point, at the
reading's time with nanoseconds counted up from 0, so that several values of one time stand beside each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from connectors.batches import Batch
from connectors.influxql import Answer

SLOTS = 1000
"""Nanoseconds in a microsecond: so many values of one asset, point and time can be kept beside the greatest."""
_WIDEST_GAP_US = 3_600_000_000
_MOST_QUESTIONS = 8
_MANY_ASSETS = 100


class Frontier:
    """The newest reading time of every asset, as far as this process has asked or written. Not for several threads."""

    def __init__(self, *, only_writer: bool) -> None:
        """only_writer: nobody else writes these assets while the process runs; else every row may meet another."""
        self._only_writer = only_writer
        self._newest: dict[str, int] = {}

    def unknown(self, assets: Sequence[str]) -> list[str]:
        """Assets whose newest time must be asked for before `late` can tell."""
        return [name for name in assets if name not in self._newest] if self._only_writer else []

    def learn(self, assets: Sequence[str], newest: Mapping[str, int]) -> None:
        """What the store said of assets: their newest time, if they have any since the time asked about."""
        for name in assets:
            self._newest[name] = newest.get(name, -(2**63))

    def late(self, batch: Batch) -> NDArray[np.bool_]:
        """Which rows may meet a row that is stored."""
        if not self._only_writer:
            return np.ones(len(batch), dtype=bool)
        newest = np.array([self._newest[name] for name in batch.assets], dtype=np.int64)
        return batch.times <= newest[batch.asset_of]

    def advance(self, batch: Batch) -> None:
        """Note rows that are about to be written; before, since a write that fails may have stored some."""
        if not self._only_writer:
            return
        newest = np.array([self._newest[name] for name in batch.assets], dtype=np.int64)
        np.maximum.at(newest, batch.asset_of, batch.times)
        self._newest.update(zip(batch.assets, newest.tolist(), strict=True))

    def forget(self, assets: Sequence[str]) -> None:
        """These assets must be asked for again (they were deleted)."""
        for name in assets:
            self._newest.pop(name, None)


@dataclass(frozen=True, slots=True)
class Lesser:
    """A value that came beside a greater one."""

    asset: str
    time_us: int
    point: str
    value: float


def windows(batch: Batch) -> Iterator[tuple[int, int, list[str] | None]]:
    """(start, end, assets) of the questions that cover every row, start < time <= end in microseconds; None is all.

    Rows far apart are asked for apart: a straggler among readings of now must not have a month read back. Of a short
    time all assets are asked for at once where many are wanted.
    """
    order = np.argsort(batch.times, kind="stable")
    times = batch.times[order]
    gaps = np.diff(times)
    widest = np.argsort(gaps)[::-1][: _MOST_QUESTIONS - 1]
    cuts = np.sort(widest[gaps[widest] > _WIDEST_GAP_US]) + 1
    for part in np.split(order, cuts):
        start, end = int(batch.times[part].min()) - 1, int(batch.times[part].max())
        names = [batch.assets[code] for code in np.unique(batch.asset_of[part])]
        yield start, end, None if len(names) > _MANY_ASSETS and end - start <= _WIDEST_GAP_US else names


def merged(batch: Batch, answers: Sequence[Answer], points: Sequence[str]) -> tuple[Batch, list[Lesser]]:
    """What is to be written of `batch`, and what must be kept beside it.

    answers: rows that are stored, of the fields `points`. Rows that would change nothing are left out.
    """
    place = {(batch.assets[code], time): row for row, (code, time) in enumerate(_keys(batch))}
    there = np.full(batch.values.shape, np.nan)
    met = np.zeros(len(batch), dtype=bool)
    columns = np.array([batch.points.index(point) for point in points], dtype=np.intp)
    for answer in answers:
        found = np.array([place.get((answer.assets[code], time), -1) for code, time in _keys(answer)], dtype=np.intp)
        met[found[found >= 0]] = True
        for some in _each_once(found):  # several series of one asset may hold a row each of one time
            cells = np.ix_(found[some], columns)
            there[cells] = np.fmax(there[cells], answer.values[some])
    # fmin and fmax pass over NaN: what was not read yields to what was
    greater, lesser = np.fmax(there, batch.values), np.fmin(there, batch.values)
    rows, fields = np.nonzero(lesser < greater)
    keys = _keys(batch)
    kept = [
        Lesser(batch.assets[keys[row][0]], keys[row][1], batch.points[field], float(lesser[row, field]))
        for row, field in zip(rows.tolist(), fields.tolist(), strict=True)
    ]
    changed = ~met | ((greater != there) & ~np.isnan(greater)).any(axis=1)
    news = np.where(np.isnan(there) | (batch.values > there), batch.values, np.nan)
    chosen = np.flatnonzero(changed)
    return Batch(batch.assets, batch.asset_of[chosen], batch.times[chosen], batch.points, news[chosen]), kept


def _each_once(found: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Places in `found` that are not -1, in groups in which no value stands twice."""
    left = np.flatnonzero(found >= 0)
    while len(left):
        _, first = np.unique(found[left], return_index=True)
        yield left[first]
        left = np.delete(left, first)


def _keys(rows: Batch | Answer) -> list[tuple[int, int]]:
    return list(zip(rows.asset_of.tolist(), rows.times.tolist(), strict=True))


def slots(
    kept: Sequence[Lesser], there: Mapping[tuple[str, str, int], Mapping[int, float]]
) -> list[tuple[Lesser, int]]:
    """Each value with the nanosecond that it takes, without those that are kept already.

    there: values kept, by asset, point and time, and by nanosecond. Raises OverflowError, naming the reading, where
    every nanosecond is taken.
    """
    taken = {key: dict(values) for key, values in there.items()}
    placed = []
    for lesser in kept:
        values = taken.setdefault((lesser.asset, lesser.point, lesser.time_us), {})
        if lesser.value in values.values():
            continue
        slot = next((number for number in range(SLOTS) if number not in values), None)
        if slot is None:
            raise OverflowError(f"{lesser.asset}, {lesser.point}: more than {SLOTS} different values for one time")
        values[slot] = lesser.value
        placed.append((lesser, slot))
    return placed
