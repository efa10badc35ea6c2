"""Alerts matched with failures: which failures were warned of, how early, and at what price in false alerts.

The definitions, used by every report, by the search for thresholds (`pm.budget`) and by `docs/alerts.md`:

- A failure is warned when an alert of its asset was raised or standing at some time from 72 h to the minimum lead
  before it. Its lead runs from the first such time to the failure, so it is 72 h at most.
- Alerts of one asset that overlap are one, from the first raising on.
- An alert is true when its asset fails within 72 h of its raising (both ends included), false when it does not, and
  undecided, which is neither, when the record ends within those 72 h without a failure.
- A failure counts when its asset was observed before it and not longer than 72 h before it for the last time.
- A rate is per asset-month of 30.44 observed days.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pm.domain import HORIZON, Alert, to_us

ASSET_MONTH = timedelta(days=30.44)
LEAD_HOURS = (1, 6, 24, 48, 72)
"""Leads at which recall is told."""

_HOUR_US = 3_600_000_000
_MICROSECOND = timedelta(microseconds=1)


class AlertSpan(NamedTuple):
    """An alert as the scorecard sees it."""

    asset: str
    failure_mode: str
    raised_us: int
    ended_us: int | None = None
    """Cleared or closed, whichever came first; None while it stands."""


class FailureTime(NamedTuple):
    """A failure that happened."""

    asset: str
    failure_mode: str
    time_us: int


class Verdict(StrEnum):
    """What became of an alert's claim."""

    TRUE = "true"
    FALSE = "false"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Interval:
    """A share or rate with its 95 % bootstrap interval over assets; None where there is nothing to divide by.

    `low` and `high` are None as well where fewer than two assets bear on the value: one asset says nothing about
    how much assets differ.
    """

    value: float | None
    low: float | None
    high: float | None

    def report(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class ModeScore:
    """One failure mode's failures."""

    total: int
    warned: int
    named: int
    """Warned by an alert that named this mode."""

    @property
    def missed(self) -> int:
        return self.total - self.warned


@dataclass(frozen=True, slots=True)
class Scorecard:
    """What alerts were worth on a record."""

    asset_months: float
    failures: tuple[FailureTime, ...]
    """The failures that count, by asset and time."""
    lead_hours: tuple[float | None, ...]
    """Of each of `failures`: its lead, at most 72; None where it was missed."""
    unobserved: int
    """Failures left out, because their asset was not observed around them."""
    alerts: tuple[AlertSpan, ...]
    """After those that overlap became one, by asset and time."""
    verdicts: tuple[Verdict, ...]
    """Of each of `alerts`."""
    recall: Interval
    recall_at_lead: Mapping[int, Interval]
    """Share of failures warned at least so many hours before, for each of LEAD_HOURS."""
    precision: Interval
    """True alerts among true and false ones."""
    false_alerts_per_asset_month: Interval
    by_mode: Mapping[str, ModeScore]

    @property
    def warned(self) -> int:
        return sum(lead is not None for lead in self.lead_hours)

    @property
    def missed(self) -> tuple[FailureTime, ...]:
        return tuple(f for f, lead in zip(self.failures, self.lead_hours, strict=True) if lead is None)

    def count(self, verdict: Verdict) -> int:
        return self.verdicts.count(verdict)

    def lead_quantile(self, share: float) -> float | None:
        """Lead in hours that so large a share of the warned failures stays at or under; None with none warned."""
        leads = [lead for lead in self.lead_hours if lead is not None]
        return float(np.quantile(leads, share)) if leads else None

    def report(self) -> dict[str, Any]:
        """The part of a replay's `report.json` that comes from alerts and failures, with its keys."""
        return {
            "asset_months": self.asset_months,
            "failures": {
                "total": len(self.failures),
                "warned": self.warned,
                "missed": len(self.failures) - self.warned,
                "by_mode": {
                    mode: {"total": s.total, "warned": s.warned, "missed": s.missed, "named": s.named}
                    for mode, s in self.by_mode.items()
                },
            },
            "recall": {
                **self.recall.report(),
                "at_lead": {f"{hours}h": share.value for hours, share in self.recall_at_lead.items()},
            },
            "precision": self.precision.report(),
            "false_alerts_per_asset_month": self.false_alerts_per_asset_month.report(),
            "lead_hours": {
                "median": self.lead_quantile(0.5),
                "p10": self.lead_quantile(0.1),
                "p90": self.lead_quantile(0.9),
            },
        }


def spans(alerts: Iterable[Alert]) -> list[AlertSpan]:
    """Alerts of the domain as the scorecard sees them."""
    found = []
    for alert in alerts:
        ends = [to_us(end) for end in (alert.cleared_at, alert.closed_at) if end is not None]
        found.append(AlertSpan(alert.asset, alert.failure_mode, to_us(alert.raised_at), min(ends, default=None)))
    return found


def lead_hours(alert: AlertSpan, failures: Sequence[FailureTime], horizon: timedelta = HORIZON) -> float | None:
    """Hours from the alert's raising to the first failure of its asset within the horizon; None when there is none."""
    reach = horizon // _MICROSECOND
    ahead = [f.time_us - alert.raised_us for f in failures if f.asset == alert.asset]
    within = [us for us in ahead if 0 <= us <= reach]
    return min(within) / _HOUR_US if within else None


def score(
    alerts: Iterable[tuple[str, str, int, int | None]],
    failures: Iterable[tuple[str, str, int]],
    observed: Mapping[str, tuple[int, int]],
    *,
    minimum_lead: timedelta,
    rng: np.random.Generator,
    horizon: timedelta = HORIZON,
    replicates: int = 1000,
) -> Scorecard:
    """Score alerts against failures by the definitions at the head of this module.

    alerts: (asset, failure mode, raised, ended or None), failures: (asset, failure mode, time), in any order, times in
        microseconds since the epoch.
    observed: first and last reading of every asset that took part, whether it failed or not.
    rng: draws the bootstrap, `replicates` resamples of whole assets (Efron & Tibshirani 1993, percentile interval).
    Raises ValueError for an alert of an asset that was not observed.
    """
    reach, least = horizon // _MICROSECOND, minimum_lead // _MICROSECOND
    merged = _merged([AlertSpan(*alert) for alert in alerts])
    stray = {alert.asset for alert in merged} - observed.keys()
    if stray:
        raise ValueError(f"alert of asset {min(stray)}, which was not observed; name the assets that were replayed")
    asked = sorted(FailureTime(*failure) for failure in failures)
    asked.sort(key=lambda f: (f.asset, f.time_us))
    counted = [f for f in asked if _counts(f, observed, reach)]

    warnings = [_warning(failure, merged, reach) for failure in counted]
    leads = [lead / _HOUR_US if lead is not None and lead >= least else None for _, lead in warnings]
    verdicts = [_verdict(alert, counted, observed[alert.asset][1], reach) for alert in merged]

    tally = _Tally(sorted(observed))
    tally.add(
        "months", ((asset, (end - start) * _MICROSECOND / ASSET_MONTH) for asset, (start, end) in observed.items())
    )
    tally.add("failures", ((f.asset, 1.0) for f in counted))
    tally.add("warned", ((f.asset, 1.0) for f, lead in zip(counted, leads, strict=True) if lead is not None))
    for hours in LEAD_HOURS:
        early = (
            f.asset
            for f, (_, lead) in zip(counted, warnings, strict=True)
            if lead is not None and lead >= hours * _HOUR_US
        )
        tally.add(f"at {hours}", ((asset, 1.0) for asset in early))
    tally.add("true", ((a.asset, 1.0) for a, v in zip(merged, verdicts, strict=True) if v is Verdict.TRUE))
    tally.add("false", ((a.asset, 1.0) for a, v in zip(merged, verdicts, strict=True) if v is Verdict.FALSE))
    tally.add("decided", ((a.asset, 1.0) for a, v in zip(merged, verdicts, strict=True) if v is not Verdict.UNDECIDED))
    weights = rng.multinomial(len(observed), np.full(len(observed), 1 / max(len(observed), 1)), replicates)

    return Scorecard(
        asset_months=tally.total("months"),
        failures=tuple(counted),
        lead_hours=tuple(leads),
        unobserved=len(asked) - len(counted),
        alerts=tuple(merged),
        verdicts=tuple(verdicts),
        recall=tally.ratio("warned", "failures", weights),
        recall_at_lead={hours: tally.ratio(f"at {hours}", "failures", weights) for hours in LEAD_HOURS},
        precision=tally.ratio("true", "decided", weights),
        false_alerts_per_asset_month=tally.ratio("false", "months", weights),
        by_mode=_by_mode(counted, leads, [mode for mode, _ in warnings]),
    )


def _merged(alerts: list[AlertSpan]) -> list[AlertSpan]:
    """Overlapping alerts of one asset as one, named after the first. Where one ends as another begins they are two."""
    found: list[AlertSpan] = []
    for alert in sorted(alerts, key=lambda a: (a.asset, a.raised_us, a.failure_mode)):
        last = found[-1] if found else None
        if (
            last is None
            or last.asset != alert.asset
            or (last.ended_us is not None and last.ended_us <= alert.raised_us)
        ):
            found.append(alert)
        else:
            ends = (last.ended_us, alert.ended_us)
            found[-1] = last._replace(ended_us=None if None in ends else max(e for e in ends if e is not None))
    return found


def _counts(failure: FailureTime, observed: Mapping[str, tuple[int, int]], reach: int) -> bool:
    if failure.asset not in observed:
        return False
    start, end = observed[failure.asset]
    return start < failure.time_us <= end + reach


def _of_asset(asset: str, alerts: list[AlertSpan]) -> Iterable[AlertSpan]:
    for index in range(bisect_left(alerts, asset, key=lambda a: a.asset), len(alerts)):
        if alerts[index].asset != asset:
            return
        yield alerts[index]


def _warning(failure: FailureTime, alerts: list[AlertSpan], reach: int) -> tuple[str | None, int | None]:
    """Mode named by the first alert that stood or rose within `reach` before the failure, and its lead."""
    opens = failure.time_us - reach
    for alert in _of_asset(failure.asset, alerts):
        if alert.raised_us > failure.time_us:
            break
        if alert.raised_us >= opens or alert.ended_us is None or alert.ended_us > opens:
            return alert.failure_mode, failure.time_us - max(alert.raised_us, opens)
    return None, None


def _verdict(alert: AlertSpan, failures: list[FailureTime], observed_to: int, reach: int) -> Verdict:
    first = bisect_left(failures, (alert.asset, alert.raised_us), key=lambda f: (f.asset, f.time_us))
    next_failure = failures[first] if first < len(failures) else None
    last = alert.raised_us + reach
    if next_failure is not None and next_failure.asset == alert.asset and next_failure.time_us <= last:
        return Verdict.TRUE
    return Verdict.FALSE if last <= observed_to else Verdict.UNDECIDED


def _by_mode(failures: list[FailureTime], leads: list[float | None], named: list[str | None]) -> dict[str, ModeScore]:
    found: dict[str, ModeScore] = {}
    for failure, lead, name in sorted(zip(failures, leads, named, strict=True), key=lambda row: row[0].failure_mode):
        mode = failure.failure_mode
        so_far = found.get(mode, ModeScore(0, 0, 0))
        warned = lead is not None
        found[mode] = ModeScore(so_far.total + 1, so_far.warned + warned, so_far.named + (warned and name == mode))
    return found


class _Tally:
    """Counts by asset, and ratios of them with their bootstrap intervals."""

    def __init__(self, assets: list[str]) -> None:
        self._rows = {asset: row for row, asset in enumerate(assets)}
        self._counts: dict[str, NDArray[np.float64]] = {}

    def add(self, name: str, amounts: Iterable[tuple[str, float]]) -> None:
        counts = self._counts.setdefault(name, np.zeros(len(self._rows)))
        for asset, amount in amounts:
            counts[self._rows[asset]] += amount

    def total(self, name: str) -> float:
        return float(self._counts[name].sum())

    def ratio(self, above: str, below: str, weights: NDArray[np.int64]) -> Interval:
        """Ratio of totals; weights [replicates, assets] say how often each resample holds each asset."""
        if self.total(below) == 0.0:
            return Interval(None, None, None)
        value = self.total(above) / self.total(below)
        if np.count_nonzero(self._counts[below]) < 2:
            return Interval(value, None, None)
        denominators = weights @ self._counts[below]
        held = denominators > 0
        ratios = (weights @ self._counts[above])[held] / denominators[held]
        low, high = np.quantile(ratios, (0.025, 0.975))
        return Interval(value, float(low), float(high))
