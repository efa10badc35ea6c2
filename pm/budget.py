"""The threshold that an alert budget buys: the lowest that keeps false alerts within so many per asset-month.

The policy is run over the forecasts of assets whose failures are known, for many thresholds at once; its alerts are
matched with the failures as `pm.scorecard` does. The threshold is chosen by conformal risk control (Angelopoulos,
Bates, Fisch, Lei & Schuster, "Conformal Risk Control", ICLR 2024, arXiv:2208.02814, theorem 1): with the n asset-months
seen, the loss L_i(t) of each bounded by B and never rising with the threshold t, the lowest t with

    (L_1(t) + ... + L_n(t) + B) / (n + 1)  <=  budget

has an expected loss within the budget on a further asset-month exchangeable with those seen. Here L_i is the number
of false alerts raised in asset-month i, counted as B where it is more, and made monotone as the paper's section 2.3
has it, by the greatest loss at t or any higher threshold: a very low threshold gives one alert that stands for ever,
and must not pass for a good one.

What the bound does not say: months of one asset resemble each other more than those of two, and next year may not be
exchangeable with last, so it is a bound on sampling and not on change. With fewer than about B / budget asset-months
it cannot be met by any threshold; then the plain rate decides, and the result says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from pm.config import AlertsSection
from pm.domain import HORIZON
from pm.policy import NEVER, FleetState, advance
from pm.scorecard import ASSET_MONTH

WORST_MONTH = 4
"""B: more false alerts than this in one asset-month count as this many in the bound (never in the measured rate)."""

_MICROSECOND = timedelta(microseconds=1)
_BELOW = 1.0 - 1e-6
"""Candidates lie a little under forecasts that were seen, so that rounding elsewhere does not turn one over."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold on the 72 h probability, and what it cost and caught where it was chosen."""

    value: float
    budget: float
    """False alerts per asset-month that it was chosen to stay within."""
    guaranteed: bool
    """Whether `bound` is within the budget. Where not, asset-months were too few, and only `rate` is."""
    rate: float
    """False alerts per asset-month measured."""
    bound: float
    """The left side of the formula above."""
    recall: float | None
    """Share of failures warned, None when there were none."""
    failures: int
    asset_months: float


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What each candidate threshold did, ascending: false alerts and warned failures."""

    false: NDArray[np.int64]
    """[assets, months, thresholds]"""
    warned: NDArray[np.bool_]
    """[failures, thresholds]"""


def thresholds(
    probabilities: NDArray[np.floating],
    times_us: NDArray[np.int64],
    failures_us: Sequence[ArrayLike],
    budgets: Sequence[float],
    rules: AlertsSection,
    *,
    renewals_us: Sequence[ArrayLike] | None = None,
    observed_to_us: ArrayLike | None = None,
    horizon: timedelta = HORIZON,
    candidates: int = 64,
) -> dict[float, Threshold]:
    """The threshold for each budget (false alerts per asset-month).

    probabilities: [assets, times], P(failure within the horizon) as issued at each time, NaN where the forecast
        abstained or the asset was not assessed. Assessed time alone makes asset-months.
    times_us: [times], strictly ascending, microseconds since the epoch.
    failures_us: of each asset, the times of its failures.
    renewals_us: of each asset, the times at which the policy is to begin anew: its maintenance and its failures.
        The failures alone when left out.
    observed_to_us: [assets], time of each asset's last reading; its last forecast's time when left out.
    Raises ValueError when the shapes do not agree or nothing was forecast.
    """
    p = np.asarray(probabilities, np.float64)
    times = np.asarray(times_us, np.int64)
    _check_shapes(p, times, failures_us)
    known = ~np.isnan(p)
    failures = [np.sort(np.asarray(f, np.int64)) for f in failures_us]
    renewals = [np.sort(np.asarray(r, np.int64)) for r in (failures_us if renewals_us is None else renewals_us)]
    observed_to = _last_known(known, times) if observed_to_us is None else np.asarray(observed_to_us, np.int64)

    limits = _candidates(p, rules.on_delay, candidates)
    exposure = np.where(known, _steps(times), 0.0)
    months = exposure.sum() / (ASSET_MONTH // _MICROSECOND)
    outcome = _run(p, times, failures, renewals, observed_to, limits, exposure, rules, horizon)

    totals = outcome.false.sum((0, 1))
    rate = totals / months
    # Made monotone: at each threshold the greatest at it or above.
    worst_rate = np.maximum.accumulate(rate[::-1])[::-1]
    losses = np.maximum.accumulate(np.minimum(outcome.false, WORST_MONTH)[..., ::-1], axis=-1)[..., ::-1]
    bound = (losses.sum((0, 1)) + WORST_MONTH) / (months + 1)
    failed = len(outcome.warned)

    found = {}
    for budget in budgets:
        within = worst_rate <= budget
        sure = within & (bound <= budget)
        # The highest candidate raises nothing, so one is always within.
        chosen = int(np.argmax(sure if sure.any() else within))
        found[budget] = Threshold(
            value=float(limits[chosen]),
            budget=budget,
            guaranteed=bool(sure[chosen]),
            rate=float(rate[chosen]),
            bound=float(bound[chosen]),
            recall=float(outcome.warned[:, chosen].mean()) if failed else None,
            failures=failed,
            asset_months=float(months),
        )
    return found


def _check_shapes(p: NDArray[np.float64], times: NDArray[np.int64], failures: Sequence[ArrayLike]) -> None:
    if p.ndim != 2 or p.shape != (len(failures), len(times)):
        raise ValueError(
            f"probabilities {p.shape} are not [assets, times] of {len(failures)} assets, {len(times)} times"
        )
    if np.isnan(p).all():
        raise ValueError("every forecast abstained; a threshold needs forecasts of assets whose failures are known")
    if len(times) < 2 or (np.diff(times) <= 0).any():
        raise ValueError("times_us must be two or more, strictly ascending")


def _last_known(known: NDArray[np.bool_], times: NDArray[np.int64]) -> NDArray[np.int64]:
    last = times[known.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)]
    return np.where(known.any(1), last, NEVER)


def _steps(times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Time that each assessment stands for: since the one before, a gap in the times counting as one usual step."""
    steps = np.diff(times)
    usual = float(np.median(steps))
    return np.minimum(np.concatenate(([usual], steps)), usual)


def _candidates(p: NDArray[np.float64], on_delay: int, count: int) -> NDArray[np.float64]:
    """Thresholds, ascending, dense where alerts are few; the last raises nothing.

    Quantiles of what `on_delay` assessments in a row reach, since no alert is raised at more.
    """
    runs = p if p.shape[1] < on_delay else sliding_window_view(p, on_delay, axis=1).min(-1)
    reached = runs[~np.isnan(runs)]
    if reached.size == 0:
        return np.array([1.0])
    shares = np.geomspace(0.5, 1.0 / max(reached.size, 2), count)
    limits = np.quantile(reached, 1.0 - shares, method="inverted_cdf") * _BELOW
    silent = min(1.0, float(reached.max()) * (1.0 + 1e-6) + 1e-9)
    return np.unique(np.append(limits[limits > 0.0], silent))


def _run(
    p: NDArray[np.float64],
    times: NDArray[np.int64],
    failures: list[NDArray[np.int64]],
    renewals: list[NDArray[np.int64]],
    observed_to: NDArray[np.int64],
    limits: NDArray[np.float64],
    exposure: NDArray[np.float64],
    rules: AlertsSection,
    horizon: timedelta,
) -> _Outcome:
    """The policy over time for every asset and threshold together, its alerts matched with the failures."""
    n_assets, n_times = p.shape
    reach = horizon // _MICROSECOND
    blame = np.stack([_is_false(times, failed, end, reach) for failed, end in zip(failures, observed_to, strict=True)])
    renewed = np.stack([_latest_before(times, renewal) for renewal in renewals])
    month = np.minimum(np.cumsum(exposure, axis=1) / (ASSET_MONTH // _MICROSECOND), 1e6).astype(np.int64)
    owner, first, last = _windows(times, failures, observed_to, exposure, reach, rules)

    false = np.zeros((n_assets, int(month.max()) + 1, len(limits)), np.int64)
    warned = np.zeros((len(owner), len(limits)), np.bool_)
    state = FleetState.fresh((n_assets, len(limits)))
    rows = np.arange(n_assets)
    for i in range(n_times):
        step = advance(
            state,
            at_us=int(times[i]),
            probability=p[:, i, None],
            threshold=limits,
            renewed_us=renewed[:, i, None],
            rules=rules,
        )
        state = step.state
        if blame[:, i].any():
            false[rows, month[:, i]] += step.raised & blame[:, i, None]
        open_ = (first <= i) & (i <= last)
        if open_.any():
            warned[open_] |= state.standing[owner[open_]]
    return _Outcome(false, warned)


def _is_false(
    times: NDArray[np.int64], failures: NDArray[np.int64], observed_to: np.int64, reach: int
) -> NDArray[np.bool_]:
    """[times]: an alert raised then is followed by no failure within `reach`, and was watched as long."""
    following = np.searchsorted(failures, times, side="left")
    ahead = np.append(failures, np.iinfo(np.int64).max)[following] - times
    return (ahead > reach) & (times + reach <= observed_to)


def _latest_before(times: NDArray[np.int64], events: NDArray[np.int64]) -> NDArray[np.int64]:
    """[times]: the latest event dated strictly before, NEVER where there is none."""
    return np.concatenate(([NEVER], events))[np.searchsorted(events, times, side="left")]


def _windows(
    times: NDArray[np.int64],
    failures: list[NDArray[np.int64]],
    observed_to: NDArray[np.int64],
    exposure: NDArray[np.float64],
    reach: int,
    rules: AlertsSection,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of every failure that counts: its asset's row, and the first and last assessment at which a standing alert
    warns of it. What stands after an assessment stands until the next, so the one before the window opens counts."""
    least = rules.minimum_lead // _MICROSECOND
    owner, first, last = [], [], []
    for row, failed in enumerate(failures):
        assessed = np.flatnonzero(exposure[row] > 0)
        if assessed.size == 0:
            continue
        counts = failed[(failed > times[assessed[0]]) & (failed <= observed_to[row] + reach)]
        owner.append(np.full(len(counts), row))
        first.append(np.searchsorted(times, counts - reach, side="right") - 1)
        last.append(np.searchsorted(times, counts - least, side="right") - 1)
    if not owner:
        none = np.zeros(0, np.int64)
        return none, none, none
    return np.concatenate(owner), np.concatenate(first), np.concatenate(last)
