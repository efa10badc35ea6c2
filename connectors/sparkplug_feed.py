"""Sparkplug B as a feed: the host's own session, its state for everyone to see, births asked for.

The session is clean and its data of QoS 0, as the specification has it: what is not stored when it comes is not sent
again. So readings go on to ingest at once; while the store is away its spool keeps them, where there is one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.reasoncodes import ReasonCode

from connectors.arrivals import Arrivals
from connectors.mqtt_bulk import BulkClient
from connectors.mqtt_packets import Publish
from connectors.mqtt_session import MqttSession, paho_client
from connectors.sparkplug_host import SparkplugHost
from connectors.sparkplug_names import AssetNames
from connectors.sparkplug_nodes import HostCounts, News
from connectors.sparkplug_topics import rebirth_request, says_offline, state_payload, state_topic, topic_filters
from pm.config import MqttSection, SparkplugSection
from pm.domain import Point, Silence
from pm.errors import FeedError, PmError
from pm.ports import Delivery, LinkState, SourceRegister

log = logging.getLogger(__name__)

_BIRTH_SECONDS: Final = 10.0
_GOODBYE_SECONDS: Final = 2.0
_TICK_US: Final = 200_000


class SparkplugFeed:
    """Readings of Sparkplug B edge nodes, as a `pm.ports.Feed`. `take` and `acknowledge` are called by one thread."""

    def __init__(
        self,
        section: MqttSection,
        sparkplug: SparkplugSection,
        *,
        queue: int = 20_000,
        max_future: timedelta | None = None,
        register: SourceRegister | None = None,
    ) -> None:
        """queue: messages held at most. max_future: values dated further ahead of this machine's clock are refused;
        None where plant time is not now. register: learns units and silences. Raises FeedError."""
        self._filters = topic_filters(sparkplug.groups)
        self._state_topic = state_topic(sparkplug.host_id)
        self._register = register
        microsecond = timedelta(microseconds=1)
        self._host = SparkplugHost(
            AssetNames(sparkplug.asset, sparkplug.node_asset, sparkplug.nodes),
            reorder_us=sparkplug.reorder_timeout // microsecond,
            birth_us=sparkplug.birth_timeout // microsecond,
            max_future_us=None if max_future is None else max_future // microsecond,
        )
        self._arrivals = Arrivals(queue, patience=section.keepalive.total_seconds() / 3)
        self._ready: deque[Delivery] = deque()
        self._silent_after = section.silent_after.total_seconds()
        self._closing = False
        self._messages = self._connections = self._silences = 0
        self._heard = time.monotonic()
        self._silent = False
        self._generation = 0
        self._ticked_us = 0
        self._timestamp_ms = 0
        self._born = threading.Event()
        self._died = threading.Event()
        self._farewell: int | None = None
        self._refusal: str | None = None
        self._owed_silences: dict[str, Silence] = {}
        self._owed_points: dict[str, Point] = {}
        self._asking: list[tuple[str, str]] = []
        bulk = section.transport == "bulk"
        self._session = MqttSession(
            section,
            client_id=f"{section.client_id}-sparkplug",
            clean_start=True,
            make=partial(BulkClient, deliver=self._receive) if bulk else paho_client,
            prepare=self._prepare,
            on_open=self._on_open,
        )

    @property
    def name(self) -> str:
        return f"Sparkplug at {self._session.name}"

    @property
    def connected(self) -> bool:
        return self._session.connected

    @property
    def waiting(self) -> int:
        """Messages received and not yet taken."""
        return self._arrivals.waiting + len(self._ready)

    @property
    def dropped(self) -> int:
        return self._arrivals.dropped

    @property
    def counts(self) -> HostCounts:
        return self._host.counts

    @property
    def link(self) -> LinkState:
        return LinkState(
            name=self.name,
            connected=self.connected,
            protocol="Sparkplug B" if self._connections else "",
            waiting=self.waiting,
            messages=self._messages,
            connections=self._connections,
            dropped=self._arrivals.dropped,
            silent=self._silent,
            silences=self._silences,
        )

    def open(self) -> None:
        """Connect, subscribe and be born. A broker that is away is tried again in the background.

        Raises FeedError where the broker refuses the login, the certificate or a subscription.
        """
        self._session.open()
        if self._session.connected:
            self._born.wait(_BIRTH_SECONDS)
        if self._refusal is not None:
            self.close()
            raise FeedError(self._refusal)

    def take(self, limit: int, timeout: float) -> list[Delivery]:
        hear, ready = self._host.hear, self._ready
        for generation, first_us, messages in self._arrivals.take(limit, 0.0 if ready else timeout):
            if generation != self._generation:
                self._change_connection(generation, first_us)
            for received_us, (topic, payload, _, _, _) in enumerate(messages, first_us):
                ready.extend(hear(topic.decode("utf-8", "replace"), payload, received_us))
        self._tick(time.time_ns() // 1000)
        return [ready.popleft() for _ in range(min(limit, len(ready)))]

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """There is nobody to tell; what these say of assets and points may now be made known."""
        news = [delivery.receipt for delivery in deliveries if isinstance(delivery.receipt, News)]
        silences = [silence for said in news for silence in said.silences]
        for silence in silences:
            self._owed_silences[silence.asset] = silence
        for point in [point for said in news for point in said.points]:
            self._owed_points[point.name] = point
        self._log(silences)
        self._tell_register()

    def close(self) -> None:
        """Say goodbye (the death certificate, dated now) and end the session."""
        self._closing = True
        self._arrivals.close()
        if self._session.connected and self._born.is_set():
            self._farewell = self._publish_state(online=False, timestamp_ms=_now_ms())
            self._died.wait(_GOODBYE_SECONDS)
        self._session.close()
        self._tell_register()

    # On the thread that takes

    def _change_connection(self, generation: int, at_us: int) -> None:
        if self._generation:
            self._ready.extend(self._host.disconnected(at_us))
        self._generation = generation

    def _tick(self, now_us: int) -> None:
        self._asking += self._host.requests()
        if self._asking and self._born.is_set() and self._session.connected:
            for group, node in self._asking:
                topic, payload = rebirth_request(group, node, now_us // 1000)
                log.info("%s: asking edge node %s/%s for its births", self.name, group, node)
                self._session.client.publish(topic, payload, qos=0, retain=False)
            self._asking = []
        if now_us - self._ticked_us < _TICK_US:
            return
        self._ticked_us = now_us
        generation = self._session.generation
        if generation != self._generation and not self._arrivals.waiting:
            self._change_connection(generation, now_us)
        self._ready.extend(self._host.tick(now_us))
        self._notice_silence()
        self._tell_register()

    def _notice_silence(self) -> None:
        """Tell once of a connection that stands and brings nothing, and once when it speaks again."""
        silent = self.connected and time.monotonic() - self._heard > self._silent_after
        if silent and not self._silent:
            self._silences += 1
            log.warning(
                "%s: connected, and no message for %.0f s (mqtt.silent_after); "
                "check that edge nodes publish, and the broker's access list",
                self.name,
                self._silent_after,
            )
        elif self._silent and not silent and self.connected:
            log.info("%s: messages come again", self.name)
        self._silent = silent

    def _log(self, silences: list[Silence]) -> None:
        """A line for each change, however many assets it concerns."""
        for why in dict.fromkeys(silence.because for silence in silences):
            names = [silence.asset for silence in silences if silence.because == why]
            listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            if why:
                log.warning("%s: silent, since %s: %s", self.name, why, listed)
            else:
                log.info("%s: heard: %s", self.name, listed)

    def _tell_register(self) -> None:
        if self._register is None or not (self._owed_silences or self._owed_points):
            return
        try:
            self._register.note_source(tuple(self._owed_silences.values()), tuple(self._owed_points.values()))
        except PmError as error:
            if not error.retryable:
                raise
            return  # it is owed on, and told with the next tick
        self._owed_silences.clear()
        self._owed_points.clear()

    # On the network thread

    def _prepare(self, client: paho.Client) -> None:
        client.on_pre_connect = self._on_pre_connect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish

    def _on_pre_connect(self, client: paho.Client, userdata: Any) -> None:
        """Each connection's will is dated when it is asked for; its birth is dated the same."""
        self._born.clear()
        self._timestamp_ms = _now_ms()
        client.will_set(self._state_topic, state_payload(False, self._timestamp_ms), qos=1, retain=True)

    def _on_open(self, session_present: bool) -> None:
        self._connections += 1
        self._heard = time.monotonic()
        # A death is published with QoS 1; data and births with 0, whatever is asked for.
        filters = [(self._state_topic, 1), *((text, 1 if "/NDEATH/" in text else 0) for text in self._filters)]
        self._session.client.subscribe(filters)

    def _on_subscribe(
        self, client: paho.Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Any
    ) -> None:
        for topic_filter, reason in zip((self._state_topic, *self._filters), reasons, strict=False):
            if reason.is_failure:
                self._refusal = (
                    f"{self.name} refused the subscription to {topic_filter}: {reason}; "
                    "mend the broker's access list, or sparkplug.groups and sparkplug.host_id"
                )
                log.error("%s", self._refusal)
        if self._refusal is None:
            self._publish_state(online=True, timestamp_ms=self._timestamp_ms)
        self._born.set()

    def _publish_state(self, *, online: bool, timestamp_ms: int) -> int:
        payload = state_payload(online, timestamp_ms)
        return self._session.client.publish(self._state_topic, payload, qos=1, retain=True).mid

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        if self._closing and self._farewell in (None, mid):
            self._died.set()

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        # paho's own bytes of the topic: a topic that is not UTF-8 must not end the network thread
        self._receive([(message._topic, bytes(message.payload), message.mid, message.qos, message.retain)])

    def _receive(self, messages: list[Publish]) -> None:
        """Queue what has come, on the network thread, and answer who says that we are offline.

        Births, data and deaths are never retained; an old one that a broker kept is no news. All count as of QoS 0
        here, those too that were sent with 1 (deaths): they are acknowledged at once, and find room or are counted.
        """
        self._heard = time.monotonic()
        self._messages += len(messages)
        client = self._session.client
        if isinstance(client, BulkClient) and (mids := [mid for _, _, mid, qos, _ in messages if qos == 1]):
            client.acknowledge(mids)
        state = self._state_topic.encode()
        news: list[Publish] = []
        for message in messages:
            if message[0] == state:
                self._answer(message[1])
            elif not message[4]:
                news.append(message if not message[3] else (message[0], message[1], 0, 0, False))
        if news and self._arrivals.put(news, generation=self._session.generation, now_us=time.time_ns() // 1000):
            log.warning("%s: messages are dropped, since they are not taken as fast as they come", self.name)

    def _answer(self, said: bytes) -> None:
        if self._born.is_set() and not self._closing and says_offline(said):
            log.warning("%s: %s says that pm is offline; saying again that it is not", self.name, self._state_topic)
            self._publish_state(online=True, timestamp_ms=self._timestamp_ms)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
