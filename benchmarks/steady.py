"""Half of the top load for ten minutes: memory of ingest, and how long a reading takes from publishing to the store.

    python -m benchmarks.steady [--minutes 10] [--rate MESSAGES_A_SECOND]

Mosquitto, publisher, `pm run --only ingest` with the embedded store, all on this machine; JSON of 10 readings with
QoS 1. Without --rate the top load is measured first, as benchmarks.rivals does it, and half of it is sent.

A message is dated when it is handed to the network. One asset of a hundred is looked for in the store every 50 ms: a
reading's delay is from its date until the look that finds it has ended, so it is told up to 50 ms too long. Memory is
the resident set of the ingest process, every 10 s; its slope is a line fitted to what comes after the first fifth.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks._flood import Paced
from benchmarks._rivals import RIVALS, Place
from benchmarks.rivals import Asker, one, running
from connectors.embedded import EmbeddedStore
from pm.domain import LATEST
from tests.servers.influxdb import InfluxServer, influxdb
from tests.servers.mosquitto import mosquitto
from tests.servers.programs import wait_until

_LOOK_SECONDS = 0.05
_MEMORY_SECONDS = 10.0


@dataclass
class Seen:
    """What was noted while it ran."""

    delays: list[float] = field(default_factory=list)
    """Seconds from publishing to readable, one per reading looked for."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start, MiB."""
    published: int = 0
    stored: int = 0


def resident(pid: int) -> float:
    """MiB of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def watch(influx: InfluxServer, rate: float, minutes: float) -> Seen:
    seen = Seen()
    with tempfile.TemporaryDirectory() as folder, mosquitto(Path(folder)) as broker:
        place = Place(Path(folder), broker.port, influx, "objects")
        with running(RIVALS[0], place) as held, closing(EmbeddedStore(place.folder / "readings.db")) as store:
            with closing(Asker(RIVALS[0], place)) as asker:
                before = asker.wait()
            paced = Paced(broker.port, rate)
            paced.ready.wait()
            latest = pd.Timestamp.now("UTC")
            paced.go.set()
            began = time.monotonic()
            while (now := time.monotonic() - began) < 60 * minutes:
                rows = store.readings(latest.to_pydatetime(), LATEST, assets=["asset-0"], points=["point0"])
                if len(rows):
                    found_at = pd.Timestamp.now("UTC")
                    latest = rows["time"].iloc[-1]
                    seen.delays += (found_at - rows["time"]).dt.total_seconds().tolist()
                if now >= len(seen.memory) * _MEMORY_SECONDS:
                    seen.memory.append((now, resident(held[0].pid)))
                time.sleep(_LOOK_SECONDS)
            seen.published = paced.finish()
            wait_until(lambda: store.counts()["readings"] - before >= seen.published, "the last reading", 60)
            seen.stored = store.counts()["readings"] - before
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=0.0, help="messages a second; 0: half of the top load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, influxdb(Path(folder)) as influx:
        rate = options.rate
        if not rate:
            top = one(RIVALS[0], "objects", 60.0, influx).rate
            rate = top / 2
            print(f"top load {top:,.0f} messages/s as JSON of 10")
        print(f"sending {rate:,.0f} messages/s ({10 * rate:,.0f} readings/s) for {options.minutes:g} min", flush=True)
        seen = watch(influx, rate, options.minutes)
    at, memory = np.array(seen.memory).T
    warm = at >= at[-1] / 5
    slope = np.polyfit(at[warm] / 60, memory[warm], 1)[0] if warm.sum() > 2 else float("nan")
    half, most, all_but_one = np.percentile(seen.delays, [50, 99, 99.9])
    print("| published | stored | p50 | p99 | p99.9 | longest | memory, first to last | slope after the first fifth |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {seen.published:,} | {seen.stored:,} | {1000 * half:.0f} ms | {1000 * most:.0f} ms "
        f"| {1000 * all_but_one:.0f} ms | {1000 * max(seen.delays):.0f} ms "
        f"| {memory[0]:.0f} to {memory[-1]:.0f} MiB | {slope:+.2f} MiB/min |"
    )
    print(f"memory each 10 s, MiB: {' '.join(f'{one:.0f}' for one in memory)}")


if __name__ == "__main__":
    main()
