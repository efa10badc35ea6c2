"""Tells other programs over MQTT: the present state of each alert and the latest forecast of each asset, retained."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import orjson

from connectors.mqtt import MqttPublisher
from connectors.topics import topic_fault
from pm.data_alerts import DataAlert, data_alert_json
from pm.domain import Alert, Forecast
from pm.errors import PmError
from pm.notices import alert_json, forecast_json

log = logging.getLogger(__name__)

STATUS_TOPIC = "pm/status"
ALERT_TOPIC = "pm/alerts/{asset}"
FORECAST_TOPIC = "pm/forecasts/{asset}"
DATA_TOPIC = "pm/data-alerts/{source}/{fault}"


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

    def data_alerts(self, alerts: Sequence[DataAlert]) -> None:
        """The present state of each source and fault; with none it sends what is owed."""
        self._send(
            {
                DATA_TOPIC.format(source=_level(alert.source), fault=alert.fault.value): orjson.dumps(
                    data_alert_json(alert)
                )
                for alert in alerts
            }
        )

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


def _level(asset: str) -> str:
    """The asset as one level of a topic; marks that MQTT keeps for itself become %xx, as in an address."""
    level = "".join(f"%{ord(mark):02X}" if mark in "/+#%" else mark for mark in asset)
    return level if topic_fault(level) is None else "unnamed"
