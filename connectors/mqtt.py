"""MQTT as a feed, and the way to publish: at least once, acknowledged only when told that it is stored."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

from paho.mqtt import client as paho
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from connectors.decode import Decoder
from connectors.mqtt_session import MqttSession, unavailable
from connectors.topics import Routes
from pm.config import MqttSection
from pm.errors import FeedError
from pm.ports import Delivery

log = logging.getLogger(__name__)

_SUBSCRIBE_SECONDS: Final = 10.0
_GOODBYE_SECONDS: Final = 2.0
_ONLINE: Final = b'{"status":"online"}'
_OFFLINE: Final = b'{"status":"offline"}'


class _Receipt(NamedTuple):
    """What acknowledges a message: packet ids are the connection's own, so one of an older connection says nothing."""

    generation: int
    mid: int
    qos: int


class _Message(NamedTuple):
    receipt: _Receipt
    message: paho.MQTTMessage
    received_us: int


class MqttFeed:
    """Readings, events and clock messages of a broker, as a `pm.ports.Feed`.

    The session is persistent and every message is acknowledged by hand, so the broker keeps what was not stored and
    sends it again. Memory is bounded: the broker may have no more than `queue` messages unacknowledged (Receive
    Maximum), and should it send more the network thread waits.
    """

    def __init__(
        self,
        section: MqttSection,
        *,
        queue: int = 20_000,
        clock_topic: str | None = None,
        max_future: timedelta | None = None,
        one_subscription: bool = False,
    ) -> None:
        """Raises FeedError for a bad topic template or certificate file.

        queue: messages held at most. clock_topic: topic of clock messages, None where the machine's clock is plant
        time. max_future: refuse what is dated further ahead of this machine's clock; None where plant time is not now.
        one_subscription: take everything by one filter, for a broker that keeps order within a subscription only.
        """
        routes = Routes(readings=section.readings, events=section.events, clock=clock_topic)
        self._filters = (routes.one_filter,) if one_subscription else routes.filters
        self._decoder = Decoder(routes, max_future=max_future)
        self._limit = queue
        self._arrived = threading.Condition()
        self._queue: deque[_Message] = deque()
        self._closing = False
        self._dropped = 0
        self._overrun = False
        self._patience = section.keepalive.total_seconds() / 3
        self._subscribed = threading.Event()
        self._refusal: str | None = None
        self._session = MqttSession(
            section,
            client_id=section.client_id,
            clean_start=False,
            receive_maximum=min(section.receive_maximum, queue, 65535),
            manual_ack=True,
            on_open=self._on_open,
        )
        self._session.client.on_message = self._on_message
        self._session.client.on_subscribe = self._on_subscribe

    @property
    def name(self) -> str:
        return self._session.name

    @property
    def connected(self) -> bool:
        return self._session.connected

    @property
    def waiting(self) -> int:
        """Messages received and not yet taken."""
        return len(self._queue)

    @property
    def dropped(self) -> int:
        """Messages published with QoS 0 that found no room; those of QoS 1 are never dropped."""
        return self._dropped

    def open(self) -> None:
        """Connect and subscribe. A broker that is away is tried again in the background; see `connected`.

        Raises FeedError where the broker refuses the login, the certificate or a subscription.
        """
        self._session.open()
        if self._session.connected:
            self._subscribed.wait(_SUBSCRIBE_SECONDS)
        if self._refusal is not None:
            self.close()
            raise FeedError(self._refusal)

    def take(self, limit: int, timeout: float) -> list[Delivery]:
        with self._arrived:
            if not self._queue:
                self._arrived.wait(timeout)
            taken = [self._queue.popleft() for _ in range(min(limit, len(self._queue)))]
            self._arrived.notify_all()
        return [self._delivery(message) for message in taken]

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """A delivery of a connection that is gone is passed over: the broker sends it again on the present one."""
        with self._session.lock:
            present = self._session.generation
            for delivery in deliveries:
                receipt = delivery.receipt
                if isinstance(receipt, _Receipt) and receipt.qos and receipt.generation == present:
                    self._session.client.ack(receipt.mid, receipt.qos)

    def close(self) -> None:
        """What was acknowledged has arrived with the broker; what was not comes again next time."""
        with self._arrived:
            self._closing = True
            self._arrived.notify_all()
        if self._session.connected:
            # A broker reads in order: once it has answered this, it has read every acknowledgement before it.
            self._subscribed.clear()
            self._subscribe()
            self._subscribed.wait(_GOODBYE_SECONDS)
        self._session.close()

    def _delivery(self, message: _Message) -> Delivery:
        mqtt = message.message
        try:
            topic = mqtt.topic
        except UnicodeDecodeError:  # the specification forbids it; there is no topic to keep it under
            log.warning("%s: a message with a topic that is not UTF-8 is passed over", self._session.name)
            return Delivery(message.receipt)
        return self._decoder.decode(
            topic, bytes(mqtt.payload), received_us=message.received_us, receipt=message.receipt, retained=mqtt.retain
        )

    def _on_open(self, session_present: bool) -> None:
        if session_present:
            # The broker sends all of these again under this connection; the old ones could not be acknowledged.
            with self._arrived:
                kept = [message for message in self._queue if not message.receipt.qos]
                self._queue.clear()
                self._queue.extend(kept)
                self._arrived.notify_all()
            # It has the subscriptions too, and may not confirm them before it is rid of what it kept.
            self._subscribed.set()
        self._subscribe()

    def _subscribe(self) -> None:
        options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        self._session.client.subscribe([(topic_filter, options) for topic_filter in self._filters])

    def _on_subscribe(
        self, client: paho.Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Any
    ) -> None:
        for topic_filter, reason in zip(self._filters, reasons, strict=False):
            if reason.is_failure:
                self._refusal = (
                    f"{self._session.name} refused the subscription to {topic_filter}: {reason}; "
                    "mend the broker's access list, or mqtt.readings and mqtt.events"
                )
                log.error("%s", self._refusal)
            elif reason.value == 0:
                log.warning("%s grants %s with QoS 0 only: messages may be lost", self._session.name, topic_filter)
        self._subscribed.set()

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        received_us = time.time_ns() // 1000
        receipt = _Receipt(self._session.generation, message.mid, message.qos)
        with self._arrived:
            if len(self._queue) >= self._limit and not self._room(message.qos):
                return
            self._queue.append(_Message(receipt, message, received_us))
            self._arrived.notify_all()

    def _room(self, qos: int) -> bool:
        """Whether there is room for one more, waiting for it (and so no longer reading from the broker).

        QoS 1 waits as long as it takes. QoS 0, of which nothing is promised, waits a while and is then dropped and
        counted, before the broker thinks that we are dead.
        """
        if qos:
            self._arrived.wait_for(lambda: self._closing or len(self._queue) < self._limit)
            return not self._closing
        if self._arrived.wait_for(
            lambda: self._closing or len(self._queue) < self._limit, 0 if self._overrun else self._patience
        ):
            self._overrun = False
            return not self._closing
        if not self._overrun:
            log.warning(
                "%s: messages of QoS 0 are dropped; publish with QoS 1 to keep them waiting", self._session.name
            )
        self._overrun = True
        self._dropped += 1
        return False


class MqttPublisher:
    """Publishes with QoS 1, holding at most `inflight` unconfirmed messages; a `pm.ports.Publisher`.

    What is unconfirmed when the connection is lost is sent again on the next.
    """

    def __init__(
        self,
        section: MqttSection,
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
        self._session = MqttSession(section, client_id=client_id, clean_start=True, on_open=self._on_open)
        client = self._session.client
        client.max_inflight_messages_set(min(inflight, 65535))
        client.max_queued_messages_set(0)  # bounded here, by waiting; paho would refuse
        client.on_publish = self._on_publish
        if status_topic is not None:
            client.will_set(status_topic, _OFFLINE, qos=1, retain=True)

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
