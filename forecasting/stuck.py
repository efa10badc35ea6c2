"""Sensors that hang: a point that should move and reads the same for hours tells nothing, and is taken as missing.

What is usual is learned for each point. A point that seldom repeats a value is stuck once it has repeated one for
longer than is usual for it; a point that often does, on any asset (a counter, a setting, a coarse or deadbanded
sensor), is never called stuck, since nothing tells the two apart. A value that a point comes to rest at again and again
(the flow of a pump that stands, the ends of a valve's way) may repeat as long as it likes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LEAST_READINGS = 6
"""A value must have been read in so many steps in a row, at least, before its sensor is called stuck."""
MOST_READINGS = 24
"""A point that takes longer to tell is never called stuck."""
LATELY = 2
"""Steps without a reading may lie between them, up to as many again."""
SELDOM = 0.1
"""Share of an asset's readings that may repeat the one before, in a point whose sensor can be called stuck."""
CHANCE = 1e-9
"""So seldom may readings that repeat by chance make a run that long."""
UNUSUAL = 1 / 2000
"""A run that comes more often than once in so many readings is how the machine is run."""
RESTING, LEAST_RESTS, MOST_RESTS = 0.5, 10, 16
"""A point rests at a value of whose readings so large a share repeats the one before, if it came to it so often; a
sensor that hung there once did not. A point with more such values than `MOST_RESTS` is coarse."""
LEAST_MOVES = 500
"""Readings away from rest, other than the one before, that it takes to say how often a point repeats one."""
LEAST_OWN = 100
"""Readings away from rest that it takes to say so of one asset."""


@dataclass(frozen=True)
class Stuck:
    """When each of P points is stuck."""

    after: tuple[int, ...]
    """Readings in a row with one value, from which on the point is stuck; 0 for a point that is never called so."""
    rest: tuple[tuple[float, ...], ...]
    """The values at which it may rest."""

    @property
    def span(self) -> int:
        """Steps, up to a row and with it, in which what is stuck is told."""
        return LATELY * max(self.after, default=0)

    @property
    def lookback(self) -> int:
        """Steps before a row that decide about it."""
        return max(self.span - 1, 0)

    def rows(self, values: Floats, offsets: Ints) -> Flags:
        """[N, P] where a point is stuck, by its own reading and those of the steps just before.

        values: [N, P], NaN where nothing was read. offsets: [A + 1] first row of each asset.
        """
        found, asset = np.zeros(values.shape, dtype=bool), _asset_of(offsets)
        for point, (after, rest) in enumerate(zip(self.after, self.rest, strict=True)):
            if not after:
                continue
            read = np.flatnonzero(~np.isnan(values[:, point]))
            told = values[read, point]
            again = _repeats(told, asset[read])
            if again.sum() < after - 1:
                continue
            since = np.concatenate([[0], np.cumsum(again)])
            held = since[after:] - since[1 : len(since) - after + 1] == after - 1
            held &= read[after - 1 :] - read[: len(read) - after + 1] < LATELY * after
            held &= ~_rests(told[after - 1 :], rest)
            found[read[after - 1 :][held], point] = True
        return found

    def hung(self, values: Floats, stuck: Flags, offsets: Ints) -> Flags:
        """[N] whether every point that was read within `span` was stuck when it was last: then nothing is known.

        values, stuck: [N, P] what was read, and where it was stuck.
        """
        some, moving = np.zeros(len(values), dtype=bool), np.zeros(len(values), dtype=bool)
        row = np.arange(len(values))
        first = np.maximum(offsets[_asset_of(offsets)], row - self.span + 1)
        for point in range(values.shape[1] if stuck.any() else 0):
            latest = np.maximum.accumulate(np.where(np.isnan(values[:, point]), -1, row))
            lately = latest >= first
            some |= lately & stuck[latest, point]
            moving |= lately & ~stuck[latest, point]
        return some & ~moving


NEVER = Stuck((), ())
"""Nothing is ever stuck."""


def fit_stuck(values: Floats, offsets: Ints) -> Stuck:
    """What is usual in these assets. values: [N, P]; offsets: [A + 1]."""
    usual = [_usual(column, offsets) for column in values.T]
    return Stuck(tuple(after for after, _ in usual), tuple(rest for _, rest in usual))


def _usual(column: Floats, offsets: Ints) -> tuple[int, tuple[float, ...]]:
    read = np.flatnonzero(~np.isnan(column))
    told, asset = column[read], _asset_of(offsets)[read]
    again = _repeats(told, asset)
    begun = again.copy()
    begun[1:] &= ~again[:-1]
    rest = _rest(told, again, begun)
    if len(rest) > MOST_RESTS:
        return 0, ()
    away = ~_rests(told, rest)
    moves = int((away & ~again).sum())
    own = np.bincount(asset[away], minlength=1)
    repeats = np.bincount(asset[away & again], minlength=len(own))
    if moves < LEAST_MOVES or (repeats[own >= LEAST_OWN] > SELDOM * own[own >= LEAST_OWN]).any():
        return 0, rest
    # How many readings begin to repeat, not how many do: one sensor that hung for a week began to once.
    share = min(max(float((away & begun).sum()) / moves, CHANCE), 0.5)
    by_chance = 1 + math.ceil(math.log(CHANCE) / math.log(share))
    runs = np.sort(np.diff(np.append(np.flatnonzero(~again), len(again)))[away[~again]])[::-1]
    usual = int(runs[min(int(UNUSUAL * away.sum()), len(runs) - 1)])
    after = max(LEAST_READINGS, by_chance, usual + 1)
    return (after if after <= MOST_READINGS else 0), rest


def _rest(told: Floats, again: Flags, begun: Flags) -> tuple[float, ...]:
    """The values at which a point rests. again, begun: [R] which readings repeat, and which begin to."""
    values, times = np.unique(told[begun], return_counts=True)
    values = values[times >= LEAST_RESTS]
    ordered, repeated = np.sort(told), np.sort(told[again])

    def count(among: Floats) -> Ints:
        return np.searchsorted(among, values, side="right") - np.searchsorted(among, values, side="left")

    return tuple(values[count(repeated) >= RESTING * count(ordered)].tolist())


def _rests(told: Floats, rest: tuple[float, ...]) -> Flags:
    """[R] which readings are at rest."""
    return np.isin(told, np.array(rest, dtype=np.float32))


def _asset_of(offsets: Ints) -> Ints:
    """[N] number of the asset that each row is of."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def _repeats(told: Floats, asset: Ints) -> Flags:
    """[R] whether each reading is what the asset's reading before it was."""
    again = np.zeros(len(told), dtype=bool)
    again[1:] = (told[1:] == told[:-1]) & (asset[1:] == asset[:-1])
    return again
