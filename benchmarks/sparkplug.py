"""Sparkplug B decoded: from a message's bytes to readings, without broker and store.

    python -m benchmarks.sparkplug [--messages 5000] [--metrics 50]

Messages are made beforehand, as `messages` gives them to the benchmark of the whole way too: devices of one edge node,
doubles by alias, every metric dated as the message. The bare protobuf parse is shown beside, as the floor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from connectors.sparkplug_columns import CHECKED
from connectors.sparkplug_host import SparkplugHost
from connectors.sparkplug_names import AssetNames
from connectors.sparkplug_schema import DataType, Payload
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--metrics", type=int, default=50)
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


if __name__ == "__main__":
    main()
