"""Operating conditions: found from points that rest at a few levels and move the others, or named in the settings.

An aircraft engine at take-off and at cruise, a press on one product and on another: what is normal differs so much
between conditions that wear cannot be seen across them. A point tells of the condition when its values stand at a few
levels with wide gaps between them, when assets come and go between these levels all their life (wear reaches a level
late and stays), and when the levels explain most of what the other points do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_LEVELS = 8
"""A point with more levels measures something."""
GAP = 0.04
"""Levels stand at least so much of the point's range apart."""
STRAY = 0.001
"""Share of values that may stand between levels or on seldom ones."""
LEAST_SHARE = 0.01
"""A condition holds at least so much of the rows."""
RECURS = 0.6
"""Share of assets that must have seen a level both early and late in life."""
EXPLAINS = 0.5
"""Share of the median point's variance that the conditions must explain."""
GAINS = 0.02
"""A further point must raise what is explained by so much."""
MOST_POINTS = 4
SAMPLE_ROWS = 100_000
_Cut = tuple[Doubles, Doubles]

NAMED_BINS = 4
"""A named point without levels is cut at its quantiles into so many conditions."""


@dataclass(frozen=True)
class Regimes:
    """How a row's condition is told from its points."""

    points: tuple[int, ...]
    """The points that tell, as columns."""
    levels: tuple[Doubles, ...]
    """Of each, its levels, ascending."""
    reach: tuple[Doubles, ...]
    """Of each level, how far from it a value still belongs to it."""
    cells: tuple[tuple[int, ...], ...]
    """Levels of the points that make each condition."""

    @classmethod
    def none(cls) -> Regimes:
        """One condition for everything."""
        return cls((), (), (), ())

    @property
    def count(self) -> int:
        """Conditions known; the index `count` is any other."""
        return len(self.cells)

    def as_json(self) -> dict[str, Any]:
        return {
            "points": list(self.points),
            "levels": [level.tolist() for level in self.levels],
            "reach": [reach.tolist() for reach in self.reach],
            "cells": [list(cell) for cell in self.cells],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Regimes:
        return cls(
            tuple(int(point) for point in values["points"]),
            tuple(np.asarray(level, dtype=np.float64) for level in values["levels"]),
            tuple(np.asarray(reach, dtype=np.float64) for reach in values["reach"]),
            tuple(tuple(int(level) for level in cell) for cell in values["cells"]),
        )

    def of(self, values: Floats) -> Ints:
        """[N, P] readings to [N] condition; `count` where a telling point is missing or stands nowhere known."""
        if not self.points:
            return np.zeros(len(values), dtype=np.int64)
        key, known = np.zeros(len(values), dtype=np.int64), np.ones(len(values), dtype=bool)
        for point, levels, reach in zip(self.points, self.levels, self.reach, strict=True):
            place, near = _nearest(values[:, point].astype(np.float64), levels, reach)
            key, known = key * MOST_LEVELS + place, known & near
        found = np.full(MOST_LEVELS ** len(self.points), self.count, dtype=np.int64)
        for number, cell in enumerate(self.cells):
            found[_key(cell)] = number
        return np.where(known, found[np.where(known, key, 0)], self.count)


def find_regimes(values: Floats, asset_of: Ints, named: Sequence[int] = ()) -> Regimes:
    """The conditions of rows [N, P], one asset after another; of the `named` points alone where there are any."""
    thin = max(1, len(values) // SAMPLE_ROWS)
    values, asset_of = values[::thin], asset_of[::thin]
    if named:
        cuts = {point: _levels(values[:, point]) or _quantiles(values[:, point]) for point in named}
        return _regimes({point: cut for point, cut in cuts.items() if cut is not None}, values)
    candidates: dict[int, _Cut] = {}
    for point in range(values.shape[1]):
        cut = _levels(values[:, point])
        if cut is not None and _recur(values[:, point], cut, asset_of):
            candidates[point] = cut
    chosen: dict[int, _Cut] = {}
    explained = 0.0
    while candidates and len(chosen) < MOST_POINTS:
        tried = {p: _explained(_regimes(chosen | {p: cut}, values), values) for p, cut in candidates.items()}
        best = max(tried, key=lambda point: tried[point])
        if tried[best] < explained + GAINS:
            break
        chosen[best], explained = candidates.pop(best), tried[best]
    return _regimes(chosen, values) if explained >= EXPLAINS else Regimes.none()


def _nearest(column: Doubles, levels: Doubles, reach: Doubles) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """[N] the nearest level, and whether the value is within its reach."""
    missing = np.isnan(column)
    filled = np.where(missing, levels[0], column)
    place = np.searchsorted((levels[1:] + levels[:-1]) / 2, filled, side="right").astype(np.int64)
    return place, ~missing & (np.abs(filled - levels[place]) <= reach[place])


def _key(cell: tuple[int, ...]) -> int:
    key = 0
    for level in cell:
        key = key * MOST_LEVELS + level
    return key


def _levels(column: Floats) -> _Cut | None:
    """A few levels with wide gaps, or None where the point is no such point."""
    known = np.sort(column[~np.isnan(column)].astype(np.float64))
    if len(known) < 100 or known[0] == known[-1]:
        return None
    low, high = np.quantile(known, [STRAY / 2, 1 - STRAY / 2])
    if low == high:
        return None
    breaks = np.flatnonzero(np.diff(known) > GAP * (high - low))
    groups = [group for group in np.split(known, breaks + 1) if len(group) >= LEAST_SHARE * len(known)]
    if not 2 <= len(groups) <= MOST_LEVELS or sum(map(len, groups)) < (1 - STRAY) * len(known):
        return None
    levels = np.array([float(np.median(group)) for group in groups])
    gaps = np.diff(levels)
    nearest = np.minimum(np.append(gaps, np.inf), np.append(np.inf, gaps))
    spread = np.array([float(group[-1] - group[0]) for group in groups])
    return None if (spread > nearest / 2).any() else (levels, nearest / 3)


def _quantiles(column: Floats) -> _Cut | None:
    known = column[~np.isnan(column)].astype(np.float64)
    if not len(known):
        return None
    middles = np.unique(np.quantile(known, (np.arange(NAMED_BINS) + 0.5) / NAMED_BINS))
    return middles, np.full(len(middles), np.inf)


def _recur(column: Floats, cut: _Cut, asset_of: Ints) -> bool:
    """Whether most assets that see a level see it both in the first and in the second half of their record."""
    place, near = _nearest(column.astype(np.float64), *cut)
    bounds = np.flatnonzero(np.concatenate([[True], asset_of[1:] != asset_of[:-1]]))
    sizes = np.diff(np.append(bounds, len(asset_of)))
    late = np.arange(len(asset_of)) - np.repeat(bounds, sizes) >= np.repeat((sizes + 1) // 2, sizes)
    number = np.repeat(np.arange(len(bounds)), sizes)
    seen = np.zeros((len(bounds), len(cut[0]), 2), dtype=bool)
    seen[number[near], place[near], late[near].astype(int)] = True
    both, either = seen.all(axis=2).sum(axis=0), seen.any(axis=2).sum(axis=0)
    return bool((both >= RECURS * either).all() and (either >= RECURS * len(bounds)).all())


def _regimes(chosen: Mapping[int, _Cut], values: Floats) -> Regimes:
    if not chosen:
        return Regimes.none()
    points = tuple(chosen)
    every = Regimes(points, tuple(chosen[p][0] for p in points), tuple(chosen[p][1] for p in points), ())
    key, known = np.zeros(len(values), dtype=np.int64), np.ones(len(values), dtype=bool)
    for point, levels, reach in zip(points, every.levels, every.reach, strict=True):
        place, near = _nearest(values[:, point].astype(np.float64), levels, reach)
        key, known = key * MOST_LEVELS + place, known & near
    found, counts = np.unique(key[known], return_counts=True)
    cells = []
    for number in found[counts >= LEAST_SHARE * len(values)].tolist():
        cell: list[int] = []
        for _ in points:
            number, level = divmod(number, MOST_LEVELS)
            cell.insert(0, level)
        cells.append(tuple(cell))
    return Regimes(points, every.levels, every.reach, tuple(cells)) if len(cells) > 1 else Regimes.none()


def _explained(regimes: Regimes, values: Floats) -> float:
    """Share of variance that the conditions explain, of the median point that varies and tells of none."""
    condition = regimes.of(values)
    shares = []
    for point in range(values.shape[1]):
        column = values[:, point].astype(np.float64)
        known = ~np.isnan(column) & (condition < regimes.count)
        if point in regimes.points or known.sum() < 100 or column[known].std() <= 1e-9 * abs(column[known].mean()):
            continue
        own, group = column[known] - column[known].mean(), condition[known]
        counts = np.bincount(group, minlength=regimes.count)
        means = np.bincount(group, own, minlength=regimes.count) / np.maximum(counts, 1)
        shares.append(float((counts * means**2).sum() / (own**2).sum()))
    return float(np.median(shares)) if shares else 0.0
