"""Sensors that hang: a point that should move and reads the same for hours tells nothing, and is taken as missing.

What is usual is learned for each point. A point that seldom repeats a value is stuck once it has repeated one for
longer than chance would let it; a point that often does (a counter, a setting, a coarse or deadbanded sensor) is never
called stuck, since nothing tells the two apart. A value that a point rests at (the flow of a pump that stands) may
repeat as long as it likes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

LEAST_READINGS = 6
"""A value must have been read in so many steps in a row, at least, before its sensor is called stuck."""
LATELY = 2
"""Steps without a reading may lie between them, up to as many again."""
SELDOM = 0.1
"""Share of readings that may repeat the one before, in a point whose sensor can be called stuck."""
CHANCE = 1e-9
"""So seldom may readings that repeat by chance make a run that long."""
LEAST_RESTS = 10
"""A point rests at the value that it has repeated most often, if that was so often; a sensor that hung once did not."""
LEAST_MOVES = 500
"""Readings away from rest, other than the one before, that it takes to say how often a point repeats one."""


@dataclass(frozen=True)
class Stuck:
    """When each of P points is stuck."""

    after: tuple[int, ...]
    """Readings in a row with one value, from which on the point is stuck; 0 for a point that is never called so."""
    rest: tuple[float | None, ...]
    """The value at which it may rest."""

    @property
    def lookback(self) -> int:
        """Steps before a row that decide about it."""
        return max(LATELY * max(self.after, default=0) - 1, 0)

    def rows(self, values: Floats, offsets: Ints) -> npt.NDArray[np.bool_]:
        """[N, P] where a point is stuck, by its own reading and those of the steps just before.

        values: [N, P], NaN where nothing was read. offsets: [A + 1] first row of each asset.
        """
        found = np.zeros(values.shape, dtype=bool)
        for point, (after, rest) in enumerate(zip(self.after, self.rest, strict=True)):
            if not after:
                continue
            read = np.flatnonzero(~np.isnan(values[:, point]))
            told = values[read, point]
            again = _repeats(told, read, offsets)
            if len(told) < after:
                continue
            since = np.concatenate([[0], np.cumsum(again)])
            held = since[after:] - since[1 : len(since) - after + 1] == after - 1
            held &= read[after - 1 :] - read[: len(read) - after + 1] < LATELY * after
            if rest is not None:
                held &= told[after - 1 :] != np.float32(rest)
            found[read[after - 1 :][held], point] = True
        return found


NEVER = Stuck((), ())
"""Nothing is ever stuck."""


def fit_stuck(values: Floats, offsets: Ints) -> Stuck:
    """What is usual in these assets. values: [N, P]; offsets: [A + 1]."""
    usual = [_usual(column, offsets) for column in values.T]
    return Stuck(tuple(after for after, _ in usual), tuple(rest for _, rest in usual))


def _usual(column: Floats, offsets: Ints) -> tuple[int, float | None]:
    read = np.flatnonzero(~np.isnan(column))
    told = column[read]
    again = _repeats(told, read, offsets)
    begun = again.copy()
    begun[1:] &= ~again[:-1]
    repeated, times = np.unique(told[begun], return_counts=True)
    rest = float(repeated[times.argmax()]) if times.max(initial=0) >= LEAST_RESTS else None
    away = np.ones(len(told), dtype=bool) if rest is None else told != np.float32(rest)
    moves = int((away & ~again).sum())
    if moves < LEAST_MOVES or (away & again).sum() > SELDOM * away.sum():
        return 0, rest
    # How many readings begin to repeat, not how many do: one sensor that hung for a week began to once.
    share = max(float((away & begun).sum()) / moves, CHANCE)
    return max(LEAST_READINGS, 1 + math.ceil(math.log(CHANCE) / math.log(share))), rest


def _repeats(told: Floats, read: Ints, offsets: Ints) -> npt.NDArray[np.bool_]:
    """[R] whether each of these readings is what the asset's reading before it was. read: [R] their rows."""
    asset = np.searchsorted(offsets, read, side="right")
    again = np.zeros(len(told), dtype=bool)
    again[1:] = (told[1:] == told[:-1]) & (asset[1:] == asset[:-1])
    return again
