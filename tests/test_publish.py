"""A recording played over MQTT is the recording stored."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from connectors.broker import EmbeddedBroker
from connectors.embedded import EmbeddedStore
from connectors.mqtt import MqttFeed, MqttPublisher
from connectors.payloads import parse_clock, parse_events, parse_readings
from pm.config import ClockSection, IngestSection, MqttSection
from pm.domain import EARLIEST, LATEST, Asset, Event, EventKind, FailureMode, History, Point, Reading, from_us, to_us
from pm.errors import FeedError
from pm.ingest import FeedClock, Ingest
from pm.publish import Played, PlayTopics, Step, history_steps, publish_history, publish_steps
from tests.servers.ingest import DeadLetterList, wall_us
from tests.servers.mosquitto import Mosquitto

START = datetime(2026, 1, 1, tzinfo=UTC)
TOPICS = PlayTopics.of(MqttSection(), ClockSection())


def plant(hours: int = 30, assets: int = 4) -> History:
    """Random readings with gaps, rows without any value, and events on and off the grid."""
    rng = np.random.default_rng(1)
    names = [f"pump {number}" for number in range(assets)]
    rows = []
    for name in names:
        for hour in range(hours):
            if rng.random() < 0.1:
                continue
            volt, heat = rng.normal(size=2)
            rows.append((START + timedelta(hours=hour), name, volt, np.nan if rng.random() < 0.2 else heat))
    readings = pd.DataFrame(rows, columns=["time", "asset", "volt", "heat"])
    readings.loc[3, ["volt", "heat"]] = np.nan
    events = pd.DataFrame(
        [
            (START + timedelta(hours=5), "pump 0", "error", "e2"),
            (START + timedelta(hours=5), "pump 0", "error", "e3"),
            (START + timedelta(hours=6, minutes=20, microseconds=7), "pump 1", "maintenance", "seal"),
            (START + timedelta(hours=29), "pump 1", "failure", "seal"),
        ],
        columns=["time", "asset", "kind", "code"],
    )
    for frame in (readings, events):
        frame["time"] = frame["time"].astype("datetime64[us, UTC]")
    return History(
        interval=timedelta(hours=1),
        points=(Point("volt"), Point("heat")),
        failure_modes=(FailureMode("seal"),),
        assets=tuple(Asset(name, "P") for name in names),
        readings=readings,
        events=events,
    )


class Ledger:
    """A publisher that writes down what it is given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.unconfirmed = 0

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert not retain, "a broker would show old values to new listeners"
        if topic == "pm/clock":
            assert self.unconfirmed == 0, "the clock says complete what is not confirmed"
        self.sent.append((topic, payload))
        self.unconfirmed += 1

    def flush(self, timeout: float = 60.0) -> None:
        self.unconfirmed = 0


def test_every_step_is_complete_before_its_clock_message() -> None:
    history = plant()
    ledger = Ledger()
    played = publish_history(history, ledger, topics=TOPICS, speed=None, stop=threading.Event())
    assert played == Played(steps=30, readings=len(history.readings), events=4)
    watermark = to_us(START) - 1
    waiting: list[int] = []
    for topic, payload in ledger.sent:
        if topic == "pm/clock":
            at = parse_clock(payload)
            assert at > watermark and all(watermark < time_us <= at for time_us in waiting)
            watermark, waiting = at, []
        elif topic.endswith("/events"):
            waiting.append(parse_events(payload, "x", 0)[0].time_us)
        else:
            waiting.append(parse_readings(payload, "x", None, 0)[0].time_us)
    assert not waiting and watermark == to_us(START + timedelta(hours=29))


def test_a_history_without_readings_or_events_has_no_steps() -> None:
    history = plant()
    empty = History(
        history.interval, history.points, (), history.assets, history.readings.iloc[:0], history.events.iloc[:0]
    )
    assert list(history_steps(empty)) == []


def test_speed_is_plant_seconds_per_second() -> None:
    now = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    steps: list[Step] = [(START + timedelta(hours=hour), [], []) for hour in range(4)]
    publish_steps(
        steps, Ledger(), topics=TOPICS, speed=3600, stop=threading.Event(), sleep=sleep, monotonic=lambda: now[0]
    )
    assert slept == pytest.approx([1.0, 1.0, 1.0])


def test_a_play_that_falls_behind_catches_up() -> None:
    now = [0.0]
    slept: list[float] = []

    def steps() -> Iterator[tuple[datetime, list[Reading], list[Event]]]:
        for hour in range(4):
            now[0] += 2.5 if hour == 1 else 0.0  # making this step took its time
            yield START + timedelta(hours=hour), [], []

    publish_steps(
        steps(),
        Ledger(),
        topics=TOPICS,
        speed=3600,
        stop=threading.Event(),
        sleep=slept.append,
        monotonic=lambda: now[0],
    )
    assert slept == pytest.approx([0.5])


def test_a_play_ends_between_two_steps() -> None:
    stop = threading.Event()
    ledger = Ledger()
    reading = Reading("a", to_us(START), {"x": 1.0})

    def steps() -> Iterator[tuple[datetime, list[Reading], list[Event]]]:
        for hour in range(10):
            if hour == 2:
                stop.set()
            yield START + timedelta(hours=hour), [reading], []

    played = publish_steps(steps(), ledger, topics=TOPICS, speed=None, stop=stop)
    assert played.steps == 2 and [topic for topic, _ in ledger.sent] == ["plant/a/readings", "pm/clock"] * 2


def test_events_come_before_the_readings_of_their_step() -> None:
    ledger = Ledger()
    step = (START, [Reading("a", to_us(START), {})], [Event("a", to_us(START), EventKind.FAILURE, "seal")])
    publish_steps([step], ledger, topics=TOPICS, speed=None, stop=threading.Event())
    assert [topic for topic, _ in ledger.sent] == ["plant/a/events", "plant/a/readings", "pm/clock"]


def test_topics_that_need_more_than_the_asset_are_refused() -> None:
    with pytest.raises(FeedError, match=r"mqtt\.readings needs the asset alone \(site/\{site\}/\{asset\}/readings\)"):
        PlayTopics.of(MqttSection(readings=("site/{site}/{asset}/readings",)), ClockSection())


@pytest.mark.parametrize("kind", ["mosquitto", "rumqttd"])
def test_a_history_published_is_the_history_stored(kind: str, tmp_path: Path) -> None:
    if kind == "mosquitto":
        Mosquitto(tmp_path)  # skips where it is not installed
    history = plant(hours=60)
    broker = EmbeddedBroker(kind, 0, tmp_path / "broker")  # type: ignore[arg-type]
    section = MqttSection(host="127.0.0.1", port=broker.start())
    clock, store = FeedClock(), EmbeddedStore(tmp_path / "readings.db")
    feed = MqttFeed(section, clock_topic="pm/clock", one_subscription=not broker.keeps_order)
    feed.open()
    ingest = Ingest(feed, store, DeadLetterList(), section=IngestSection(), now_us=wall_us, watermark=clock)
    stop = threading.Event()
    loop = threading.Thread(target=ingest.run, args=(stop,))
    loop.start()
    publisher = MqttPublisher(section)
    publisher.open()
    publish_history(history, publisher, topics=TOPICS, speed=None, stop=stop)
    end = START + timedelta(hours=59)
    seen: datetime | None = None
    while seen is None or seen < end:  # at every plant time, all that is dated up to it is stored
        seen = clock.wait_beyond(seen, 20)
        assert seen is not None
        due = history.readings[history.readings["time"] <= pd.Timestamp(seen)]
        assert len(store.readings(EARLIEST, seen)) == len(due)
    stop.set()
    loop.join()
    assert ingest.counts.rejects == 0
    assert_frame_equal(store.readings(EARLIEST, LATEST), history.readings, check_dtype=False)
    assert_frame_equal(store.events(EARLIEST, LATEST), history.events, check_dtype=False)
    publisher.close()
    feed.close()
    store.close()
    broker.stop()


def test_a_step_holds_what_became_known_since_the_one_before() -> None:
    steps = list(history_steps(plant()))
    off_grid = START + timedelta(hours=6, minutes=20, microseconds=7)
    assert [at for at, _, events in steps for event in events if from_us(event.time_us) == off_grid] == [
        START + timedelta(hours=7)
    ]
