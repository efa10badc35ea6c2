"""The threshold that an alert budget buys: the lowest that keeps false alerts within so many per asset-month.

The policy is run over the forecasts of assets whose failures are known, for many thresholds at once; its alerts are
matched with the failures as `pm.scorecard` does. The threshold is chosen by conformal risk control (Angelopoulos,
Bates, Fisch, Lei & Schuster, "Conformal Risk Control", ICLR 2024, arXiv:2208.02814, theorem 1): with the n blocks of
time seen, the loss L_i(t) of each bounded by B and never rising with the threshold t, the lowest t with

    (L_1(t) + ... + L_n(t) + B) / (n + 1)  <=  budget of a block

has an expected loss within the budget on a further block exchangeable with those seen. A block is a week of one asset,
L_i the number of false alerts raised in it, counted as B = 1 where it is more, and made monotone as the paper's section
2.3 has it, by the greatest loss at t or any higher threshold: a very low threshold gives one alert that stands for
ever, and must not pass for a good one.

What the bound does not say: weeks of one asset resemble each other more than those of two, and next year may not be
exchangeable with last, so it is a bound on chance and not on change. The first of these is met by crossing: each asset
in turn is given the threshold that the others alone would have chosen, and where its false alerts, taken together, come
to more than the budget, the threshold is chosen for a smaller budget until they do not. With fewer than about
1 / budget asset-months the bound cannot be met by any threshold; then the lowest without a false alert is taken, and
the result says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from pm.config import AlertsSection
from pm.domain import HORIZON
from pm.policy import NEVER, FleetState, advance
from pm.scorecard import ASSET_MONTH

BLOCK = timedelta(weeks=1)
WORST_BLOCK = 1
"""B: more false alerts than this in a block count as this many in the bound (never in the measured rate)."""
SHARES = tuple(share / 20 for share in range(20, 9, -1))
"""Shares of the budget that crossing tries, from the whole of it to half of it."""

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
    """The left side of the formula above, per asset-month."""
    crossed: float | None
    """False alerts per asset-month when the threshold of each asset is chosen by the others; None with one asset."""
    recall: float | None
    """Share of failures warned, None when there were none."""
    failures: int
    asset_months: float


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What each candidate threshold did, ascending: false alerts and warned failures."""

    false: NDArray[np.int64]
    """[assets, blocks, thresholds]"""
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

    exposure = np.where(known, _steps(times), 0.0)
    months = exposure.sum(1) / (ASSET_MONTH // _MICROSECOND)

    def tried(limits: NDArray[np.float64]) -> tuple[_Outcome, _Ledger]:
        outcome = _run(p, times, failures, renewals, observed_to, limits, exposure, rules, horizon)
        return outcome, _Ledger.of(outcome.false, months)

    wanted = sorted(set(budgets))
    limits = _candidates(p, rules.on_delay, candidates)
    _, ledger = tried(limits)
    # Once more with candidates close to those chosen: a budget is worth using up.
    limits = _finer(limits, [ledger.chosen(budget)[0] for budget in wanted], p, rules.on_delay, candidates)
    outcome, ledger = tried(limits)
    failed = len(outcome.warned)

    found = {}
    for budget in budgets:
        chosen, crossed = ledger.chosen(budget)
        found[budget] = Threshold(
            value=float(limits[chosen]),
            budget=budget,
            guaranteed=bool(ledger.bound()[chosen] <= budget),
            rate=float(ledger.rate()[chosen]),
            bound=float(ledger.bound()[chosen]),
            crossed=crossed,
            recall=float(outcome.warned[:, chosen].mean()) if failed else None,
            failures=failed,
            asset_months=float(months.sum()),
        )
    return found


@dataclass(frozen=True, slots=True)
class _Ledger:
    """False alerts of A assets at T thresholds (ascending), summed over their blocks."""

    false: NDArray[np.float64]
    """[A, T] all of them."""
    loss: NDArray[np.float64]
    """[A, T] at most B in each block, and never rising with the threshold."""
    months: NDArray[np.float64]
    """[A] asset-months watched."""

    @classmethod
    def of(cls, false: NDArray[np.int64], months: NDArray[np.float64]) -> _Ledger:
        """false: [A, blocks, T]."""
        bounded = np.minimum(false, WORST_BLOCK)[..., ::-1]
        loss = np.maximum.accumulate(bounded, axis=-1)[..., ::-1].sum(1)
        return cls(false.sum(1).astype(np.float64), loss.astype(np.float64), months)

    def rate(self) -> NDArray[np.float64]:
        """[T] false alerts per asset-month."""
        return np.asarray(self.false.sum(0) / self.months.sum())

    def bound(self) -> NDArray[np.float64]:
        """[T] the bound on the expected loss, per asset-month."""
        return _bound(self.loss.sum(0), self.months.sum())

    def chosen(self, budget: float) -> tuple[int, float | None]:
        """The threshold for a budget, and the crossed rate of the choice."""
        total = self.months.sum()
        if np.count_nonzero(self.months) < 2:
            return int(_lowest(self.false.sum(0), self.loss.sum(0), total, budget)), None
        others = (self.false.sum(0) - self.false, self.loss.sum(0) - self.loss, (total - self.months)[:, None])
        best, least = SHARES[-1], np.inf
        for share in SHARES:
            by_others = _lowest(*others, share * budget)
            crossed = float(np.take_along_axis(self.false, by_others[:, None], 1).sum() / total)
            if crossed < least:
                best, least = share, crossed
            if crossed <= budget:
                break
        return int(_lowest(self.false.sum(0), self.loss.sum(0), total, best * budget)), least


def _bound(loss: NDArray[np.float64], months: Any) -> NDArray[np.float64]:
    return np.asarray((loss + WORST_BLOCK) / (months + BLOCK / ASSET_MONTH))


def _lowest(false: NDArray[np.float64], loss: NDArray[np.float64], months: Any, budget: float) -> NDArray[np.int64]:
    """[...] the lowest of the thresholds [..., T] with a bound within the budget, or, where there is none, with a rate
    within it."""
    # Made monotone: at each threshold the greatest at it or above.
    worst = np.maximum.accumulate((false / np.maximum(months, 1e-9))[..., ::-1], axis=-1)[..., ::-1]
    within = worst <= budget
    sure = within & (_bound(loss, months) <= budget)
    # The highest candidate raises nothing, so one is always within.
    lowest: NDArray[np.int64] = np.argmax(np.where(sure.any(-1, keepdims=True), sure, within), axis=-1)
    return lowest


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
    reached = _reached(p, on_delay)
    if reached.size == 0:
        return np.array([1.0])
    shares = np.geomspace(0.5, 1.0 / max(reached.size, 2), count)
    limits = np.quantile(reached, 1.0 - shares, method="inverted_cdf") * _BELOW
    silent = min(1.0, float(reached.max()) * (1.0 + 1e-6) + 1e-9)
    return np.unique(np.append(limits[limits > 0.0], silent))


def _reached(p: NDArray[np.float64], on_delay: int) -> NDArray[np.float64]:
    """What `on_delay` assessments in a row reach."""
    runs = p if p.shape[1] < on_delay else sliding_window_view(p, on_delay, axis=1).min(-1)
    return np.asarray(runs[~np.isnan(runs)])


def _finer(
    limits: NDArray[np.float64], chosen: Sequence[int], p: NDArray[np.float64], on_delay: int, count: int
) -> NDArray[np.float64]:
    """The candidates, and `count` more in all between each chosen one and the next lower, which was too low."""
    reached = _reached(p, on_delay)
    parts = [limits]
    for index in chosen:
        between = reached[(reached > limits[max(index - 1, 0)]) & (reached <= limits[index])] * _BELOW
        if between.size:
            shares = np.linspace(0.0, 1.0, max(1, count // len(chosen)))
            parts.append(np.quantile(between, shares, method="inverted_cdf"))
    found = np.unique(np.concatenate(parts))
    return found[found > 0.0]


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
    block = np.minimum(np.cumsum(exposure, axis=1) / (BLOCK // _MICROSECOND), 1e6).astype(np.int64)
    owner, first, last = _windows(times, failures, observed_to, exposure, reach, rules)

    false = np.zeros((n_assets, int(block.max()) + 1, len(limits)), np.int64)
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
            false[rows, block[:, i]] += step.raised & blame[:, i, None]
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
