from __future__ import annotations

import json
import math
from datetime import timedelta

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from connectors.decode import Decoder
from connectors.payloads import (
    MAX_BYTES,
    encode_clock,
    encode_event,
    encode_readings,
    parse_clock,
    parse_events,
    parse_readings,
)
from connectors.topics import Routes
from connectors.values import PayloadError
from pm.domain import EARLIEST, LATEST, Event, EventKind, Reading, to_us

NOW = 1_795_428_000_000_000
"""2026-11-23T10:00:00Z."""

POINT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12).filter(
    lambda name: bool(name.strip()) and name not in ("time", "asset")
)
TIME = st.integers(to_us(EARLIEST), to_us(LATEST))
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.dictionaries(POINT, NUMBER, max_size=6)


def read(payload: bytes | str, point: str | None = None) -> tuple[Reading, ...]:
    return parse_readings(payload.encode() if isinstance(payload, str) else payload, "pump", point, NOW)


def bits(reading: Reading) -> tuple[str, int, dict[str, str]]:
    return reading.asset, reading.time_us, {name: value.hex() for name, value in reading.values.items()}


@given(values=VALUES, time_us=TIME)
def test_a_reading_encoded_is_the_reading_parsed_to_the_bit(values: dict[str, float], time_us: int) -> None:
    reading = Reading("pump", time_us, values)
    assert [bits(r) for r in read(encode_readings([reading]))] == [bits(reading)]


@given(samples=st.dictionaries(TIME, VALUES, min_size=2, max_size=5))
def test_several_readings_go_in_one_payload(samples: dict[int, dict[str, float]]) -> None:
    readings = [Reading("pump", time_us, values) for time_us, values in samples.items()]
    assert [bits(r) for r in read(encode_readings(readings))] == [bits(r) for r in readings]


@given(time_us=TIME, kind=st.sampled_from(EventKind), code=POINT)
def test_an_event_encoded_is_the_event_parsed(time_us: int, kind: EventKind, code: str) -> None:
    event = Event("pump", time_us, kind, code)
    assert parse_events(encode_event(event), "pump", NOW) == (event,)


@given(time_us=TIME)
def test_plant_time_is_exact(time_us: int) -> None:
    assert parse_clock(encode_clock(time_us)) == time_us


@pytest.mark.parametrize(
    ("payload", "point", "readings"),
    [
        ('{"time":"2026-11-23T10:00:00Z","values":{"volt":1.5,"i":4}}', None, [(NOW, {"volt": 1.5, "i": 4.0})]),
        ('{"values":{"volt":1}}', None, [(NOW, {"volt": 1.0})]),
        ('{"time":null,"values":{"volt":1}}', None, [(NOW, {"volt": 1.0})]),
        ('{"time":"2026-11-23T12:00:00.5+02:00","volt":1}', None, [(NOW + 500_000, {"volt": 1.0})]),
        ('{"volt":1,"rotate":null}', None, [(NOW, {"volt": 1.0})]),
        ('{"time":1795428000,"values":{}}', None, [(NOW, {})]),
        ('{"quality":"good \\"x\\"","values":{"volt":1}}', None, [(NOW, {"volt": 1.0})]),
        ('[{"time":1795428000,"a":1},{"time":1795428001,"a":2}]', None, [(NOW, {"a": 1.0}), (NOW + 10**6, {"a": 2.0})]),
        ('[{"time":1795428000,"a":1},{"time":1795428000,"b":2}]', None, [(NOW, {"a": 1.0, "b": 2.0})]),
        (" 12.5\n", "volt", [(NOW, {"volt": 12.5})]),
        ("-1e-3", "volt", [(NOW, {"volt": -0.001})]),
        ("null", "volt", [(NOW, {})]),
        ('{"value":12.5,"time":1795428000000}', "volt", [(NOW, {"volt": 12.5})]),
        ("readings,site=x volt=1.5,n=2i,u=3u 1795428000000000000", None, [(NOW, {"volt": 1.5, "n": 2.0, "u": 3.0})]),
        ("readings,asset=pump volt=1", None, [(NOW, {"volt": 1.0})]),
        ("r,a\\ b=c\\,d x\\ y=1 1795428000000000999", None, [(NOW, {"x y": 1.0})]),
        ("r a=1 1795428000\r\n# comment\nr a=2 1795428001\n", None, [(NOW, {"a": 1.0}), (NOW + 10**6, {"a": 2.0})]),
    ],
)  # fmt: skip
def test_what_is_read(payload: str, point: str | None, readings: list[tuple[int, dict[str, float]]]) -> None:
    assert [(r.time_us, dict(r.values)) for r in read(payload, point)] == readings


@pytest.mark.parametrize("number", [1_795_428_000, 1_795_428_000_000, NOW, NOW * 1000, 1_795_428_000.0])
def test_the_magnitude_of_a_time_tells_its_unit(number: float) -> None:
    assert read(orjson.dumps({"time": number, "a": 1}))[0].time_us == NOW


def test_a_fraction_of_a_second_is_exact_to_the_microsecond() -> None:
    assert read('{"time":1795428000.123456,"a":1}')[0].time_us == NOW + 123_456


@pytest.mark.parametrize(
    ("payload", "point", "why"),
    [
        ('{"values":{"volt":NaN}}', None, "not JSON"),
        ('{"values":{"volt":1e999}}', None, "not JSON"),
        ('{"values":{"volt":true}}', None, "volt is True, not a number"),
        ('{"values":{"volt":"12"}}', None, "volt is '12', not a number"),
        ('{"values":{"volt":{"v":1}}}', None, "not a number"),
        ('{"values":[1]}', None, "not an object"),
        ('{"values":{"":1}}', None, "point '' is empty"),
        ('{"values":{"a\\u0000":1}}', None, "control characters"),
        ('{"values":{"asset":1}}', None, "cannot be named 'asset'"),
        ('{"values":{"time":1}}', None, "cannot be named 'time'"),
        ('{"values":{"a":1,"a":2}}', None, "key 'a' stands twice"),
        ('{"values":{"a":1},"values":{"a":2}}', None, "key 'values' stands twice"),
        ('{"time":"x","time":1795428000,"a":1}', None, "key 'time' stands twice"),
        ('[{"time":5,"a":1},{"time":5,"a":2}]', None, "a has two values"),
        ("{}", None, "no values"),
        ('{"time":1795428000}', None, "no values"),
        ("[]", None, "array is empty"),
        ("[1]", None, "not an object"),
        ("[" * 5000, None, "not JSON"),
        ('{"a":' * 5000, None, "not JSON"),
        ('{"time":"2026-11-23T10:00:00","a":1}', None, "has no zone"),
        ('{"time":"yesterday","a":1}', None, "not ISO 8601"),
        ('{"time":true,"a":1}', None, "neither text nor a number"),
        ('{"time":1e300,"a":1}', None, "outside 1678 to 2261"),
        ('{"time":"1000-01-01T00:00:00Z","a":1}', None, "outside 1678 to 2261"),
        ("", None, "empty"),
        (" \n", None, "empty"),
        ("12.5", None, "neither JSON nor line protocol"),
        ('r a="text"', None, "not a number"),
        ("r a=true", None, "not a number"),
        ("r a=1e999", None, "too large"),
        ("r a=1,a=2", None, "stands twice"),
        ("r a=1 soon", None, "not a whole number"),
        ("r,asset=other a=1", None, "contradicts the topic"),
        ("r a=1 2 3", None, "neither JSON"),
        ("r a=1,=2", None, "not key=value"),
        ("nan", "volt", "not a number"),
        ("inf", "volt", "not a number"),
        ("1_000", "volt", "not a number"),
        ("１２", "volt", "not a number"),
        ("true", "volt", "not a number"),
        ('"12"', "volt", "not a number"),
        ("1e999", "volt", "too large"),
        ('{"volt":1}', "volt", "no value"),
        ('{"value":true}', "volt", "not a number"),
        ("1", "time", "cannot be named"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(payload: str, point: str | None, why: str) -> None:
    with pytest.raises(PayloadError, match=why) as caught:
        read(payload, point)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_bytes_that_are_no_text_say_why() -> None:
    with pytest.raises(PayloadError, match="not UTF-8"):
        read(b"\xff\xfe", None)
    with pytest.raises(PayloadError, match="not UTF-8"):
        read(b"\xff\xfe", "volt")
    with pytest.raises(PayloadError, match="not JSON"):
        read(b'{"a\xff":1}')


def test_huge_payloads_are_refused_unread() -> None:
    with pytest.raises(PayloadError, match="at most"):
        read(b"1" * (MAX_BYTES + 1), "volt")
    with pytest.raises(PayloadError, match="at most 10000"):
        read(b"[" + b",".join([b'{"a":1}'] * 10_001) + b"]")
    with pytest.raises(PayloadError, match="at most 10000"):
        read(b"r a=1\n" * 10_001)


@pytest.mark.parametrize("asset", ["", " ", "a\nb", "x" * 201])
def test_an_asset_without_a_usable_name_is_refused(asset: str) -> None:
    with pytest.raises(PayloadError, match="asset"):
        parse_readings(b'{"a":1}', asset, None, NOW)
    with pytest.raises(PayloadError, match="asset"):
        parse_events(b'{"kind":"error","code":"e"}', asset, NOW)


def test_events_are_read() -> None:
    payload = b'[{"kind":"error","code":7},{"time":"2026-11-23T11:00:00+01:00","kind":"failure","code":"seal"}]'
    assert parse_events(payload, "pump", NOW + 1) == (
        Event("pump", NOW + 1, EventKind.ERROR, "7"),
        Event("pump", NOW, EventKind.FAILURE, "seal"),
    )


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b'{"code":"e"}', "kind None is none of error"),
        (b'{"kind":["error"],"code":"e"}', "is none of"),
        (b'{"kind":"error"}', "code None is not text"),
        (b'{"kind":"error","code":true}', "is not text"),
        (b'{"kind":"error","code":""}', "is empty"),
        (b'{"kind":"error","kind":"failure","code":"e"}', "stands twice"),
        (b"[]", "array is empty"),
        (b"error1", "not JSON"),
    ],
)
def test_events_that_cannot_be_read_say_why(payload: bytes, why: str) -> None:
    with pytest.raises(PayloadError, match=why):
        parse_events(payload, "pump", NOW)


@pytest.mark.parametrize("payload", [b"{}", b'{"time":null}', b"[]", b"5", b"", b'{"time":"now"}'])
def test_a_clock_message_needs_a_time(payload: bytes) -> None:
    with pytest.raises(PayloadError):
        parse_clock(payload)


KEY = st.sampled_from(["time", "values", "value", "kind", "code", "a", ""]) | st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEY, inner, max_size=5),
    max_leaves=20,
)
DECODER = Decoder(
    Routes(
        readings=("plant/{asset}/readings", "plant/{asset}/{point}"), events=("plant/{asset}/events",), clock="pm/clock"
    )
)
LINES = st.text(st.sampled_from(list('ra=1,. \\"\nit#-e5')), max_size=40)


@given(
    payload=st.binary(max_size=200) | JSON.map(lambda value: repr_json(value)) | LINES.map(str.encode),
    topic=st.sampled_from(["plant/a/readings", "plant/a/volt", "plant/a/events", "pm/clock", "plant//readings"]),
)
@example(payload=b'{"time":-1e18,"a":1}', topic="plant/a/readings")
@example(payload=b'{"time":1e308,"a":1}', topic="plant/a/readings")
@example(payload=b"r a=1 -9999999999999999999", topic="plant/a/readings")
@example(payload=b'{"time":"9999-12-31T23:59:59-23:59"}', topic="pm/clock")
@example(payload=b'{"time":"0001-01-01T00:00:00+23:59"}', topic="pm/clock")
@example(payload=b'{"a":' + b"1" * 5000 + b',"a":1}', topic="plant/a/readings")
def test_whatever_comes_there_is_a_defined_end(payload: bytes, topic: str) -> None:
    delivery = DECODER.decode(topic, payload, received_us=NOW, receipt=1)
    ends = [bool(delivery.readings), bool(delivery.events), bool(delivery.rejects), delivery.clock_us is not None]
    assert sum(ends) == (1 if payload else 0)
    for reading in delivery.readings:
        assert all(math.isfinite(value) for value in reading.values.values())
    for reject in delivery.rejects:
        assert (reject.topic, reject.payload, reject.received_us) == (topic, payload, NOW) and reject.reason


def repr_json(value: object) -> bytes:
    """JSON as careless senders write it."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def test_the_future_is_refused_where_the_clock_is_the_wall() -> None:
    routes = Routes(readings=("plant/{asset}/readings",), events=("plant/{asset}/events",))
    ahead = encode_readings([Reading("a", NOW + 601_000_000, {"x": 1.0})])
    event = encode_event(Event("a", NOW + 601_000_000, EventKind.ERROR, "e"))
    strict = Decoder(routes, max_future=timedelta(minutes=10))
    assert (
        "ahead of the clock" in strict.decode("plant/a/readings", ahead, received_us=NOW, receipt=1).rejects[0].reason
    )
    assert "ahead of the clock" in strict.decode("plant/a/events", event, received_us=NOW, receipt=1).rejects[0].reason
    assert strict.decode("plant/a/readings", ahead, received_us=NOW + 1_000_000, receipt=1).readings
    assert Decoder(routes).decode("plant/a/readings", ahead, received_us=NOW, receipt=1).readings


def test_an_old_clock_that_a_broker_kept_is_passed_over() -> None:
    decoder = Decoder(Routes(readings=("plant/{asset}/readings",), clock="pm/clock"))
    assert decoder.decode("pm/clock", encode_clock(NOW), received_us=NOW, receipt=1).clock_us == NOW
    assert decoder.decode("pm/clock", encode_clock(NOW), received_us=NOW, receipt=1, retained=True).clock_us is None
