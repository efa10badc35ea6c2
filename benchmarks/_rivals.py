"""The programs that benchmarks.rivals runs beside each other, how each is configured, and where what it stores lies."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from tests.servers.influxdb import InfluxServer

MQTT2INFLUXDB: Final = "mqtt2influxdb==2.0.6"
NODE_RED: Final = ("node-red@4.1.15", "node-red-contrib-influxdb@0.7.0")
KEPT: Final = Path(sys.prefix) / "rivals"
"""Where the rivals are installed, once."""


class NotHere(Exception):
    """A rival that cannot be measured here, and why."""


@dataclass(frozen=True)
class Place:
    """Where one run keeps things."""

    folder: Path
    port: int
    """Of the broker."""
    influx: InfluxServer
    load: str
    """scalars, objects or sparkplug."""


@dataclass(frozen=True)
class Rival:
    """A program that takes readings from a broker into a store."""

    name: str
    command: Callable[[Place], Sequence[str]]
    """Writes what configuration it needs and gives the command."""
    store: str
    """embedded, table or influx."""
    messages: dict[str, int] = field(default_factory=dict)
    """About ten seconds' worth of each load that it can read."""


def numbers(rival: Rival, place: Place) -> np.ndarray:
    """What point0 (or, of scalars, whatever point) holds, of every row stored."""
    if rival.store == "influx":
        answer = place.influx.query('SELECT * FROM "pm".."readings"')
        found = json.loads(answer)["results"][0].get("series")
        frame = pd.DataFrame(found[0]["values"], columns=found[0]["columns"]) if found else pd.DataFrame()
        points = [column for column in frame if column.startswith(("point", "value", "sensors")) and column != "point"]
    elif rival.store == "embedded":
        from connectors.embedded import EmbeddedStore
        from pm.domain import EARLIEST, LATEST

        with closing(EmbeddedStore(place.folder / "readings.db")) as store:
            frame = store.readings(EARLIEST, LATEST)
        points = [column for column in frame if column not in ("time", "asset")]
    else:
        with closing(sqlite3.connect(place.folder / "table.db")) as connection:
            frame = pd.read_sql("SELECT * FROM readings", connection)
        if place.load != "scalars":
            frame = frame[frame["point"].str.endswith("point0")]
        points = ["value"]
    if place.load != "scalars":
        points = [point for point in points if point.endswith("point0") or point == "value"]
    values = frame[points].to_numpy(dtype=float, na_value=np.nan) if len(frame) else np.empty(0)
    return values[~np.isnan(values)]


def stored(rival: Rival, place: Place) -> int:
    """Rows (messages) that are in the store now."""
    if rival.store == "influx":
        point = "*" if place.load == "scalars" or place.load == "sparkplug" else '"point0"'
        found = json.loads(place.influx.query(f'SELECT count({point}) FROM "pm".."readings"'))["results"][0]
        if "series" not in found:
            return 0
        counts = found["series"][0]["values"][0][1:]
        counts = [count or 0 for count in counts]  # null where nothing of a point is there yet
        return sum(counts) if place.load == "scalars" else max(counts)
    file, query = {
        "embedded": ("readings.db", "SELECT count(*) FROM readings"),
        "table": ("table.db", "SELECT count(*) FROM readings"),
    }[rival.store]
    if not (place.folder / file).exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{place.folder / file}?mode=ro", uri=True)) as connection:
            (count,) = connection.execute(query).fetchone()
    except sqlite3.OperationalError:  # not made yet
        return 0
    each = 1 if rival.store == "embedded" else {"scalars": 1, "objects": 10, "sparkplug": 50}[place.load]
    return int(count) // each


def pm(transport: str, store: str = "embedded") -> Callable[[Place], Sequence[str]]:
    def command(place: Place) -> Sequence[str]:
        lines = [
            '[mqtt]\nhost = "127.0.0.1"',
            f'port = {place.port}\ntransport = "{transport}"\npublish = false',
            f"[sparkplug]\nenabled = {str(place.load == 'sparkplug').lower()}",
            f'[store]\nkind = "{store}"\npath = "{place.folder}/readings.db"\nurl = "{place.influx.url}"',
            f'[records]\nurl = "sqlite:///{place.folder}/records.db"\n[models]\ndir = "{place.folder}/models"',
            '[ingest]\nmax_future = "3650d"',
        ]
        config = place.folder / "pm.toml"
        config.write_text("\n".join(lines) + "\n")
        return [sys.executable, "-m", "pm.cli", "run", "--only", "ingest", "--config", str(config)]

    return command


def usual(kind: str) -> Callable[[Place], Sequence[str]]:
    def command(place: Place) -> Sequence[str]:
        where = str(place.folder / "table.db") if kind == "sqlite" else place.influx.url
        return [sys.executable, "-m", "benchmarks._bridges", kind, str(place.port), where]

    return command


def mqtt2influxdb(place: Place) -> Sequence[str]:
    program = KEPT / "mqtt2influxdb" / "bin" / "mqtt2influxdb"
    if not program.exists():
        venv.create(KEPT / "mqtt2influxdb", with_pip=True)
        _installed([str(program.with_name("pip")), "--disable-pip-version-check", "install", "-q", MQTT2INFLUXDB])
    fields = {f"point{k}": f"$.payload.values.point{k}" for k in range(10)}
    if place.load == "scalars":
        fields = {"value": "$.payload"}
    tags = {"asset": "$.topic[1]"} | ({"point": "$.topic[2]"} if place.load == "scalars" else {})
    topic = "plant/+/+" if place.load == "scalars" else "plant/+/readings"
    config = {  # JSON is YAML
        "mqtt": {"host": "127.0.0.1", "port": place.port},
        "influxdb": {
            "host": place.influx.url.rpartition(":")[0],
            "port": int(place.influx.url.rpartition(":")[2]),
            "token": "none",
            "org": "none",
            "bucket": "pm",
        },
        "points": [{"measurement": "readings", "topic": topic, "qos": 1, "fields": fields, "tags": tags}],
    }
    path = place.folder / "mqtt2influxdb.yml"
    path.write_text(json.dumps(config))
    return [str(program), "-c", str(path)]


def node_red(place: Place) -> Sequence[str]:
    npm, folder = shutil.which("npm"), KEPT / "node-red"
    program = folder / "node_modules" / ".bin" / "node-red"
    if not program.exists():
        if npm is None:
            raise NotHere("npm is not installed (Debian: nodejs, npm)")
        folder.mkdir(parents=True, exist_ok=True)
        _installed([npm, "install", "--no-audit", "--no-fund", "--no-save", "--prefix", str(folder), *NODE_RED])
    scalar = "const v = {[t[2]]: Number(m.payload)};"
    many = "const b = JSON.parse(m.payload); const v = {...b.values, time: new Date(b.time * 1000)};"
    code = (
        "const m = msg; const t = m.topic.split('/');"
        f"{scalar if place.load == 'scalars' else many} msg.payload = [v, {{asset: t[1]}}]; return msg;"
    )
    # To InfluxDB itself: it opens more connections at once than the proxy of the tests has room for.
    flow = [
        {"id": "tab", "type": "tab", "label": "plant"},
        {"id": "broker", "type": "mqtt-broker", "broker": "127.0.0.1", "port": str(place.port), "clientid": "node-red",
         "protocolVersion": "4", "keepalive": "60", "cleansession": False, "autoConnect": True},
        {"id": "db", "type": "influxdb", "hostname": "127.0.0.1", "port": str(place.influx.http_port),
         "protocol": "http", "database": "pm", "usetls": False, "influxdbVersion": "1.x"},
        {"id": "in", "type": "mqtt in", "z": "tab", "topic": "plant/+/+", "qos": "1", "datatype": "utf8",
         "broker": "broker", "inputs": 0, "wires": [["make"]]},
        {"id": "make", "type": "function", "z": "tab", "func": code, "outputs": 1, "wires": [["out"]]},
        {"id": "out", "type": "influxdb out", "z": "tab", "influxdb": "db", "measurement": "readings", "wires": []},
    ]  # fmt: skip
    home = place.folder / "node-red"
    home.mkdir(exist_ok=True)
    (home / "package.json").write_text('{"name": "bench", "private": true}')
    if not (home / "node_modules").exists():
        (home / "node_modules").symlink_to(folder / "node_modules")
    (home / "flows.json").write_text(json.dumps(flow))
    (home / "settings.js").write_text(
        "module.exports = {flowFile: 'flows.json', httpAdminRoot: false, httpNodeRoot: false, uiHost: '127.0.0.1',"
        " uiPort: 0, credentialSecret: false, logging: {console: {level: 'warn', metrics: false, audit: false}}};"
    )
    return [str(program), "--userDir", str(home)]


def _installed(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"not installed: {(done.stderr or done.stdout).strip().splitlines()[-1][:80]}")


RIVALS: Final = (
    Rival("pm", pm("bulk"), "embedded", {"scalars": 200_000, "objects": 150_000, "sparkplug": 60_000}),
    Rival("pm, stock paho", pm("paho"), "embedded", {"scalars": 100_000, "objects": 80_000, "sparkplug": 40_000}),
    Rival("pm", pm("bulk", "influxdb"), "influx", {"scalars": 100_000, "objects": 80_000}),
    Rival("usual bridge", usual("influx"), "influx", {"scalars": 3000, "objects": 3000, "sparkplug": 2000}),
    Rival("usual, batching", usual("batching"), "influx", {"scalars": 30_000, "objects": 15_000, "sparkplug": 3000}),
    Rival("usual, SQLite", usual("sqlite"), "table", {"scalars": 10_000, "objects": 10_000, "sparkplug": 8000}),
    Rival("mqtt2influxdb", mqtt2influxdb, "influx", {"scalars": 1000, "objects": 300}),
    Rival("Node-RED", node_red, "influx", {"scalars": 5000, "objects": 5000}),
)
