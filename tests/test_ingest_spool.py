"""Ingest while the store is away: batches on disk, acknowledged there, stored later in their order, none lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.spool import Spool, SpoolLocked
from pm import config, edges
from pm.domain import from_us
from pm.errors import StoreError, StoreUnavailable
from pm.ingest import FeedClock, Ingest
from pm.ports import Delivery
from tests.servers.ingest import DeadLetterList
from tests.test_ingest import T0, FaultyStore, ListFeed, delivery, ingest_of, stored_numbers

AWAY = StoreUnavailable("the store is away")


@pytest.fixture
def spool(tmp_path: Path):
    opened = Spool(tmp_path / "spool", limit=1_000_000)
    yield opened
    opened.close()


def at_once(ingest: Ingest) -> None:
    """The store is tried again without the wait."""
    ingest._next_drain = 0.0


def test_what_comes_while_the_store_is_away_is_acknowledged_and_stored_later(spool: Spool) -> None:
    feed, store = ListFeed([delivery(n) for n in range(10)]), FaultyStore([AWAY] * 3)
    ingest = ingest_of(feed, store, DeadLetterList(), spool=spool)
    assert ingest.step()
    assert len(feed.acknowledged) == 10 and stored_numbers(store) == []
    assert (ingest.counts.spooled, ingest.counts.messages, ingest.counts.readings) == (10, 10, 0)
    assert "away" in ingest.counts.trouble
    feed.to_come = [delivery(n) for n in range(10, 15)]
    at_once(ingest)
    assert ingest.step()  # still away: behind the others
    assert ingest.counts.spooled == 15 and len(feed.acknowledged) == 15
    for _ in range(3):
        at_once(ingest)
        ingest.step()
    assert stored_numbers(store) == list(range(15)) and spool.held == 0
    assert (ingest.counts.spooled, ingest.counts.messages, ingest.counts.readings) == (0, 15, 15)
    assert ingest.counts.trouble == ""
    feed.to_come = [delivery(99)]
    ingest.step()
    assert 99 in stored_numbers(store)


def test_the_order_is_kept(spool: Spool) -> None:
    feed, store = ListFeed([delivery(0)]), FaultyStore([AWAY])
    written: list[int] = []
    real = store.write

    def write(readings, events=()):
        real(readings, events)
        written.extend(reading.time_us - T0 for reading in readings)

    store.write = write  # type: ignore[method-assign]
    ingest = ingest_of(feed, store, DeadLetterList(), spool=spool)
    ingest.step()
    feed.to_come = [delivery(1)]
    ingest.step()
    at_once(ingest)
    feed.to_come = [delivery(2)]
    while spool.held or feed.to_come:
        at_once(ingest)
        ingest.step()
    assert written == [0, 1, 2]


def test_a_full_spool_stops_the_acknowledging(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit=600)
    feed, store = ListFeed([delivery(n) for n in range(3)]), FaultyStore([AWAY] * 50)
    ingest = ingest_of(feed, store, DeadLetterList(), spool=spool)
    assert ingest.step()
    feed.to_come = [delivery(n) for n in range(3, 50)]
    assert not ingest.step()
    assert len(feed.acknowledged) == 3 and ingest.counts.held == 47 and "limit" in ingest.counts.trouble
    store.failures.clear()
    while len(feed.acknowledged) < 50:
        at_once(ingest)
        ingest.step()
    assert stored_numbers(store) == list(range(50)) and ingest.counts.held == 0
    spool.close()


def test_what_is_on_disk_is_stored_after_a_restart(tmp_path: Path) -> None:
    first = Spool(tmp_path / "spool", limit=1_000_000)
    feed, store = ListFeed([delivery(n) for n in range(10)]), FaultyStore([AWAY])
    ingest_of(feed, store, DeadLetterList(), spool=first).step()
    first.close()
    second = Spool(tmp_path / "spool", limit=1_000_000)
    ingest = ingest_of(ListFeed([]), store, DeadLetterList(), spool=second)
    assert ingest.step()
    assert stored_numbers(store) == list(range(10)) and second.held == 0
    second.close()


def test_a_store_that_is_ill_is_not_hidden_by_the_spool(spool: Spool) -> None:
    feed, store = ListFeed([delivery(0)]), FaultyStore(ill=StoreError("damaged"))
    ingest = ingest_of(feed, store, DeadLetterList(), spool=spool)
    assert not ingest.step()
    assert feed.acknowledged == [] and spool.held == 0


def test_plant_time_waits_for_the_store(spool: Spool) -> None:
    moved = FeedClock()
    feed, store = ListFeed([delivery(0), Delivery(1, clock_us=T0 + 5)]), FaultyStore([AWAY])
    ingest = ingest_of(feed, store, DeadLetterList(), spool=spool, watermark=moved)
    ingest.step()
    assert len(feed.acknowledged) == 2 and moved.now() is None
    at_once(ingest)
    ingest.step()
    assert moved.now() == from_us(T0 + 5)


def test_a_spool_belongs_to_one_process_and_stands_beside_the_models(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PM_INGEST__SPOOL_LIMIT", "8")
    configuration = config.load(None)
    first = edges.open_spool(configuration, "broker 127.0.0.1:1883")
    with pytest.raises(SpoolLocked, match="another process"):
        edges.open_spool(configuration, "broker 127.0.0.1:1883")
    first.close()
    assert (configuration.models.dir.parent / "spool").is_dir()
