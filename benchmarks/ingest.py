"""Ingest end to end: publisher (a process of its own) → broker → feed → embedded store on disk → acknowledged.

    python -m benchmarks.ingest [--messages 20000]

Counts from the first message published until the last is stored and acknowledged, everything on this machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Literal

from connectors.broker import EmbeddedBroker
from connectors.embedded import EmbeddedStore
from connectors.mqtt import MqttFeed, MqttPublisher
from connectors.payloads import encode_readings
from pm.config import IngestSection, MqttSection
from pm.domain import EARLIEST, LATEST, Reading
from pm.errors import FeedError
from pm.ingest import Ingest
from pm.ports import Reject

ASSETS = 100
T0 = 1_795_428_000_000_000


class NoDeadLetters:
    def add_dead_letters(self, rejects: list[Reject]) -> None:
        raise AssertionError(f"a message was refused: {rejects[0].reason}")


def publish(port: int, messages: int, points: int) -> None:
    """Scalars on plant/{asset}/{point} where `points` is 0, else JSON objects of so many points."""
    publisher = MqttPublisher(MqttSection(host="127.0.0.1", port=port))
    publisher.open()
    for number in range(messages):
        asset = f"asset-{number % ASSETS}"
        if points:
            values = {f"point{k}": number + k / 8 for k in range(points)}
            publisher.publish(f"plant/{asset}/readings", encode_readings([Reading(asset, T0 + number, values)]))
        else:
            publisher.publish(f"plant/{asset}/point0", b"%d.5" % number)
    publisher.flush(300)
    publisher.close()


def measure(kind: Literal["mosquitto", "rumqttd"], messages: int, points: int) -> tuple[float, float, int]:
    """Seconds until all is stored, seconds of these that publishing took, batches."""
    with tempfile.TemporaryDirectory() as folder:
        broker = EmbeddedBroker(kind, 0, Path(folder) / "broker")
        port = broker.start()
        store = EmbeddedStore(Path(folder) / "readings.db")
        feed = MqttFeed(MqttSection(host="127.0.0.1", port=port), one_subscription=not broker.keeps_order)
        feed.open()
        ingest = Ingest(
            feed,
            store,
            NoDeadLetters(),  # type: ignore[arg-type]
            section=IngestSection(),
            now_us=lambda: time.time_ns() // 1000,
        )
        sender = multiprocessing.get_context("spawn").Process(target=publish, args=(port, messages, points))
        sender.start()
        while not feed.waiting:
            time.sleep(0.001)
        began = time.perf_counter()
        published = 0.0
        while ingest.counts.messages < messages:
            ingest.step()
            if not published and not sender.is_alive():
                published = time.perf_counter() - began
        took = time.perf_counter() - began
        sender.join()
        # Two scalars of an asset within a microsecond are one row; JSON carries its own times.
        stored = len(store.readings(EARLIEST, LATEST))
        assert stored == messages or not points, f"{stored} rows of {messages} messages"
        feed.close()
        store.close()
        broker.stop()
        return took, published or took, ingest.counts.batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    messages = parser.parse_args().messages
    print("| broker | payload | messages/s | readings/s (points) | batches | publishing took |")
    print("|---|---|---|---|---|---|")
    kinds: tuple[Literal["mosquitto", "rumqttd"], ...] = ("mosquitto", "rumqttd")
    for kind in kinds:
        for points in (0, 10):
            try:
                took, published, batches = measure(kind, messages, points)
            except FeedError as error:
                print(f"| {kind} | not measured: {error} | | | | |")
                break
            rate = messages / took
            payload = f"JSON of {points}" if points else "scalar"
            print(
                f"| {kind} | {payload} | {rate:,.0f} | {rate * max(points, 1):,.0f} "
                f"| {batches} | {published:.1f} of {took:.1f} s |"
            )


if __name__ == "__main__":
    main()
