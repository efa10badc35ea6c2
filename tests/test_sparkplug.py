"""Sparkplug B payloads: every data type, births, properties; and an end for whatever the bytes are."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors import sparkplug
from connectors.sparkplug import (
    MetricTable,
    Readout,
    parse_columns,
    parse_payload,
    read_birth,
    read_data,
    read_metrics,
    sequence_number,
)
from connectors.sparkplug_columns import CHECKED
from connectors.sparkplug_schema import DataType, Payload
from connectors.sparkplug_topics import Origin, Verb, parse_topic, rebirth_request, says_offline, topic_filters
from connectors.values import PayloadError
from pm.domain import Point
from tests.sparkplug_cases import T0, T0_MS, Edge, add_metric, add_property


def birth_of(*metrics: dict[str, Any]) -> MetricTable:
    payload = Payload(timestamp=T0_MS, seq=0)
    for fields in metrics:
        payload.metrics.add(**fields)
    return read_birth(payload)


def read(payload: Any, table: MetricTable, **options: Any) -> Readout:
    raw = payload.SerializeToString()
    readout = read_metrics(parse_payload(raw), table, T0 + 5, **options)
    if not options.get("guess"):  # data by columns says the same, once trusted and before
        for _ in range(CHECKED + 2):
            assert read_data(parse_columns(raw), raw, table, T0 + 5, **options) == readout
    return readout


@pytest.mark.parametrize(
    ("topic", "origin"),
    [
        ("spBv1.0/g/NBIRTH/n", Origin(Verb.NBIRTH, "g", "n", "")),
        ("spBv1.0/g/NDATA/n", Origin(Verb.NDATA, "g", "n", "")),
        ("spBv1.0/g/NDEATH/n", Origin(Verb.NDEATH, "g", "n", "")),
        ("spBv1.0/g/DBIRTH/n/d", Origin(Verb.DBIRTH, "g", "n", "d")),
        ("spBv1.0/g ü/DDATA/n 1/d:2", Origin(Verb.DDATA, "g ü", "n 1", "d:2")),
        ("spBv1.0/g/DDEATH/n/d", Origin(Verb.DDEATH, "g", "n", "d")),
        ("spBv1.0/g/NBIRTH/n/d", None),
        ("spBv1.0/g/NDATA/n/d", None),
        ("spBv1.0/g/DDATA/n", None),
        ("spBv1.0/g/DDATA/n/", None),
        ("spBv1.0/g/DDATA/n/d/e", None),
        ("spAv1.0/g/NDATA/n", None),
        ("spBv1.0/g/ndata/n", None),
        ("spBv1.0/g/NCMD/n", None),
        ("spBv1.0/g/DCMD/n/d", None),
        ("spBv1.0/STATE/pm", None),
        ("plant/a/readings", None),
    ],
)
def test_topics_are_told_apart(topic: str, origin: Origin | None) -> None:
    assert parse_topic(topic) == origin


def test_only_what_edge_nodes_say_is_subscribed_to() -> None:
    assert topic_filters(()) == (
        "spBv1.0/+/NBIRTH/+", "spBv1.0/+/NDATA/+", "spBv1.0/+/NDEATH/+",
        "spBv1.0/+/DBIRTH/+/+", "spBv1.0/+/DDATA/+/+", "spBv1.0/+/DDEATH/+/+",
    )  # fmt: skip
    assert len(topic_filters(("a", "b"))) == 12
    assert all(name.startswith(("spBv1.0/a/", "spBv1.0/b/")) for name in topic_filters(("a", "b")))


@pytest.mark.parametrize(
    ("datatype", "sent", "value"),
    [
        (DataType.INT8, {"int_value": 0xFFFFFFFF}, -1.0),
        (DataType.INT8, {"int_value": 0x80}, -128.0),  # in its own width
        (DataType.INT8, {"int_value": 127}, 127.0),
        (DataType.INT16, {"int_value": 0xFFFF8000}, -32768.0),
        (DataType.INT16, {"int_value": 0xFFFF}, -1.0),
        (DataType.INT32, {"int_value": 0x80000000}, -2147483648.0),
        (DataType.INT32, {"int_value": 5}, 5.0),
        (DataType.INT64, {"long_value": (1 << 64) - 7}, -7.0),
        (DataType.INT64, {"long_value": 1 << 62}, float(1 << 62)),
        (DataType.INT64, {"int_value": 6}, 6.0),  # a sender of a shorter field
        (DataType.UINT8, {"int_value": 255}, 255.0),
        (DataType.UINT16, {"int_value": 65535}, 65535.0),
        (DataType.UINT32, {"int_value": 0xFFFFFFFF}, 4294967295.0),
        (DataType.UINT32, {"long_value": 0xFFFFFFFF}, 4294967295.0),
        (DataType.UINT64, {"long_value": (1 << 64) - 1}, float((1 << 64) - 1)),
        (DataType.FLOAT, {"float_value": 0.5}, 0.5),
        (DataType.FLOAT, {"float_value": 0.0}, 0.0),
        (DataType.DOUBLE, {"double_value": -1e300}, -1e300),
        (DataType.DOUBLE, {"float_value": 2.5}, 2.5),
        (DataType.BOOLEAN, {"boolean_value": True}, 1.0),
        (DataType.BOOLEAN, {"boolean_value": False}, 0.0),
        (DataType.DATETIME, {"long_value": T0_MS}, float(T0_MS)),
    ],
)  # fmt: skip
def test_every_number_is_read(datatype: DataType, sent: dict[str, Any], value: float) -> None:
    table = birth_of({"name": "x", "alias": 3, "datatype": datatype})
    payload = Payload(timestamp=T0_MS, seq=1)
    payload.metrics.add(alias=3, timestamp=T0_MS, **sent)
    readout = read(payload, table)
    assert readout == Readout({T0: {"x": value}})
    assert type(readout.values[T0]["x"]) is float


@pytest.mark.parametrize("datatype", [t for t in DataType if t >= DataType.STRING and t != DataType.DATETIME])
def test_what_holds_no_number_is_passed_over(datatype: DataType) -> None:
    table = birth_of(
        {"name": "text", "alias": 1, "datatype": datatype}, {"name": "x", "alias": 2, "datatype": DataType.DOUBLE}
    )
    payload = Payload(timestamp=T0_MS, seq=1)
    payload.metrics.add(alias=1, timestamp=T0_MS, string_value="17")
    payload.metrics.add(alias=2, timestamp=T0_MS, double_value=1.0)
    assert read(payload, table) == Readout({T0: {"x": 1.0}})


@pytest.mark.parametrize(
    ("datatype", "sent", "fault"),
    [
        (DataType.INT8, {"int_value": 300}, "x is 300, out of its data type's range"),
        (DataType.UINT8, {"int_value": 256}, "x is 256, out of its data type's range"),
        (DataType.INT16, {"int_value": 0x7FFFFFFF}, "x is 2147483647, out of its data type's range"),
        (DataType.DOUBLE, {"int_value": 1}, "x comes as int_value, and was born as one of double_value"),
        (DataType.DOUBLE, {"string_value": "1"}, "x comes as string_value, and was born as one of double_value"),
        (DataType.INT32, {"boolean_value": True}, "x comes as boolean_value, and was born as one of int_value"),
        (DataType.INT32, {"bytes_value": b"\x12"}, "x comes as bytes_value, and was born as one of int_value"),
        (DataType.DOUBLE, {"double_value": float("nan")}, "x is nan, not a number that can be kept"),
        (DataType.FLOAT, {"float_value": float("-inf")}, "x is -inf, not a number that can be kept"),
        (DataType.DOUBLE, {}, "x has no value"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_is_a_fault_and_the_others_stand(
    datatype: DataType, sent: dict[str, Any], fault: str
) -> None:
    table = birth_of(
        {"name": "x", "alias": 1, "datatype": datatype}, {"name": "y", "alias": 2, "datatype": DataType.DOUBLE}
    )
    payload = Payload(timestamp=T0_MS, seq=1)
    payload.metrics.add(alias=1, timestamp=T0_MS, **sent)
    payload.metrics.add(alias=2, timestamp=T0_MS, double_value=4.0)
    assert read(payload, table) == Readout({T0: {"y": 4.0}}, faults=(fault,))


def test_null_is_not_read() -> None:
    table = birth_of({"name": "x", "alias": 1, "datatype": DataType.DOUBLE})
    payload = Payload(timestamp=T0_MS, seq=1)
    payload.metrics.add(alias=1, timestamp=T0_MS, is_null=True)
    assert read(payload, table) == Readout({})


def test_each_value_has_its_own_time_whether_historical_or_not() -> None:
    table = birth_of(
        {"name": "x", "alias": 1, "datatype": DataType.DOUBLE}, {"name": "y", "alias": 2, "datatype": DataType.DOUBLE}
    )
    payload = Payload(timestamp=T0_MS + 9, seq=1)
    payload.metrics.add(alias=1, timestamp=T0_MS - 1000, double_value=1.0, is_historical=True)
    payload.metrics.add(alias=1, timestamp=T0_MS, double_value=2.0)
    payload.metrics.add(alias=2, timestamp=T0_MS - 1000, double_value=3.0, is_historical=True)
    payload.metrics.add(alias=2, double_value=4.0)
    assert read(payload, table).values == {
        T0 - 1_000_000: {"x": 1.0, "y": 3.0},
        T0: {"x": 2.0},
        T0 + 9000: {"y": 4.0},
    }
    timeless = Payload(seq=1)
    timeless.metrics.add(alias=1, double_value=1.0)
    assert read(timeless, table).values == {T0 + 5: {"x": 1.0}}


def test_times_beyond_reason_are_faults() -> None:
    table = birth_of(
        {"name": "x", "alias": 1, "datatype": DataType.DOUBLE}, {"name": "y", "alias": 2, "datatype": DataType.DOUBLE}
    )
    payload = Payload(timestamp=T0_MS, seq=1)
    payload.metrics.add(alias=1, timestamp=T0_MS + 3_600_000, double_value=1.0)
    payload.metrics.add(alias=2, timestamp=T0_MS, double_value=1.0)
    readout = read(payload, table, latest_us=T0 + 600_000_000)
    assert readout.values == {T0: {"y": 1.0}} and "ahead of the clock" in readout.faults[0]
    payload.metrics[0].timestamp = (1 << 64) - 1
    assert "outside" in read(payload, table).faults[0]


def test_two_values_at_one_time_are_never_written_over_each_other() -> None:
    table = birth_of({"name": "x", "alias": 1, "datatype": DataType.DOUBLE})
    payload = Payload(timestamp=T0_MS, seq=1)
    for value in (1.0, 1.0, 2.0):
        payload.metrics.add(alias=1, timestamp=T0_MS, double_value=value)
    assert read(payload, table) == Readout({T0: {"x": 1.0}}, faults=("x has two values at one time: 1.0 and 2.0",))


@pytest.mark.parametrize(("quality", "stored"), [(192, True), (0, False), (500, False)])
def test_quality_decides_what_is_a_reading(quality: int, stored: bool) -> None:
    table = birth_of({"name": "x", "alias": 1, "datatype": DataType.DOUBLE})
    payload = Payload(timestamp=T0_MS, seq=1)
    add_property(add_metric(payload, alias=1, timestamp=T0_MS, value=1.0), "Quality", type=3, int_value=quality)
    readout = read(payload, table)
    assert readout == (Readout({T0: {"x": 1.0}}) if stored else Readout({}, unfit=1))


def test_a_birth_tells_units_and_what_can_be_no_point() -> None:
    payload = Payload(timestamp=T0_MS, seq=0)
    add_property(payload.metrics.add(name="Axis/speed", alias=1, datatype=9), "engUnit", type=12, string_value="rpm")
    payload.metrics.add(name="time", alias=2, datatype=10)
    payload.metrics.add(name="odd", alias=3, datatype=77)
    payload.metrics.add(name="x" * 300, alias=4, datatype=10)
    payload.metrics.add(name="Device Control/Reboot", alias=5, datatype=11)
    payload.metrics.add(name="twin", alias=1, datatype=10)
    uneven = payload.metrics.add(name="uneven", alias=7, datatype=10)
    uneven.properties.keys.extend(["engUnit", "more"])
    uneven.properties.values.add(type=12, string_value="V")
    table = read_birth(payload)
    assert table.points == (Point("Axis/speed", "rpm"),)
    assert table.faults == (
        "a point cannot be named 'time'",
        "odd has data type 77, which Sparkplug B does not know",
        f"metric {'x' * 300!r} is longer than 200 characters".replace("x" * 300, "x" * 40),
        "alias 1 is born twice; 'twin' is found by its name alone",
    )
    assert table.by_alias[1].point == "Axis/speed" and table.by_name["twin"].point == "twin"
    assert {table.by_alias[alias].point for alias in (2, 3, 4, 5)} == {None}


def test_aliases_and_names_both_find_a_metric_and_zero_is_an_alias() -> None:
    table = birth_of({"name": "x", "alias": 0, "datatype": DataType.DOUBLE}, {"name": "y", "datatype": DataType.DOUBLE})
    payload = Payload(timestamp=T0_MS, seq=1)
    payload.metrics.add(alias=0, timestamp=T0_MS, double_value=1.0)
    payload.metrics.add(name="y", timestamp=T0_MS, double_value=2.0)
    payload.metrics.add(alias=9, timestamp=T0_MS, double_value=3.0)
    payload.metrics.add(name="z", timestamp=T0_MS, double_value=3.0)
    payload.metrics.add(timestamp=T0_MS, double_value=3.0)
    readout = read(payload, table)
    assert readout.values == {T0: {"x": 1.0, "y": 2.0}}
    assert readout.unknown == ("alias 9", "'z'", "a metric without name and alias")


def test_without_a_birth_names_with_types_are_read() -> None:
    payload = Payload(timestamp=T0_MS, seq=1)
    payload.metrics.add(name="a", timestamp=T0_MS, double_value=1.0)
    payload.metrics.add(name="b", timestamp=T0_MS, datatype=DataType.INT8, int_value=255)
    payload.metrics.add(name="c", timestamp=T0_MS, int_value=3)  # signed or not: nobody says
    payload.metrics.add(alias=4, timestamp=T0_MS, double_value=3.0)
    readout = read(payload, MetricTable(), guess=True)
    assert readout.values == {T0: {"a": 1.0, "b": -1.0}} and readout.unknown == ("'c'", "alias 4")


def test_payloads_that_are_none() -> None:
    with pytest.raises(PayloadError, match="protobuf is damaged"):
        parse_payload(b"\xff\xff\xff")
    with pytest.raises(PayloadError, match="at most"):
        parse_payload(b"\x12\x00" * (sparkplug.MAX_METRICS + 1))
    with pytest.raises(PayloadError, match="at most"):
        parse_payload(b"\0" * (sparkplug.MAX_BYTES + 1))
    with pytest.raises(PayloadError, match="uncompressed"):
        parse_payload(Payload(uuid="SPBV1.0_COMPRESSED", body=b"x").SerializeToString())
    for seq in (None, 256):
        with pytest.raises(PayloadError, match="from 0 to 255"):
            sequence_number(Payload(seq=seq))
    assert sequence_number(Payload(seq=0)) == 0


def test_deep_templates_and_properties_are_carried_past() -> None:
    inner = b""
    for _ in range(400):
        size = len(inner)
        varint = b""
        while size > 127:
            varint += bytes([size & 127 | 128])
            size >>= 7
        inner = b"\x12" + varint + bytes([size]) + inner
    table = birth_of({"name": "t", "alias": 1, "datatype": 19}, {"name": "x", "alias": 2, "datatype": 10})
    payload = Payload(timestamp=T0_MS, seq=1)
    payload.metrics.add(alias=1, timestamp=T0_MS, template_value=inner)
    deep = payload.metrics.add(alias=2, timestamp=T0_MS, double_value=1.0)
    add_property(deep, "Quality", type=20, propertyset_value=inner)
    payload.metrics.add(alias=2, timestamp=T0_MS + 1, double_value=2.0)
    assert read(payload, table) == Readout({T0: {"x": 1.0}, T0 + 1000: {"x": 2.0}})


def test_what_a_host_says() -> None:
    topic, raw = rebirth_request("g", "n", T0_MS)
    asked = parse_payload(raw)
    assert topic == "spBv1.0/g/NCMD/n" and asked.timestamp == T0_MS and not asked.HasField("seq")
    (metric,) = asked.metrics
    assert (metric.name, metric.datatype, metric.boolean_value) == ("Node Control/Rebirth", DataType.BOOLEAN, True)
    assert says_offline(b'{"online":false,"timestamp":1}') and not says_offline(b'{"online":true,"timestamp":1}')
    assert says_offline(b"") and says_offline(b"OFFLINE") and says_offline(b"[1]")


# Whatever the bytes are


_names = st.sampled_from(["x", "y", "z", "bdSeq", "time", "", "a/b"]) | st.text(max_size=4)
_metrics = st.fixed_dictionaries(
    {},
    optional={
        "name": _names,
        "alias": st.integers(0, 6),
        "timestamp": st.sampled_from([0, T0_MS, T0_MS + 1, 5, (1 << 64) - 1]),
        "datatype": st.integers(0, 40),
        "is_null": st.booleans(),
        "is_historical": st.booleans(),
    },
)
_values = st.one_of(
    st.just({}),
    st.builds(lambda v: {"int_value": v}, st.integers(0, (1 << 32) - 1)),
    st.builds(lambda v: {"long_value": v}, st.integers(0, (1 << 64) - 1)),
    st.builds(lambda v: {"double_value": v}, st.floats()),
    st.builds(lambda v: {"float_value": v}, st.floats(width=32)),
    st.builds(lambda v: {"boolean_value": v}, st.booleans()),
    st.builds(lambda v: {"string_value": v}, st.text(max_size=3)),
    st.builds(lambda v: {"template_value": v}, st.binary(max_size=8)),
)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    payload = Payload(timestamp=draw(st.sampled_from([0, T0_MS])), seq=draw(st.integers(0, 255)))
    for fields, value in draw(st.lists(st.tuples(_metrics, _values), max_size=12)):
        metric = payload.metrics.add(**fields, **value)
        if draw(st.integers(0, 9)) == 0:
            add_property(metric, draw(st.sampled_from(["Quality", "engUnit"])), type=3, int_value=0)
    return bytes(payload.SerializeToString())


def survives(raw: bytes, table: MetricTable) -> Readout | None:
    """Reads as birth and as data; whatever comes of it is well formed."""
    try:
        parsed = parse_payload(raw)
    except PayloadError as error:
        assert str(error) and "\n" not in str(error)
        return None
    own = read_birth(parsed)
    for known in (table, own):
        for guess in (False, True):
            readout = read_metrics(parsed, known, T0, guess=guess)
            for values in readout.values.values():
                assert values and all(type(v) is float and v - v == 0 for v in values.values())
            assert all("\n" not in fault for fault in readout.faults + own.faults)
    return readout


TABLE = birth_of(
    *({"name": name, "alias": alias, "datatype": 8 + alias} for alias, name in enumerate(["w", "x", "y", "z"], 1))
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_have_an_end(raw: bytes) -> None:
    survives(raw, TABLE)


@settings(max_examples=300, deadline=None)
@given(payloads(), st.randoms(use_true_random=False))
def test_damaged_payloads_have_an_end(raw: bytes, chance: random.Random) -> None:
    survives(raw, TABLE)
    damaged = bytearray(raw)
    for _ in range(chance.randrange(1, 6)):
        if damaged:
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    survives(bytes(damaged), TABLE)
    survives(raw[: chance.randrange(len(raw) + 1)], TABLE)


@settings(max_examples=500, deadline=None)
@given(payloads())
# Metrics without name and alias: one with nothing in it, one with a stamp that is not its neighbour's.
@example(b"\x08\x00\x12\x00\x12\x07\x10\x01e\x00\x00\x00\x00\x18\x00")
@example(b"\x08\x00\x12\x07\x10\x01e\x00\x00\x00\x00\x12\x07\x18\x80\xc2\xe4\xbe\xa04\x18\x00")
def test_data_by_columns_equals_data_metric_by_metric(raw: bytes) -> None:
    parsed = parse_payload(raw)
    for table in (TABLE, read_birth(parsed)):
        quick = table.plans.read(parse_columns(raw), len(raw))
        if quick is not None:
            assert sparkplug._read_with_care(parsed, table, False) == Readout(quick)


_KINDS = {
    DataType.INT8: st.integers(-128, 127), DataType.INT32: st.integers(-(2**31), 2**31 - 1),
    DataType.INT64: st.integers(-(2**63), 2**63 - 1), DataType.UINT64: st.integers(0, 2**64 - 1),
    DataType.FLOAT: st.floats(width=32, allow_nan=False, allow_infinity=False), DataType.BOOLEAN: st.booleans(),
    DataType.DOUBLE: st.floats(allow_nan=False, allow_infinity=False), DataType.STRING: st.text(max_size=3),
}  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.data(), st.booleans())
def test_sound_data_is_read_by_columns_and_is_what_was_sent(data: st.DataObject, named: bool) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(_KINDS)), min_size=1, max_size=12))
    table = birth_of(*({"name": f"p{n}", "alias": n + 1, "datatype": kind} for n, kind in enumerate(kinds)))
    chosen = data.draw(st.permutations(range(len(kinds))))[: data.draw(st.integers(1, len(kinds)))]
    payload = Payload(timestamp=T0_MS, seq=1)
    expected: dict[int, dict[str, float]] = {}
    for n in chosen:
        value, stamp = data.draw(_KINDS[kinds[n]]), T0_MS + data.draw(st.integers(0, 1))
        called: dict[str, Any] = {"name": f"p{n}"} if named else {"alias": n + 1}
        add_metric(payload, value=value, datatype=kinds[n], timestamp=stamp, **called)
        if kinds[n] != DataType.STRING:
            expected.setdefault(stamp, {})[f"p{n}"] = float(value)
    raw = payload.SerializeToString()
    quick = table.plans.read(parse_columns(raw), len(raw))
    if sum(abs(v) for values in expected.values() for v in values.values()) < 1e300:
        assert quick == expected


def test_a_sender_that_is_read_otherwise_by_columns_is_not_read_so() -> None:
    """Two metrics that each come in the other's field: by columns their values would change places."""
    table = birth_of({"name": "a", "alias": 1, "datatype": 9}, {"name": "b", "alias": 2, "datatype": 10})
    payload = Payload(timestamp=T0_MS, seq=1)
    payload.metrics.add(alias=1, timestamp=T0_MS, double_value=1.0)
    payload.metrics.add(alias=2, timestamp=T0_MS, float_value=2.0)
    raw = payload.SerializeToString()
    assert table.plans.read(parse_columns(raw), len(raw)) == {T0_MS: {"a": 2.0, "b": 1.0}}
    for _ in range(9):
        assert read_data(parse_columns(raw), raw, table, T0).values == {T0: {"a": 1.0, "b": 2.0}}
    assert not table.plans.trusted


def test_large_payloads_take_no_long_time() -> None:
    edge = Edge()
    edge.nbirth()
    _, raw = edge.dbirth("d", {f"sensor {k}/value": float(k) for k in range(20_000)})
    began = time.perf_counter()
    parsed = parse_payload(raw)
    assert len(read_metrics(parsed, read_birth(parsed), T0).values[T0]) == 20_000
    assert time.perf_counter() - began < 20
