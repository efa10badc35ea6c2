"""How fast the stores write and read: `python -m benchmarks.store`.

Rates are of readings, one value of one point. Every figure is the best of a few runs, as other work on the machine only
ever adds time. InfluxDB is measured where the test harness finds Debian's influxdb and nginx, or at --influx URL.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from connectors.embedded import EmbeddedStore
from connectors.influx import InfluxStore
from pm.domain import EARLIEST, LATEST, Reading, to_us
from pm.ports import ReadingStore

START = datetime(2025, 1, 1, tzinfo=UTC)
NO_EVENTS = pd.DataFrame({"time": pd.to_datetime([], utc=True), "asset": [], "kind": [], "code": []})


def history(assets: int, hours: int, points: int) -> pd.DataFrame:
    """Hourly readings of some assets, 2 % of them missing."""
    generator = np.random.default_rng(0)
    values = generator.normal(100.0, 10.0, (assets * hours, points))
    values[generator.random(values.shape) < 0.02] = np.nan
    hourly = np.datetime64(START.replace(tzinfo=None), "us") + np.arange(1, hours + 1) * np.timedelta64(1, "h")
    frame = pd.DataFrame(values, columns=[f"point {number}" for number in range(points)])
    frame.insert(0, "time", pd.DatetimeIndex(np.tile(hourly, assets), tz="UTC"))
    frame.insert(1, "asset", pd.Series(np.repeat([f"asset {n:05}" for n in range(assets)], hours), dtype="str"))
    return frame


class Seconds(NamedTuple):
    """How long something took, by the clock and in this process's own computing, which other work hardly lengthens."""

    wall: float
    cpu: float


def timed(run: Callable[[], object], runs: int = 3) -> Seconds:
    """The quickest of some runs."""
    seconds = []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        seconds.append(Seconds(time.perf_counter() - wall, time.process_time() - cpu))
    return Seconds(min(one.wall for one in seconds), min(one.cpu for one in seconds))


def best(run: Callable[[], object], runs: int = 3) -> float:
    """Seconds by the clock of the quickest of some runs."""
    return timed(run, runs).wall


def measure(name: str, make: Callable[[], ReadingStore], scale: float) -> None:
    """Print one line per measurement of one kind of store."""

    def show(what: str, seconds: Seconds, readings: int) -> None:
        rate = readings / seconds.wall / 1e6
        print(
            f"{name:10} {what:58} {seconds.wall * 1000:10.1f} ms ({seconds.cpu * 1000:8.1f} ms computing here)"
            f" {rate:8.2f} M readings/s",
            flush=True,
        )

    fleet = history(int(100 * scale), 8760, 4)
    store = make()
    seconds = timed(lambda: store.write_history(fleet, NO_EVENTS), 1)
    show(f"import {len(fleet)} rows x 4 points", seconds, len(fleet) * 4)
    seconds = timed(lambda: store.readings(EARLIEST, LATEST))
    show(f"read it all as one frame ({len(fleet) * 4 / 1e6:.1f} M readings)", seconds, len(fleet) * 4)
    store.close()

    wide = history(int(20 * scale), 8760, 20)
    store = make()
    store.write_history(wide, NO_EVENTS)
    seconds = timed(lambda: store.readings(EARLIEST, LATEST))
    show(f"{len(wide) * 20 / 1e6:.1f} M readings over 20 points as one frame", seconds, len(wide) * 20)
    store.close()

    many = history(int(10_000 * scale), 24, 20)
    store = make()
    seconds = timed(lambda: store.write_history(many, NO_EVENTS), 1)
    show(f"import a day of {int(10_000 * scale)} assets, 24 h x 20 points", seconds, len(many) * 20)
    show("windows of all of them", timed(lambda: store.readings(EARLIEST, LATEST)), len(many) * 20)
    store.close()

    assets = int(1000 * scale)
    week = history(assets, 168, 20)
    store = make()
    store.write_history(week, NO_EVENTS)
    end = START + timedelta(hours=168)
    one = week["asset"].iloc[-1]
    show("window of one asset, 168 h x 20 points", timed(lambda: store.readings(START, end, [one]), 20), 168 * 20)
    show(f"windows of {assets} assets, 168 h x 20 points", timed(lambda: store.readings(START, end)), len(week) * 20)

    names, points = sorted(set(week["asset"])), [f"point {number}" for number in range(10)]
    batches = [
        [
            Reading(
                names[n % len(names)], to_us(end) + (batch * 5000 + n + 1) * 1_000_000, dict.fromkeys(points, 0.1 + n)
            )
            for n in range(5000)
        ]
        for batch in range(5)
    ]
    seconds = timed(lambda: [store.write(batch) for batch in batches], 1)
    show("ingest batches of 5,000 rows x 10 points, durable", seconds, 25_000 * 10)
    seconds = timed(lambda: [store.write(batch) for batch in batches], 1)
    show("the same again (redelivery)", seconds, 25_000 * 10)
    single = iter(range(10_000))
    seconds = timed(lambda: store.write([Reading(one, next(single), {"point 0": 1.0})]), 50)
    show("one reading, durable", seconds, 1)
    store.close()


@contextmanager
def influx_address(given: str) -> Iterator[str]:
    """Where InfluxDB is: as given, else the test harness's own, else nowhere ("")."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
    if given or not (shutil.which("influxd", path=path) and shutil.which("nginx", path=path)):
        yield given
        return
    from tests.servers.influxdb import influxdb

    with tempfile.TemporaryDirectory() as folder, influxdb(Path(folder)) as server:
        yield server.url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the data; 1: 100 assets a year, 1,000 a week")
    parser.add_argument("--folder", type=Path, help="where the embedded store's file is made (default: temporary)")
    parser.add_argument("--influx", default="", help="address of an InfluxDB to measure")
    parser.add_argument("--only", choices=["embedded", "influxdb"])
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores")
    if options.only != "influxdb":
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            paths = (Path(folder) / f"{number}.db" for number in range(9))
            measure("embedded", lambda: EmbeddedStore(next(paths)), options.scale)
            rows = int(100 * options.scale) * 8760
            print(f"embedded   {(Path(folder) / '0.db').stat().st_size / rows:.0f} bytes for a row of 4 points")
    if options.only != "embedded":
        with influx_address(options.influx) as url:
            if not url:
                print("influxdb   not measured: install Debian's influxdb and nginx-light, or name one with --influx")
                return
            buckets = (f"benchmark {number}" for number in range(9))
            measure("influxdb", lambda: InfluxStore(url=url, bucket=next(buckets)), options.scale)


if __name__ == "__main__":
    main()
