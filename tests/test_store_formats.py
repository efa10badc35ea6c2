"""Stores of earlier formats are opened, rewritten whole or not at all, and read the same."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from connectors import database, old_formats
from connectors.database import SCHEMA_VERSION
from connectors.embedded import EmbeddedStore
from pm.domain import to_us
from pm.errors import StoreUnavailable
from tests.store_contract import at, content, event, event_rows, everything, reading
from tests.test_embedded_store import child

FORMAT_1 = """
PRAGMA page_size = 8192;
PRAGMA journal_mode = WAL;
CREATE TABLE assets (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE points (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE readings (asset_id INTEGER NOT NULL, time INTEGER NOT NULL, p1 REAL, p2 REAL, p4 REAL,
    PRIMARY KEY (asset_id, time)) WITHOUT ROWID;
CREATE TABLE conflicts (
    asset_id INTEGER NOT NULL, time INTEGER NOT NULL, point_id INTEGER NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (asset_id, time, point_id, value)
) WITHOUT ROWID, STRICT;
CREATE TABLE events (
    time INTEGER NOT NULL, asset_id INTEGER NOT NULL, kind TEXT NOT NULL, code TEXT NOT NULL,
    PRIMARY KEY (time, asset_id, kind, code)
) WITHOUT ROWID, STRICT;
CREATE INDEX events_by_asset ON events (asset_id, time);
PRAGMA application_id = 1886220900;
PRAGMA user_version = 1;
INSERT INTO points VALUES (1, 'x'), (2, 'y'), (4, 'z');
INSERT INTO assets VALUES (1, 'pump'), (2, 'fan'), (7, 'still'), (8, 'told of');
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store of format 1: a pump with x and y, a fan with z, an asset that read nothing, one with an event alone."""
    path = tmp_path / "readings.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(FORMAT_1)
    rows = [(1, to_us(at(hour)), hour / 7, None if hour % 3 else -hour / 3, None) for hour in range(50_000)]
    rows += [(2, to_us(at(hour)), None, None, float(hour)) for hour in range(10)] + [
        (7, to_us(at(1)), None, None, None)
    ]
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO readings VALUES (?, ?, ?, ?, ?)", rows)
    connection.execute("INSERT INTO conflicts VALUES (2, ?, 4, -1.0)", (to_us(at(1)),))
    connection.execute("INSERT INTO events VALUES (?, 8, 'error', 'e1')", (to_us(at(2)),))
    connection.execute("COMMIT")
    connection.close()
    return path


def check(store: EmbeddedStore) -> None:
    readings, events = everything(store)
    assert store.points() == ("x", "y", "z")
    assert store.counts() == {"readings": 50_011, "events": 1}
    pump = readings[readings["asset"] == "pump"]
    hours = np.arange(50_000)
    assert np.array_equal(pump["x"].to_numpy(), hours / 7)
    assert np.array_equal(pump["y"].to_numpy(), np.where(hours % 3, np.nan, -hours / 3), equal_nan=True)
    others = content(readings[readings["asset"] != "pump"])
    assert others == {("fan", at(hour)): {"z": float(hour)} for hour in range(10)} | {("still", at(1)): {}}
    assert event_rows(events) == [("told of", "error", "e1")]
    assert store.conflicts().to_dict("records") == [{"time": at(1), "asset": "fan", "point": "z", "value": -1.0}]


def test_a_store_of_format_1_is_rewritten_once_and_reads_the_same(old: Path) -> None:
    store = EmbeddedStore(old)
    check(store)
    store.write([reading("pump", 0, z=9.0), reading("new", 1, w=1.0)], [event("fan", 1, "error", "e2")])
    store.close()
    again = EmbeddedStore(old)
    assert again.counts() == {"readings": 50_012, "events": 2}
    assert content(again.readings(at(-1), at(0), ["pump"])) == {("pump", at(0)): {"x": 0.0, "y": -0.0, "z": 9.0}}
    again.close()
    connection = sqlite3.connect(old)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    connection.close()


def test_a_rewriting_that_fails_leaves_the_old_store_whole(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = old.read_bytes()
    with monkeypatch.context() as patched:

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        patched.setattr(old_formats, "_copy", full)
        with pytest.raises(Exception, match="disk is full"):
            EmbeddedStore(old)
    assert old.read_bytes() == before
    store = EmbeddedStore(old)
    check(store)
    store.close()


def test_a_rewriting_that_is_killed_is_made_up(old: Path) -> None:
    code = "import sys; from pathlib import Path; from connectors import old_formats as o\ncopy = o._copy\n"
    code += "def slow(c, a, p):\n    copy(c, a, p)\n    print(a, flush=True)\n    sys.stdin.readline()\n"
    code += "o._copy = slow\nfrom connectors.embedded import EmbeddedStore; EmbeddedStore(Path(sys.argv[1]))"
    with child(code, str(old)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        process.kill()
    store = EmbeddedStore(old)
    check(store)
    store.close()


def test_a_process_that_waits_for_a_rewriting_is_told_to_come_again(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.1)
    holder = sqlite3.connect(old, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="busy"):
        EmbeddedStore(old)
    holder.execute("ROLLBACK")
    holder.close()
    EmbeddedStore(old).close()
