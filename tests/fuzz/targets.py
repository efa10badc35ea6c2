"""What is fuzzed: each parser of what strangers send, and what must hold of it whatever the bytes are.

A target raises nothing for an end that is defined. `tests/test_fuzz.py` runs each on a few seeds with the tests;
`python -m tests.fuzz` runs them under atheris for as long as wanted.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from connectors import recordings
from connectors.decode import Decoder, routes_of
from connectors.sparkplug_host import SparkplugHost
from connectors.sparkplug_names import AssetNames
from connectors.spool import FORMAT, decode, encode, scan
from connectors.topics import Routes, TopicTemplate, topic_fault
from pm.config import BrokerSection
from pm.errors import FeedError, RecordingError
from pm.ports import Delivery
from tests.sparkplug_cases import Edge

NOW = 1_795_428_000_000_000
ROUTES = Routes(
    readings=("plant/{asset}/readings", "plant/{asset}/{point}"), events=("plant/{asset}/events",), clock="pm/clock"
)
DECODER = Decoder(ROUTES)
MAPPED = Decoder(
    routes_of(
        BrokerSection.model_validate(
            {
                "mapping": [
                    {"topic": "csv/{asset}", "format": "csv", "decimal": ",", "delimiter": ";"},
                    {"topic": "row/{asset}", "format": "csv", "columns": ["time", "", "name", "value"], "name": "name"},
                    {"topic": "deep/{asset}", "samples": "data", "time": "t", "text_numbers": True, "booleans": True},
                ]
            }
        )
    )
)
VERBS = ("NBIRTH", "NDATA", "NDEATH", "DBIRTH", "DDATA", "DDEATH", "NCMD", "STATE")
WAIT_US = 1_000_000
LONGEST_REASON = 400
ABOUT = b"""format = 1
name = "small"
interval = "1h"
about = ""
source = ""
licence = ""
[points.volt]
unit = "V"
[failure_modes.bearing]
about = ""
"""
ASSETS = b"asset,model,age\na,m,3\nb,m,4\n"
EVENTS = b"time,asset,kind,code\n2026-01-01T00:00:00Z,a,failure,bearing\n"


@dataclass(frozen=True)
class Target:
    """A function of bytes, and bytes to begin with."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


def decoded(decoder: Decoder, topic: str, payload: bytes) -> None:
    """A message has one end: readings, events, plant time or a dead letter that holds it to the byte."""
    delivery = decoder.decode(topic, payload, received_us=NOW, receipt=1)
    for reading in delivery.readings:
        assert reading.asset.strip()
        for name, value in reading.values.items():
            assert type(name) is str and name
            assert type(value) is float and math.isfinite(value), (name, value)
    for reject in delivery.rejects:
        assert (reject.topic, reject.payload, reject.received_us) == (topic, payload, NOW)
        assert reject.reason and "\n" not in reject.reason and len(reject.reason) <= LONGEST_REASON, reject.reason
    ends = [bool(delivery.readings), bool(delivery.events), bool(delivery.rejects), delivery.clock_us is not None]
    assert not payload or sum(ends) >= 1, delivery


def payload_of(topic: str, decoder: Decoder = DECODER) -> Callable[[bytes], None]:
    return lambda payload: decoded(decoder, topic, payload)


def topic(text: bytes) -> None:
    """Any topic is routed or passed over; any template is taken or refused in one line, and finds its own topics."""
    name = text.decode("utf-8", "surrogateescape")
    decoded_topic = name.split("\n", 1)[0]
    route = ROUTES.resolve(decoded_topic)
    if route is not None:
        decoded(DECODER, decoded_topic, b"1")
    try:
        template = TopicTemplate(name)
    except FeedError as error:
        assert "\n" not in str(error)
        return
    parts = {part: f"v{number}" for number, part in enumerate(template.names)}
    made = template.topic(**parts)
    assert template.match(made) == parts
    assert topic_fault(made) is None


def sparkplug(content: bytes) -> None:
    """Whatever edge nodes send, in any order: each message is read, a dead letter, or waits, and nothing waits for
    ever. A message of `content` is a byte for its topic, two for its length, and its payload."""
    host = SparkplugHost(
        AssetNames("{device}", "{node}", "auto"), reorder_us=WAIT_US, birth_us=WAIT_US, most_held=10_000
    )
    now, at = NOW, 0
    deliveries: list[Delivery] = []
    while at + 3 <= len(content):
        verb, device = VERBS[content[at] & 7], content[at] >> 6
        size = int.from_bytes(content[at + 1 : at + 3], "little")
        payload = content[at + 3 : at + 3 + size]
        at += 3 + size
        deliveries += host.hear(f"spBv1.0/g/{verb}/n{f'/d{device}' if verb[0] == 'D' else ''}", payload, now)
        now += WAIT_US // 8
    for _ in range(8):
        now += WAIT_US
        deliveries += host.tick(now)
    deliveries += host.disconnected(now)
    assert host.held == 0
    for delivery in deliveries:
        for reading in delivery.readings:
            assert reading.asset
            assert all(type(value) is float and math.isfinite(value) for value in reading.values.values())
        assert all(reject.reason and "\n" not in reject.reason for reject in delivery.rejects)


def framed(messages: list[tuple[str, bytes]]) -> bytes:
    """Messages of an edge node in the form that `sparkplug` takes."""
    framed = b""
    for topic_, payload in messages:
        parts = topic_.split("/")
        framed += bytes([VERBS.index(parts[2])]) + len(payload).to_bytes(2, "little") + payload
    return framed


def edge_node() -> bytes:
    edge = Edge()
    born = [edge.nbirth({"m": 1.0}), edge.dbirth("d0", {"volt": 171.0, "rotate": 448.0})]
    return framed([*born, edge.data("d0", {"volt": 172.5}), edge.ddeath("d0"), edge.ndeath()])


def spool(content: bytes) -> None:
    """A segment of any bytes: what is found covers it without a gap, and a record's body is read or refused."""
    at = len(FORMAT) if content[: len(FORMAT)] == FORMAT else 0
    for found in scan(content):
        assert found.start == at < found.end
        at = found.end
        if found.body is not None:
            body(found.body)
    assert at == len(content)
    body(content)


def body(content: bytes) -> None:
    """What can be read as a delivery is written and read again as the same."""
    try:
        delivery = decode(content)
    except (ValueError, TypeError, KeyError, AttributeError):  # what a spool passes over
        return
    [found] = scan(FORMAT + encode(delivery))
    assert found.body is not None
    assert repr(decode(found.body)) == repr(delivery)  # NaN is not equal to itself


def spooled() -> bytes:
    [whole] = [DECODER.decode("plant/a/readings", b'{"time":1795428000,"volt":171.2}', received_us=NOW, receipt=1)]
    return FORMAT + encode(whole) + encode(Delivery(None, clock_us=NOW))


def recording_file(name: str) -> Callable[[bytes], None]:
    """A recording with one file of these bytes is read or refused by RecordingError."""

    def run(content: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="pm-fuzz-") as folder:
            for path, whole in (("recording.toml", ABOUT), ("assets.csv", ASSETS), ("events.csv", EVENTS)):
                (Path(folder) / path).write_bytes(content if path == name else whole)
            if name == "readings.parquet":
                (Path(folder) / name).write_bytes(content)
            try:
                recordings.read(Path(folder))
            except RecordingError as error:
                assert str(error)

    return run


def _targets() -> Mapping[str, Target]:
    return {
        "topic": Target(
            topic, (b"plant/{asset}/readings", b"site/{site}/{line}/{asset}/{point}", b"plant/a/volt", b"pm/clock")
        ),
        "json": Target(
            payload_of("plant/a/readings"),
            (
                b'{"time":"2026-11-23T10:00:00Z","values":{"volt":171.2,"rotate":448.9}}',
                b'{"time":1795428000,"volt":171.2}',
                b'[{"time":1795428000.5,"values":{"a":1e-3}},{"time":1795428001,"b":null}]',
            ),
        ),
        "lines": Target(
            payload_of("plant/a/readings"),
            (b"readings,asset=a volt=171.2,rotate=448i 1764324000000000000", b"r a\\ b=1u\nr c=.5e3 1764324000"),
        ),
        "scalar": Target(payload_of("plant/a/volt"), (b"171.2", b"-1e5", b'{"time":1795428000,"value":1}', b"null")),
        "events": Target(
            payload_of("plant/a/events"),
            (b'{"time":"2026-11-23T10:00:00Z","kind":"error","code":"error1"}', b'[{"kind":"failure","code":3}]'),
        ),
        "clock": Target(payload_of("pm/clock"), (b'{"time":1795428000}',)),
        "csv": Target(
            payload_of("csv/a", MAPPED), (b"time;volt;rotate\n2026-11-23T10:00:00Z;171,2;448\n1795428000;1;\n",)
        ),
        "csv-columns": Target(payload_of("row/a", MAPPED), (b"1795428000,x,volt,171.2\n1795428001,,rotate,4\n",)),
        "mapped-json": Target(
            payload_of("deep/a", MAPPED),
            (b'{"t":1795428000,"data":[{"motor":{"temp":"70.5","on":true}},{"t":1795428001,"x":1}]}',),
        ),
        "sparkplug": Target(sparkplug, (edge_node(),)),
        "spool": Target(spool, (spooled(), spooled()[len(FORMAT) + 12 :])),
        "recording-about": Target(recording_file("recording.toml"), (ABOUT,)),
        "recording-assets": Target(recording_file("assets.csv"), (ASSETS,)),
        "recording-events": Target(recording_file("events.csv"), (EVENTS,)),
        "recording-readings": Target(recording_file("readings.parquet"), (parquet(),)),
    }


def parquet() -> bytes:
    """A good readings.parquet."""
    import io

    import pandas as pd

    times = pd.to_datetime(["2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"]).astype("datetime64[us, UTC]")
    frame = pd.DataFrame({"time": times, "asset": ["a", "a"], "volt": [1.0, 2.0]})
    buffer = io.BytesIO()
    frame.to_parquet(buffer, compression=None)
    return buffer.getvalue()


TARGETS = _targets()
