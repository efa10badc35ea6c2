"""Data alerts: what is lost, refused or kept waiting is counted, raised, shown, and closed when it is over."""

from __future__ import annotations

import json
import logging
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from connectors.spool import Spool
from pm import config, doctor, edges
from pm.data_alerts import Fault, Sign
from pm.data_watch import PATIENCE, DataWatch
from pm.domain import EARLIEST, LATEST
from pm.errors import RecordsUnavailable, StoreUnavailable
from pm.ingest import Ingest
from pm.ports import Delivery, Reject
from pm.records import Records
from pm.service import Service
from tests.dashboard_plant import dashboard_plant
from tests.record_databases import HOUR, T0
from tests.servers.ingest import DeadLetterList
from tests.servers.mosquitto import mosquitto
from tests.servers.programs import wait_until
from tests.test_dashboard import login
from tests.test_ingest import FaultyStore, ListFeed, delivery, ingest_of
from tests.test_ingest_spool import at_once

SECOND = timedelta(seconds=1)
QUIET = timedelta(minutes=10)


# ---- what is seen, with the time as an argument


class Clock:
    def __init__(self) -> None:
        self.now = T0

    def __call__(self) -> datetime:
        return self.now


class Watched:
    """An ingest over a list, and a watch over it."""

    def __init__(self, found: Records, store: FaultyStore, spool: Spool | None = None) -> None:
        self.clock = Clock()
        self.told: list[str] = []
        self.feed = ListFeed([])
        self.watch = DataWatch(
            found,
            quiet=QUIET,
            now=self.clock,
            tell=lambda alerts: self.told.extend(f"{a.fault} {a.count} {bool(a.closed_at)}" for a in alerts),
        )
        look = self.watch.observer()
        self.ingest: Ingest = ingest_of(self.feed, store, DeadLetterList(), spool=spool, observers=[look])
        self.watch.follow(look, self.ingest)

    def look(self, after: timedelta = SECOND) -> None:
        self.clock.now += after
        self.watch._next = 0.0  # others' alerts too
        self.watch.look()


@pytest.fixture
def memory():
    with Records.open("sqlite://") as opened:
        yield opened


def test_messages_dropped_raise_an_alert_that_counts_on_and_ends(memory: Records, caplog) -> None:
    caplog.set_level(logging.INFO, logger="pm.data_watch")
    watched = Watched(memory, FaultyStore())
    watched.look()
    assert memory.data_alerts() == []
    watched.feed.dropped = 7
    watched.look()
    watched.feed.dropped = 10
    watched.look()
    (alert,) = memory.data_alerts()
    assert (alert.source, alert.fault, alert.count, alert.raised_at) == ("list", Fault.DROPPED, 10, T0 + 2 * SECOND)
    watched.look(QUIET)
    assert memory.data_alerts() == [alert], "not quiet for longer than that yet"
    watched.look()
    assert memory.data_alerts() == []
    watched.feed.dropped = 11
    watched.look()
    assert [(a.count, a.closed_at is None) for a in memory.data_alerts(closed=9)] == [(1, True), (10, False)]
    assert watched.told == ["dropped 7 False", "dropped 10 False", "dropped 10 True", "dropped 1 False"]
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [
        "data alert", "data alert is over after 0:10:02", "data alert",
    ]  # fmt: skip


def test_dead_letters_raise_an_alert_with_the_latest_reason(memory: Records) -> None:
    watched = Watched(memory, FaultyStore())
    letter = Reject("plant/a/readings", b"x", "time 2030 is ahead of the clock here", 0)
    watched.feed.to_come = [delivery(0), Delivery(1, rejects=(letter,)), Delivery(2, rejects=(letter,))]
    watched.ingest.step()
    watched.look()
    (alert,) = memory.data_alerts()
    assert (alert.fault, alert.count) == (Fault.REFUSED, 2)
    assert "plant/a/readings: time 2030 is ahead" in alert.about and "pm deadletters" in alert.about


def test_a_store_that_stays_away_is_an_alert_and_its_return_the_end(memory: Records, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit=1_000_000)
    store = FaultyStore([StoreUnavailable("the store is away")] * 4)
    watched = Watched(memory, store, spool)
    watched.feed.to_come = [delivery(n) for n in range(3)]
    watched.ingest.step()
    watched.look()
    watched.look(PATIENCE / 2)
    assert memory.data_alerts() == [], "a restart of the store is no alert"
    watched.look(PATIENCE)
    (alert,) = memory.data_alerts()
    assert alert.text == "list: messages waiting: 3 (kept on disk: the store is away)"
    for _ in range(40):  # however long: seen again, so not closed for being quiet
        watched.look(PATIENCE / 3)
    assert [a.number for a in memory.data_alerts()] == [alert.number]
    store.failures.clear()
    while spool.held:
        at_once(watched.ingest)
        watched.ingest.step()
    watched.look()
    assert memory.data_alerts() == [] and memory.data_alerts(closed=1)[0].closed_at == watched.clock.now
    spool.close()


def test_what_is_seen_while_the_records_are_away_is_noted_later(memory: Records, monkeypatch) -> None:
    watched = Watched(memory, FaultyStore())
    real = memory.note_data

    def away(signs: object, at: datetime) -> list:
        raise RecordsUnavailable("the records are away")

    monkeypatch.setattr(memory, "note_data", away)
    for total in (3, 8):
        watched.feed.dropped = total
        watched.look()
    monkeypatch.setattr(memory, "note_data", real)
    watched.look()
    assert [alert.count for alert in memory.data_alerts()] == [8]


def test_an_alert_whose_process_is_gone_is_closed_by_another(memory: Records) -> None:
    gone, other = Watched(memory, FaultyStore()), Watched(memory, FaultyStore())
    gone.feed.dropped = 4
    gone.look()
    other.look(QUIET)
    assert memory.data_alerts()
    other.look(5 * SECOND)
    assert memory.data_alerts() == []


# ---- where people see it


def test_the_dashboard_and_the_doctor_show_it(tmp_path: Path) -> None:
    with dashboard_plant(tmp_path / "plant") as plant:
        client = login(plant)
        assert "Data alert" not in client.get("/").text
        plant.records.note_data([Sign("broker <b>", Fault.DROPPED, 1234, "QoS 0, and no room")], T0)
        for path in ("/", "/alerts"):
            page = client.get(path).text
            assert "broker &lt;b&gt;" in page and "1,234" in page
        (alert,) = client.get("/api/data-alerts").json["data_alerts"]
        assert (alert["state"], alert["count"], alert["fault"]) == ("open", 1234, "dropped")
        plant.records.close_data(plant.records.data_alerts(), T0 + HOUR)
        assert "Data alert since" not in client.get("/").text and "1,234" in client.get("/alerts").text
        assert client.get("/api/data-alerts").json == {"data_alerts": []}
        assert client.get("/api/data-alerts?all=1").json["data_alerts"][0]["state"] == "closed"
        assert plant.app.test_client().get("/api/data-alerts").status_code == 401
    path = tmp_path / "pm.toml"
    path.write_text(f'[records]\nurl = "sqlite:///{tmp_path / "plant" / "records.db"}"\n')
    settings = config.load(path, {})
    assert "no data alert is open" in doctor._data(settings)
    with edges.open_records(settings) as opened:
        opened.note_data([Sign("broker b", Fault.DROPPED, 3, "")], T0)
    with pytest.raises(doctor.PmError, match="broker b: messages lost: 3, since 2026-03-01"):
        doctor._data(settings)


def test_messages_of_qos_0_beyond_the_queue_are_counted_to_the_last_and_told_to_everybody(tmp_path: Path) -> None:
    """The store is locked, so that nothing is taken: what finds no room is lost, and the service says how much."""
    published = 400
    with mosquitto(tmp_path) as broker:
        path = tmp_path / "pm.toml"
        path.write_text(
            f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\nkeepalive = "3s"\n'
            'readings = ["plant/{asset}/{point}"]\nevents = []\n'
            "[ingest]\nqueue = 50\nbatch = 10\nspool_limit = 0\n[dashboard]\nport = 0\n[retrain]\nenabled = false\n"
        )
        heard: dict[str, bytes] = {}
        listener = paho.Client(CallbackAPIVersion.VERSION2, client_id="listener")
        listener.on_message = lambda client, userdata, message: heard.update({message.topic: message.payload})
        listener.connect("127.0.0.1", broker.port)
        listener.subscribe("pm/data-alerts/#")
        listener.loop_start()
        settings = config.load(path, {})
        with Service(settings) as service:
            feed = service.ingests[0].feed
            holder = sqlite3.connect(settings.store.path, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            for number in range(published):
                listener.publish("plant/a/n", json.dumps({"time": 1_795_428_000 + number, "value": number}), qos=0)
            wait_until(lambda: feed.link.messages >= published, "all messages")
            wait_until(lambda: bool(service.records.data_alerts()), "the data alert")
            holder.execute("ROLLBACK")
            holder.close()
            wait_until(lambda: service.ingests[0].counts.messages + feed.dropped >= published, "the rest", 60)
            wait_until(lambda: service.records.data_alerts()[0].count == feed.dropped, "the last of the count")
            stored = len(service.store.readings(EARLIEST, LATEST))
            assert stored + feed.dropped == published and feed.dropped > 0
            assert service._status()["messages lost (QoS 0, no room)"] == feed.dropped
            topic = f"pm/data-alerts/broker 127.0.0.1:{broker.port}/dropped"
            wait_until(lambda: json.loads(heard.get(topic, b'{"count":0}'))["count"] == feed.dropped, "the notice", 30)
            text = service.metrics.page()[0].decode()
            assert f'pm_ingest_dropped_messages_total{{feed="{feed.name}"}} {float(feed.dropped)}' in text
            assert 'pm_data_alerts{fault="dropped"} 1.0' in text
        listener.loop_stop()
        listener.disconnect()
    assert json.loads(heard[topic])["state"] == "open"
