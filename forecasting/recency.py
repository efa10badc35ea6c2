"""How long ago events were and how many there were lately, counted in whole steps for every row of a grid at once."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from forecasting.windows import GAP_STEPS, FeatureSchema, Grid

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

LONG_AGO_HOURS = 2 * 365 * 24
COUNT_CAP = 32
PLAN_COLUMNS = 16
PLAN_COLUMN_HOURS = 96
"""A plan's dates are told by time since an event on a plain scale: so many columns, each of so many hours (the network
cuts each into eighths), together two months."""


class EventClock:
    """Asset and step are folded into one integer key, so that a single sorted search answers for all assets."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._cap = _recency_cap(grid.schema)
        steps = grid.step_of
        seen = [s for _, s in grid.visible]
        lows = [int(a.min()) for a in (steps, *seen) if len(a)]
        highs = [int(a.max()) for a in (steps, *seen) if len(a)]
        self._low = min(lows, default=0)
        self._width = max(highs, default=0) - self._low + 1
        self._base = grid.asset_of * self._width
        self._rows = self._base + (steps - self._low)

    def _keys(self, channel: int) -> Ints:
        asset, seen = self._grid.visible[channel]
        return asset * self._width + (seen - self._low)

    def elapsed(self, channel: int) -> Ints:
        """[N] steps since the latest visible event, at most the cap, which also stands for never."""
        keys = self._keys(channel)
        if not len(keys):
            return np.full(len(self._rows), self._cap, dtype=np.int64)
        place = np.searchsorted(keys, self._rows, side="right") - 1
        latest = np.where(place >= 0, keys[np.maximum(place, 0)], -1)
        return np.where(latest >= self._base, np.minimum(self._rows - latest, self._cap), self._cap)

    def counts(self, channel: int, windows: tuple[int, ...]) -> list[Ints]:
        """[N] visible events of the last so many steps (this one included), at most `COUNT_CAP`."""
        keys = self._keys(channel)
        until = np.searchsorted(keys, self._rows, side="right")
        starts = (np.maximum(self._rows - window, self._base - 1) for window in windows)
        return [np.minimum(until - np.searchsorted(keys, start, side="right"), COUNT_CAP) for start in starts]


def steps_in(schema: FeatureSchema, hours: int) -> int:
    """Steps that make so many hours, at least one."""
    return max(1, hours * 3600 // schema.step_seconds)


def _recency_cap(schema: FeatureSchema) -> int:
    return LONG_AGO_HOURS * 3600 // schema.step_seconds


@functools.lru_cache(maxsize=8)
def recency_table(schema: FeatureSchema) -> Floats:
    """Log time since an event by whole steps, 0 for now and 1 for long ago or never."""
    hours = np.arange(_recency_cap(schema) + 1) * schema.step_hours
    return _lasting(np.log1p(hours) / np.log1p(hours[-1]))


@functools.lru_cache(maxsize=8)
def plan_table(schema: FeatureSchema) -> Floats:
    """[cap + 1, PLAN_COLUMNS] time since an event by whole steps: how much of each stretch of it is over, 0 to 1."""
    hours = np.arange(_recency_cap(schema) + 1) * schema.step_hours
    return _lasting(np.clip(hours[:, None] / PLAN_COLUMN_HOURS - np.arange(PLAN_COLUMNS), 0.0, 1.0))


@functools.lru_cache(maxsize=8)
def coarse_table(schema: FeatureSchema) -> Floats:
    """Time since an event in nine classes that double from a day: too coarse to tell a plan's dates by."""
    days = np.arange(_recency_cap(schema) + 1) * schema.step_hours / 24
    level = np.searchsorted(2.0 ** np.arange(8), days, side="right")
    return _lasting(level / 8)


def gaps(present: npt.NDArray[np.bool_], offsets: Ints) -> Ints:
    """[N] steps since one point was last read, at most `GAP_STEPS`, which also stands for never.

    present: [N] whether it was read; offsets: [A + 1] first row of each asset.
    """
    rows = np.arange(len(present))
    latest = np.maximum.accumulate(np.where(present, rows, -GAP_STEPS)) if len(rows) else rows
    begin = np.repeat(offsets[:-1], np.diff(offsets))
    return np.where(latest >= begin, np.minimum(rows - latest, GAP_STEPS), GAP_STEPS)


@functools.cache
def gap_table() -> Floats:
    """Log time since a reading by whole steps, 0 for now and 1 for `GAP_STEPS` or more."""
    return _lasting(np.log1p(np.arange(GAP_STEPS + 1)) / np.log1p(GAP_STEPS))


@functools.cache
def count_table() -> Floats:
    """Log of a count, 0 for none and 1 for the cap."""
    return _lasting(np.log1p(np.arange(COUNT_CAP + 1)) / np.log1p(COUNT_CAP))


def _lasting(table: npt.NDArray[np.float64]) -> Floats:
    """A table as it is kept between calls: nobody may write to it."""
    kept = table.astype(np.float32)
    kept.flags.writeable = False
    return kept
