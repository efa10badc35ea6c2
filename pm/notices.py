"""Alerts and forecasts as other programs meet them: over MQTT, in the dashboard's API, on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pm.domain import REPORTED_HOURS, Alert, Explanation, Forecast, Reason


def time_text(time: datetime | None) -> str | None:
    """ISO 8601 in UTC with a Z; None stays None."""
    return None if time is None else time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def alert_json(alert: Alert) -> dict[str, Any]:
    """An alert for other programs: on MQTT, in the dashboard's API, on the command line. Times in ISO 8601, UTC."""
    return {
        "alert": alert.id,
        "asset": alert.asset,
        "failure_mode": alert.failure_mode,
        "state": alert.state.value,
        "raised_at": time_text(alert.raised_at),
        "acknowledged_at": time_text(alert.acknowledged_at),
        "acknowledged_by": alert.acknowledged_by,
        "cleared_at": time_text(alert.cleared_at),
        "closed_at": time_text(alert.closed_at),
        "closed_because": alert.closed_because,
        "shelved_until": time_text(alert.shelved_until),
        "cause": alert.cause,
        "probability_at_raise": alert.probability_at_raise,
        "model": alert.model,
        "reasons": reasons_json(alert.reasons),
        "explanation": explanation_json(alert.explanation),
    }


def reasons_json(reasons: Sequence[Reason]) -> list[dict[str, Any]]:
    """Contributions of the strongest inputs, in units of log-hazard."""
    return [{"feature": reason.feature, "contribution": reason.contribution} for reason in reasons]


def explanation_json(explanation: Explanation | None) -> dict[str, Any] | None:
    """What there is beside the reasons: that they add up, since when, and which failures looked like this before.

    None where it was not worked out.
    """
    if explanation is None or explanation.change is None:
        return None
    return {
        "change": explanation.change,
        "rest": explanation.rest,
        "residual": explanation.residual,
        "average_p72": explanation.average,
        "began": time_text(explanation.began),
        "earlier": explanation.earlier,
        "precedents": [
            {
                "asset": one.asset,
                "failed_at": time_text(one.failed_at),
                "failure_mode": one.failure_mode,
                "hours_left": one.hours_left,
                "likeness": one.likeness,
            }
            for one in explanation.precedents
        ],
    }


def forecast_json(forecast: Forecast) -> dict[str, Any]:
    """A forecast for other programs; every number is null where it abstained, never 0."""
    return {
        "time": time_text(forecast.time),
        "asset": forecast.asset,
        **{f"p{hours}": forecast.probability(hours) for hours in REPORTED_HOURS},
        "failure_mode": forecast.leading_mode(),
        "failure_modes": dict(forecast.mode_probability),
        "rul_hours": forecast.rul_hours,
        "abstained": None if forecast.abstained is None else forecast.abstained.value,
        "because": forecast.because or None,
        "model": forecast.model,
    }
