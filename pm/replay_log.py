"""The assessment log of a replay: in memory, with the meaning of the plant's own records."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from pm.alerts import transition
from pm.domain import Alert, AlertState, Forecast
from pm.errors import TransitionError
from pm.ports import AlertChange, PolicyState

log = logging.getLogger(__name__)


class MemoryLog:
    """`pm.ports.AssessmentLog` without a database. Forecasts are not kept: `Assessor.assess` returns them."""

    def __init__(self) -> None:
        self._alerts: dict[str, Alert] = {}
        self._open: dict[str, Alert] = {}
        self._policy: dict[str, PolicyState] = {}
        self._assessed: set[datetime] = set()
        self._last: datetime | None = None

    def alerts(self) -> list[Alert]:
        """Every alert, by time of raising and asset."""
        return sorted(self._alerts.values(), key=lambda alert: (alert.raised_at, alert.asset))

    def policy_state(self) -> Mapping[str, PolicyState]:
        return self._policy

    def standing_alerts(self) -> Mapping[str, Alert]:
        return self._open

    def last_assessment(self) -> datetime | None:
        return self._last

    def record(
        self,
        at: datetime,
        *,
        forecasts: Sequence[Forecast],
        raised: Sequence[Alert],
        changes: Sequence[AlertChange],
        policy: Mapping[str, PolicyState],
    ) -> tuple[Alert, ...]:
        if at in self._assessed:
            return ()
        told: dict[str, Alert] = {}
        for change in changes:
            before = told.get(change.alert, self._alerts[change.alert])
            try:
                told[change.alert] = transition(before, change.cause, at, because=change.because)
            except TransitionError as error:
                log.info("assessment at %s passes over a step: %s", at.isoformat(), error)
        told |= {alert.id: alert for alert in raised}
        self._alerts |= told
        for alert in told.values():
            if alert.state is not AlertState.CLOSED:
                self._open[alert.asset] = alert
            elif (present := self._open.get(alert.asset)) is not None and present.id == alert.id:
                del self._open[alert.asset]
        self._policy |= policy
        self._assessed.add(at)
        self._last = at if self._last is None else max(self._last, at)
        return tuple(told.values())
