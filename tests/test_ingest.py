"""From the broker to the store: nothing lost, nothing acknowledged before it is durable, a defined end for the rest."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from connectors.embedded import EmbeddedStore
from connectors.mqtt import MqttFeed, MqttPublisher
from connectors.payloads import encode_clock, encode_event, encode_readings
from pm.config import IngestSection, MqttSection
from pm.domain import EARLIEST, LATEST, Event, EventKind, Reading, from_us
from pm.errors import RecordsUnavailable, RowsRefused, StoreError, StoreUnavailable
from pm.ingest import FeedClock, Ingest
from pm.ports import Delivery, LinkState, Reject
from tests.servers.ingest import DeadLetterList, start_ingest, wall_us
from tests.servers.mosquitto import Mosquitto, mosquitto
from tests.servers.programs import wait_until

T0 = 1_795_428_000_000_000
"""2026-11-23T10:00:00Z."""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    opened = EmbeddedStore(tmp_path / "readings.db")
    yield opened
    opened.close()


class AssetList:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def ensure_assets(self, names: Sequence[str]) -> None:
        self.calls.append(list(names))


class ListFeed:
    """Deliveries from memory, for what does not depend on a broker; remembers what was acknowledged."""

    name = "list"
    connected = True

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self.dropped = 0
        self.to_come = list(deliveries)
        self.acknowledged: list[Delivery] = []

    def open(self) -> None: ...

    def take(self, limit: int, timeout: float) -> list[Delivery]:
        taken, self.to_come = self.to_come[:limit], self.to_come[limit:]
        if not taken:
            time.sleep(timeout)
        return taken

    @property
    def waiting(self) -> int:
        return len(self.to_come)

    @property
    def link(self) -> LinkState:
        return LinkState(self.name, True, "", self.waiting, 0, 1, self.dropped, False, 0)

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.acknowledged += deliveries

    def close(self) -> None: ...


class FaultyStore(EmbeddedStore):
    """The embedded store, failing first as a server does that is away or ill."""

    def __init__(self, failures: Sequence[StoreError] = (), *, ill: StoreError | None = None) -> None:
        super().__init__(None)
        self.failures = list(failures)
        self.ill = ill

    def write(self, readings: Sequence[Reading], events: Sequence[Event] = ()) -> None:
        if self.failures:
            raise self.failures.pop(0)
        if self.ill is not None:
            raise self.ill
        super().write(readings, events)

    def points(self) -> tuple[str, ...]:
        if self.ill is not None:
            raise self.ill
        return super().points()


class Numbered:
    """Publishes readings 0, 1, 2 and so on to a session that began before the first of them."""

    def __init__(self, section: MqttSection) -> None:
        subscriber = MqttFeed(section)
        subscriber.open()
        subscriber.close()
        self._publisher = MqttPublisher(section)
        self._publisher.open()
        self._published = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            reading = Reading("a", T0 + self._published, {"n": float(self._published)})
            self._publisher.publish("plant/a/readings", encode_readings([reading]))
            self._published += 1
            time.sleep(0.0005)
        self._publisher.flush()

    def finish(self) -> int:
        """How many were published, all of them confirmed by now."""
        self._over.set()
        self._thread.join()
        self._publisher.close()
        return self._published


def delivery(number: int, point: str = "n") -> Delivery:
    reading = Reading("a", T0 + number, {point: float(number)})
    return Delivery(number, (reading,), topic="plant/a/readings", payload=b"%d" % number, received_us=T0)


def ingest_of(feed: ListFeed | MqttFeed, store: EmbeddedStore, letters: DeadLetterList, **options: object) -> Ingest:
    return Ingest(feed, store, letters, section=IngestSection(), now_us=wall_us, **options)  # type: ignore[arg-type]


def stored_numbers(store: EmbeddedStore) -> list[int]:
    frame = store.readings(EARLIEST, LATEST)
    return sorted(int(value) for value in frame["n"]) if "n" in frame else []


def test_what_is_published_is_stored_and_then_acknowledged(broker: Mosquitto, store: EmbeddedStore) -> None:
    feed = MqttFeed(broker.section(), clock_topic="pm/clock")
    feed.open()
    letters, assets, clock = DeadLetterList(), AssetList(), FeedClock()
    ingest = ingest_of(feed, store, letters, assets=assets, watermark=clock)
    publisher = MqttPublisher(broker.section())
    publisher.open()
    publisher.publish("plant/a/readings", encode_readings([Reading("a", T0, {"volt": 0.1, "rotate": -0.0})]))
    publisher.publish("plant/b/volt", b'{"time":1795428000,"value":3}')
    publisher.publish("plant/a/readings", b"nonsense")
    publisher.publish("plant/a/readings", encode_readings([Reading("a", T0 + 1, {"volt": 1e-300})]))
    publisher.publish("plant/c/events", encode_event(Event("c", T0, EventKind.ERROR, "e1")))
    publisher.publish("pm/clock", encode_clock(T0 + 1))
    publisher.flush()
    while ingest.counts.messages < 6:
        assert ingest.step(), "the feed ran dry too early"

    readings = store.readings(EARLIEST, LATEST).set_index(["asset", "time"]).sort_index()
    assert readings["volt"].tolist() == [0.1, 1e-300, 3.0]
    assert store.events(EARLIEST, LATEST)[["asset", "kind", "code"]].to_numpy().tolist() == [["c", "error", "e1"]]
    assert [(r.topic, r.payload) for r in letters.rejects] == [("plant/a/readings", b"nonsense")]
    assert clock.now() == from_us(T0 + 1)
    assert sorted(name for call in assets.calls for name in call) == ["a", "b", "c"]
    counts = ingest.counts
    assert (counts.readings, counts.events, counts.rejects, counts.held) == (3, 1, 1, 0)
    assert 0 < counts.lag_ms < 60_000

    publisher.close()
    feed.close()
    again = MqttFeed(broker.section(), clock_topic="pm/clock")
    again.open()
    assert again.take(1, 0.3) == []
    again.close()


def test_an_ingest_that_stops_midway_leaves_the_rest_with_the_broker(broker: Mosquitto, store: EmbeddedStore) -> None:
    publisher = MqttPublisher(broker.section())
    publisher.open()
    for round_start in range(0, 400, 100):
        feed = MqttFeed(broker.section())
        feed.open()
        for number in range(round_start, round_start + 100):
            publisher.publish("plant/a/readings", encode_readings([Reading("a", T0 + number, {"n": float(number)})]))
        section = IngestSection(batch=30)
        ingest = Ingest(feed, store, DeadLetterList(), section=section, now_us=wall_us)
        ingest.step()  # one batch of the hundred; the others are received and given up
        feed.take(20, 1.0)
        feed.close()
    publisher.flush()
    publisher.close()
    feed = MqttFeed(broker.section())
    feed.open()
    ingest = ingest_of(feed, store, DeadLetterList())
    while len(stored_numbers(store)) < 400:
        assert ingest.step(), "a message is lost"
    assert stored_numbers(store) == list(range(400))
    feed.close()


def test_an_ingest_that_is_killed_loses_nothing(broker: Mosquitto, tmp_path: Path) -> None:
    path = tmp_path / "killed.db"
    section = broker.section()
    source = Numbered(section)
    chance = random.Random(3)
    watching = EmbeddedStore(path)
    for _ in range(5):
        before = watching.counts()["readings"]
        process = start_ingest(section, path, batch=chance.choice([7, 50, 1000]))
        wait_until(lambda before=before: watching.counts()["readings"] > before, "a stored batch")  # type: ignore[misc]
        time.sleep(chance.uniform(0.0, 0.3))
        process.kill()
        process.join()
    published = source.finish()
    last = start_ingest(section, path, batch=5000)
    wait_until(lambda: watching.counts()["readings"] >= published, "the rest")
    last.kill()
    last.join()
    assert stored_numbers(watching) == list(range(published))
    watching.close()


class NarrowFeed(ListFeed):
    """A broker that lets few messages be unacknowledged, and sends the next when these are."""

    window = 20

    def take(self, limit: int, timeout: float) -> list[Delivery]:
        return super().take(min(limit, self.window - self.taken + len(self.acknowledged)), timeout)

    @property
    def taken(self) -> int:
        return 200 - len(self.to_come)


def test_a_broker_with_few_messages_in_flight_is_not_kept_waiting(store: EmbeddedStore) -> None:
    """Each batch of 20 must be acknowledged at once for the next to come, long before the flush time."""
    feed = NarrowFeed([delivery(number) for number in range(200)])
    ingest = Ingest(feed, store, DeadLetterList(), section=IngestSection(flush=5000), now_us=wall_us)
    began = time.monotonic()
    while feed.waiting or len(feed.acknowledged) < 200:
        ingest.step()
    assert ingest.counts.batches == 10
    assert time.monotonic() - began < 10, "each batch waited for the whole flush time"


def test_a_store_that_is_away_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    feed = ListFeed([delivery(number) for number in range(10)])
    store = FaultyStore([StoreUnavailable("the store is away")] * 3)
    ingest = ingest_of(feed, store, DeadLetterList())
    for _ in range(3):
        assert not ingest.step()
        assert feed.acknowledged == [] and ingest.counts.held == 10 and ingest.counts.trouble == "the store is away"
    assert ingest.step()
    assert feed.acknowledged and stored_numbers(store) == list(range(10))
    assert ingest.counts.held == 0 and ingest.counts.trouble == ""
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "list: the store is away; 10 messages wait unacknowledged"
    ]


def test_the_loop_goes_on_by_itself_when_the_store_is_back() -> None:
    feed = ListFeed([delivery(number) for number in range(10)])
    store = FaultyStore([StoreUnavailable("the store is away")])
    stop = threading.Event()
    loop = threading.Thread(target=ingest_of(feed, store, DeadLetterList()).run, args=(stop,))
    loop.start()
    wait_until(lambda: len(feed.acknowledged) == 10, "the loop", 10)
    stop.set()
    loop.join(5)
    assert not loop.is_alive() and stored_numbers(store) == list(range(10))


def test_a_message_that_the_store_refuses_is_a_dead_letter_and_the_rest_is_stored(store: EmbeddedStore) -> None:
    bad = (5, 17)
    feed = ListFeed([delivery(number, "_empty" if number in bad else "n") for number in range(40)])
    letters = DeadLetterList()
    ingest = ingest_of(feed, store, letters)
    assert ingest.step()
    assert stored_numbers(store) == [number for number in range(40) if number not in bad]
    assert [(r.payload, r.topic) for r in letters.rejects] == [(b"5", "plant/a/readings"), (b"17", "plant/a/readings")]
    assert "_empty" in letters.rejects[0].reason
    assert len(feed.acknowledged) == 40 and ingest.counts.rejects == 2


def test_rows_that_the_store_names_are_dead_letters_without_a_search(store: EmbeddedStore) -> None:
    """The others of the call are durable already, so the store is asked once."""
    rows = [reading for number in range(40) for reading in delivery(number).readings]
    refused = RowsRefused("2 rows", readings={(rows[n].asset, rows[n].time_us): "of another type" for n in (5, 17)})
    feed, letters, faulty = (
        ListFeed([delivery(number) for number in range(40)]),
        DeadLetterList(),
        FaultyStore([refused]),
    )
    ingest = ingest_of(feed, faulty, letters)
    assert ingest.step()
    assert faulty.failures == [] and faulty.counts()["readings"] == 0
    assert [(r.payload, r.reason) for r in letters.rejects] == [(b"5", "of another type"), (b"17", "of another type")]
    assert len(feed.acknowledged) == 40 and ingest.counts.rejects == 2


def test_an_ill_store_makes_no_dead_letters(caplog: pytest.LogCaptureFixture) -> None:
    """Everything is refused, and so is a question about anything: the store is at fault, not the messages."""
    feed = ListFeed([delivery(number) for number in range(8)])
    store = FaultyStore(ill=StoreError("there is no such database"))
    letters = DeadLetterList()
    ingest = ingest_of(feed, store, letters)
    assert not ingest.step() and not ingest.step()
    assert letters.rejects == [] and feed.acknowledged == []
    assert [r.levelname for r in caplog.records] == ["ERROR"]
    store.ill = None
    assert ingest.step()
    assert stored_numbers(store) == list(range(8)) and letters.rejects == []


def test_nothing_is_acknowledged_before_its_dead_letter_is_durable() -> None:
    class Letters(DeadLetterList):
        away = True

        def add_dead_letters(self, rejects: object) -> None:
            if self.away:
                raise RecordsUnavailable("the records are away")
            super().add_dead_letters(rejects)

    reject = Reject("plant/a/x", b"?", "not a number", T0)
    feed = ListFeed([delivery(1), Delivery(2, rejects=(reject,), received_us=T0)])
    letters = Letters()
    ingest = ingest_of(feed, FaultyStore(), letters)
    assert not ingest.step() and feed.acknowledged == []
    letters.away = False
    assert ingest.step()
    assert len(feed.acknowledged) == 2 and letters.rejects == [replace(reject, feed="list")]


def test_plant_time_moves_when_all_before_it_is_stored() -> None:
    store = FaultyStore([StoreUnavailable("away")])
    told: list[datetime] = []
    clock = FeedClock(keep=told.append)
    feed = ListFeed([delivery(1), Delivery("clock", clock_us=T0 + 1), delivery(2), Delivery("clock", clock_us=T0 + 2)])
    ingest = ingest_of(feed, store, DeadLetterList(), watermark=clock)
    assert not ingest.step() and clock.now() is None
    assert ingest.step() and clock.now() == from_us(T0 + 2)
    assert told == [from_us(T0 + 1), from_us(T0 + 2)], "the earliest is told too"


def test_plant_time_that_cannot_be_kept_is_told_again() -> None:
    away = [True]

    def keep(time: datetime) -> None:
        if away[0]:
            raise RecordsUnavailable("the records are away")

    clock = FeedClock(keep=keep)
    feed = ListFeed([Delivery("clock", clock_us=T0)])
    ingest = ingest_of(feed, FaultyStore(), DeadLetterList(), watermark=clock)
    assert not ingest.step() and clock.now() is None and feed.acknowledged == []
    away[0] = False
    assert ingest.step() and clock.now() == from_us(T0) and len(feed.acknowledged) == 1


def test_plant_time_never_goes_back_and_can_be_waited_for() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    clock = FeedClock(start)
    clock.advance(start - timedelta(hours=1))
    assert clock.now() == start
    threading.Timer(0.1, clock.advance, [start + timedelta(hours=1)]).start()
    assert clock.wait_beyond(start, 10) == start + timedelta(hours=1)
    assert clock.wait_beyond(start + timedelta(hours=1), 0.01) == start + timedelta(hours=1)
    assert FeedClock().wait_beyond(None, 0.01) is None


def test_assets_are_made_known_once() -> None:
    assets = AssetList()
    feed = ListFeed([delivery(1), delivery(2)])
    ingest = ingest_of(feed, FaultyStore(), DeadLetterList(), assets=assets)
    ingest.step()
    feed.to_come = [delivery(3), Delivery(4, events=(Event("b", T0, EventKind.ERROR, "e"),), received_us=T0)]
    ingest.step()
    assert assets.calls == [["a"], ["b"]]
