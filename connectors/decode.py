"""From a message to a delivery: topic, payload and time of receipt to readings, events, plant time or a dead letter."""

from __future__ import annotations

from datetime import timedelta

from connectors.payloads import parse_clock, parse_events, parse_readings
from connectors.topics import MessageKind, Routes
from connectors.values import PayloadError, time_text
from pm.ports import Delivery, Reject


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
        plant time, kept by a broker) are passed over.
        """
        route = self._routes.resolve(topic)
        if route is None or not payload or (retained and route.kind is MessageKind.CLOCK):
            return Delivery(receipt)
        try:
            if route.kind is MessageKind.READINGS:
                readings = parse_readings(payload, route.asset, route.point, received_us)
                self._refuse_future(max(reading.time_us for reading in readings), received_us)
                return Delivery(receipt, readings=readings, topic=topic, payload=payload, received_us=received_us)
            if route.kind is MessageKind.EVENTS:
                events = parse_events(payload, route.asset, received_us)
                self._refuse_future(max(event.time_us for event in events), received_us)
                return Delivery(receipt, events=events, topic=topic, payload=payload, received_us=received_us)
            return Delivery(receipt, clock_us=parse_clock(payload), received_us=received_us)
        except PayloadError as error:
            reject = Reject(topic, payload, str(error), received_us)
            return Delivery(receipt, rejects=(reject,), topic=topic, payload=payload, received_us=received_us)

    def _refuse_future(self, time_us: int, received_us: int) -> None:
        if self._max_future_us is not None and time_us > received_us + self._max_future_us:
            raise PayloadError(
                f"time {time_text(time_us)} is {timedelta(microseconds=time_us - received_us)} ahead of the clock here;"
                " set the sender's clock, or raise ingest.max_future"
            )
