"""pm beside the usual bridges: Mosquitto, publisher, store and ingest on this machine, each in a process of its own.

    python -m benchmarks.rivals [--only NAME] [--load scalars] [--seconds 40] [--no-kill]

Messages are encoded beforehand and sent with QoS 1 as fast as the broker takes them (Sparkplug with QoS 0, as it has
it), so that each program is measured at its own limit: from the first message until the last is in the store, as the
store itself says. How many messages are sent is about ten seconds' worth for that program.

CPU each: time on a core of the program alone, without broker and database server. Stored: how many of the
published messages are in the store in the end. Killed: the same where the program is killed (SIGKILL) half-way
and started again. What the programs are: benchmarks/_bridges.py, benchmarks/_rivals.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks._flood import Flood, connected, objects, packet, scalars
from benchmarks._rivals import RIVALS, NotHere, Place, Rival, numbers, stored
from benchmarks.sparkplug import DEVICES, messages
from tests.servers.influxdb import InfluxServer, influxdb
from tests.servers.mosquitto import mosquitto
from tests.servers.programs import stop

LOADS = {"scalars": ("scalar", 1), "objects": ("JSON of 10", 10), "sparkplug": ("Sparkplug of 50", 50)}
"""Each load's name for people, and how many readings (values of points) a message has."""
BASE = "usual bridge"
_START_SECONDS = 120.0
_STALL_SECONDS = 4.0
"""Without anything new in the store, after which it is asked whether that was all."""
_PROBE = 1 << 30
"""Numbers from here on are of messages that ask whether a program listens already."""


def sparkplug(count: int) -> Iterator[tuple[str, bytes]]:
    births, made = messages(count)
    yield from births
    yield from made


MAKERS = {"scalars": scalars, "objects": objects, "sparkplug": sparkplug}


@contextmanager
def running(rival: Rival, place: Place) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The program, started; the list holds its present process, which may be put another in the place of."""
    held = [start(rival, place)]
    try:
        yield held
    finally:
        stop(held[0], 20)


def start(rival: Rival, place: Place) -> subprocess.Popen[bytes]:
    command = rival.command(place)
    with (place.folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


class Asker:
    """Sends messages of its own, which are told apart by their numbers: whoever stores one has stored what came before.

    Only of those who keep their place with the broker; whoever lost it stores nothing of before anyway.
    """

    def __init__(self, rival: Rival, place: Place) -> None:
        self._rival, self._place = rival, place
        self._connection = connected(place.port, b"asker")
        self._number = 0

    def ask(self) -> None:
        self._number += 1
        if self._place.load == "scalars":
            ((topic, payload),) = scalars(1, _PROBE + self._number)
        else:
            topic = "plant/asker/readings"
            ((_, payload),) = objects(1, _PROBE + self._number)
        self._connection.sendall(packet(topic, payload, self._number))

    def wait(self) -> int:
        """Ask until the program listens; how many rows are stored then."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            self.ask()
            time.sleep(0.5)
            if stored(self._rival, self._place):
                time.sleep(2.0)
                return stored(self._rival, self._place)
        raise NotHere(f"stored nothing within {_START_SECONDS:g} s")

    def close(self) -> None:
        self._connection.close()


def cpu_seconds(pid: int) -> float:
    """Time on a core that a process has taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Result(NamedTuple):
    """What came of one run."""

    rate: float
    """Messages a second."""
    cpu_us: float
    """Microseconds on a core of the program, for each message."""
    stored: int
    """Of the published messages, those in the store in the end."""
    published: int
    in_time: bool
    """Whether it was done, or the time was up."""


def measure(rival: Rival, place: Place, count: int, seconds: float, *, kill: bool) -> Result:
    expected = count + (DEVICES if place.load == "sparkplug" else 0)
    flood = Flood(place.port, MAKERS[place.load], count, qos=0 if place.load == "sparkplug" else 1)
    with running(rival, place) as held, closing(Asker(rival, place)) as asker:
        try:
            before = asker.wait()
            flood.ready.wait()
            began = latest = asked = time.perf_counter()
            flood.start()
            seen, settled, answered, limit = 0, -1, False, began + seconds
            cpu = first_cpu = cpu_seconds(held[0].pid)
            while (now := time.perf_counter()) < limit and seen < expected:
                time.sleep(0.1)
                there = stored(rival, place) - before
                answered = answered or -1 < settled < there
                if answered and now - latest > _STALL_SECONDS:
                    break  # what was asked has come, and nothing beside it
                if there > seen:
                    seen, latest, cpu = there, now, cpu_seconds(held[0].pid)
                if kill and seen > count // 3:
                    kill = False
                    held[0].kill()
                    held[0].wait()
                    held[0] = start(rival, place)
                    limit += _START_SECONDS
                elif now - max(latest, asked) > _STALL_SECONDS and flood.confirmed.value >= count:
                    settled, asked = there, now
                    asker.ask()
        finally:
            flood.end()
    if not seen:
        raise NotHere(f"none of {count:,} messages was in the store within {seconds:g} s")
    found = numbers(rival, place)
    distinct = len(np.unique(found[(found >= 0) & (found < count)]))
    cpu_us = 1e6 * (cpu - first_cpu) / seen
    return Result(seen / (latest - began), cpu_us, distinct, count, in_time=answered or seen >= expected)


def one(
    rival: Rival, load: str, seconds: float, influx: InfluxServer, *, part: float = 1.0, kill: bool = False
) -> Result:
    count = int(part * rival.messages[load])
    with tempfile.TemporaryDirectory() as folder, mosquitto(Path(folder)) as broker:
        influx.query("DROP DATABASE pm")
        influx.query("CREATE DATABASE pm")
        place = Place(Path(folder), broker.port, influx, load)
        return measure(rival, place, count, seconds, kill=kill)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="a program by name; without it, all")
    parser.add_argument("--load", choices=LOADS, help="one load; without it, all")
    parser.add_argument("--seconds", type=float, default=40.0, help="at most, for each line")
    parser.add_argument("--part", type=float, default=1.0, help="of the messages; less for a quick look")
    parser.add_argument("--kill", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    columns = [
        "program",
        "store",
        "payload",
        "messages/s",
        "readings/s",
        "to the usual",
        "CPU each",
        "stored",
        "killed",
    ]
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, influxdb(Path(folder)) as influx:
        for load in (options.load,) if options.load else LOADS:
            rivals = [r for r in RIVALS if load in r.messages and options.only in (None, r.name)]
            base = 0.0
            for rival in sorted(rivals, key=lambda rival: rival.name != BASE):
                base = line(rival, load, influx, options, base)


def line(rival: Rival, load: str, influx: InfluxServer, options: argparse.Namespace, base: float) -> float:
    """Print one line of the table; gives the rate of the usual bridge, 0 where it is not known."""
    name, readings = LOADS[load]
    store = {"influx": "InfluxDB", "embedded": "embedded", "table": "SQLite"}[rival.store]
    print(f"| {rival.name} | {store} | {name} ", end="", flush=True)
    after = ""
    try:
        found = one(rival, load, options.seconds, influx, part=options.part)
        if options.kill and load == "objects":
            killed = one(rival, load, options.seconds, influx, part=options.part, kill=True)
            after = f"{killed.stored:,} of {killed.published:,}"
    except NotHere as error:
        print(f"| not measured: {error} | | | | | |")
        return base
    base = found.rate if rival.name == BASE else base
    ratio = f"{found.rate / base:.3g}" if base else ""
    print(
        f"| {found.rate:,.0f} | {found.rate * readings:,.0f} | {ratio} | {found.cpu_us:,.0f} µs "
        f"| {found.stored:,} of {found.published:,}{'' if found.in_time else ', time was up'} | {after} |",
        flush=True,
    )
    return base


if __name__ == "__main__":
    main()
