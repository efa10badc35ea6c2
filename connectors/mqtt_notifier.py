"""Tells other programs over MQTT: the present state of each alert and the latest forecast of each asset, retained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import orjson

from connectors.mqtt import MqttPublisher
from connectors.topics import topic_fault
from connectors.values import time_text
from pm.domain import REPORTED_HOURS, Alert, Forecast, to_us
from pm.errors import PmError

log = logging.getLogger(__name__)

STATUS_TOPIC = "pm/status"
ALERT_TOPIC = "pm/alerts/{asset}"
FORECAST_TOPIC = "pm/forecasts/{asset}"


class MqttNotifier:
    """A `pm.ports.Notifier`. Never waits and never raises.

    What cannot be sent now (no connection, no room) is owed: only the latest per topic, sent before the next notice.
    """

    def __init__(self, publisher: MqttPublisher) -> None:
        self._publisher = publisher
        self._owed: dict[str, bytes] = {}

    @property
    def owed(self) -> int:
        """Topics whose latest notice is not sent yet."""
        return len(self._owed)

    def alert(self, alert: Alert) -> None:
        self._send({ALERT_TOPIC.format(asset=_level(alert.asset)): orjson.dumps(alert_json(alert))})

    def forecasts(self, forecasts: Sequence[Forecast]) -> None:
        self._send({FORECAST_TOPIC.format(asset=_level(f.asset)): orjson.dumps(forecast_json(f)) for f in forecasts})

    def _send(self, notices: dict[str, bytes]) -> None:
        were_owed = len(self._owed)
        self._owed.update(notices)
        for topic, payload in list(self._owed.items()):
            try:
                if not self._publisher.offer(topic, payload, retain=True):
                    break
            except PmError as error:
                log.warning("notice on %s is not sent: %s", topic, error)
            del self._owed[topic]
        if self._owed and not were_owed:
            log.warning("notices over MQTT wait for the broker: %d topics", len(self._owed))
        elif were_owed and not self._owed:
            log.info("notices over MQTT are all sent")


def alert_json(alert: Alert) -> dict[str, Any]:
    """An alert as `pm/alerts/{asset}` carries it."""
    return {
        "alert": alert.id,
        "asset": alert.asset,
        "failure_mode": alert.failure_mode,
        "state": alert.state.value,
        "raised_at": _time(alert.raised_at),
        "acknowledged_at": _time(alert.acknowledged_at),
        "acknowledged_by": alert.acknowledged_by,
        "cleared_at": _time(alert.cleared_at),
        "closed_at": _time(alert.closed_at),
        "closed_because": alert.closed_because,
        "shelved_until": _time(alert.shelved_until),
        "cause": alert.cause,
        "probability_at_raise": alert.probability_at_raise,
        "model": alert.model,
        "reasons": [{"feature": r.feature, "contribution": r.contribution} for r in alert.reasons],
    }


def forecast_json(forecast: Forecast) -> dict[str, Any]:
    """A forecast as `pm/forecasts/{asset}` carries it; every number is null where it abstained."""
    return {
        "time": _time(forecast.time),
        "asset": forecast.asset,
        **{f"p{hours}": forecast.probability(hours) for hours in REPORTED_HOURS},
        "failure_modes": dict(forecast.mode_probability),
        "rul_hours": forecast.rul_hours,
        "abstained": None if forecast.abstained is None else forecast.abstained.value,
        "model": forecast.model,
    }


def _time(time: datetime | None) -> str | None:
    return None if time is None else time_text(to_us(time))


def _level(asset: str) -> str:
    """The asset as one level of a topic; marks that MQTT keeps for itself become %xx, as in an address."""
    level = "".join(f"%{ord(mark):02X}" if mark in "/+#%" else mark for mark in asset)
    return level if topic_fault(level) is None else "unnamed"
