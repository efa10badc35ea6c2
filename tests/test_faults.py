"""What is published is stored, once each, whatever is killed, stopped, frozen or full meanwhile."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_cases import (
    Rig,
    broker_is_killed,
    influxdb_is_away,
    ingest_is_killed,
    ingest_is_killed_while_the_store_comes_and_goes,
)
from tests.servers.influxdb import influxdb
from tests.servers.mosquitto import Mosquitto, mosquitto
from tests.servers.programs import wait_until

KILLS = 105
"""For each store."""
SPOOLED = 35
"""Of those of the embedded store, with messages on disk while it is away."""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    folder = tmp_path / "broker"
    folder.mkdir()
    with mosquitto(folder) as running:
        yield running


# One after the other: multiprocessing's own bookkeeping takes the exit code of another thread's process away.
def test_ingest_killed_again_and_again_stores_every_reading_once_in_the_embedded_store(
    tmp_path: Path, broker: Mosquitto
) -> None:
    print(ingest_is_killed(tmp_path, broker, tmp_path / "readings.db", kills=KILLS - SPOOLED, seed=1))


def test_ingest_killed_while_the_store_comes_and_goes_stores_every_reading_once(
    tmp_path: Path, broker: Mosquitto
) -> None:
    store = tmp_path / "readings.db"
    print(ingest_is_killed_while_the_store_comes_and_goes(tmp_path, broker, store, kills=SPOOLED, seed=4))


def test_ingest_killed_again_and_again_stores_every_reading_once_in_influxdb(tmp_path: Path, broker: Mosquitto) -> None:
    at_server = tmp_path / "server"
    at_server.mkdir()
    with influxdb(at_server) as server:
        print(ingest_is_killed(tmp_path, broker, server.url, kills=KILLS, seed=2))


def test_the_broker_killed_and_restarted(tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    folder.mkdir()
    with mosquitto(folder, saves_at_once=True) as broker:
        print(broker_is_killed(tmp_path, broker, tmp_path / "readings.db", kills=4, seed=3))


@pytest.mark.parametrize("spooling", [False, True], ids=["waiting with the broker", "waiting on disk"])
def test_influxdb_killed_and_away_for_seconds(tmp_path: Path, broker: Mosquitto, spooling: bool) -> None:
    at_server = tmp_path / "server"
    at_server.mkdir()
    with influxdb(at_server) as server:
        print(influxdb_is_away(tmp_path, broker, server, seconds=3.0, spooling=spooling))


def test_the_network_dead_for_longer_than_the_keepalive(tmp_path: Path, broker: Mosquitto) -> None:
    with Rig(tmp_path, broker, tmp_path / "readings.db") as rig:
        time.sleep(1.5)
        broker.pause()
        time.sleep(4.5)
        broker.resume()
        published = rig.settle()
    print(f"network dead for 4.5 s, {published} readings, all stored once")


def test_a_file_that_may_not_grow_stops_the_acknowledging_until_it_may(tmp_path: Path, broker: Mosquitto) -> None:
    with Rig(tmp_path, broker, tmp_path / "readings.db", file_limit=300_000) as rig:
        wait_until(lambda: "free space" in rig.log, "the word that the disk is full")
        time.sleep(1.0)
        assert rig.ingest.pid is not None
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.prlimit(rig.ingest.pid, resource.RLIMIT_FSIZE, (hard, hard))  # the same process goes on
        published = rig.settle()
    print(f"no room for a while, {published} readings, all stored once")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk; the test with a limited file stands for this one")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_stops_the_acknowledging_until_there_is_room(
    tmp_path: Path, broker: Mosquitto, small_disk: Path
) -> None:
    with Rig(tmp_path, broker, small_disk / "readings.db") as rig:
        wait_until(lambda: "disk full" in rig.log, "the word that the disk is full")
        rig.kill_ingest()  # and the next one starts on a full disk
        time.sleep(1.0)
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        if not rig.ingest.is_alive():  # it had no room to open its store, said so and ended, as a service does
            rig.start()
        published = rig.settle()
    print(f"disk of 1 MiB full, {published} readings, all stored once")
