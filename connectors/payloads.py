"""Payloads of plain MQTT: JSON, single numbers and InfluxDB line protocol to readings and events, and back. Pure.

Whatever the bytes are, the end is defined: values, or a PayloadError whose text is the dead letter's reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import orjson

from connectors.payload_json import refuse_doubled_keys
from connectors.payload_lines import parse_lines
from connectors.topics import name_fault
from connectors.value_quality import quality_of
from connectors.values import (
    MAX_BYTES,
    MAX_SAMPLES,
    PayloadError,
    as_text,
    check_name,
    check_point,
    decoded,
    finite,
    known_points,
    merged,
    short,
    time_text,
    time_us,
)
from pm.domain import Doubtful, Event, EventKind, Quality, Reading

_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def parse_readings(
    payload: bytes, asset: str, point: str | None, received_us: int, doubtful: list[Doubtful] | None = None
) -> tuple[Reading, ...]:
    """The readings of one message of `asset`.

    point: the point that the topic names (then the payload is a single number, or `{"time": …, "value": …}`), or None
        (then it is `{"time": …, "values": {…}}`, a flat object of numbers, an array of either, or line protocol).
    received_us: the time of a reading that carries none, in microseconds since the epoch.
    doubtful: takes the values of which the payload says (`quality`) that they are uncertain or bad; bad ones are no
        readings.

    A null value was not read and is left out. Samples of one time are one reading where they do not contradict each
    other. Raises PayloadError.
    """
    check_name("asset", asset)
    head = _head(payload)
    if point is not None:
        check_point(point)
        return (_scalar(payload, head, asset, point, received_us, doubtful),)
    if head == b"{":
        sample = _object(payload)
        strings, reading = _sample(sample, asset, received_us, doubtful)
        refuse_doubled_keys(payload, strings)
        return (reading,)
    if head == b"[":
        return _array(payload, asset, received_us, doubtful)
    return parse_lines(payload, asset, received_us)


def parse_events(payload: bytes, asset: str, received_us: int) -> tuple[Event, ...]:
    """The events of one message: `{"time": …, "kind": "error", "code": "error1"}` or an array of such. PayloadError."""
    check_name("asset", asset)
    _head(payload)
    parsed = _json(payload)
    events = []
    for item in _items(parsed):
        kind = item.get("kind")
        if not isinstance(kind, str) or kind not in list(EventKind):
            raise PayloadError(f"kind {short(kind)} is none of {', '.join(EventKind)}")
        code = item.get("code")
        if type(code) is int:  # the error numbers of a controller
            code = str(code)
        if fault := name_fault(code):
            raise PayloadError(f"code {short(code)} {fault}")
        events.append(Event(asset, time_us(item.get("time"), received_us), EventKind(kind), str(code)))
    refuse_doubled_keys(payload, None)
    return tuple(events)


def parse_clock(payload: bytes) -> int:
    """Plant time of a clock message `{"time": …}`, in microseconds since the epoch. Raises PayloadError."""
    _head(payload)
    time = _object(payload).get("time")
    if time is None:
        raise PayloadError("a clock message has no time")
    return time_us(time, 0)


def encode_readings(readings: Sequence[Reading]) -> bytes:
    """One payload of readings of one asset: an object, or an array where there are several. Exact both ways."""
    samples = [{"time": time_text(reading.time_us), "values": dict(reading.values)} for reading in readings]
    return orjson.dumps(samples[0] if len(samples) == 1 else samples)


def encode_event(event: Event) -> bytes:
    return orjson.dumps({"time": time_text(event.time_us), "kind": event.kind.value, "code": event.code})


def encode_clock(time_us: int) -> bytes:
    return orjson.dumps({"time": time_text(time_us)})


def _head(payload: bytes) -> bytes:
    """The first byte that is not a space; the payload's size is checked on the way."""
    if len(payload) > MAX_BYTES:
        raise PayloadError(f"the payload is {len(payload)} bytes; at most {MAX_BYTES} are read")
    head = payload.lstrip()[:1]
    if not head:
        raise PayloadError("the payload is empty")
    return head


def _json(payload: bytes) -> Any:
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise PayloadError(f"not JSON: {error}") from None


def _object(payload: bytes) -> dict[str, Any]:
    parsed = _json(payload)
    if type(parsed) is not dict:
        raise PayloadError(f"{short(parsed)} is not an object")
    return parsed


def _items(parsed: Any) -> list[dict[str, Any]]:
    items = parsed if type(parsed) is list else [parsed]
    if not items:
        raise PayloadError("the array is empty")
    if len(items) > MAX_SAMPLES:
        raise PayloadError(f"the array has {len(items)} items; at most {MAX_SAMPLES} are read")
    for item in items:
        if type(item) is not dict:
            raise PayloadError(f"{short(item)} is not an object")
    return items


def _sample(
    sample: dict[str, Any], asset: str, received_us: int, doubtful: list[Doubtful] | None
) -> tuple[int, Reading]:
    """The reading of one sample, and how many strings (keys and texts) its JSON holds when nothing else is in it."""
    time = sample.get("time")
    strings = len(sample) + (type(time) is str)
    if "values" in sample:
        values = sample["values"]
        if type(values) is not dict:
            raise PayloadError(f"values is {short(values)}, not an object of numbers")
        strings += len(values)
        if "quality" in sample:
            at_us = time_us(time, received_us)
            return -1, Reading(asset, at_us, _weighed(values, sample["quality"], asset, at_us, doubtful))
    else:
        values = {name: value for name, value in sample.items() if name != "time"}
        if not values:
            raise PayloadError('no values; write {"time": …, "values": {"point": 1.0}}')
    return strings, Reading(asset, time_us(time, received_us), _numbers(values))


def _weighed(
    values: dict[str, Any], said: Any, asset: str, at_us: int, doubtful: list[Doubtful] | None
) -> dict[str, float]:
    """The values that may be read. said: the quality of all of them, or an object of one for each."""
    fit: dict[str, Any] = {}
    for name, value in values.items():
        check_point(name)
        quality = quality_of(said.get(name) if type(said) is dict else said)
        if quality is not Quality.BAD:
            fit[name] = value
        if quality is not Quality.GOOD and value is not None and doubtful is not None:
            doubtful.append(Doubtful(asset, at_us, name, as_text(value), quality))
    return _numbers(fit)


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if name not in known_points:
            check_point(name)
        if type(value) is float:
            numbers[name] = value
        elif type(value) is int:
            numbers[name] = float(value)
        elif value is not None:
            raise PayloadError(f"{name} is {short(value)}, not a number")
    return numbers


def _array(payload: bytes, asset: str, received_us: int, doubtful: list[Doubtful] | None) -> tuple[Reading, ...]:
    strings = 0
    readings = []
    for item in _items(_json(payload)):
        of_item, reading = _sample(item, asset, received_us, doubtful)
        strings += of_item
        readings.append(reading)
    refuse_doubled_keys(payload, strings)
    return merged(readings)


def _scalar(
    payload: bytes, head: bytes, asset: str, point: str, received_us: int, doubtful: list[Doubtful] | None
) -> Reading:
    if head == b"{":
        sample = _object(payload)
        if "value" not in sample:
            raise PayloadError('no value; write a number, or {"time": …, "value": 1.0}')
        time = sample.get("time")
        refuse_doubled_keys(payload, len(sample) + (type(time) is str))
        if "quality" in sample:
            at_us = time_us(time, received_us)
            values = {point: sample["value"]}
            return Reading(asset, at_us, _weighed(values, sample["quality"], asset, at_us, doubtful))
        return Reading(asset, time_us(time, received_us), _numbers({point: sample["value"]}))
    text = decoded(payload).strip()
    if text == "null":
        return Reading(asset, received_us, {})
    if not _NUMBER.fullmatch(text):
        raise PayloadError(f"{short(text)} is not a number")
    return Reading(asset, received_us, {point: finite(point, text)})
