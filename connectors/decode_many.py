"""Messages decoded by the batch: the quick way, for messages as nearly all are. Pure.

A single number on a topic that names its point, and a JSON object of numbers whose names were all seen before, are read
here. Whatever is anything else (retained, text as number, an unknown name, a key twice, a time out of range) goes to
`Decoder.decode`, message by message; so what is refused, and with which words, is decided there alone.
`tests/test_decode_many.py` holds both equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

import orjson

from connectors.mqtt_packets import Publish
from connectors.topics import MessageKind, Routes, name_fault
from connectors.values import MAX_BYTES, PayloadError, check_point, known_points, time_us
from pm.domain import Reading
from pm.ports import Delivery

_NUMBER: Final = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d\d?)?")
"""A number of which `float` makes what `Decoder` makes of it, and never an infinite one."""
_LONGEST_NUMBER: Final = 60
_MOST_TOPICS: Final = 100_000
_MOST_SHAPES: Final = 1000
_FLOATS: Final = frozenset({float})
_NUMBERS: Final = (frozenset({float, int}), frozenset({int}))
_SECONDS: Final = (2e8, 9e9)
"""Times that are seconds since 1970 for sure, between 1976 and 2255."""


class _Usual(NamedTuple):
    """What the topic of readings says, where they are of pm's own form and have no tags."""

    topic: str
    asset: str
    point: str | None


class BatchDecoder:
    """Reads the messages of one feed, many at a time. Used by one thread."""

    def __init__(self, routes: Routes, *, max_future: timedelta | None = None, beside: bytes = b"") -> None:
        """max_future: as with `Decoder`. beside: how topics begin that hold no readings, whatever the routes say."""
        self._routes = routes
        self._max_future_us = None if max_future is None else max_future // timedelta(microseconds=1)
        self._beside = beside
        self._topics: dict[bytes, _Usual | None] = {}
        self._shapes: set[tuple[str, ...]] = set()

    def decode(
        self,
        messages: Sequence[Publish],
        first_us: int,
        receipts: Sequence[object],
        unusual: Callable[[Publish, int], Delivery],
    ) -> list[Delivery]:
        """What each message brought, in order; never raises for anything that a message can hold.

        first_us: time of receipt of the first; each further one counts a microsecond more. receipts: one per message.
        unusual: reads what is not read here, with its time of receipt.
        """
        topics, latest = self._topics, self._max_future_us
        number, one, quick = _NUMBER.fullmatch, self._object, tuple.__new__
        found: list[Delivery] = []
        for received_us, (message, receipt) in enumerate(zip(messages, receipts, strict=True), first_us):
            topic, payload, _, _, retained = message
            try:
                usual = topics[topic]
            except KeyError:
                usual = self._usual(topic)
            if usual is None or retained:
                found.append(unusual(message, received_us))
                continue
            name, asset, point = usual
            if point is None:
                reading = one(payload, asset, received_us)
                if reading is None or (latest is not None and reading.time_us > received_us + latest):
                    found.append(unusual(message, received_us))
                    continue
            elif len(payload) <= _LONGEST_NUMBER and number(payload):
                reading = quick(Reading, (asset, received_us, {point: float(payload)}))
            else:
                found.append(unusual(message, received_us))
                continue
            found.append(quick(Delivery, (receipt, (reading,), (), (), None, name, payload, received_us, (), ())))
        return found

    def _usual(self, topic: bytes) -> _Usual | None:
        """What a topic says that is met for the first time."""
        try:
            text = topic.decode()
        except UnicodeDecodeError:
            return None
        route = self._routes.resolve(text)
        usual = None
        if (
            route is not None
            and route.kind is MessageKind.READINGS
            and route.form is None
            and not route.tags
            and not name_fault(route.asset)
            and (route.point is None or _is_point(route.point))
            and not (self._beside and topic.startswith(self._beside))
        ):
            usual = _Usual(text, route.asset, route.point)
        if len(self._topics) >= _MOST_TOPICS:  # someone invents topics: memory stays bounded
            self._topics.clear()
        self._topics[topic] = usual
        return usual

    def _object(self, payload: bytes, asset: str, received_us: int) -> Reading | None:
        """The reading of one JSON object; None where it is not read here."""
        if len(payload) > MAX_BYTES:
            return None
        try:
            sample: Any = orjson.loads(payload)
        except orjson.JSONDecodeError:
            return None
        if type(sample) is not dict:
            return None
        time = sample.pop("time", None)
        keys = 0 if time is None else 1 + (type(time) is str)
        values = sample
        if "values" in sample:
            values = sample["values"]
            if len(sample) > 1 or type(values) is not dict:
                return None
            keys += 1
        shape = tuple(values)
        if shape not in self._shapes and not self._learn(shape):
            return None
        kinds = frozenset(map(type, values.values()))
        if kinds != _FLOATS:
            if kinds not in _NUMBERS:
                return None
            values = dict(zip(shape, map(float, values.values()), strict=True))
        if payload.count(b'"') != 2 * (keys + len(shape)):  # a key twice, or an escaped one
            return None
        if type(time) is float and _SECONDS[0] < time < _SECONDS[1]:
            at_us = round(time * 1_000_000)
        else:
            try:
                at_us = time_us(time, received_us)
            except PayloadError:
                return None
        return Reading(asset, at_us, values)

    def _learn(self, shape: tuple[str, ...]) -> bool:
        """Whether these are names of points found good before; an object without any is not usual."""
        if not shape or not known_points.issuperset(shape):
            return False
        if len(self._shapes) >= _MOST_SHAPES:
            self._shapes.clear()
        self._shapes.add(shape)
        return True


def _is_point(name: str) -> bool:
    try:
        check_point(name)
    except PayloadError:
        return False
    return True
