"""Ingest killed with SIGKILL at random moments while numbered readings come in: into each store, and with messages on
disk while the store comes and goes; then the broker killed. With --outage, InfluxDB away for minutes.

    python -m benchmarks.faults [--kills 1000] [--outage 3] [--seed 1]

The kills are divided among the three, one after the other. Fails at the first reading lost or stored twice.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.fault_cases import (
    broker_is_killed,
    influxdb_is_away,
    ingest_is_killed,
    ingest_is_killed_while_the_store_comes_and_goes,
)
from tests.servers.influxdb import influxdb
from tests.servers.mosquitto import mosquitto


def killed(kills: int, seed: int, new: Iterator[Path]) -> Iterator[str]:
    third = kills // 3
    folder = next(new)
    with mosquitto(next(new)) as broker:
        yield ingest_is_killed(folder, broker, folder / "r.db", kills=kills - 2 * third, seed=seed)
    folder = next(new)
    with mosquitto(next(new)) as broker:
        yield ingest_is_killed_while_the_store_comes_and_goes(
            folder, broker, folder / "r.db", kills=third, seed=seed + 1
        )
    with influxdb(next(new)) as server, mosquitto(next(new)) as broker:
        yield ingest_is_killed(next(new), broker, server.url, kills=third, seed=seed + 2)
    folder = next(new)
    with mosquitto(next(new), saves_at_once=True) as broker:
        yield broker_is_killed(folder, broker, folder / "r.db", kills=max(4, kills // 50), seed=seed + 3)


def away(minutes: float, new: Iterator[Path]) -> Iterator[str]:
    for spooling in (True, False):
        with influxdb(next(new)) as server, mosquitto(next(new)) as broker:
            yield influxdb_is_away(next(new), broker, server, seconds=60 * minutes, spooling=spooling)


def folders(within: Path) -> Iterator[Path]:
    """New ones, as many as wanted."""
    number = 0
    while True:
        folder = within / str(number)
        folder.mkdir()
        yield folder
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of ingest, in all; 0 for none")
    parser.add_argument("--outage", type=float, default=0.0, help="minutes without InfluxDB, with a spool and without")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        new = folders(Path(temporary))
        if asked.kills:
            for line in killed(asked.kills, asked.seed, new):
                print(line, flush=True)
        if asked.outage:
            for line in away(asked.outage, new):
                print(line, flush=True)


if __name__ == "__main__":
    main()
