"""From a message to a delivery: topic, payload and time of receipt to readings, events, plant time or a dead letter."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from connectors.mapping import MappedForm
from connectors.payloads import parse_clock, parse_events, parse_readings
from connectors.topics import MappedTopic, MessageKind, Route, Routes
from connectors.values import PayloadError, time_text
from pm.config import BrokerSection
from pm.domain import Doubtful
from pm.ports import Delivery, Reject

_UNDATED: Final = -(2**63)
"""In place of the time of receipt where none may be taken for it; earlier than any time."""


class Decoder:
    """Reads the messages of one feed."""

    def __init__(self, routes: Routes, *, max_future: timedelta | None = None) -> None:
        """max_future: what is dated later than this after its receipt is refused; None where plant time is not now."""
        self._routes = routes
        self._max_future_us = None if max_future is None else max_future // timedelta(microseconds=1)

    def decode(
        self, topic: str, payload: bytes, *, received_us: int, receipt: object, retained: bool = False
    ) -> Delivery:
        """What the message brought; never raises for anything that a payload can hold.

        An empty message (MQTT's way to clear a retained one), a topic of no template and a retained clock (an old
        plant time, kept by a broker) are passed over. So are retained readings and events without a time of their own:
        the broker has kept them for nobody knows how long, and each connection would date them now.
        """
        route = self._routes.resolve(topic)
        if route is None or not payload or (retained and route.kind is MessageKind.CLOCK):
            return Delivery(receipt)
        if retained:
            return self._kept(route, topic, payload, received_us, receipt)
        try:
            if route.kind is MessageKind.READINGS:
                if route.form is not None or route.tags or b'"quality"' in payload:
                    return self._with_care(route, topic, payload, received_us, receipt)
                readings = parse_readings(payload, route.asset, route.point, received_us)
                self._refuse_future(max(reading.time_us for reading in readings), received_us)
                return Delivery(receipt, readings=readings, topic=topic, payload=payload, received_us=received_us)
            if route.kind is MessageKind.EVENTS:
                events = parse_events(payload, route.asset, received_us)
                self._refuse_future(max(event.time_us for event in events), received_us)
                return Delivery(receipt, events=events, topic=topic, payload=payload, received_us=received_us)
            return Delivery(receipt, clock_us=parse_clock(payload), received_us=received_us)
        except PayloadError as error:
            return _rejected(topic, payload, error, received_us, receipt)

    def _with_care(self, route: Route, topic: str, payload: bytes, received_us: int, receipt: object) -> Delivery:
        """Readings of a form of their own, with tags, or with qualities. Raises PayloadError."""
        doubtful: list[Doubtful] = []
        parse = parse_readings if route.form is None else route.form.parse
        readings = parse(payload, route.asset, route.point, received_us, doubtful)
        self._refuse_future(max(reading.time_us for reading in readings), received_us)
        return Delivery(
            receipt,
            readings=readings,
            topic=topic,
            payload=payload,
            received_us=received_us,
            doubtful=tuple(doubtful),
            tags=route.tags,
        )

    def _kept(self, route: Route, topic: str, payload: bytes, received_us: int, receipt: object) -> Delivery:
        """A retained message: what has a time of its own, the rest passed over."""
        try:
            if route.kind is MessageKind.EVENTS:
                events = tuple(e for e in parse_events(payload, route.asset, _UNDATED) if e.time_us != _UNDATED)
                if events:
                    self._refuse_future(max(event.time_us for event in events), received_us)
                return Delivery(receipt, events=events, topic=topic, payload=payload, received_us=received_us)
            found = self._with_care(route, topic, payload, _UNDATED, receipt)
            readings = tuple(r for r in found.readings if r.time_us != _UNDATED)
            if readings:
                self._refuse_future(max(reading.time_us for reading in readings), received_us)
            return found._replace(
                readings=readings,
                doubtful=tuple(d for d in found.doubtful if d.time_us != _UNDATED),
                tags=found.tags if readings else (),
                received_us=received_us,
            )
        except PayloadError as error:
            return _rejected(topic, payload, error, received_us, receipt)

    def _refuse_future(self, time_us: int, received_us: int) -> None:
        if self._max_future_us is not None and received_us != _UNDATED and time_us > received_us + self._max_future_us:
            raise PayloadError(
                f"time {time_text(time_us)} is {timedelta(microseconds=time_us - received_us)} ahead of the clock here;"
                " set the sender's clock, or raise ingest.max_future"
            )


def _rejected(topic: str, payload: bytes, error: PayloadError, received_us: int, receipt: object) -> Delivery:
    reject = Reject(topic, payload, str(error), received_us)
    return Delivery(receipt, rejects=(reject,), topic=topic, payload=payload, received_us=received_us)


def routes_of(section: BrokerSection, clock_topic: str | None = None) -> Routes:
    """The routes that a broker's configuration describes. Raises FeedError for a bad template or mapping."""
    return Routes(
        readings=section.readings,
        events=section.events,
        clock=clock_topic,
        asset=section.asset,
        mapped=[
            MappedTopic(
                mapping.topic,
                MappedForm(mapping),
                asset="" if mapping.asset_path else mapping.asset or section.asset,
                tags=mapping.tags,
            )
            for mapping in section.mapping
        ],
    )
