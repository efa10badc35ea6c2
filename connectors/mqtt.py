"""MQTT as a feed: at least once, acknowledged only when told that it is stored. The door to the room of MQTT."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from paho.mqtt import client as paho
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from connectors.arrivals import Arrivals
from connectors.decode import Decoder, routes_of
from connectors.decode_many import BatchDecoder
from connectors.mqtt_bulk import BulkClient
from connectors.mqtt_filters import FilterMemory
from connectors.mqtt_packets import Publish
from connectors.mqtt_publisher import MqttPublisher as MqttPublisher  # this module is the door
from connectors.mqtt_session import MqttSession, paho_client
from pm.config import BrokerSection, duration_text
from pm.errors import FeedError
from pm.ports import Delivery, LinkState

log = logging.getLogger(__name__)

_SUBSCRIBE_SECONDS: Final = 10.0
_GOODBYE_SECONDS: Final = 2.0
_NO_FILTER: Final = "pm/no-such-filter"
"""Unsubscribed at the end for the sake of the answer; nobody subscribes to it."""


class Receipt(NamedTuple):
    """What acknowledges a message: packet ids are the connection's own, so one of an older connection says nothing."""

    link: object
    generation: int
    mid: int
    qos: int


class MqttFeed:
    """Readings, events and clock messages of one broker, as a `pm.ports.Feed`.

    The session is persistent and every message is acknowledged by hand, so the broker keeps what was not stored and
    sends it again. Memory is bounded: the broker may have no more than `queue` messages unacknowledged (Receive
    Maximum), and should it send more the network thread waits.
    """

    _beside = b""
    """How topics begin of which the feed has messages that are no readings."""

    def __init__(
        self,
        section: BrokerSection,
        *,
        queue: int = 20_000,
        clock_topic: str | None = None,
        max_future: timedelta | None = None,
        one_subscription: bool = False,
        lasting: bool = True,
        memory: Path | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises FeedError for a bad topic template or certificate file.

        queue: messages held at most. clock_topic: topic of clock messages, None where the machine's clock is plant
        time. max_future: refuse what is dated further ahead of this machine's clock; None where plant time is not now.
        one_subscription: take everything by one filter, for a broker that keeps order within a subscription only.
        lasting: the broker keeps what comes while we are away; False for a listener that ends for good.
        memory: folder in which the filters subscribed are remembered. monotonic: seconds, for telling silence.
        """
        routes = routes_of(section, clock_topic)
        filters = (routes.one_filter,) if one_subscription else routes.filters
        if section.share and clock_topic is not None:
            raise FeedError(
                f"mqtt.share = {section.share!r}: messages that are divided among processes come in no order, which "
                'clock.source = "feed" needs; set mqtt.share = "" or clock.source = "wall"'
            )
        self._filters = tuple(f"$share/{section.share}/{each}" for each in filters) if section.share else filters
        self._decoder = Decoder(routes, max_future=max_future)
        self._batches = BatchDecoder(routes, max_future=max_future, beside=self._beside)
        self._arrivals = Arrivals(queue, patience=section.keepalive.total_seconds() / 3)
        self._closing = False
        self._messages = 0
        self._connections = 0
        self._silent_after = section.silent_after
        self._monotonic = monotonic
        self._heard = monotonic()
        self._silent = False
        self._silences = 0
        self._subscribed = threading.Event()
        self._unsubscribed = threading.Event()
        self._refusal: str | None = None
        self._share = section.share
        self._bulk = section.transport == "bulk"
        self._session = MqttSession(
            section,
            client_id=section.client_id,
            clean_start=not lasting,
            receive_maximum=min(section.receive_maximum, queue, 65535),
            make=partial(BulkClient if self._bulk else paho_client, **self._options()),
            prepare=self._prepare,
            on_open=self._on_open,
        )
        self._memory = FilterMemory(memory if lasting else None, f"{section.client_id}@{section.host}:{section.port}")

    @property
    def name(self) -> str:
        return self._session.name

    @property
    def connected(self) -> bool:
        return self._session.connected

    @property
    def waiting(self) -> int:
        """Messages received and not yet taken."""
        return self._arrivals.waiting

    @property
    def dropped(self) -> int:
        """Messages published with QoS 0 that found no room; those of QoS 1 are never dropped."""
        return self._arrivals.dropped

    @property
    def link(self) -> LinkState:
        """The connection now."""
        self._notice_silence()
        return LinkState(
            name=self._session.name,
            connected=self.connected,
            protocol=("MQTT 5" if self._session.mqtt5 else "MQTT 3.1.1") if self._connections else "",
            waiting=self._arrivals.waiting,
            messages=self._messages,
            connections=self._connections,
            dropped=self._arrivals.dropped,
            silent=self._silent,
            silences=self._silences,
        )

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
        taken = self._arrivals.take(limit, timeout)
        self._notice_silence()
        found: list[Delivery] = []
        for generation, first_us, messages in taken:
            receipts = [Receipt(self, generation, mid, qos) for _, _, mid, qos, _ in messages]
            found += self._batches.decode(messages, first_us, receipts, partial(self._delivery, generation))
        return found

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """A delivery of a connection that is gone is passed over: the broker sends it again on the present one."""
        with self._session.lock:
            present = self._session.generation
            receipts = [
                receipt
                for receipt in (delivery.receipt for delivery in deliveries)
                if isinstance(receipt, Receipt) and receipt.qos and receipt.generation == present
            ]
            client = self._session.client
            if isinstance(client, BulkClient):
                plain = [receipt.mid for receipt in receipts if receipt.qos == 1]
                if plain:
                    client.acknowledge(plain)
                receipts = [receipt for receipt in receipts if receipt.qos == 2] if len(plain) < len(receipts) else []
            for receipt in receipts:
                client.ack(receipt.mid, receipt.qos)

    def close(self) -> None:
        """What was acknowledged has arrived with the broker; what was not comes again next time."""
        self._closing = True
        self._arrivals.close()
        if self._session.connected:
            # A broker reads in order: once it has answered this, it has read every acknowledgement before it.
            self._unsubscribed.clear()
            self._session.client.unsubscribe(_NO_FILTER)
            self._unsubscribed.wait(_GOODBYE_SECONDS)
        self._session.close()

    def _delivery(self, generation: int, message: Publish, received_us: int) -> Delivery:
        topic, payload, mid, qos, retained = message
        receipt = Receipt(self, generation, mid, qos)
        try:
            text = topic.decode()
        except UnicodeDecodeError:  # the specification forbids it; there is no topic to keep it under
            log.warning("%s: a message with a topic that is not UTF-8 is passed over", self._session.name)
            return Delivery(receipt)
        return self._decoder.decode(text, payload, received_us=received_us, receipt=receipt, retained=retained)

    def _notice_silence(self) -> None:
        """Tell once of a connection that stands and brings nothing, and once when it speaks again."""
        quiet = self._monotonic() - self._heard
        silent = self.connected and quiet > self._silent_after.total_seconds()
        if silent == self._silent:
            return
        self._silent = silent
        if silent:
            self._silences += 1
            log.warning(
                "%s: connected, and no message for %s (mqtt.silent_after); "
                "check that the plant publishes on %s, and the broker's access list",
                self._session.name,
                duration_text(self._silent_after),
                ", ".join(self._filters),
            )
        elif self.connected:
            log.info("%s: messages come again", self._session.name)

    def _options(self) -> dict[str, Any]:
        """What the paho client is made with."""
        return {"deliver": self._receive} if self._bulk else {"manual_ack": True}

    def _prepare(self, client: paho.Client) -> None:
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe

    def _on_open(self, session_present: bool) -> None:
        self._connections += 1
        self._heard = self._monotonic()
        if session_present:
            # The broker sends all of these again under this connection; the old ones could not be acknowledged.
            self._arrivals.forget_unacknowledged()
            # It has the subscriptions too, and may not confirm them before it is rid of what it kept.
            self._subscribed.set()
        self._subscribe(session_present)

    def _subscribe(self, session_present: bool) -> None:
        """Subscribe to what is wanted now and end what an earlier configuration wanted."""
        client = self._session.client
        before = self._memory.recall()
        self._memory.keep(before | set(self._filters))
        if self._session.mqtt5:
            options = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
            client.subscribe([(topic_filter, options) for topic_filter in self._filters])
        else:
            client.subscribe([(topic_filter, 1) for topic_filter in self._filters])
        unwanted = sorted(before - set(self._filters))
        if unwanted:
            if session_present:
                log.info("%s: unsubscribing %s", self._session.name, ", ".join(unwanted))
            client.unsubscribe(unwanted)

    def _on_unsubscribe(
        self, client: paho.Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Any
    ) -> None:
        if not self._closing:
            self._memory.keep(self._filters)
        self._unsubscribed.set()

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
        # paho's own bytes of the topic: a topic that is not UTF-8 must not end the network thread
        self._receive([(message._topic, bytes(message.payload), message.mid, message.qos, message.retain)])

    def _receive(self, messages: list[Publish]) -> None:
        """Queue what has come, on the network thread; it waits here when there is no room."""
        self._heard = self._monotonic()
        self._messages += len(messages)
        generation = self._session.generation
        if self._arrivals.put(messages, generation=generation, now_us=time.time_ns() // 1000):
            log.warning(
                "%s: messages of QoS 0 are dropped; publish with QoS 1 to keep them waiting", self._session.name
            )
