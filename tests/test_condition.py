"""One line in the log for each change of a feed's or of ingest's condition, and none while it lasts."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from connectors.mqtt import MqttFeed, MqttPublisher
from connectors.sparkplug_feed import SparkplugFeed
from connectors.spool import Spool
from pm.config import SparkplugSection
from pm.errors import StoreError, StoreUnavailable
from tests.servers.ingest import DeadLetterList
from tests.servers.mosquitto import mosquitto
from tests.servers.programs import wait_until
from tests.test_ingest import FaultyStore, ListFeed, delivery, ingest_of, stored_numbers
from tests.test_ingest_spool import at_once

AWAY = StoreUnavailable("the store is away")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The lines of ingest's condition, as they come."""
    caplog.set_level(logging.INFO, logger="pm.condition")
    return caplog


def told(lines: pytest.LogCaptureFixture) -> list[str]:
    return [f"{line.levelname} {line.getMessage()}" for line in lines.records if line.name == "pm.condition"]


def test_the_store_away_and_back_is_a_line_each_however_often_it_is_tried(lines, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit=1_000_000)
    feed, store = ListFeed([delivery(0)]), FaultyStore([AWAY] * 6)
    ingest = ingest_of(feed, store, DeadLetterList(), spool=spool)
    for number in range(1, 6):
        ingest.step()
        at_once(ingest)
        feed.to_come = [delivery(number)]
    assert told(lines) == ["WARNING list: the store is away; messages are kept on disk until it is back"]
    assert ingest.condition.store_away and not ingest.condition.stopped
    store.failures.clear()
    while spool.held or feed.to_come:
        at_once(ingest)
        ingest.step()
    assert told(lines)[1:] == [
        "INFO list: the store is back; 4 more messages come from disk",
        "INFO list: the store is back, and what was kept on disk is in it",
    ]
    assert not ingest.condition.store_away
    spool.close()


def test_a_store_that_is_away_at_a_restart_is_told_as_well(lines, tmp_path: Path) -> None:
    """What an earlier process left on disk is tried first, so the store is found away before anything new comes."""
    with_held = Spool(tmp_path / "spool", limit=1_000_000)
    with_held.append([delivery(0)])
    with_held.close()
    spool = Spool(tmp_path / "spool", limit=1_000_000)
    ingest = ingest_of(ListFeed([]), FaultyStore([AWAY] * 3), DeadLetterList(), spool=spool)
    for _ in range(3):
        at_once(ingest)
        ingest.step()
    assert told(lines) == ["WARNING list: the store is away; messages are kept on disk until it is back"]
    spool.close()


def test_a_full_disk_stops_the_acknowledging_with_one_line_and_its_end_is_another(lines, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit=600)
    feed, store = ListFeed([delivery(n) for n in range(3)]), FaultyStore([AWAY] * 50)
    ingest = ingest_of(feed, store, DeadLetterList(), spool=spool)
    ingest.step()
    feed.to_come = [delivery(n) for n in range(3, 50)]
    for _ in range(5):  # store and disk are tried by turns
        at_once(ingest)
        ingest.step()
    away, full = told(lines)
    assert "the store is away" in away
    assert full.startswith("WARNING list: spool") and full.endswith("47 messages wait unacknowledged")
    assert ingest.condition.stopped and ingest.unacknowledged == 47
    store.failures.clear()
    while len(feed.acknowledged) < 50:
        at_once(ingest)
        ingest.step()
    assert sorted(told(lines)[2:]) == [
        "INFO list: ingest goes on: 47 messages that waited are stored",
        "INFO list: the store is back, and what was kept on disk is in it",
    ]
    assert stored_numbers(store) == list(range(50)) and ingest.unacknowledged == 0
    spool.close()


def test_without_a_spool_the_store_away_is_the_end_of_acknowledging(lines) -> None:
    feed, store = ListFeed([delivery(n) for n in range(3)]), FaultyStore([AWAY, StoreUnavailable("other words"), AWAY])
    ingest = ingest_of(feed, store, DeadLetterList())
    for _ in range(4):
        ingest.step()
    assert told(lines) == [
        "WARNING list: the store is away; 3 messages wait unacknowledged",
        "INFO list: ingest goes on: 3 messages that waited are stored",
    ]


def test_another_reason_to_stop_is_another_line(lines) -> None:
    feed, store = ListFeed([delivery(0)]), FaultyStore([AWAY], ill=StoreError("the store is damaged"))
    ingest = ingest_of(feed, store, DeadLetterList())
    for _ in range(3):
        ingest.step()
    assert [line.split()[0] for line in told(lines)] == ["WARNING", "ERROR"]


def test_a_connection_lost_and_found_again_is_a_line_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="connectors")
    with mosquitto(tmp_path) as broker:
        feed = MqttFeed(broker.section())
        feed.open()
        broker.stop()
        wait_until(lambda: not feed.connected, "the loss")
        wait_until(lambda: any("cannot be reached" in record.message for record in caplog.records), "another try")
        time.sleep(1.5)  # and further tries, which are no change
        broker.start()
        wait_until(lambda: feed.connected, "the connection")
        feed.close()
    said = [record.getMessage() for record in caplog.records]
    connected, lost, away, again = said
    assert connected == f"{feed.name}: connected"
    assert lost.startswith(f"{feed.name}: connection lost") and away.startswith(f"{feed.name} cannot be reached")
    assert again == f"{feed.name}: connected, session resumed"


def test_silence_of_sparkplug_nodes_is_a_line_and_its_end_another(tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO, logger="connectors.sparkplug_feed")
    with mosquitto(tmp_path) as broker:
        section = broker.section(silent_after="1s")
        feed = SparkplugFeed(section, SparkplugSection(enabled=True))
        feed.open()
        publisher = MqttPublisher(section.model_copy(update={"client_id": "node"}))
        publisher.open()

        def look(silent: bool) -> bool:
            feed.take(10, 0.05)
            return feed.link.silent == silent

        wait_until(lambda: look(True), "silence")
        quiet_until = time.monotonic() + 0.5
        while time.monotonic() < quiet_until:
            look(True)
        publisher.publish("spBv1.0/g/DDATA/n/d", b"")
        wait_until(lambda: look(False), "a message")
        publisher.close()
        feed.close()
    silent, again = (record.getMessage() for record in caplog.records if "message" in record.getMessage())
    assert "connected, and no message for 1 s" in silent and again == f"{feed.name}: messages come again"
    assert feed.link.silences == 1
