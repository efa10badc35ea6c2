"""Ingest processes that share a subscription: every reading once, and one takes over where another is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from connectors.embedded import EmbeddedStore
from connectors.mqtt import MqttFeed, MqttPublisher
from connectors.mqtt_group import GroupFeed, feed_of
from connectors.payloads import encode_readings
from pm.config import MqttSection
from pm.domain import EARLIEST, LATEST, Reading
from pm.ports import Delivery
from tests.servers.ingest import start_ingest
from tests.servers.mosquitto import Mosquitto, mosquitto
from tests.servers.programs import wait_until

T0 = 1_795_428_000_000_000


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path) as running:
        yield running


class Source:
    """Publishes numbered readings, each at a time of its own."""

    def __init__(self, section: MqttSection) -> None:
        self.published = 0
        self._publisher = MqttPublisher(section)
        self._publisher.open()

    def publish(self, count: int) -> None:
        for number in range(self.published, self.published + count):
            reading = Reading("a", T0 + number, {"n": float(number)})
            self._publisher.publish("plant/a/readings", encode_readings([reading]))
        self._publisher.flush()
        self.published += count

    def close(self) -> None:
        self._publisher.close()


def member(broker: Mosquitto, name: str, monotonic: Callable[[], float] = time.monotonic) -> GroupFeed:
    feed = feed_of(section(broker, name), monotonic=monotonic)
    assert isinstance(feed, GroupFeed)
    feed.open()
    return feed


def section(broker: Mosquitto, name: str, **changes: object) -> MqttSection:
    return broker.section(client_id=name, share="plant", **changes)


def numbers(deliveries: list[Delivery]) -> list[int]:
    return [int(reading.values["n"]) for delivery in deliveries for reading in delivery.readings]


def drain(feed: GroupFeed, seconds: float = 0.5) -> list[Delivery]:
    """What comes until nothing comes for so many seconds."""
    found: list[Delivery] = []
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < seconds:
        if more := feed.take(1000, 0.05):
            found += more
            quiet_since = time.monotonic()
    return found


def test_two_processes_divide_the_work_and_one_takes_over_when_the_other_is_killed(
    broker: Mosquitto, tmp_path: Path
) -> None:
    path = tmp_path / "shared.db"
    watching = EmbeddedStore(path)
    processes = [start_ingest(section(broker, f"pm-{n}", takeover_after="1s"), path, batch=50) for n in range(2)]
    group = MqttFeed(broker.section(client_id="watch", readings=["pm/ingest/plant/{asset}"]))
    group.open()
    seen: set[str] = set()

    def both_are_there() -> bool:
        seen.update(delivery.topic for delivery in group.take(10, 0.1))
        return len(seen) == 2

    wait_until(both_are_there, "both processes")
    source = Source(broker.section())
    source.publish(500)
    wait_until(lambda: watching.counts()["readings"] == 500, "the first readings")
    source.publish(300)
    processes[0].kill()  # with SIGKILL, while it stores
    source.publish(700)
    processes[0].join()
    wait_until(lambda: watching.counts()["readings"] == source.published, "what the killed one had", 30)
    source.publish(200)  # all of these are the other's now
    wait_until(lambda: watching.counts()["readings"] == source.published, "the rest")
    frame = watching.readings(EARLIEST, LATEST)
    assert sorted(frame["n"]) == [float(number) for number in range(source.published)]
    assert watching.conflicts().empty
    processes[1].kill()
    processes[1].join()
    group.close()
    source.close()
    watching.close()


def test_what_was_kept_for_a_member_that_is_gone_is_taken_once_and_its_part_comes_to_the_others(
    broker: Mosquitto,
) -> None:
    now = [0.0]
    lost, other = member(broker, "pm-0"), member(broker, "pm-1", lambda: now[0])
    drain(other)
    source = Source(broker.section())
    source.publish(40)
    mine = drain(other)
    assert len(mine) == 20
    lost.take(5, 1.0)  # received and not stored
    lost.close()  # its part stays with the broker
    source.publish(40)
    mine += drain(other)
    assert len(numbers(mine)) == 40
    now[0] += 29.0
    assert numbers(drain(other)) == []  # it may come back
    now[0] += 2.0
    late = drain(other)
    assert sorted(numbers(mine) + numbers(late)) == list(range(80))
    other.acknowledge(mine + late)
    now[0] += 3.0
    received = other.link.messages
    assert received >= 80  # and what members say of themselves
    other.take(1, 0.1)  # the session is empty, and let go
    assert other.link.messages == received and other.link.dropped == 0
    source.publish(10)
    assert len(numbers(drain(other))) == 10
    back = member(broker, "pm-0")
    assert numbers(drain(back)) == []
    source.publish(10)
    assert len(numbers(drain(back))) == 5
    for feed in (back, other):
        feed.close()
    source.close()


def test_a_member_that_returns_has_its_session_back(broker: Mosquitto) -> None:
    now = [100.0]
    lost, other = member(broker, "pm-0"), member(broker, "pm-1", lambda: now[0])
    source = Source(broker.section())
    drain(other)
    source.publish(20)
    lost.close()
    now[0] += 1.0
    kept = drain(other)
    now[0] += 40.0
    kept += drain(other)
    assert len(numbers(kept)) == 20  # ten of them taken over and not acknowledged
    back = member(broker, "pm-0")
    again = drain(back)
    assert len(numbers(again)) == 10 and set(numbers(again)) < set(numbers(kept))
    other.acknowledge(kept)  # of the ended connection nothing is acknowledged, and nothing breaks
    back.acknowledge(again)
    assert numbers(drain(other)) == []
    source.publish(20)
    assert (len(numbers(drain(other))), len(numbers(drain(back)))) == (10, 10)
    for feed in (back, other):
        feed.close()
    source.close()


def test_one_of_several_takes_over(broker: Mosquitto) -> None:
    now = [0.0]
    members = {name: member(broker, name, lambda: now[0]) for name in ("pm-0", "pm-1", "pm-2")}
    for feed in members.values():
        drain(feed, 0.3)
    source = Source(broker.section())
    source.publish(30)
    members.pop("pm-1").close()
    for feed in members.values():
        assert len(numbers(drain(feed, 0.3))) == 10
    now[0] += 31.0
    taken = {name: len(numbers(drain(feed, 0.5))) for name, feed in members.items()}
    assert taken == {"pm-0": 0, "pm-2": 10}  # the next by name
    for feed in members.values():
        feed.close()
    source.close()
