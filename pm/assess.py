"""One assessment: a forecast or an abstention for every asset, and what follows for its alerts.

The live service and a replay run this same code; they differ in the store, the log and the clock they hand in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import pandas as pd

from pm import alerts as alert_life
from pm import policy, quality
from pm.config import AlertsSection, AssessSection, PlantSection
from pm.domain import (
    EARLIEST,
    Alert,
    Cause,
    EventKind,
    Forecast,
    History,
    Reason,
    to_us,
)
from pm.errors import ModelError
from pm.ports import AlertChange, AssessmentLog, AssetRegister, Forecaster, Notifier, ReadingStore

log = logging.getLogger(__name__)

REASONS = 5
"""Reasons kept with an alert."""
_LATE = timedelta(days=30)
"""A maintenance or failure recorded later than this after it happened closes no alert any more."""
_CAUSE_REASONS = 3
"""Reasons that its cause text names."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """What one assessment found and did."""

    at: datetime
    forecasts: tuple[Forecast, ...] = ()
    raised: tuple[Alert, ...] = ()
    cleared: tuple[Alert, ...] = ()
    """Returned to normal by the forecast."""
    closed: tuple[Alert, ...] = ()
    """Ended by the asset's maintenance or failure, or by a new alert of the same asset."""
    unshelved: tuple[Alert, ...] = ()


def threshold_for(forecaster: Forecaster, budget: float) -> float:
    """The threshold of the largest alert budget at or under `budget` that the forecaster was made for.

    Raises ModelError when every one is larger: a threshold for more false alerts than people will bear is none.
    """
    fitting = [known for known in forecaster.thresholds if known <= budget * (1 + 1e-9)]
    if not fitting:
        known = ", ".join(f"{budget:g}" for budget in sorted(forecaster.thresholds)) or "none"
        raise ModelError(
            f"model {forecaster.version} has no threshold for alerts.budget = {budget:g} or less (it has: {known}); "
            "raise the budget, or train again with it in the configuration"
        )
    return forecaster.thresholds[max(fitting)]


def cause_text(reasons: Sequence[Reason]) -> str:
    """The strongest reasons in words: `"vibration +1.9, error1 +0.7"`, in units of log-hazard."""
    strongest = sorted(reasons, key=lambda reason: -abs(reason.contribution))[:_CAUSE_REASONS]
    return ", ".join(f"{reason.feature} {reason.contribution:+.1f}" for reason in strongest) or "no single reason"


class _Renewal(NamedTuple):
    """A maintenance or failure."""

    time_us: int
    kind: str
    code: str


class Assessor:
    """Forecasts every registered asset from the store, and raises, clears and closes alerts in the log.

    `forecaster` may be exchanged between two assessments (a challenger was promoted). Not for several threads.
    """

    def __init__(
        self,
        *,
        store: ReadingStore,
        log: AssessmentLog,
        register: AssetRegister,
        forecaster: Forecaster,
        plant: PlantSection,
        assess: AssessSection,
        alerts: AlertsSection,
        notifiers: Sequence[Notifier] = (),
    ) -> None:
        self.forecaster = forecaster
        self._store = store
        self._log = log
        self._register = register
        self._plant = plant
        self._assess = assess
        self._alerts = alerts
        self._notifiers = tuple(notifiers)
        self._first: dict[str, datetime] = {}

    def assess(self, at: datetime) -> Assessment:
        """Forecast every asset from what was known at `at`, decide on alerts, and record both in one transaction.

        A time that was assessed already, or lies before one that was, is passed over: the alert policy counts
        assessments, and none may count twice. Raises ModelError when the forecaster has no threshold for the alert
        budget or does not fit the data, and whatever store and log raise; nothing is recorded then.
        """
        last = self._log.last_assessment()
        if last is not None and at <= last:
            log.info("%s was assessed already (the latest is %s); passed over", _text(at), _text(last))
            return Assessment(at)
        threshold = threshold_for(self.forecaster, self._alerts.budget)
        history = self._history(at)
        names = [asset.name for asset in history.assets]
        forecasts = self._forecasts(history, at)

        before = policy.FleetState.of(names, self._log.policy_state())
        renewals = _renewals(history.events, at - max(_LATE, self._alerts.suppress_after_maintenance), at)
        step = policy.advance(
            before,
            at_us=to_us(at),
            probability=[_number(forecast.probability()) for forecast in forecasts],
            threshold=threshold,
            renewed_us=[renewals[name][-1].time_us if name in renewals else policy.NEVER for name in names],
            rules=self._alerts,
        )
        open_alerts = self._log.standing_alerts()
        raised, changes = self._decide(history, at, forecasts, before, step, renewals, open_alerts)
        touched = self._log.record(
            at, forecasts=forecasts, raised=raised, changes=changes, policy=step.state.by_asset(names)
        )
        return self._tell(at, forecasts, touched, changes)

    def again(self, at: datetime, assets: Sequence[str]) -> list[Forecast]:
        """What would be forecast of these assets at a past time from what is stored by now. Nothing is recorded."""
        return self._forecasts(self._history(at, assets), at)

    @property
    def reach(self) -> timedelta:
        """How far back readings matter to a forecast or to whether there is one."""
        limits = quality.Limits.of(self._assess, self._plant.interval)
        # An interval more, because a reading just as old as a limit allows must still be found.
        return max(self.forecaster.lookback, limits.off_after, limits.stale_after) + self._plant.interval

    def _history(self, at: datetime, only: Sequence[str] | None = None) -> History:
        assets = self._register.assets()
        if only is not None:
            wanted = frozenset(only)
            assets = tuple(asset for asset in assets if asset.name in wanted)
        names = [asset.name for asset in assets]
        return History(
            interval=self._plant.interval,
            points=self._register.points(),
            failure_modes=self._register.failure_modes(),
            assets=assets,
            readings=self._store.readings(at - self.reach, at, names),
            events=self._store.events(EARLIEST, at, names),
        )

    def _forecasts(self, history: History, at: datetime) -> list[Forecast]:
        """One per asset, in the register's order."""
        why = quality.abstentions(
            history,
            at,
            first=self._first_readings(history, at),
            rules=self._assess,
            silences=self._register.silences(),
        )
        able = tuple(asset for asset in history.assets if asset.name not in why)
        issued = (
            {f.asset: f for f in self.forecaster.forecast(history.only([asset.name for asset in able]), at)}
            if able
            else {}
        )
        version = self.forecaster.version
        return [
            issued.get(asset.name) or Forecast(asset.name, at, version, abstained=why[asset.name])
            for asset in history.assets
        ]

    def _first_readings(self, history: History, at: datetime) -> Mapping[str, datetime]:
        """First reading of every asset. The store is asked only while an asset is young or unheard of, since this can
        be the dearest of its answers, and who has history enough keeps it."""
        old_enough = at - quality.Limits.of(self._assess, self._plant.interval).min_history
        if any(self._first.get(asset.name, at) > old_enough for asset in history.assets):
            self._first = {name: first for name, (first, _) in self._store.span().items()}
        return self._first

    def _decide(
        self,
        history: History,
        at: datetime,
        forecasts: Sequence[Forecast],
        before: policy.FleetState,
        step: policy.Step,
        renewals: Mapping[str, Sequence[_Renewal]],
        open_alerts: Mapping[str, Alert],
    ) -> tuple[list[Alert], list[AlertChange]]:
        """Alerts to add, and steps to take with those that are open."""
        raised: list[Alert] = []
        changes: list[AlertChange] = []
        heeded = step.state.renewed_us > before.renewed_us
        # One alert after another reads its asset out of this: out of those alone that raise one, not of a large fleet.
        raising = [forecast.asset for forecast, now in zip(forecasts, step.raised, strict=True) if now]
        narrow = history.only(raising) if raising else history
        for i, forecast in enumerate(forecasts):
            alert = open_alerts.get(forecast.asset)
            if alert is not None and alert.shelved_until is not None and alert.shelved_until <= at:
                changes.append(AlertChange(alert.id, Cause.UNSHELVE))
                shown = alert_life.transition(alert, Cause.UNSHELVE, at)
                alert = shown if shown.state in alert_life.OPEN else None
            if alert is not None and heeded[i]:
                because = _renewal_text(renewals[forecast.asset], before.renewed_us[i])
                changes.append(AlertChange(alert.id, Cause.CLOSE, because))
                alert = None
            if alert is not None and step.cleared[i]:
                changes.append(AlertChange(alert.id, Cause.CLEAR))
            if step.raised[i]:
                if alert is not None and alert.state in alert_life.HIDDEN:
                    # Whoever put the alert aside meant this asset's excursions, not one of them.
                    changes.append(AlertChange(alert.id, Cause.RAISE_AGAIN))
                    continue
                new = self._raised(narrow, at, forecast)
                if alert is not None:
                    changes.append(AlertChange(alert.id, Cause.CLOSE, f"raised again as {new.id}"))
                raised.append(new)
        return raised, changes

    def _raised(self, history: History, at: datetime, forecast: Forecast) -> Alert:
        asset = next(asset for asset in history.assets if asset.name == forecast.asset)
        why = self.forecaster.explain(history.only([asset.name]), at, asset.name, REASONS)
        return alert_life.raised(forecast, cause=cause_text(why.reasons), reasons=why.reasons, explanation=why)

    def _tell(
        self, at: datetime, forecasts: list[Forecast], touched: Sequence[Alert], changes: Sequence[AlertChange]
    ) -> Assessment:
        causes: dict[str, set[Cause]] = {}
        for change in changes:
            causes.setdefault(change.alert, set()).add(change.cause)

        def having(cause: Cause) -> tuple[Alert, ...]:
            return tuple(alert for alert in touched if cause in causes.get(alert.id, ()))

        found = Assessment(
            at=at,
            forecasts=tuple(forecasts),
            raised=tuple(alert for alert in touched if alert.id not in causes) + having(Cause.RAISE_AGAIN),
            cleared=having(Cause.CLEAR),
            closed=having(Cause.CLOSE),
            unshelved=having(Cause.UNSHELVE),
        )
        quiet = sum(forecast.abstained is not None for forecast in forecasts)
        log.info(
            "assessed %s: %d forecasts, %d abstained, %d alerts raised, %d cleared, %d closed",
            _text(at),
            len(forecasts) - quiet,
            quiet,
            len(found.raised),
            len(found.cleared),
            len(found.closed),
        )
        for notifier in self._notifiers:
            for alert in touched:
                notifier.alert(alert)
            notifier.forecasts(found.forecasts)
        return found


def _renewals(events: pd.DataFrame, since: datetime, at: datetime) -> dict[str, list[_Renewal]]:
    """Each asset's maintenance and failures with since < time < at, in order of time.

    Strictly before `at`, as forecasts see them. `since` only spares work: the policy has long heeded older ones.
    """
    times = pd.DatetimeIndex(events["time"]).as_unit("us").asi8
    rows = np.arange(np.searchsorted(times, to_us(since), side="right"), np.searchsorted(times, to_us(at)))
    found: dict[str, list[_Renewal]] = {}
    columns = (events[name].array[rows] for name in ("asset", "kind", "code"))
    for asset, kind, code, time_us in zip(*columns, times[rows].tolist(), strict=True):
        if kind in (EventKind.MAINTENANCE, EventKind.FAILURE):
            found.setdefault(asset, []).append(_Renewal(time_us, kind, code))
    return found


def _renewal_text(renewals: Sequence[_Renewal], heeded_us: int) -> str:
    """Why an alert closes: `"failed (bearing)"`, or without a failure `"maintained (bearing)"`."""
    new = [renewal for renewal in renewals if renewal.time_us > heeded_us]
    failed = [renewal for renewal in new if renewal.kind == EventKind.FAILURE]
    done = "failed" if failed else "maintained"
    return f"{done} ({', '.join(dict.fromkeys(renewal.code for renewal in failed or new))})"


def _number(probability: float | None) -> float:
    return float("nan") if probability is None else probability


def _text(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"
