"""Whether a forecast's inputs are of the kind that the model was trained on; where they are not, what is strange.

Three questions, each about the readings of the last patch and of the window that ends with it:
- Does the asset run in an operating condition that training had (`forecasting.regimes`)?
- Is each point near the values that it had in training, and near what the other points let expect (its residual)?
- Is the window as a whole near those of training? Its embedding's Mahalanobis distance says (Lee, Lee, Lee & Shin, A
  simple unified framework for detecting out-of-distribution samples and adversarial attacks, NeurIPS 2018), with the
  covariance shrunk (Ledoit & Wolf, A well-conditioned estimator for large-dimensional covariance matrices, 2004).

Wear is out of the ordinary by nature and must not silence a forecast. What was read before failures therefore counts
as much as all the rest: in the ranges, in the covariance (half of it), and in the limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from forecasting.features import Normaliser, standardised
from forecasting.windows import Grid, Ints

Doubles = npt.NDArray[np.float64]

FALSE = 0.001
"""Share of validation windows that may be called strange, by either of the two limits."""
FALSE_BEFORE_FAILURE = 0.01
"""The same of the windows within the horizon before a failure."""
LEAST_REACH = 0.5
"""A point may always leave the range of training by so much of that range."""
MARGIN = 1.25
POINT_MARGIN = 2.0
"""Windows of one asset are alike, so that the farthest one of a few assets is no bound for the next: limits stand so
many times as far. A point may differ more between assets than the whole does."""
NAMED = 3
"""Points that a reason names."""
CHUNK = 4096
KINDS = 2
"""A point is judged by its value and by its residual."""


@dataclass(frozen=True)
class Levels:
    """Where the points stood lately: the lower median of the last patch of R rows."""

    plain: Doubles
    """[R, KINDS, P] value and residual in spreads, neither clipped; NaN where not read. A residual needs every point
    that it is told from, since a lost one says nothing of the others."""
    raw: Doubles
    """[R, P] in the points' units."""
    unseen: npt.NDArray[np.bool_]
    """[R] whether most of the patch, as far as it tells of one, was in an operating condition unknown to training."""


@dataclass(frozen=True)
class Familiar:
    """What the inputs of training were like, and how far from that is too far."""

    low: Doubles
    """[KINDS, P] least and most of `Levels.plain` in training; NaN for a point never read."""
    high: Doubles
    centre: Doubles
    """[E] mean embedding."""
    whiten: Doubles
    """[E, E] makes the embeddings' covariance one."""
    reach: Doubles
    """[KINDS, P] limit on how far each point leaves its range, in widths of it. Each has its own: a counter, or what
    one asset of the few has otherwise, must not blind the rest."""
    distance: float
    """Limit on the Mahalanobis distance of the embedding."""

    def arrays(self) -> dict[str, Doubles]:
        return {name: getattr(self, name) for name in ("low", "high", "centre", "whiten", "reach")}

    def as_json(self) -> dict[str, float]:
        return {"distance": self.distance}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]], values: Mapping[str, float]) -> Familiar:
        """Back from `arrays` and `as_json`. Raises KeyError for what is missing."""
        low, high, centre, whiten, reach = (
            np.asarray(arrays[name], np.float64) for name in ("low", "high", "centre", "whiten", "reach")
        )
        return cls(low, high, centre, whiten, reach, float(values["distance"]))

    def excess(self, levels: Levels) -> Doubles:
        """[R, KINDS, P] how far each point stands outside its range, in widths of it; 0 inside and where unknown."""
        width = np.maximum(self.high - self.low, 1.0)
        beyond = np.maximum(self.low - levels.plain, levels.plain - self.high) / width
        return np.nan_to_num(np.maximum(beyond, 0.0), nan=0.0)

    def distances(self, embedding: Doubles) -> Doubles:
        """[R] of embeddings [R, E], one by one in one order, so that bits do not depend on the rows beside them."""
        moved = np.ascontiguousarray(embedding - self.centre)
        return np.array([math.sqrt(float(np.square(np.einsum("ij,j->i", self.whiten, row)).sum())) for row in moved])

    def strange(self, levels: Levels, embedding: Doubles) -> npt.NDArray[np.bool_]:
        """[R] whether a forecast from these inputs would be a guess."""
        beyond = (self.excess(levels) > self.reach).any(axis=(1, 2))
        return np.asarray(levels.unseen | beyond | (self.distances(embedding) > self.distance))

    def why(self, grid: Grid, normaliser: Normaliser, rows: Ints, embedding: Doubles) -> list[str]:
        """What is strange about each of these rows of the grid, in words; empty where nothing is. embedding: [R, E]."""
        levels = levels_of(grid, normaliser, rows)
        group, condition = normaliser.place(grid, rows)
        centre, scale = normaliser.centre[group, condition], normaliser.scale[group, condition]
        low, high = self.low[0] * scale + centre, self.high[0] * scale + centre
        excess, far = self.excess(levels) / self.reach, self.distances(embedding) / self.distance
        points = grid.schema.points
        said = []
        for row in range(len(rows)):
            raw, beyond = levels.raw[row], excess[row]
            if levels.unseen[row]:
                telling = ", ".join(f"{points[p]} {raw[p]:.4g}" for p in normaliser.regimes.points)
                said.append(f"no operating condition of training has {telling}")
            elif beyond.max(initial=0.0) > 1.0:
                said.append(
                    "; ".join(
                        f"{points[p]} reads {raw[p]:.4g}, in training {low[row, p]:.4g} to {high[row, p]:.4g}"
                        if beyond[0, p] > 1.0
                        else f"{points[p]} reads {raw[p]:.4g}, which does not go with the other points"
                        for p in _largest(beyond.max(axis=0), 1.0)
                    )
                )
            elif far[row] > 1.0:
                off = np.abs(np.nan_to_num(levels.plain[row])).max(axis=0, initial=0.0)
                names = ", ".join(points[p] for p in _largest(off, 0.0))
                told = f"; farthest from usual: {names}" if names else ""
                said.append(f"the inputs together are {far[row]:.1f} times as far from training as is borne{told}")
            else:
                said.append("")
        return said


def levels_of(grid: Grid, normaliser: Normaliser, rows: Ints) -> Levels:
    """The levels that these rows end with. A row's depend on the patch that ends with it alone."""
    patch, points = grid.schema.patch, len(grid.schema.points)
    plain = np.full((len(rows), KINDS, points), np.nan)
    raw, unseen = np.full((len(rows), points), np.nan), np.zeros(len(rows), dtype=bool)
    start = grid.offsets[grid.asset_of[rows]] if len(rows) else rows
    for begin in range(0, len(rows), CHUNK):
        place = slice(begin, begin + CHUNK)
        back = rows[place, None] - np.arange(patch)
        inside = back >= start[place, None]
        needed, where = np.unique(np.where(inside, back, rows[place, None]), return_inverse=True)
        where = where.reshape(back.shape)
        value, residual, condition = standardised(grid, normaliser, needed)
        values = grid.values[needed]
        for kind, column in enumerate((value, residual)):
            plain[place, kind] = _lower_median(np.where(inside[..., None], column[where], np.nan))
        raw[place] = _lower_median(np.where(inside[..., None], values[where], np.nan))
        regimes = normaliser.regimes
        told = inside & ~np.isnan(values[:, list(regimes.points)]).any(axis=1)[where]
        strange = told & (condition == regimes.count)[where]
        unseen[place] = (2 * strange.sum(axis=1) > told.sum(axis=1)) & bool(regimes.count)
    return Levels(plain, raw, unseen)


def fit_familiar(
    levels: Sequence[Levels],
    embedding: Doubles,
    failing: npt.NDArray[np.bool_],
    *,
    judged: Levels,
    judged_failing: npt.NDArray[np.bool_],
    seen: Doubles,
    seen_failing: npt.NDArray[np.bool_],
    before: Familiar | None = None,
) -> Familiar:
    """From training windows and windows that are judged by.

    levels: of training rows, in parts. embedding: [M, E] of training windows; failing: [M] whether a failure follows
    within the horizon. judged: levels of validation rows; seen: [S, E] embeddings of some of them. before: of the
    model that training went on from; what it knew stays known.
    The limits are conformal quantiles (Vovk, Gammerman & Shafer, Algorithmic learning in a random world, 2005) of the
    validation windows at `FALSE` and of those before failures at `FALSE_BEFORE_FAILURE`, whichever is farther, and
    never nearer than the training windows' own. Half the share goes to the distance, half to the points, each of which
    has its part of it. With too few windows for the quantile the farthest one stands for it. They have their margin.
    """
    lows, highs = [_least(part.plain) for part in levels], [-_least(-part.plain) for part in levels]
    if before is not None:
        lows, highs = [*lows, before.low], [*highs, before.high]
    low, high = _least(np.stack(lows)), -_least(-np.stack(highs))
    centre, whiten = _whitening(embedding, failing)
    open_ended = Familiar(low, high, centre, whiten, np.full(low.shape, np.inf), math.inf)
    beyond = open_ended.excess(judged).reshape(len(judged.raw), -1)
    far, own = open_ended.distances(seen), open_ended.distances(embedding)
    reach = np.array([POINT_MARGIN * _limit(point, judged_failing, 1 / len(beyond.T)) for point in beyond.T])
    distance = MARGIN * max(_limit(far, seen_failing), _limit(own, failing))
    return Familiar(low, high, centre, whiten, np.maximum(reach, LEAST_REACH).reshape(low.shape), distance)


def _limit(score: Doubles, failing: npt.NDArray[np.bool_], part: float = 1.0) -> float:
    return max(_quantile(score, FALSE / 2 * part), _quantile(score[failing], FALSE_BEFORE_FAILURE / 2 * part))


def _quantile(score: Doubles, false: float) -> float:
    """The least limit that a further window passes with probability of at most `false`, being like these."""
    if not len(score):
        return 0.0
    place = math.ceil((len(score) + 1) * (1.0 - false))
    return float(np.sort(score)[min(place, len(score)) - 1])


def _whitening(embedding: Doubles, failing: npt.NDArray[np.bool_]) -> tuple[Doubles, Doubles]:
    """Mean [E] and whitening [E, E]; half the weight is with the windows before failures, where there are any."""
    weight = np.ones(len(embedding))
    if failing.any() and not failing.all():
        weight = np.where(failing, 0.5 / failing.sum(), 0.5 / (~failing).sum())
    weight /= weight.sum()
    centre = weight @ embedding
    moved = (embedding - centre) * np.sqrt(weight)[:, None]
    cover, size = moved.T @ moved, embedding.shape[1]
    level = float(np.trace(cover)) / size
    spread = float(((cover - level * np.eye(size)) ** 2).sum())
    # Of weighted observations: the error of the mean of w_i x_i x_i', to which w_i = 1 / n gives the paper's formula.
    error = float((np.square(moved).sum(axis=1) ** 2).sum() - (weight**2).sum() * (cover**2).sum())
    shrink = min(max(error / spread, 0.0), 1.0) if spread > 0 else 1.0
    shrunk = shrink * level * np.eye(size) + (1.0 - shrink) * cover + 1e-9 * max(level, 1e-9) * np.eye(size)
    return centre, np.linalg.inv(np.linalg.cholesky(shrunk))


def _lower_median(values: npt.NDArray[Any]) -> Doubles:
    """[R, K, P] to [R, P], NaN left out: always one of the values, so that it has their bits."""
    ordered = np.sort(values, axis=1)
    count = (~np.isnan(values)).sum(axis=1)
    place = np.maximum(count - 1, 0) // 2
    return np.take_along_axis(ordered, place[:, None], axis=1)[:, 0].astype(np.float64)


def _least(values: Doubles) -> Doubles:
    """Minimum over the first axis, NaN left out; NaN where all is."""
    least = np.where(np.isnan(values), np.inf, values).min(axis=0, initial=np.inf)
    return np.where(np.isinf(least), np.nan, least)


def _largest(values: Doubles, over: float) -> list[int]:
    """Places of the few largest values beyond a limit, the largest first."""
    return [int(place) for place in np.argsort(-values, kind="stable")[:NAMED] if values[place] > over]
