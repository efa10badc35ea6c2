"""Messages decoded by the batch beside the same messages one by one: the same deliveries, whatever they hold."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors.decode import Decoder, routes_of
from connectors.decode_many import BatchDecoder
from connectors.mqtt_packets import Publish
from pm.config import BrokerSection, IngestSection
from pm.ports import Delivery

NOW = 1_795_428_000_000_000
SECTION = BrokerSection.model_validate(
    {
        "host": "broker",
        "readings": ["plant/{asset}/readings", "plant/{asset}/{point}", "site/{line}/{asset}/readings"],
        "mapping": [{"topic": "gateway/{asset}", "rename": {"T1": "temp"}}],
    }
)
MAX_FUTURE = IngestSection().max_future


class Both:
    """The two ways, each with routes of its own; `odd` counts what the quick one leaves to the other."""

    def __init__(self) -> None:
        self.slow = Decoder(routes_of(SECTION, "pm/clock"), max_future=MAX_FUTURE)
        self.quick = BatchDecoder(routes_of(SECTION, "pm/clock"), max_future=MAX_FUTURE)
        self.odd = 0

    def one(self, message: Publish, received_us: int) -> Delivery:
        topic, payload, mid, _, retained = message
        return self.slow.decode(
            topic.decode("utf-8", "replace"), payload, received_us=received_us, receipt=mid, retained=retained
        )

    def unusual(self, message: Publish, received_us: int) -> Delivery:
        self.odd += 1
        return self.one(message, received_us)

    def compare(self, messages: list[Publish]) -> list[Delivery]:
        found = self.quick.decode(messages, NOW, [message[2] for message in messages], self.unusual)
        # as text besides: it tells 1.0 from 1, 0.0 from -0.0, and the order of the points
        expected = [self.one(message, NOW + number) for number, message in enumerate(messages)]
        assert found == expected and repr(found) == repr(expected)
        return found


topics = st.sampled_from(
    [b"plant/a/readings", b"plant/b/readings", b"plant/a/temp", b"plant/a/time", b"plant/a/events", b"plant//readings",
     b"plant/\xff/readings", b"site/l/a/readings", b"gateway/a", b"pm/clock", b"other"]
)  # fmt: skip
numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**70), 2**70), st.sampled_from([0, -0.0, 1e308])
)
names = st.sampled_from(
    ["temp", "volt", "p1", "p2", "p3", "time", "asset", "value", "quality", "a\u2028", "é", 'q"', ""]
)
values = st.one_of(numbers, numbers, numbers, st.none(), st.booleans(), st.sampled_from(["1", "x", [], {}]))
times = st.one_of(
    st.floats(1.7e9, 1.8e9), st.integers(1_700_000_000, 1_800_000_000), st.just(NOW / 1e6 + 601), numbers, st.none(),
    st.sampled_from(["2026-11-23T10:00:00Z", "2026-11-23T10:00:00", "2026-11-23 11:00:00.25+01:00", "", "x"]),
    st.integers(NOW // 1000 - 5, NOW // 1000 + 5), st.integers(NOW - 5, NOW + 5), st.booleans(),
)  # fmt: skip
plain = st.dictionaries(names, numbers, min_size=1, max_size=4)
mixed = st.dictionaries(names, values, max_size=4)


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    inner = draw(st.one_of(plain, plain, mixed))
    body: dict[str, object] = {"values": inner} if draw(st.booleans()) else dict(inner)
    if draw(st.booleans()):
        body["time"] = draw(times)
    if draw(st.integers(0, 9)) == 0:
        body[draw(st.sampled_from(["quality", "n", "values"]))] = draw(
            st.sampled_from([1, "bad", {"temp": "bad"}, None])
        )
    if draw(st.booleans()):
        body = dict(reversed(body.items()))
    text = orjson.dumps(json_numbers(body))
    if draw(st.integers(0, 7)) == 0:  # a name twice
        text = text.replace(b'"p2"', b'"p1"').replace(b'"volt"', b'"t\\u0065mp"')
    return draw(st.sampled_from([b"", b" ", b"\n"])) + text if draw(st.booleans()) else text


def json_numbers(value: object) -> object:
    """orjson writes no whole numbers of more than 64 bits."""
    if isinstance(value, dict):
        return {key: json_numbers(one) for key, one in value.items()}
    return float(value) if type(value) is int and abs(value) > 2**63 else value


payloads = st.one_of(
    objects(),
    objects(),
    objects().map(lambda one: b"[" + one + b"]"),
    numbers.map(lambda one: repr(one).encode()),
    st.from_regex(r"\A[ ]?[+-]?\d{0,3}\.?\d{0,3}([eE][+-]?\d{1,3})?\n?\Z").map(str.encode),
    st.sampled_from(
        [b"", b"null", b"NaN", b"1e999", b"9" * 400, b"1_0", b"\xd9\xa1", b"r a=1,b=2i", b"{", b'{"a":1}x']
    ),
    st.binary(max_size=12),
)
messages = st.lists(st.tuples(topics, payloads, st.integers(1, 9), st.integers(0, 1), st.booleans()), max_size=12)


@settings(max_examples=400, deadline=None)
@given(messages)
@example([(b"plant/a/readings", b'{"values":{"p1":1.5,"p1":2.5}}', 1, 1, False)] * 2)
@example([(b"plant/a/readings", b'{"values":{"p1":1.5},"values":{"p1":2.5}}', 1, 1, False)] * 2)
@example([(b"plant/a/readings", b'{"time":1795428000.5,"time":null,"p1":2.5}', 1, 1, False)] * 2)
def test_a_batch_brings_what_its_messages_bring_one_by_one(found: list[Publish]) -> None:
    both = Both()
    both.compare(found)
    both.compare(found)  # by now names and topics are known


@pytest.mark.parametrize(
    "payload",
    [
        b'{"time":1795428000.25,"values":{"temp":1.5,"volt":2}}',
        b'{"time":1795428000123,"temp":1.5,"volt":2.0}',
        b'{"values":{"volt":2,"temp":3},"time":"2026-11-23T10:00:00Z"}',
        b'{"temp":1}',
    ],
)
def test_usual_messages_take_the_quick_way_from_the_second_on(payload: bytes) -> None:
    both = Both()
    batch: list[Publish] = [(b"plant/a/readings", payload, 1, 1, False), (b"plant/a/temp", b"-1.5e3", 2, 1, False)]
    both.compare(batch)
    both.odd = 0
    for delivery in both.compare(batch):
        assert delivery.readings and not delivery.rejects
    assert both.odd == 0


def test_a_topic_of_the_feeds_own_is_never_a_reading() -> None:
    section = BrokerSection.model_validate({"host": "b", "readings": ["pm/ingest/{asset}/{point}"]})
    decoder = BatchDecoder(routes_of(section), beside=b"pm/ingest/g/")
    seen: list[bytes] = []

    def unusual(message: Publish, received_us: int) -> Delivery:
        seen.append(message[0])
        return Delivery(None)

    found = decoder.decode(
        [(b"pm/ingest/g/one", b"1", 1, 1, False), (b"pm/ingest/h/one", b"1", 2, 1, False)], NOW, [1, 2], unusual
    )
    assert seen == [b"pm/ingest/g/one"] and len(found[1].readings) == 1
