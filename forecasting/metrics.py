"""How good forecasts are: ranking, calibration and remaining life, with intervals over assets. Numpy only.

A forecast issued at t is judged by what is known to have happened in the hours after t. Where the record ends before
that is known, the row is left out: the end of a record is censoring, not health. `forecasting.censoring` holds the
scores that use such rows through weights instead.

Forecasts of one asset are far from independent, so intervals come from resampling whole assets: a replicate weighs
every row by how often its asset was drawn (the "multiplicity"), which needs no copy and no second sort.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

UNKNOWN: Final = -1
HOUR_US: Final = 3_600_000_000
BINS: Final = 10


@dataclass(frozen=True)
class Outcomes:
    """What followed each of N forecasts."""

    asset: Ints
    """[N] index of the asset; rows of one asset need not be adjacent."""
    assets: int
    """A, the number of assets; assets without a forecast may count too."""
    failure_hours: Floats
    """[N] hours from issue to the asset's next failure, inf where none is recorded."""
    observed_hours: Floats
    """[N] hours from issue to the end of the asset's record."""

    def within(self, hours: float, after: float = 0.0) -> NDArray[np.int8]:
        """[N] whether the next failure comes in (after, hours] from issue: 1 yes, 0 no, UNKNOWN not known.

        Unknown: the record ends within `hours` and no failure was recorded, not even later. With `after` the question
        is asked only of assets that live so long: a failure up to `after` makes the row UNKNOWN too, since its answer
        is decided already.
        """
        known = np.isfinite(self.failure_hours) | (self.observed_hours >= hours)
        known &= self.failure_hours > after
        return np.where(known, self.failure_hours <= hours, UNKNOWN).astype(np.int8)


def outcomes(
    asset: ArrayLike, time_us: ArrayLike, failure_asset: ArrayLike, failure_us: ArrayLike, end_us: ArrayLike
) -> Outcomes:
    """Match forecasts with what followed.

    asset, time_us: [N] asset index and issue time (microseconds) of every forecast.
    failure_asset, failure_us: [F] asset index and time of every failure, in any order.
    end_us: [A] end of each asset's record.
    A failure dated t is not ahead of a forecast issued at t.
    """
    rows, times = np.asarray(asset, np.int64), np.asarray(time_us, np.int64)
    failed, failed_at = np.asarray(failure_asset, np.int64), np.asarray(failure_us, np.int64)
    ends = np.asarray(end_us, np.int64)
    hours = np.full(rows.size, np.inf)
    order = np.lexsort((failed_at, failed))
    failed, failed_at = failed[order], failed_at[order]
    for index in np.unique(failed):
        own = np.flatnonzero(rows == index)
        of_asset = failed_at[np.searchsorted(failed, index) : np.searchsorted(failed, index, side="right")]
        following = np.searchsorted(of_asset, times[own], side="right")
        ahead = following < of_asset.size
        hours[own[ahead]] = (of_asset[following[ahead]] - times[own[ahead]]) / HOUR_US
    return Outcomes(rows, ends.size, hours, (ends[rows] - times) / HOUR_US)


def conditional(early: Floats, late: Floats) -> Floats:
    """P(fails in (a, b] | alive at a) from P(fails by a) and P(fails by b), elementwise; 0 where a is certain."""
    alive = 1.0 - early
    return np.divide(late - early, alive, out=np.zeros_like(alive), where=alive > 0.0)


# --- intervals over assets


REPLICATES = 200
"""Resamples of the assets that an interval comes of, unless more is at stake."""


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % bootstrap interval over assets; None where the data cannot tell."""

    value: float | None
    low: float | None = None
    high: float | None = None
    replicates: Floats = field(default_factory=lambda: np.empty(0), compare=False, repr=False)
    """[R] the score in every replicate (NaN where undefined), so that two scores can be compared in pairs."""

    def minus(self, other: Estimate) -> Estimate:
        """The difference with its paired interval. Both must come from the same multiplicities."""
        if self.value is None or other.value is None:
            return Estimate(None)
        return estimate(self.value - other.value, self.replicates - other.replicates)

    def to_json(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


def multiplicities(assets: int, replicates: int, rng: np.random.Generator) -> Floats:
    """[R, A] how often each asset is drawn in each replicate of a bootstrap over assets (rows sum to A).

    No replicate with fewer than two assets, and so no interval: one asset says nothing about how much assets differ.
    """
    if assets < 2:
        return np.empty((0, assets))
    return rng.multinomial(assets, np.full(assets, 1.0 / assets), size=replicates).astype(np.float64)


def estimate(value: float, replicates: Floats) -> Estimate:
    """A value with the percentile interval of its replicates. NaN is None.

    The interval is withheld when more than a tenth of the replicates are undefined (a handful of assets with failures).
    """
    if np.isnan(value):
        return Estimate(None)
    defined = replicates[~np.isnan(replicates)]
    if defined.size == 0 or defined.size < 0.9 * replicates.size:
        return Estimate(float(value), replicates=replicates)
    low, high = np.quantile(defined, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high), replicates)


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Elementwise quotient, NaN (without a warning) where the denominator is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    quotient = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=quotient, where=bottom != 0.0)
    return quotient


def mean_over_assets(value: Floats, asset: Ints, multiplicity: Floats, weight: Floats | None = None) -> Estimate:
    """The (weighted) mean of rows [N] with its interval: sums per asset, then one product with the multiplicities."""
    assets = multiplicity.shape[1]
    weight = np.ones(value.size) if weight is None else weight
    sums = np.bincount(asset, value * weight, assets)
    weights = np.bincount(asset, weight, assets)
    whole = ratio(sums.sum(), weights.sum())
    return estimate(float(whole), ratio(multiplicity @ sums, multiplicity @ weights))


# --- ranking


class Ranking:
    """Rows in falling order of score, sorted once; every reweighting of the assets then costs one pass."""

    def __init__(
        self, truth: ArrayLike, score: ArrayLike, asset: ArrayLike | None = None, weight: Floats | None = None
    ) -> None:
        """truth [N] bool, score [N] (higher is likelier), asset [N] index, weight [N] of the rows (1 when None)."""
        truth_, score_ = np.asarray(truth, np.bool_), np.asarray(score, np.float64)
        if truth_.shape != score_.shape or truth_.ndim != 1:
            raise ValueError(f"truth {truth_.shape} and score {score_.shape} must be vectors of one length")
        order = np.argsort(-score_, kind="stable")
        falling = score_[order]
        starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]]) if falling.size else np.empty(0, np.int64)
        ends = np.r_[starts[1:], falling.size]
        self._asset: Ints = (np.zeros(truth_.size, np.int64) if asset is None else np.asarray(asset, np.int64))[order]
        self._weight = None if weight is None else weight[order]
        self._positive = np.flatnonzero(truth_[order])
        tie = np.searchsorted(starts, self._positive, side="right") - 1
        # Only ties that hold a positive move precision or the Mann-Whitney count; the rest is summed over.
        ties, self._first = np.unique(tie, return_index=True)
        self._start, self._end = starts[ties], ends[ties]

    def average_precision(self, multiplicity: Floats | None = None) -> float:
        """Area under the precision-recall curve as a step function (no interpolation); NaN without a positive.

        AP = sum over thresholds of (R_n - R_{n-1}) P_n, tied scores being one threshold, as in scikit-learn.
        """
        above, positive, caught = self._sums(multiplicity)
        if positive.size == 0 or caught[-1] == 0.0:
            return float("nan")
        reached = above[self._end]
        precision = np.divide(caught, reached, out=np.zeros_like(caught), where=reached > 0.0)
        return float(positive @ precision / caught[-1])

    def roc_auc(self, multiplicity: Floats | None = None) -> float:
        """P(a positive outranks a negative), ties counting one half; NaN without one of each."""
        above, positive, caught = self._sums(multiplicity)
        if positive.size == 0:
            return float("nan")
        negatives = above[-1] - caught[-1]
        # Weights that cancel leave rounding behind: below any single weight there is no negative.
        if caught[-1] == 0.0 or negatives <= 1e-9 * above[-1]:
            return float("nan")
        ahead = above[self._start] - (caught - positive)
        tied = above[self._end] - above[self._start] - positive
        return float(1.0 - positive @ (ahead + tied / 2.0) / (caught[-1] * negatives))

    def curve(self) -> tuple[Floats, Floats]:
        """Recall and precision at every threshold that holds a positive, from strict to lenient."""
        above, _, caught = self._sums(None)
        return ratio(caught, caught[-1:] if caught.size else 1.0), ratio(caught, above[self._end])

    def _sums(self, multiplicity: Floats | None) -> tuple[Floats, Floats, Floats]:
        """Weight of all rows above each cut [N+1], of positives in each tie [G], of positives up to each tie [G]."""
        weight = np.ones(self._asset.size) if multiplicity is None else multiplicity[self._asset]
        if self._weight is not None:
            weight = weight * self._weight
        above = np.concatenate(([0.0], np.cumsum(weight)))
        if self._positive.size == 0:
            return above, np.empty(0), np.empty(0)
        positive = np.add.reduceat(weight[self._positive], self._first)
        return above, positive, np.cumsum(positive)


def average_precision(truth: ArrayLike, score: ArrayLike) -> float:
    """Average precision (PR-AUC) of [N] scores; see `Ranking.average_precision`."""
    return Ranking(truth, score).average_precision()


def roc_auc(truth: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve of [N] scores; see `Ranking.roc_auc`."""
    return Ranking(truth, score).roc_auc()


# --- calibration


@dataclass(frozen=True)
class Reliability:
    """Forecast against frequency in B <= 10 bins of (nearly) equal mass, in rising order of forecast."""

    predicted: Floats
    """[B] mean forecast."""
    observed: Floats
    """[B] share of rows that failed."""
    count: Ints
    """[B] rows."""
    low: Floats
    """[B] 95 % interval over assets of `observed`, NaN where it cannot be told."""
    high: Floats
    error: Estimate
    """Expected calibration error: mean over rows of |predicted - observed| of their bin."""

    def to_json(self) -> dict[str, list[float | None]]:
        columns = {name: getattr(self, name) for name in ("predicted", "observed", "count", "low", "high")}
        return {
            name: [None if np.isnan(value) else float(value) for value in values] for name, values in columns.items()
        }


def reliability(
    truth: ArrayLike, probability: ArrayLike, asset: ArrayLike, multiplicity: Floats, bins: int = BINS
) -> Reliability:
    """The reliability curve of [N] probabilities and its expected calibration error.

    Bins hold equal numbers of rows where values differ; equal values share a bin, so that the order of rows has no
    say. Bins are those of the whole sample in every replicate. The error's replicates scatter upward by nature (an
    absolute value of noise), so its interval may lie above its value.
    """
    happened, forecast = np.asarray(truth, np.float64), np.asarray(probability, np.float64)
    rows = np.asarray(asset, np.int64)
    empty = np.empty(0)
    if forecast.size == 0:
        return Reliability(empty, empty, np.empty(0, np.int64), empty, empty, Estimate(None))
    bin_ = bins_of(forecast, bins)
    kinds, assets = int(bin_.max()) + 1, multiplicity.shape[1]
    cell = rows * kinds + bin_
    shape = (assets, kinds)
    count, predicted, observed = (
        np.bincount(cell, weights, assets * kinds).reshape(shape) for weights in (None, forecast, happened)
    )
    gap = np.abs((predicted - observed).sum(0)).sum() / forecast.size
    replicated = np.abs(multiplicity @ (predicted - observed)).sum(1)
    error = estimate(float(gap), ratio(replicated, multiplicity @ count.sum(1)))
    frequency = ratio(multiplicity @ observed, multiplicity @ count)
    intervals = [estimate(0.0, frequency[:, index]) for index in range(kinds)]
    total = count.sum(0)
    return Reliability(
        predicted=predicted.sum(0) / total,
        observed=observed.sum(0) / total,
        count=total.astype(np.int64),
        low=np.array([np.nan if i.low is None else i.low for i in intervals]),
        high=np.array([np.nan if i.high is None else i.high for i in intervals]),
        error=error,
    )


def bins_of(forecast: Floats, bins: int = BINS) -> Ints:
    """[N] the bin of each of N > 0 forecasts, counted from 0 in rising order: of equal mass where values differ."""
    cuts = np.sort(forecast)[(np.arange(1, bins) * forecast.size) // bins]
    _, bin_ = np.unique(np.searchsorted(np.unique(cuts), forecast, side="right"), return_inverse=True)
    return np.asarray(bin_, np.int64)


def calibration_error(truth: ArrayLike, probability: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error of [N] probabilities in equal-mass bins; NaN for no rows."""
    rows = np.zeros(np.size(probability), np.int64)
    value = reliability(truth, probability, rows, np.ones((1, 1)), bins).error.value
    return float("nan") if value is None else value


def brier(truth: ArrayLike, probability: ArrayLike) -> float:
    """Mean squared distance of [N] probabilities from what happened (0 or 1); NaN for no rows. Brier (1950)."""
    gap = np.asarray(probability, np.float64) - np.asarray(truth, np.float64)
    return float(gap @ gap / gap.size) if gap.size else float("nan")


# --- all of it at one horizon


@dataclass(frozen=True)
class HorizonScore:
    """Scores of the probabilities at one horizon, over the rows whose outcome is known."""

    known: int
    positives: int
    unknown: int
    """Rows left out: outcome not known, or no probability issued."""
    pr_auc: Estimate
    roc_auc: Estimate
    brier: Estimate
    reliability: Reliability
    recall: Floats
    """[G] precision-recall curve, thinned to a few hundred thresholds for drawing."""
    precision: Floats

    @property
    def base_rate(self) -> float | None:
        """Share of positives: the PR-AUC of a forecaster that knows nothing."""
        return self.positives / self.known if self.known else None


def score_horizon(truth: NDArray[np.int8], probability: Floats, asset: Ints, multiplicity: Floats) -> HorizonScore:
    """Score [N] probabilities (NaN: none issued) against outcomes of `Outcomes.within`; multiplicity is [R, A]."""
    usable = (truth != UNKNOWN) & ~np.isnan(probability)
    happened, forecast, rows = truth[usable] == 1, probability[usable], asset[usable]
    ranking = Ranking(happened, forecast, rows)
    recall, precision = ranking.curve()
    thin = np.unique(np.linspace(0, recall.size - 1, 300).astype(np.int64)) if recall.size else slice(None)
    return HorizonScore(
        known=int(usable.sum()),
        positives=int(happened.sum()),
        unknown=int(truth.size - usable.sum()),
        pr_auc=estimate(
            ranking.average_precision(), np.array([ranking.average_precision(draw) for draw in multiplicity])
        ),
        roc_auc=estimate(ranking.roc_auc(), np.array([ranking.roc_auc(draw) for draw in multiplicity])),
        brier=mean_over_assets((forecast - happened) ** 2, rows, multiplicity),
        reliability=reliability(happened, forecast, rows, multiplicity),
        recall=recall[thin],
        precision=precision[thin],
    )


# --- remaining life


def rul_rmse(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Root mean squared error of remaining life, in the unit of its inputs ([N] each); NaN for no rows."""
    gap = np.asarray(predicted, np.float64) - np.asarray(truth, np.float64)
    return float(np.sqrt(gap @ gap / gap.size)) if gap.size else float("nan")


def phm08_penalty(truth: ArrayLike, predicted: ArrayLike) -> Floats:
    """[N] the penalty of the PHM08 challenge (NASA score), whose sum is the score: exp(-d/13) - 1 where the forecast is
    early (d = predicted - truth < 0) and exp(d/10) - 1 where it is late; d in steps (C-MAPSS: flight cycles).

    Saxena et al., "Damage propagation modeling for aircraft engine run-to-failure simulation", PHM 2008.
    """
    late = np.asarray(predicted, np.float64) - np.asarray(truth, np.float64)
    return np.expm1(np.where(late < 0.0, -late / 13.0, late / 10.0))


def rul_rmse_over_assets(truth: Floats, predicted: Floats, asset: Ints, multiplicity: Floats) -> Estimate:
    """`rul_rmse` of [N] rows with its interval over assets."""
    square = mean_over_assets((predicted - truth) ** 2, asset, multiplicity)
    if square.value is None:
        return square
    return estimate(float(np.sqrt(square.value)), np.sqrt(square.replicates))
