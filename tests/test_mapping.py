"""Payloads of strange forms, read as the configuration describes them."""

from __future__ import annotations

import json
import tomllib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.decode import Decoder, routes_of
from connectors.mapping import MappedForm
from connectors.units import conversion
from connectors.value_quality import quality_of
from connectors.values import PayloadError
from pm.config import BrokerSection, MappingSection
from pm.domain import Doubtful, Quality, Reading
from pm.errors import FeedError

NOW = 1_795_428_000_000_000
"""2026-11-23T10:00:00Z."""
SECOND = 1_000_000


def section(text: str) -> MappingSection:
    return MappingSection.model_validate({"topic": "press/{asset}/raw", **tomllib.loads(text)})


def read(text: str, payload: str, *, asset: str = "p1", point: str | None = None) -> tuple[Reading, ...]:
    return MappedForm(section(text)).parse(payload.encode(), asset, point, NOW)


@pytest.mark.parametrize(
    ("mapping", "payload", "expected"),
    [
        pytest.param(
            "",
            '{"time":1795428000,"motor":{"temp":70.5,"u":[1],"inner":{"x":2}}}'.replace(',"u":[1]', ""),
            {("p1", 0): {"motor.temp": 70.5, "motor.inner.x": 2.0}},
            id="nested values are named by their paths",
        ),
        pytest.param(
            'samples = "data"\nasset_path = "dev"\ntime = "ts"\nname = "n"\nvalue = "v"\n'
            'rename = { T = "temp" }\nunits = { temp = "degF -> degC" }',
            '{"dev":"press 7","ts":1795428000,"data":[{"n":"T","v":212},{"n":"p","v":2,"ts":1795428060}]}',
            {("press 7", 0): {"temp": 100.0}, ("press 7", 60): {"p": 2.0}},
            id="one value a sample, asset and time beside them",
        ),
        pytest.param(
            'points = { volt = "m.0.u", temp = "m.1.t", lost = "m.9.x" }\ntime = "at"\n'
            'time_format = "%d.%m.%Y %H:%M:%S"\n'
            'time_zone = "Europe/Berlin"',
            '{"at":"23.11.2026 11:00:30","m":[{"u":400},{"t":20.5}]}',
            {("p1", 30): {"volt": 400.0, "temp": 20.5}},
            id="points by path, a local time of its own form",
        ),
        pytest.param(
            'samples = "rows"\ntime = "0"\ntime_format = "ms"\npoints = { a = "1", b = "2" }',
            '{"rows":[[1795428000000,1,2],[1795428001000,3,null]]}',
            {("p1", 0): {"a": 1.0, "b": 2.0}, ("p1", 1): {"a": 3.0}},
            id="samples that are arrays",
        ),
        pytest.param(
            'asset_path = "m"',
            '[{"m":"x","time":1795428000,"a":1},{"m":"y","time":1795428000,"a":2},{"m":"x","time":1795428000,"b":3}]',
            {("x", 0): {"a": 1.0, "b": 3.0}, ("y", 0): {"a": 2.0}},
            id="several assets in one message",
        ),
        pytest.param(
            'ignore = ["state", "seq"]\ntext_numbers = true\nbooleans = true\ndecimal = ","',
            '{"time":1795428000,"state":"run","seq":7,"a":"1,5","on":true}',
            {("p1", 0): {"a": 1.5, "on": 1.0}},
            id="texts and booleans where they are accepted",
        ),
        pytest.param(
            'format = "csv"',
            "time,volt,rotate.max\n2026-11-23T10:00:00Z,171.2,\n1795428001,1e3,4\n",
            {("p1", 0): {"volt": 171.2}, ("p1", 1): {"volt": 1000.0, "rotate.max": 4.0}},
            id="csv with a header",
        ),
        pytest.param(
            'format = "csv"\ncolumns = ["asset", "time", "", "name", "value"]\ndelimiter = ";"\ndecimal = ","\n'
            'asset_path = "asset"\nname = "name"\ntime_zone = "UTC"',
            'm1;2026-11-23 10:00:00;x;volt;1,5\r\nm2;2026-11-23 10:00:02;x;"am;p";-2\r\n',
            {("m1", 0): {"volt": 1.5}, ("m2", 2): {"am;p": -2.0}},
            id="csv without one, one value a line",
        ),
        pytest.param(
            'format = "lines"\nrename = { v = "volt" }\nunits = { volt = "* 0.1 - 40" }\nignore = ["n"]',
            "r,line=2 v=500i,n=3i 1795428000",
            {("p1", 0): {"volt": 10.0}},
            id="line protocol, raw counts",
        ),
    ],
)
def test_what_is_read(mapping: str, payload: str, expected: dict[tuple[str, int], dict[str, float]]) -> None:
    found = {(r.asset, (r.time_us - NOW) // SECOND): dict(r.values) for r in read(mapping, payload)}
    assert found == expected


@pytest.mark.parametrize(
    ("mapping", "payload", "why"),
    [
        ("", "", "empty"),
        ("", "[]", "no samples"),
        ("", "{", "not JSON"),
        ("", '{"a":1,"a":2}', "stands twice"),
        ("", '{"time":1795428000}', "no values"),
        ("", '{"a":"1"}', "not a number"),
        ("", '{"a":true}', "not a number"),
        ("", '{"a":NaN}', "not JSON"),
        ("", '{"a":{"b":"x"}}', "a.b is 'x'"),
        ("", '{"a":' * 40 + "1" + "}" * 40, "deeper than 32"),
        ("", '{"a":' * 5000 + "1" + "}" * 5000, "not JSON"),
        ("", '{"time":"2026-11-23T10:00:00","a":1}', "no zone"),
        ("", "7", "not an object"),
        ('samples = "data"', '{"d":[]}', "nothing stands at data"),
        ('points = { a = "x.y" }', '{"x":{}}', "none of the points' paths"),
        ('name = "n"', '[{"value":1}]', "point's name"),
        ('name = "n"', '[{"n":"a"}]', "no value at value"),
        ('asset_path = "dev"', '{"a":1}', "asset None is not text"),
        ('time_format = "ms"', '{"time":"soon","a":1}', "not a number of ms"),
        ('time_format = "s"', '{"time":1795428000000000,"a":1}', "outside 1678 to 2261"),
        ('time_format = "%Y"', '{"time":"x","a":1}', "not like %Y"),
        ('units = { a = "* 1e300" }', '{"a":1e300}', "too large"),
        ('format = "csv"', "a,b\n1\n", "line 2 has 1 columns, not 2"),
        ('format = "csv"', "a,a\n1,2\n", "stands twice"),
        ('format = "csv"', "a,b\n", "no lines"),
        ('format = "csv"', "a\nx\n", "not a number"),
        ('format = "csv"', 'a\n"1\n', "not CSV"),
        ('rename = { b = "a" }', '{"a":1,"b":2}', "two values"),
    ],
)
def test_what_is_refused(mapping: str, payload: str, why: str) -> None:
    with pytest.raises(PayloadError, match=why) as caught:
        read(mapping, payload)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mapping", "why"),
    [
        ('units = { a = "degF -> volt" }', "degF -> volt"),
        ('units = { a = "furlong" }', "write it as"),
        ('units = { a = "nonsense -> degC" }', "nonsense"),
        ('units = { a = "rpm -> Hz" }', "an angle and the other is not"),
        ('units = { a = "dBm -> W" }', "dBm -> W"),
        ('units = { a = "* 0" }', "factor is 0"),
        ('time_zone = "Mars"', "not a time zone"),
        ('time_format = "iso"', "none of auto"),
        ('points = { a = "x" }\nname = "n"', "remove name"),
        ('rename = { a = "" }', "is empty"),
    ],
)
def test_a_mapping_that_cannot_work_is_refused_at_the_start(mapping: str, why: str) -> None:
    with pytest.raises(FeedError, match=why):
        MappedForm(section(mapping))


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("degF -> degC", 212.0, 100.0),
        ("degF -> degC", 32.0, 0.0),
        ("degC -> kelvin", 0.0, 273.15),
        ("kPa -> bar", 250.0, 2.5),
        ("rpm -> rps", 1500.0, 25.0),
        ("mm/s -> m/s", 4.5, 0.0045),
        ("percent -> dimensionless", 50.0, 0.5),
        ("* 0.1 - 40", 1000.0, 60.0),
        ("*.5", 3.0, 1.5),
    ],
)
def test_units_by_rule(rule: str, value: float, expected: float) -> None:
    assert conversion(rule)(value) == expected


@given(value=st.integers(-(10**6), 10**6))
def test_a_conversion_is_that_of_exact_arithmetic(value: int) -> None:
    exact = (Fraction(value) - 32) * 5 / 9
    assert conversion("degF -> degC")(float(value)) == pytest.approx(float(exact), rel=1e-15, abs=1e-12)


@pytest.mark.parametrize(
    ("said", "codes", "quality"),
    [
        (None, "opc-da", "good"),
        (True, "opc-da", "good"),
        (False, "opc-da", "bad"),
        (192, "opc-da", "good"),
        (216, "opc-da", "good"),
        (64, "opc-da", "uncertain"),
        (0, "opc-da", "bad"),
        (0, "opc-ua", "good"),
        (0x40920000, "opc-ua", "uncertain"),
        (0x80050000, "opc-ua", "bad"),
        ("Good", "opc-da", "good"),
        ("BadCommunicationError", "opc-ua", "bad"),
        ("192", "opc-da", "good"),
        ("whatever", "opc-da", "uncertain"),
        (0.98, "opc-da", "uncertain"),
        ({"a": 1}, "opc-da", "uncertain"),
    ],
)
def test_qualities(said: object, codes: str, quality: str) -> None:
    assert quality_of(said, codes) == quality  # type: ignore[arg-type]


def test_a_bad_value_is_no_reading_and_not_lost() -> None:
    doubtful: list[Doubtful] = []
    form = MappedForm(section('samples = "s"\nname = "n"\nvalue = "v"\nquality = "q"'))
    payload = b'{"time":1795428000,"s":[{"n":"a","v":1,"q":192},{"n":"b","v":2,"q":64},{"n":"c","v":"err","q":0}]}'
    readings = form.parse(payload, "p", None, NOW, doubtful)
    assert readings == (Reading("p", NOW, {"a": 1.0, "b": 2.0}),)
    assert doubtful == [
        Doubtful("p", NOW, "b", "2", Quality.UNCERTAIN),
        Doubtful("p", NOW, "c", "err", Quality.BAD),
    ]


def broker(text: str) -> Decoder:
    return Decoder(routes_of(BrokerSection.model_validate(tomllib.loads(text))))


@pytest.mark.parametrize(
    ("topic", "payload", "values", "doubtful"),
    [
        ("plant/a/readings", b'{"values":{"x":1,"y":2},"quality":{"y":"bad"}}', {"x": 1.0}, {"y": "bad"}),
        ("plant/a/readings", b'[{"values":{"x":1},"quality":"uncertain"}]', {"x": 1.0}, {"x": "uncertain"}),
        ("plant/a/x", b'{"value":7,"quality":0}', {}, {"x": "bad"}),
        ("plant/a/x", b'{"value":7,"quality":"good"}', {"x": 7.0}, {}),
        ("plant/a/readings", b'{"x":1,"quality":3}', {"x": 1.0, "quality": 3.0}, {}),
    ],
)
def test_qualities_in_payloads_of_our_own_form(
    topic: str, payload: bytes, values: dict[str, float], doubtful: dict[str, str]
) -> None:
    delivery = broker("").decode(topic, payload, received_us=NOW, receipt=1)
    assert delivery.readings == (Reading("a", NOW, values),)
    assert {d.point: d.quality for d in delivery.doubtful} == doubtful


def test_parts_of_the_topic_become_asset_point_and_tags() -> None:
    decoder = broker(
        'asset = "{line}-{asset}"\n'
        'readings = ["site/{site}/{line}/{asset}/readings", "site/{site}/{line}/{asset}/v/{point}"]\n'
        'events = ["site/{site}/{line}/{asset}/events"]\n'
        '[[mapping]]\ntopic = "gateway/{area}/raw"\nasset_path = "dev"\ntags = { kind = "press", area = "hall 2" }\n'
        '[[mapping]]\ntopic = "old/{asset}/{point}"\nasset = "{asset}"\nunits = { temp = "degF -> degC" }\n'
    )
    one = decoder.decode("site/north/l1/pump/readings", b'{"x":1}', received_us=NOW, receipt=1)
    assert (one.readings, one.tags) == (
        (Reading("l1-pump", NOW, {"x": 1.0}),),
        (("line", "l1"), ("site", "north")),
    )
    scalar = decoder.decode("site/north/l1/pump/v/x", b"2", received_us=NOW, receipt=1)
    assert scalar.readings == (Reading("l1-pump", NOW, {"x": 2.0}),)
    event = decoder.decode("site/n/l1/pump/events", b'{"kind":"error","code":"e"}', received_us=NOW, receipt=1)
    assert event.events[0].asset == "l1-pump"
    mapped = decoder.decode("gateway/hall 1/raw", b'{"dev":17,"x":1}', received_us=NOW, receipt=1)
    assert (mapped.readings[0].asset, mapped.tags) == ("17", (("area", "hall 2"), ("kind", "press")))
    assert decoder.decode("old/p/temp", b"212", received_us=NOW, receipt=1).readings[0].values == {"temp": 100.0}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('asset = "{line}-{asset}"', "it has no {line}"),
        ('asset = "pump"', "names no part"),
        ('[[mapping]]\ntopic = "a/b"', "it has no {asset}"),
        ('[[mapping]]\ntopic = "plant/{asset}/readings"', "named for a mapping|named for readings"),
        ('[[mapping]]\ntopic = "plant/{asset}/{other}"', "match the same topics"),
    ],
)
def test_routes_that_cannot_work_are_refused(text: str, why: str) -> None:
    with pytest.raises(FeedError, match=why):
        broker(text)


def test_a_mapping_without_topic_is_refused() -> None:
    with pytest.raises(ValueError, match="has no topic"):
        BrokerSection.model_validate({"mapping": [{}]})


def test_what_a_broker_kept_is_dated_by_itself_or_passed_over() -> None:
    decoder = broker('[[mapping]]\ntopic = "raw/{asset}"\n')
    for topic in ("plant/a/readings", "raw/a"):
        undated, dated = b'{"x":1}', b'{"time":1795427000,"x":1}'
        assert decoder.decode(topic, undated, received_us=NOW, receipt=1).readings
        passed = decoder.decode(topic, undated, received_us=NOW, receipt=1, retained=True)
        assert not (passed.readings or passed.rejects or passed.doubtful) and passed.receipt == 1
        kept = decoder.decode(topic, dated, received_us=NOW, receipt=1, retained=True)
        assert kept.readings == (Reading("a", NOW - 1000 * SECOND, {"x": 1.0}),)
        both = decoder.decode(topic, b"[" + undated + b"," + dated + b"]", received_us=NOW, receipt=1, retained=True)
        assert both.readings == kept.readings
    assert not decoder.decode("plant/a/x", b"1", received_us=NOW, receipt=1, retained=True).readings
    event = b'{"kind":"error","code":"e"}'
    assert decoder.decode("plant/a/events", event, received_us=NOW, receipt=1).events
    assert not decoder.decode("plant/a/events", event, received_us=NOW, receipt=1, retained=True).events
    assert decoder.decode("plant/a/x", b"no", received_us=NOW, receipt=1, retained=True).rejects[0].received_us == NOW


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["time", "v", "n", "q", "d", ""]), inner)
    ),
    max_leaves=12,
)
FORMS = [
    MappedForm(section(text))
    for text in (
        "",
        'samples = "d"\nname = "n"\nvalue = "v"\nquality = "q"\ntext_numbers = true\nasset_path = "d.0"',
        'points = { a = "v", b = "d.0.v" }\ntime_zone = "Europe/Berlin"\nbooleans = true\nunits = { a = "* 3 + 1" }',
        'format = "csv"\ndecimal = ","\ndelimiter = ";"\ntime_format = "%d.%m.%Y"\ntime_zone = "Asia/Kolkata"',
        'format = "lines"\nrename = { v = "w" }',
    )
]


@given(
    payload=st.binary(max_size=80)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.text(st.sampled_from(list("time;va,1.5\n\"'\0-e: +")), max_size=40).map(str.encode),
    form=st.sampled_from(FORMS),
)
def test_whatever_comes_there_is_a_defined_end(payload: bytes, form: MappedForm) -> None:
    doubtful: list[Doubtful] = []
    try:
        readings = form.parse(payload, "a", "p" if payload[:1] == b"1" else None, NOW, doubtful)
    except PayloadError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert readings
    assert all(value - value == 0.0 for reading in readings for value in reading.values.values())
