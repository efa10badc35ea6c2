"""Sparkplug B: from a message's bytes to readings; and the whole way, from an edge node through a broker to the disk.

    python -m benchmarks.sparkplug [--messages 5000] [--metrics 50] [--whole 40000]

The whole way: a publisher (a process of its own, as fast as the broker takes it) → Mosquitto → the host → embedded
store, everything on this machine; from the first message until the last reading is durable.

Messages are made beforehand, as `messages` gives them to the benchmark of the whole way too: devices of one edge node,
doubles by alias, every metric dated as the message. The bare protobuf parse is shown beside, as the floor.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

from connectors.broker import EmbeddedBroker
from connectors.embedded import EmbeddedStore
from connectors.sparkplug_columns import CHECKED
from connectors.sparkplug_feed import SparkplugFeed
from connectors.sparkplug_host import SparkplugHost
from connectors.sparkplug_names import AssetNames
from connectors.sparkplug_schema import DataType, Payload
from pm.config import IngestSection, MqttSection, SparkplugSection
from pm.ingest import Ingest
from tests.servers.ingest import DeadLetterList, wall_us
from tests.sparkplug_cases import T0_MS, Edge

DEVICES = 100


def messages(
    count: int, *, metrics: int = 50, devices: int = DEVICES, node: str = "bench"
) -> tuple[list[tuple[str, bytes]], Iterator[tuple[str, bytes]]]:
    """Births, and then `count` messages of data: topic and payload, in order of their sequence numbers. Each message
    is one reading (asset `{node}-{number}`) of `metrics` points at a time of its own."""
    edge = Edge("bench", node)
    names = [f"sensors/point{k}" for k in range(metrics)]
    assets = [f"{node}-{number}" for number in range(devices)]
    births = [edge.nbirth()]
    births += [edge.dbirth(asset, {name: k / 8 for k, name in enumerate(names)}) for asset in assets]

    def data() -> Iterator[tuple[str, bytes]]:
        for number in range(count):
            values = {name: number + k / 8 for k, name in enumerate(names)}
            yield edge.data(assets[number % devices], values, at_ms=T0_MS + 1 + number // devices)

    return births, data()


def publish(port: int, count: int, metrics: int, ready: Event, go: Event) -> None:
    """Births and data as bare MQTT packets of QoS 0, made beforehand."""
    births, made = messages(count, metrics=metrics)
    packets = [_packet(*message) for message in (*births, *made)]
    client_id = b"edge"
    connect = b"\0\4MQTT\4\2\0\0" + len(client_id).to_bytes(2) + client_id
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"\x10" + bytes([len(connect)]) + connect)
        connection.recv(4)
        ready.set()
        go.wait()
        for start in range(0, len(packets), 50):
            connection.sendall(b"".join(packets[start : start + 50]))
        time.sleep(600)  # connected until killed: an edge node that leaves would be dead


def _packet(topic: str, payload: bytes) -> bytes:
    body = len(topic.encode()).to_bytes(2) + topic.encode() + payload
    length, size = b"", len(body)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return b"\x30" + length + bytes([size]) + body


def whole(count: int, metrics: int) -> float:
    """Seconds for `count` messages, births besides."""
    with tempfile.TemporaryDirectory() as folder:
        broker = EmbeddedBroker("mosquitto", 0, Path(folder) / "broker")
        section = MqttSection(host="127.0.0.1", port=broker.start())
        store = EmbeddedStore(Path(folder) / "readings.db")
        feed = SparkplugFeed(section, SparkplugSection(), queue=20_000)
        feed.open()
        letters = DeadLetterList()
        ingest = Ingest(feed, store, letters, section=IngestSection(), now_us=wall_us)
        context = multiprocessing.get_context("spawn")
        ready, go = context.Event(), context.Event()
        edge = context.Process(target=publish, args=(section.port, count, metrics, ready, go), daemon=True)
        edge.start()
        ready.wait()
        began = time.perf_counter()
        go.set()
        while ingest.counts.readings < count + DEVICES:
            ingest.step()
        took = time.perf_counter() - began
        assert not letters.rejects and not feed.counts.lost and not feed.dropped
        edge.kill()
        feed.close()
        store.close()
        broker.stop()
        return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--metrics", type=int, default=50)
    parser.add_argument("--whole", type=int, default=40_000, help="messages on the whole way; 0 for none")
    options = parser.parse_args()
    births, made = messages(options.messages + CHECKED * DEVICES, metrics=options.metrics)
    data = list(made)
    warm, data = data[: CHECKED * DEVICES], data[CHECKED * DEVICES :]
    print(f"{len(data)} messages of {options.metrics} metrics, {len(data[0][1])} bytes each, {DataType.DOUBLE.name}\n")
    print("| what | µs per message | readings/s |")
    print("|---|---|---|")

    def row(what: str, seconds: float) -> None:
        print(f"| {what} | {seconds / len(data) * 1e6:.1f} | {len(data) * options.metrics / seconds:,.0f} |")

    best = {"protobuf alone": 1e9, "to readings": 1e9}
    for _ in range(5):
        began = time.perf_counter()
        for _, payload in data:
            Payload.FromString(payload)
        best["protobuf alone"] = min(best["protobuf alone"], time.perf_counter() - began)

        host = SparkplugHost(AssetNames("{device}", "{node}", "auto"), reorder_us=5_000_000, birth_us=30_000_000)
        # Of each device's birth the first payloads are read in two ways; what is measured comes after.
        for topic, payload in (*births, *warm):
            host.hear(topic, payload, T0_MS * 1000)
        readings = 0
        began = time.perf_counter()
        for topic, payload in data:
            for delivery in host.hear(topic, payload, T0_MS * 1000):
                readings += len(delivery.readings)
        best["to readings"] = min(best["to readings"], time.perf_counter() - began)
        assert readings == len(data), f"{readings} readings of {len(data)} messages"
    for what, seconds in best.items():
        row(what, seconds)
    if options.whole:
        row("the whole way", whole(options.whole, options.metrics) / options.whole * len(data))


if __name__ == "__main__":
    main()
