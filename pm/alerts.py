"""The life of an alert: ISA-18.2 states, and what moves an alert from one to the next.

The states and their names follow ANSI/ISA-18.2-2016, figure 3 (alarm state transition diagram): an alert that has
returned to normal still wants to be seen by a person, and one that is hidden (shelved, suppressed, out of service)
goes on following the forecast underneath, so that it comes back as what it has become.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from pm.domain import Alert, AlertState, Cause, Explanation, Forecast, Reason
from pm.errors import TransitionError

__all__ = ["ALLOWED", "HIDDEN", "OPEN", "Cause", "raised", "transition"]

_NAMESPACE = uuid.UUID("5ce0a4a8-8c8b-5a3e-9d0c-3a1c7d0f6b52")

OPEN = tuple(state for state in AlertState if state is not AlertState.CLOSED)
"""Every state in which an alert still stands for something to be done."""
HIDDEN = (AlertState.SHELVED, AlertState.SUPPRESSED, AlertState.OUT_OF_SERVICE)
"""States in which an alert asks for no attention. The forecast is followed underneath."""

_SHOWN = (AlertState.UNACKNOWLEDGED, AlertState.ACKNOWLEDGED, AlertState.RETURNED_UNACKNOWLEDGED)

ALLOWED: dict[Cause, tuple[AlertState, ...]] = {
    Cause.ACKNOWLEDGE: (AlertState.UNACKNOWLEDGED, AlertState.RETURNED_UNACKNOWLEDGED),
    Cause.CLEAR: (AlertState.UNACKNOWLEDGED, AlertState.ACKNOWLEDGED, *HIDDEN),
    Cause.RAISE_AGAIN: (AlertState.RETURNED_UNACKNOWLEDGED, *HIDDEN),
    Cause.SHELVE: (*_SHOWN, AlertState.SHELVED),
    Cause.UNSHELVE: (AlertState.SHELVED,),
    Cause.SUPPRESS: _SHOWN,
    Cause.UNSUPPRESS: (AlertState.SUPPRESSED,),
    Cause.OUT_OF_SERVICE: (*_SHOWN, AlertState.SHELVED, AlertState.SUPPRESSED),
    Cause.IN_SERVICE: (AlertState.OUT_OF_SERVICE,),
    Cause.CLOSE: OPEN,
}
"""From which states each cause may move an alert. What it becomes is `transition`'s to say."""

_DONE = {
    Cause.ACKNOWLEDGE: "acknowledged",
    Cause.CLEAR: "cleared",
    Cause.RAISE_AGAIN: "raised again",
    Cause.SHELVE: "shelved",
    Cause.UNSHELVE: "unshelved",
    Cause.SUPPRESS: "suppressed",
    Cause.UNSUPPRESS: "unsuppressed",
    Cause.OUT_OF_SERVICE: "taken out of service",
    Cause.IN_SERVICE: "put back in service",
    Cause.CLOSE: "closed",
}


def raised(
    forecast: Forecast, *, cause: str, reasons: Sequence[Reason] = (), explanation: Explanation | None = None
) -> Alert:
    """The alert that `forecast` raises. Its id follows from asset and time alone, so that every replay gives the same.

    Raises ValueError when the forecast abstained: an unknown raises nothing.
    """
    probability = forecast.probability()
    if probability is None:
        raise ValueError(f"forecast of {forecast.asset} at {forecast.time.isoformat()} abstained and raises no alert")
    return Alert(
        id=str(uuid.uuid5(_NAMESPACE, f"{forecast.asset}\n{forecast.time.isoformat()}")),
        asset=forecast.asset,
        failure_mode=forecast.leading_mode() or "failure",
        raised_at=forecast.time,
        state=AlertState.UNACKNOWLEDGED,
        cause=cause,
        probability_at_raise=probability,
        model=forecast.model,
        reasons=tuple(reasons),
        explanation=explanation,
    )


def transition(
    alert: Alert,
    cause: Cause,
    at: datetime,
    *,
    by: str | None = None,
    until: datetime | None = None,
    because: str | None = None,
) -> Alert:
    """The alert after `cause` at `at`. `by` names the person, where one acted.

    `until` (later than `at`) is needed to shelve; `because` is needed to close. Raises TransitionError where the
    alert's state does not allow the cause, naming both.
    """
    _check(alert, cause, at, until, because)
    match cause:
        case Cause.ACKNOWLEDGE:
            seen = replace(alert, state=AlertState.ACKNOWLEDGED, acknowledged_at=at, acknowledged_by=by)
            return _settled(seen, at) if alert.state is AlertState.RETURNED_UNACKNOWLEDGED else seen
        case Cause.CLEAR:
            cleared = replace(alert, cleared_at=at)
            return cleared if alert.state in HIDDEN else _shown(cleared, at)
        case Cause.RAISE_AGAIN:
            # A new excursion wants to be seen anew, whatever was seen of the one before.
            again = replace(alert, cleared_at=None, acknowledged_at=None, acknowledged_by=None)
            return again if alert.state in HIDDEN else _shown(again, at)
        case Cause.SHELVE:
            return replace(alert, state=AlertState.SHELVED, shelved_until=until)
        case Cause.SUPPRESS:
            return replace(alert, state=AlertState.SUPPRESSED, shelved_until=None)
        case Cause.OUT_OF_SERVICE:
            return replace(alert, state=AlertState.OUT_OF_SERVICE, shelved_until=None)
        case Cause.UNSHELVE | Cause.UNSUPPRESS | Cause.IN_SERVICE:
            return _shown(replace(alert, shelved_until=None), at)
        case Cause.CLOSE:
            return replace(alert, state=AlertState.CLOSED, closed_at=at, closed_because=because, shelved_until=None)


def _check(alert: Alert, cause: Cause, at: datetime, until: datetime | None, because: str | None) -> None:
    name = f"alert {alert.id} of {alert.asset}"
    if alert.state not in ALLOWED[cause]:
        was = alert.state.value
        article = "an" if was[0] in "aeiou" else "a"
        raise TransitionError(f"{name} is {was}; {article} {was} alert cannot be {_DONE[cause]}")
    if alert.state in HIDDEN and cause is Cause.CLEAR and alert.cleared_at is not None:
        raise TransitionError(f"{name} has returned to normal already; it cannot be cleared twice")
    if alert.state in HIDDEN and cause is Cause.RAISE_AGAIN and alert.cleared_at is None:
        raise TransitionError(f"{name} has not returned to normal; it cannot be raised again")
    if cause is Cause.SHELVE and (until is None or until <= at):
        raise TransitionError(f"{name} cannot be shelved until {until and until.isoformat()}; name a time to come")
    if cause is Cause.CLOSE and not (because and because.strip()):
        raise TransitionError(f"{name} cannot be closed without a reason; say why")


def _shown(alert: Alert, at: datetime) -> Alert:
    """The state that the alert's own marks put it in, once nothing hides it."""
    if alert.cleared_at is None:
        seen = alert.acknowledged_at is not None
        return replace(alert, state=AlertState.ACKNOWLEDGED if seen else AlertState.UNACKNOWLEDGED)
    if alert.acknowledged_at is None:
        return replace(alert, state=AlertState.RETURNED_UNACKNOWLEDGED)
    return _settled(alert, at)


def _settled(alert: Alert, at: datetime) -> Alert:
    why = "returned to normal and acknowledged"
    return replace(alert, state=AlertState.CLOSED, closed_at=at, closed_because=why, shelved_until=None)
