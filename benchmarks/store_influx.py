"""InfluxDB beside what bounds it: `python -m benchmarks.store_influx`.

Reading is measured beside curl, which takes the same chunked CSV from the same server and throws it away: that is the
server's own limit. Writing is measured in its parts: making lines, packing them, the check of what may collide.
Measured where the test harness finds Debian's influxdb and nginx, or at --influx URL.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import tempfile
import time
import urllib.parse
from datetime import timedelta
from pathlib import Path

from benchmarks.store import NO_EVENTS, START, best, history, influx_address
from connectors.batches import from_frame, from_readings
from connectors.influx import InfluxStore
from connectors.influx_conflicts import Frontier
from connectors.line_protocol import reading_lines
from pm.domain import EARLIEST, LATEST, Reading, to_us


def show(what: str, seconds: float, readings: int) -> None:
    print(f"{what:64} {seconds * 1000:9.1f} ms {readings / seconds / 1e6:7.2f} M readings/s", flush=True)


def live(rows: int, points: int, at_us: int) -> list[Reading]:
    """A batch as ingest writes it: 1,000 assets in turn, each of its times later than the one before."""
    names = [f"point {number}" for number in range(points)]
    return [Reading(f"asset {n % 1000:05}", at_us + n * 1000, dict.fromkeys(names, 100.0 + n / 7)) for n in range(rows)]


def writing() -> None:
    """What this process does for a batch, without any server."""
    readings = live(5000, 10, to_us(START))
    batches = from_readings(readings)
    show("readings joined in a batch, 5,000 rows x 10", best(lambda: from_readings(readings), 5), 50_000)
    seconds = best(lambda: ["\n".join(reading_lines(batch)).encode() for batch in batches], 5)
    show("a batch made into lines", seconds, 50_000)
    body = "\n".join(reading_lines(batches[0])).encode()
    for level in (1, 9):
        packed = gzip.compress(body, level, mtime=0)
        seconds = best(lambda level=level: gzip.compress(body, level, mtime=0), 3)  # type: ignore[misc]
        show(
            f"lines packed at gzip level {level}, to {len(packed) / len(body):.0%} of {len(body) / 1e6:.1f} MB",
            seconds,
            50_000,
        )
    frontier = Frontier(only_writer=True)
    frontier.learn(batches[0].assets, {})

    def check() -> None:
        frontier.late(batches[0])
        frontier.advance(batches[0])

    show("the check of what may collide", best(check, 20), 50_000)
    [frame] = from_frame(history(20, 1000, 20))
    seconds = best(lambda: "\n".join(reading_lines(frame)).encode(), 3)
    show("a history made into lines, 20,000 rows x 20", seconds, 400_000)


def against_server(url: str, scale: float) -> None:
    year = history(int(100 * scale), 8760, 4)
    values = int(year[[c for c in year.columns if c.startswith("point")]].notna().to_numpy().sum())
    store = InfluxStore(url=url, bucket="benchmark history")
    seconds = best(lambda: store.write_history(year, NO_EVENTS), 1)
    show(f"import {len(year)} rows x 4 points", seconds, values)
    asked: list[str] = []
    ask = store._connection.ask

    def noted(query: str, **options: object) -> bytes:
        asked.append(query)
        return ask(query, **options)  # type: ignore[arg-type]

    store._connection.ask = noted  # type: ignore[method-assign]
    store.readings(EARLIEST, LATEST)
    questions = [query for query in dict.fromkeys(asked) if "GROUP BY" in query]
    store._connection.ask = ask  # type: ignore[method-assign]
    for turn in range(2):
        seconds = best(lambda: store.readings(EARLIEST, LATEST), 2)
        show(f"read {values / 1e6:.1f} M readings as one wide frame", seconds, values)
        theirs = curl(url, "benchmark history", questions)
        if theirs:
            show("the same CSV by curl, thrown away", theirs, values)
            print(f"{'':64} {seconds / theirs:9.2f} times curl's time" + ("" if turn else " (in turn, once more:)"))
    one = year["asset"].iloc[0]
    end = START + timedelta(days=365)
    show("a year of one asset", best(lambda: store.readings(START, end, [one]), 3), 8760 * 4)
    show(
        "a year of one asset summed up by day",
        best(lambda: store.downsampled(START, end, timedelta(days=1), [one]), 3),
        8760 * 4,
    )
    store.close()

    store = InfluxStore(url=url, bucket="benchmark live")
    at = to_us(START)
    batches = [live(5000, 10, at + batch * 5_000_000) for batch in range(6)]
    store.write(batches[0])
    started = time.perf_counter()
    for batch in batches[1:]:
        store.write(batch)
    show("live batches of 5,000 rows x 10, in order", time.perf_counter() - started, 250_000)
    made = ["\n".join(reading_lines(b)).encode() for batch in batches[1:] for b in from_readings(batch)]
    another = InfluxStore(url=url, bucket="benchmark lines")
    another.write(batches[0])
    if seconds := curl_lines(url, "benchmark lines", made):
        show("the same lines, ready made, by curl", seconds, 250_000)
    another.close()
    started = time.perf_counter()
    for batch in batches[1:]:
        store.write(batch)
    show("the same again (redelivery: read back, compared)", time.perf_counter() - started, 250_000)
    store.close()
    shared = InfluxStore(url=url, bucket="benchmark live", only_writer=False)
    batches = [live(5000, 10, at + batch * 5_000_000) for batch in range(6, 11)]
    started = time.perf_counter()
    for batch in batches:
        shared.write(batch)
    show("new batches where others write too (read back first)", time.perf_counter() - started, 250_000)
    shared.close()


def curl(url: str, bucket: str, questions: list[str]) -> float:
    """Seconds that curl takes for these questions over one connection; 0 where there is no curl."""
    program = shutil.which("curl")
    if program is None:
        return 0.0
    address = f"{url}/query?{urllib.parse.urlencode({'db': bucket, 'epoch': 'u', 'chunked': 'true'})}"
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--silent", "--fail"]
        for number, question in enumerate(questions):
            form = Path(folder) / str(number)
            form.write_text("q=" + urllib.parse.quote(question))
            part = ["--header", "Accept: application/csv", "--output", "/dev/null", "--data", f"@{form}", address]
            command += part if not number else ["--next", "--silent", "--fail", *part]
        return best(lambda: subprocess.run(command, check=True), 2)


def curl_lines(url: str, bucket: str, made: list[bytes]) -> float:
    """Seconds that curl takes to post these lines over one connection; 0 where there is no curl."""
    program = shutil.which("curl")
    if program is None:
        return 0.0
    address = f"{url}/api/v2/write?{urllib.parse.urlencode({'bucket': bucket, 'precision': 'us'})}"
    with tempfile.TemporaryDirectory() as folder:
        command = [program]
        for number, lines in enumerate(made):
            body = Path(folder) / str(number)
            body.write_bytes(lines)
            part = ["--silent", "--fail", "--header", "Expect:", "--data-binary", f"@{body}", address]
            command += part if not number else ["--next", *part]
        return best(lambda: subprocess.run(command, check=True), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the history; 1: 100 assets a year")
    parser.add_argument("--influx", default="", help="address of an InfluxDB to measure")
    options = parser.parse_args()
    writing()
    with influx_address(options.influx) as url:
        if not url:
            print("no server: install Debian's influxdb and nginx-light, or name one with --influx")
            return
        against_server(url, options.scale)


if __name__ == "__main__":
    main()
