"""Ingest killed with SIGKILL at random moments while numbered readings come in, for each store; then the broker killed.

    python -m benchmarks.faults [--kills 1000] [--seed 1]

The kills are divided among the two stores, one after the other. Fails at the first reading lost or stored twice.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.fault_cases import broker_is_killed, ingest_is_killed
from tests.servers.influxdb import influxdb
from tests.servers.mosquitto import mosquitto


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of ingest, over both stores")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("embedded", "influx", "broker", "server", "one", "two", "three")]
        for folder in folders:
            folder.mkdir()
        embedded, influx, killed, at_server, first, second, third = folders
        with (
            influxdb(at_server) as server,
            mosquitto(first) as one,
            mosquitto(second) as other,
        ):
            each, seed = asked.kills // 2, asked.seed
            print(ingest_is_killed(embedded, one, embedded / "r.db", kills=each, seed=seed), flush=True)
            print(ingest_is_killed(influx, other, server.url, kills=asked.kills - each, seed=seed + 1), flush=True)
        with mosquitto(third, saves_at_once=True) as broker:
            print(broker_is_killed(killed, broker, killed / "r.db", kills=max(4, asked.kills // 50), seed=seed + 2))


if __name__ == "__main__":
    main()
