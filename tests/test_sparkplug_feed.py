"""The Sparkplug host on a real broker: its session and state as the specification has them, and a foreign edge node."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from connectors.embedded import EmbeddedStore
from connectors.sparkplug import parse_payload
from connectors.sparkplug_feed import SparkplugFeed
from connectors.sparkplug_schema import DataType, Payload
from pm import config
from pm.config import IngestSection, SparkplugSection
from pm.doctor import examine
from pm.domain import EARLIEST, LATEST, Point, Silence
from pm.errors import RecordsUnavailable
from pm.ingest import Ingest
from pm.service import Service
from tests.servers.ingest import DeadLetterList, wall_us
from tests.servers.mosquitto import Mosquitto, mosquitto
from tests.servers.programs import wait_until
from tests.servers.sparkplug_edge import sparkplug_edge
from tests.servers.tap import CONNECT, DISCONNECT, PUBLISH, SUBSCRIBE, Tap, tap
from tests.sparkplug_cases import Edge, add_property

STATE = "spBv1.0/STATE/pm"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


class Observer:
    """Any other client of the broker: what it hears on spBv1.0/#, and what it publishes."""

    def __init__(self, port: int) -> None:
        self.heard: list[paho.MQTTMessage] = []
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.on_message = lambda client, userdata, message: self.heard.append(message)
        ready: list[bool] = []
        self.client.on_subscribe = lambda *_: ready.append(True)
        self.client.connect("127.0.0.1", port)
        self.client.subscribe("spBv1.0/#", 1)
        self.client.loop_start()
        wait_until(lambda: bool(ready), "a subscription")

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=qos, retain=retain).wait_for_publish(10)

    def states(self) -> list[dict[str, Any]]:
        return [json.loads(m.payload) for m in self.heard if m.topic == STATE and m.payload]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def observer(broker: Mosquitto) -> Iterator[Observer]:
    opened = Observer(broker.port)
    yield opened
    opened.publish(STATE, b"", qos=1, retain=True)
    opened.close()


@pytest.fixture
def tapped(broker: Mosquitto) -> Iterator[Tap]:
    with tap(broker.port) as opened:
        yield opened


class Register:
    def __init__(self) -> None:
        self.silences: dict[str, int] = {}
        self.points: dict[str, str] = {}
        self.failures = 0

    def note_source(self, silences: Sequence[Silence], points: Sequence[Point]) -> None:
        if self.failures:
            self.failures -= 1
            raise RecordsUnavailable("the records are away")
        for said in silences:
            self.silences.pop(said.asset, None)
            if said.since_us is not None:
                self.silences[said.asset] = said.since_us
        self.points |= {point.name: point.unit for point in points}


Opener = Callable[..., SparkplugFeed]


@pytest.fixture
def opener(broker: Mosquitto) -> Iterator[Opener]:
    opened: list[SparkplugFeed] = []

    def open_feed(port: int | None = None, *, register: Register | None = None, **changes: Any) -> SparkplugFeed:
        options = {name: changes.pop(name) for name in ("reorder_timeout", "groups", "host_id") if name in changes}
        section = broker.section(**({"port": port} if port else {}), client_id=f"pm-{len(opened)}", **changes)
        feed = SparkplugFeed(section, SparkplugSection.model_validate(options), register=register)
        opened.append(feed)
        feed.open()
        return feed

    yield open_feed
    for feed in opened:
        feed.close()


def connect_of(tapped: Tap, number: int = 0) -> tuple[int, bytes]:
    """Flags of a CONNECT and what follows the keep-alive."""
    body = tapped.of(CONNECT)[number].body
    assert body[2:6] == b"MQTT"
    return body[7], body[10:]


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.parametrize("transport", ["bulk", "paho"])
def test_the_session_begins_as_the_specification_says(
    tapped: Tap, observer: Observer, opener: Opener, version: str, transport: str
) -> None:
    before = time.time_ns() // 1_000_000
    feed = opener(tapped.port, version=version, transport=transport)
    wait_until(lambda: len(observer.states()) >= 1, "a state")

    flags, rest = connect_of(tapped)
    assert flags & 0b10, "clean start"
    assert flags & 0b100 and flags >> 3 & 3 == 1 and flags & 0b100000, "a will with QoS 1, retained"
    if version == "5":  # no property says that the session outlives its connection
        assert rest[0] in (0, 3) and (rest[0] == 0 or rest[1] == 0x21), "properties: at most a receive maximum"
    assert STATE.encode() in rest
    will = json.loads(rest[rest.index(b'{"online"') :].split(b"}")[0] + b"}")

    kinds = [packet.kind for packet in tapped.packets]
    assert kinds[:3] == [CONNECT, SUBSCRIBE, PUBLISH], "subscribed, then born, and nothing before"
    birth = tapped.of(PUBLISH)[0]
    assert (birth.topic, birth.qos, birth.retain) == (STATE, 1, True)
    assert observer.states()[0] == {"online": True, "timestamp": will["timestamp"]}
    assert will["online"] is False and before <= will["timestamp"] <= time.time_ns() // 1_000_000
    subscribed = tapped.of(SUBSCRIBE)[0].body
    for topic in (STATE, "spBv1.0/+/NBIRTH/+", "spBv1.0/+/DDATA/+/+", "spBv1.0/+/DDEATH/+/+"):
        assert topic.encode() in subscribed

    feed.close()
    wait_until(lambda: len(observer.states()) >= 2, "a death")
    wait_until(lambda: bool(tapped.of(DISCONNECT)), "the end")
    death = tapped.of(PUBLISH)[-1]
    assert (death.topic, death.qos, death.retain) == (STATE, 1, True)
    assert observer.states()[1]["online"] is False and observer.states()[1]["timestamp"] >= will["timestamp"]
    assert [p.kind for p in tapped.packets if p.kind in (PUBLISH, DISCONNECT)][-2:] == [PUBLISH, DISCONNECT]


def test_the_state_is_there_for_whoever_comes_later(broker: Mosquitto, observer: Observer, opener: Opener) -> None:
    feed = opener()
    late = Observer(broker.port)
    wait_until(lambda: bool(late.states()), "the retained state")
    assert late.states()[0]["online"] is True
    feed.close()
    wait_until(lambda: late.states()[-1]["online"] is False, "the death")
    late.close()


def test_a_connection_that_breaks_leaves_its_will_and_the_next_is_dated_anew(
    tapped: Tap, observer: Observer, opener: Opener
) -> None:
    feed = opener(tapped.port)
    wait_until(lambda: len(observer.states()) == 1, "a birth")
    tapped.cut()
    wait_until(lambda: len(observer.states()) >= 3, "will and birth")
    first, will, again = observer.states()[:3]
    assert will == {"online": False, "timestamp": first["timestamp"]}
    assert again["online"] is True and again["timestamp"] > first["timestamp"]
    assert feed.link.connections == 2


def test_who_says_that_we_are_offline_is_answered(observer: Observer, opener: Opener) -> None:
    opener()
    # The broker may still tell the death of the test before.
    wait_until(lambda: bool(observer.states()) and observer.states()[-1]["online"] is True, "a birth")
    before = len(observer.states())
    born = observer.states()[-1]
    observer.publish(STATE, json.dumps({"online": False, "timestamp": born["timestamp"]}).encode(), qos=1, retain=True)
    wait_until(lambda: len(observer.states()) == before + 2, "an answer")
    assert observer.states()[-1] == born
    time.sleep(0.3)
    assert len(observer.states()) == before + 2, "the answer answers itself"


def test_the_own_state_of_last_time_is_not_mistaken(observer: Observer, opener: Opener) -> None:
    opener().close()
    wait_until(lambda: len(observer.states()) == 2, "birth and death")
    opener()
    wait_until(lambda: observer.states()[-1]["online"] is True, "a birth")


def test_a_rebirth_is_asked_for_on_the_broker(observer: Observer, opener: Opener) -> None:
    feed = opener()
    edge = Edge("plant", "line1")
    edge.seq = 5
    observer.publish(*edge.data("pump", {"x": 1.0}))

    def commands() -> list[paho.MQTTMessage]:
        feed.take(10, 0.05)
        return [m for m in observer.heard if m.topic == "spBv1.0/plant/NCMD/line1"]

    wait_until(lambda: bool(commands()), "a command")
    (command,) = commands()
    asked = parse_payload(command.payload)
    assert (command.qos, command.retain) == (0, False) and not asked.HasField("seq") and asked.timestamp
    (metric,) = asked.metrics
    assert (metric.name, metric.datatype, metric.boolean_value) == ("Node Control/Rebirth", DataType.BOOLEAN, True)


def test_a_gap_that_stays_for_the_configured_time_asks_too(observer: Observer, opener: Opener) -> None:
    feed = opener(reorder_timeout="1s")
    edge = Edge("plant", "line2")
    observer.publish(*edge.nbirth())
    observer.publish(*edge.dbirth("pump", {"x": 1.0}))
    edge.data("pump", {"x": 2.0})
    observer.publish(*edge.data("pump", {"x": 3.0}))
    began = time.monotonic()

    def asked() -> bool:
        feed.take(10, 0.05)
        return any(m.topic == "spBv1.0/plant/NCMD/line2" for m in observer.heard)

    wait_until(asked, "a command")
    assert time.monotonic() - began > 0.9


def test_retained_data_is_no_news(observer: Observer, opener: Opener) -> None:
    edge = Edge("plant", "line3")
    topic, birth = edge.nbirth({"x": 1.0})
    observer.publish(topic, birth, retain=True)
    feed = opener()
    live, payload = Edge("plant", "line4").nbirth({"x": 1.0})
    observer.publish(live, payload)
    deliveries = []
    deadline = time.monotonic() + 10
    while not deliveries and time.monotonic() < deadline:
        deliveries = [d for d in feed.take(10, 0.1) if d.readings]
    assert [d.topic for d in deliveries] == [live]
    observer.publish(topic, b"", retain=True)


def test_only_the_configured_groups_are_heard(observer: Observer, opener: Opener) -> None:
    feed = opener(groups=["mine"])
    for group in ("other", "mine"):
        observer.publish(*Edge(group, "n").nbirth({"x": 1.0}))
    heard = []
    deadline = time.monotonic() + 10
    while not heard and time.monotonic() < deadline:
        heard = [d.topic for d in feed.take(10, 0.1) if d.topic]
    assert heard == ["spBv1.0/mine/NBIRTH/n"]


def test_what_the_register_cannot_take_now_is_told_later(observer: Observer, opener: Opener) -> None:
    register = Register()
    register.failures = 2
    register.silences["pump"] = 5
    feed = opener(register=register)
    edge = Edge("plant", "line5")
    for message in (edge.nbirth(), edge.dbirth("pump", {"x": 1.0})):
        observer.publish(*message)

    def heard_again() -> bool:
        feed.acknowledge(feed.take(10, 0.1))
        return not register.silences

    wait_until(heard_again, "the register")


def test_a_foreign_edge_node_from_birth_to_death(broker: Mosquitto, opener: Opener, tmp_path: Path) -> None:
    """pysparkplug publishes; what it published is stored, under the names of its births, and its death is known."""
    register = Register()
    feed = opener(register=register)
    store = EmbeddedStore(tmp_path / "readings.db")
    letters = DeadLetterList()
    ingest = Ingest(feed, store, letters, section=IngestSection(), now_us=wall_us)

    def stored(point: str) -> list[float]:
        ingest.step()
        frame = store.readings(EARLIEST, LATEST)
        return frame[point].dropna().tolist() if point in frame else []

    with sparkplug_edge(broker.port) as edge:
        metrics = {
            "temp/bearing": ("DOUBLE", 20.5), "count": ("INT16", -3), "big": ("UINT64", 2**63), "on": ("BOOLEAN", True),
            "note": ("STRING", "17"), "level": ("FLOAT", 0.25), "small": ("INT8", -128), "wide": ("INT64", -(2**40)),
        }  # fmt: skip
        edge.do("register", device="pump", metrics=metrics)
        edge.do("connect")
        wait_until(lambda: stored("temp/bearing") == [20.5], "the birth")
        assert [stored(name) for name in ("count", "big", "on", "level", "small", "wide")] == [
            [-3.0], [float(2**63)], [1.0], [0.25], [-128.0], [-(2.0**40)],
        ]  # fmt: skip
        assert stored("note") == [] and "pump" not in register.silences

        for number in range(300):  # past the wrap of the sequence numbers
            edge.do("update", device="pump", values={"temp/bearing": float(number), "count": -number})
        edge.do("update", device="pump", values={"temp/bearing": -1.5}, at_ms=1_700_000_000_000)
        wait_until(lambda: -1.5 in stored("temp/bearing"), "the last value")
        frame = store.readings(EARLIEST, LATEST)
        assert frame["asset"].unique().tolist() == ["pump"]
        assert frame["time"].min().timestamp() == 1_700_000_000  # historical data lies in its own time
        # Values of one millisecond are one time: pysparkplug dates by the millisecond.
        assert {-1.5, 299.0} <= set(stored("temp/bearing")) <= {-1.5, 20.5, *map(float, range(300))}

        edge.do("register", device="fan", metrics={"rpm": ("DOUBLE", 900.0)})
        wait_until(lambda: stored("rpm") == [900.0], "a device that came later")
        edge.do("deregister", device="fan")
        wait_until(lambda: bool(ingest.step() or True) and "fan" in register.silences, "the device's death")
        assert "pump" not in register.silences
        edge.kill()
        wait_until(lambda: bool(ingest.step() or True) and "pump" in register.silences, "the will", 90)
    assert not letters.rejects and feed.counts.lost == 0 and feed.counts.requests == 0
    store.close()


def test_a_foreign_edge_node_that_was_there_before_is_asked_for_its_births(
    broker: Mosquitto, opener: Opener, tmp_path: Path
) -> None:
    with sparkplug_edge(broker.port, node="line9") as edge:
        edge.do("register", device="mill", metrics={"x": ("INT32", 1)})
        edge.do("connect")
        time.sleep(0.3)
        feed = opener()
        edge.do("update", device="mill", values={"x": -7})
        deadline = time.monotonic() + 10
        while feed.counts.requests == 0 and time.monotonic() < deadline:
            feed.take(10, 0.1)
        edge.do("expect rebirth")
        edge.do("disconnect")
        edge.do("connect")
        values: list[float] = []
        while -7.0 not in values and time.monotonic() < deadline:
            values += [v for d in feed.take(10, 0.1) for r in d.readings for v in r.values.values()]
        assert -7.0 in values, "what came before the birth is read by it"


def test_the_service_takes_sparkplug_beside_plain_mqtt(broker: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "pm.toml").write_text(
        f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\npublish = false\n'
        '[sparkplug]\nenabled = true\ngroups = ["service"]\nasset = "{node}.{device}"\n'
    )
    configuration = config.load(tmp_path / "pm.toml", {})
    assert "host pm on the broker above, for service" in str(examine(configuration))
    now_ms = time.time_ns() // 1_000_000
    edge = Edge("service", "line1")
    with Service(configuration, parts=("ingest",)) as service:
        observer = Observer(broker.port)
        wait_until(lambda: {"online": True} in [{"online": s["online"]} for s in observer.states()], "the host")
        payload = Payload(timestamp=now_ms, seq=1)
        metric = payload.metrics.add(name="x", alias=1, timestamp=now_ms, datatype=10, double_value=1.5)
        add_property(metric, "engUnit", type=12, string_value="mm")
        observer.publish(*edge.nbirth(at_ms=now_ms))
        observer.publish(edge.topic("DBIRTH", "pump"), payload.SerializeToString())
        edge.seq = 2
        edge.aliases["pump", "x"] = 1
        observer.publish("plant/fan/readings", b'{"y": 2.5}', qos=1)
        observer.publish(*edge.data("pump", {"x": 2.0}, at_ms=now_ms + 1))
        observer.publish(edge.topic("DDATA", "pump"), b"\xff")
        observer.publish(*edge.ddeath("pump", at_ms=now_ms + 2))
        wait_until(lambda: "line1.pump" in service.records.silences(), "the device's death")
        wait_until(lambda: len(service.store.readings(EARLIEST, LATEST)) == 3, "all readings")
        frame = service.store.readings(EARLIEST, LATEST)
        assert {(a, x) for a, x in zip(frame["asset"], frame["x"], strict=True) if x == x} == {
            ("line1.pump", 1.5), ("line1.pump", 2.0),
        }  # fmt: skip
        assert {asset.name for asset in service.records.assets()} == {"line1.pump", "fan"}
        assert Point("x", "mm") in service.records.points()
        assert service.records.silences()["line1.pump"].since_us == (now_ms + 2) * 1000
        assert [letter.reject.reason for letter in service.records.dead_letters()] == [
            "not a Sparkplug B payload: the protobuf is damaged"
        ]
    wait_until(lambda: observer.states()[-1]["online"] is False, "the host's goodbye")
    observer.close()
