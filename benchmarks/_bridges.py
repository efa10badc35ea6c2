"""Bridges from MQTT to a store as they are usually written in Python, each a program of its own.

    python -m benchmarks._bridges influx|batching|sqlite PORT PLACE

Each subscribes with stock paho (MQTT 3.1.1, QoS 1, a lasting session) and writes in `on_message`, one message at a
time, after which paho acknowledges the message. PLACE is the address of InfluxDB or the file of SQLite.

- influx: a `Point` and influxdb-client's write API in its synchronous mode, a request for each message.
- batching: the same with the write API's default mode, which collects 1,000 points or a second, on a thread of its own:
  the message is acknowledged long before it is stored.
- sqlite: an INSERT for each number and a commit for each message.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping

from influxdb_client import InfluxDBClient, Point, WriteOptions, WritePrecision
from influxdb_client.client.write_api import SYNCHRONOUS
from paho.mqtt import client as paho

from connectors.sparkplug_schema import Payload

Write = Callable[[str, int, Mapping[str, float]], None]
"""Takes an asset, a time in microseconds and values by point."""


def into_influx(url: str, options: WriteOptions) -> Write:
    client = InfluxDBClient(url=url, token="", org="")
    api = client.write_api(write_options=options)

    def write(asset: str, time_us: int, values: Mapping[str, float]) -> None:
        point = Point("readings").tag("asset", asset).time(time_us, WritePrecision.US)
        for name, value in values.items():
            point.field(name, value)
        api.write(bucket="pm", record=point, write_precision=WritePrecision.US)

    return write


def into_sqlite(path: str) -> Write:
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE IF NOT EXISTS readings (asset TEXT, time INTEGER, point TEXT, value REAL)")

    def write(asset: str, time_us: int, values: Mapping[str, float]) -> None:
        rows = [(asset, time_us, name, value) for name, value in values.items()]
        connection.executemany("INSERT INTO readings VALUES (?, ?, ?, ?)", rows)
        connection.commit()

    return write


def main(kind: str, port: int, place: str) -> None:
    write = {
        "influx": lambda: into_influx(place, SYNCHRONOUS),
        "batching": lambda: into_influx(place, WriteOptions()),
        "sqlite": lambda: into_sqlite(place),
    }[kind]()
    names: dict[int, str] = {}  # of the metrics of Sparkplug, by alias: unique on an edge node

    def on_message(client: paho.Client, userdata: object, message: paho.MQTTMessage) -> None:
        _, asset, *rest = message.topic.split("/")
        if message.topic.startswith("spBv1.0/"):
            if message.topic.split("/")[2] not in ("DBIRTH", "DDATA"):
                return
            payload = Payload.FromString(message.payload)
            names.update({metric.alias: metric.name for metric in payload.metrics if metric.name})
            values = {names[metric.alias]: metric.double_value for metric in payload.metrics}
            write(message.topic.split("/")[4], payload.timestamp * 1000, values)
        elif rest == ["readings"]:
            body = json.loads(message.payload)
            write(asset, round(body["time"] * 1e6), body["values"])
        else:
            write(asset, time.time_ns() // 1000, {rest[0]: float(message.payload)})

    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="usual", clean_session=False)
    client.on_message = on_message
    client.on_connect = lambda *_: client.subscribe([("plant/+/+", 1), ("spBv1.0/#", 0)])
    client.connect("127.0.0.1", port)
    client.loop_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
