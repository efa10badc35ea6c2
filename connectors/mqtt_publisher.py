"""MQTT as a way to publish: at least once, each message confirmed by the broker."""

from __future__ import annotations

import threading
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.reasoncodes import ReasonCode

from connectors.mqtt_session import MqttSession, unavailable
from pm.config import BrokerSection
from pm.errors import FeedError

_GOODBYE_SECONDS: Final = 2.0
_ONLINE: Final = b'{"status":"online"}'
_OFFLINE: Final = b'{"status":"offline"}'


class MqttPublisher:
    """Publishes with QoS 1, holding at most `inflight` unconfirmed messages; a `pm.ports.Publisher`.

    What is unconfirmed when the connection is lost is sent again on the next.
    """

    def __init__(
        self,
        section: BrokerSection,
        *,
        client_id: str = "",
        inflight: int = 200,
        timeout: float = 60.0,
        status_topic: str | None = None,
    ) -> None:
        """client_id: empty for one of the broker's choosing. timeout: seconds that `publish` waits for room.

        inflight: more than a few hundred is slower, since paho walks through all of them at each confirmation.

        status_topic: retained there while connected {"status":"online"}; once the connection has ended, in order or
        not (last will), {"status":"offline"}.
        """
        self._limit = inflight
        self._timeout = timeout
        self._status_topic = status_topic
        self._confirmed = threading.Condition()
        self._unconfirmed = 0
        self._refusal: str | None = None
        self._session = MqttSession(
            section, client_id=client_id, clean_start=True, prepare=self._prepare, on_open=self._on_open
        )

    @property
    def connected(self) -> bool:
        return self._session.connected

    def open(self) -> None:
        """Connect. Raises FeedError where the broker refuses for good; one that is away is tried again."""
        self._session.open()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Send one message; waits while `inflight` are unconfirmed.

        Raises FeedUnavailable where there is no room in `timeout` seconds, FeedError where the topic is none or the
        broker refused a message published before.
        """
        if not self._send(topic, payload, retain, self._timeout):
            raise unavailable(self._session, f"{self._limit} messages are unconfirmed for {self._timeout:.0f} s")

    def offer(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Send one message if that needs no waiting: False when there is no connection or no room."""
        return self.connected and self._send(topic, payload, retain, 0.0)

    def flush(self, timeout: float = 60.0) -> None:
        """Return when every message is confirmed. Raises as `publish` does."""
        with self._confirmed:
            if not self._confirmed.wait_for(lambda: not self._unconfirmed, timeout):
                raise unavailable(self._session, f"{self._unconfirmed} messages are unconfirmed after {timeout:.0f} s")
            self._raise_refusal()

    def close(self) -> None:
        """End the connection. What is not confirmed by then may not have arrived; `flush` first."""
        if self._status_topic is not None and self.offer(self._status_topic, _OFFLINE, retain=True):
            with self._confirmed:
                self._confirmed.wait_for(lambda: not self._unconfirmed, _GOODBYE_SECONDS)
        self._session.close()

    def _send(self, topic: str, payload: bytes, retain: bool, timeout: float) -> bool:
        with self._confirmed:
            if not self._confirmed.wait_for(lambda: self._unconfirmed < self._limit, timeout):
                return False
            self._raise_refusal()
            self._unconfirmed += 1
        self._publish(topic, payload, retain)
        return True

    def _publish(self, topic: str, payload: bytes, retain: bool) -> None:
        # Without our lock: paho confirms on its own thread while it holds a lock that publishing needs.
        try:
            self._session.client.publish(topic, payload, qos=1, retain=retain)
        except ValueError as error:
            with self._confirmed:
                self._unconfirmed -= 1
            raise FeedError(f"{self._session.name}: cannot publish on {topic!r} ({error}); mend the topic") from None

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise FeedError(refusal)

    def _prepare(self, client: paho.Client) -> None:
        client.max_inflight_messages_set(min(self._limit, 65535))
        client.max_queued_messages_set(0)  # bounded here, by waiting; paho would refuse
        client.on_publish = self._on_publish
        if self._status_topic is not None:
            client.will_set(self._status_topic, _OFFLINE, qos=1, retain=True)

    def _on_open(self, session_present: bool) -> None:
        if self._status_topic is not None:
            with self._confirmed:
                self._unconfirmed += 1
            self._publish(self._status_topic, _ONLINE, retain=True)

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        with self._confirmed:
            self._unconfirmed -= 1
            if reason.is_failure:
                self._refusal = f"{self._session.name} refused a message: {reason}; mend the broker's access list"
            self._confirmed.notify_all()
