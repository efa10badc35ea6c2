"""The embedded store: readings and events in one SQLite file, or in memory for a replay."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
from numpy.typing import NDArray

from connectors.batches import Batch, checked_events, events_from_frame, from_frame, from_readings
from connectors.database import Database, add_columns
from connectors.frames import Summary, downsampled_frame, events_frame, readings_frame, step_us, timed_frame
from pm.domain import Event, Reading, from_us, to_us
from pm.errors import StoreError

log = logging.getLogger(__name__)

MOST_POINTS = 1998
"""SQLite's 2,000 columns, less asset and time."""
_CHUNK = 20_000
_POINTS_PER_SUMMARY = 400
"""Four columns each; SQLite allows 2,000 in a result."""


class EmbeddedStore:
    """`pm.ports.ReadingStore` on SQLite: one wide row per asset and time, WAL, full sync, many readers at once.

    Where two different values arrive for one asset, point and time, the greater is kept and the other is put into
    `conflicts()`: nothing is lost, and the content does not depend on the order of arrival.
    `path` None keeps everything in memory. Safe to use from several threads; the file from several processes.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._database = Database(path)

    def write(self, readings: Sequence[Reading], events: Sequence[Event] = ()) -> None:
        """Store a batch; durable when it returns, undone when it raises."""
        self._store(from_readings(readings), checked_events(events))

    def write_history(self, readings: pd.DataFrame, events: pd.DataFrame) -> None:
        """Store columnar history in one transaction: all of it or none of it."""
        self._store(from_frame(readings), events_from_frame(events))

    def _store(self, batches: Sequence[Batch], events: Sequence[Event]) -> None:
        if not batches and not events:
            return
        with self._database.writing() as connection:
            conflicts = sum(_insert(connection, batch) for batch in batches)
            _insert_events(connection, events)
        if conflicts:
            log.warning("%s: %d readings differ from what was stored; see conflicts", self._database.name, conflicts)

    def readings(
        self, start: datetime, end: datetime, assets: Sequence[str] | None = None, points: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Readings with start < time <= end as `History.readings` lays out; every known point when none is named.

        Named points come in the order named, all NaN where unknown; rows in which none of them was read are left out.
        """
        with self._database.reading() as connection:
            known = dict(connection.execute("SELECT name, id FROM points ORDER BY id").fetchall())
            wanted = tuple(known) if points is None else tuple(dict.fromkeys(points))
            query = _readings_query([known.get(name) for name in wanted], skip_empty=points is not None)
            names, times, values = [], [], []
            for name, asset_id in _asset_ids(connection, assets):
                cells = connection.execute(query, (asset_id, to_us(start), to_us(end)))
                block = np.fromiter(chain.from_iterable(cells), np.float64).reshape(-1, 1 + len(wanted))
                if len(block):
                    names.append(name)
                    times.append(block[:, 0].astype(np.int64))  # exact: see connectors.batches.check_times
                    values.append(block[:, 1:])
        return readings_frame(names, times, values, wanted)

    def downsampled(
        self,
        start: datetime,
        end: datetime,
        step: timedelta,
        assets: Sequence[str] | None = None,
        points: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Lowest, mean and highest of every stretch of `step`, as `ReadingStore.downsampled` lays out."""
        size = step_us(step)
        rows: list[Summary] = []
        with self._database.reading() as connection:
            known = dict(connection.execute("SELECT name, id FROM points ORDER BY id").fetchall())
            wanted = [name for name in (known if points is None else dict.fromkeys(points)) if name in known]
            for place in range(0, len(wanted), _POINTS_PER_SUMMARY):
                some = wanted[place : place + _POINTS_PER_SUMMARY]
                query = _summary_query([known[name] for name in some])
                for asset, asset_id in _asset_ids(connection, assets):
                    window = {"step": size, "asset": asset_id, "start": to_us(start), "end": to_us(end)}
                    for stop, *cells in connection.execute(query, window):
                        rows += [
                            Summary(asset, name, stop, *cells[4 * n : 4 * n + 4])
                            for n, name in enumerate(some)
                            if cells[4 * n + 3]
                        ]
        return downsampled_frame(rows)

    def events(self, start: datetime, end: datetime, assets: Sequence[str] | None = None) -> pd.DataFrame:
        """Events with start < time <= end as `History.events` lays out."""
        where, named = _among(assets)
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT time, name, kind, code FROM events JOIN assets ON assets.id = asset_id "
                f"WHERE time > ? AND time <= ? AND {where} ORDER BY time, name, kind, code",
                (to_us(start), to_us(end), *named),
            ).fetchall()
        return events_frame(rows)

    def points(self) -> tuple[str, ...]:
        """Names of every point stored, in the order first seen."""
        with self._database.reading() as connection:
            return tuple(name for (name,) in connection.execute("SELECT name FROM points ORDER BY id"))

    def span(self) -> Mapping[str, tuple[datetime, datetime]]:
        """First and last reading time of every asset, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT name, (SELECT min(time) FROM readings WHERE asset_id = id),"
                " (SELECT max(time) FROM readings WHERE asset_id = id) FROM assets ORDER BY name"
            )
            return {name: (from_us(first), from_us(last)) for name, first, last in rows if first is not None}

    def counts(self) -> Mapping[str, int]:
        """`{"readings": rows, "events": rows}`."""
        with self._database.reading() as connection:
            (readings,) = connection.execute("SELECT count(*) FROM readings").fetchone()
            (events,) = connection.execute("SELECT count(*) FROM events").fetchone()
        return {"readings": readings, "events": events}

    def conflicts(self) -> pd.DataFrame:
        """Values that came beside a greater one of their asset, point and time: `time`, `asset`, `point`, `value`."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT time, assets.name, points.name, value FROM conflicts JOIN assets ON assets.id = asset_id "
                "JOIN points ON points.id = point_id ORDER BY time, assets.name, points.name, value"
            ).fetchall()
        return timed_frame(rows, {"asset": "str", "point": "str", "value": "float64"})

    def delete_assets(self, assets: Sequence[str]) -> None:
        """Remove these assets' readings, events and conflicts; unknown names are passed over."""
        with self._database.writing() as connection:
            for _, asset_id in _asset_ids(connection, assets):
                for table in ("readings", "events", "conflicts"):
                    connection.execute(f"DELETE FROM {table} WHERE asset_id = ?", (asset_id,))
                connection.execute("DELETE FROM assets WHERE id = ?", (asset_id,))

    def close(self) -> None:
        """Close every connection. Twice is once."""
        self._database.close()


def _among(assets: Sequence[str] | None) -> tuple[str, tuple[str, ...]]:
    """A condition on `assets.name` and its parameter; names travel as one JSON list, so that any number fits."""
    if assets is None:
        return "1", ()
    return "name IN (SELECT value FROM json_each(?))", (orjson.dumps(list(assets)).decode(),)


def _asset_ids(connection: sqlite3.Connection, assets: Sequence[str] | None) -> list[tuple[str, int]]:
    """(name, id) of these assets, or of all, by name."""
    where, named = _among(assets)
    query = f"SELECT name, id FROM assets WHERE {where} ORDER BY name"
    return connection.execute(query, named).fetchall()


def _readings_query(point_ids: Sequence[int | None], *, skip_empty: bool) -> str:
    columns = [f"p{point_id}" if point_id is not None else "NULL" for point_id in point_ids]
    some_read = f" AND coalesce({', '.join(columns)}, NULL) IS NOT NULL" if skip_empty and columns else ""
    return (
        f"SELECT {', '.join(['time', *columns])} FROM readings "
        f"WHERE asset_id = ? AND time > ? AND time <= ?{some_read} ORDER BY time"
    )


def _summary_query(point_ids: Sequence[int]) -> str:
    cells = [f"min(p{n}), avg(p{n}), max(p{n}), count(p{n})" for n in point_ids]
    # Divisions round towards zero in SQL, so the remainder is made positive first: times before 1970 are negative.
    stop = "time - 1 - ((time - 1) % :step + :step) % :step + :step"
    return (
        f"SELECT {', '.join([f'{stop} AS stop', *cells])} FROM readings "
        "WHERE asset_id = :asset AND time > :start AND time <= :end GROUP BY stop"
    )


def _insert(connection: sqlite3.Connection, batch: Batch) -> int:
    """Store one batch; returns how many of its values differ from what was stored before."""
    asset_ids = np.array([_asset_id(connection, name) for name in batch.assets], dtype=np.int64)[batch.asset_of]
    columns = _point_columns(connection, batch.points)
    before = connection.total_changes
    connection.executemany(
        f"INSERT INTO readings ({', '.join(['asset_id', 'time', *columns])}) "
        f"VALUES ({', '.join('?' * (2 + len(columns)))}) ON CONFLICT DO NOTHING",
        _rows([asset_ids, batch.times], batch.values),
    )
    if connection.total_changes - before == len(batch) or not columns:
        return 0  # the usual case: every row is new
    return _merge(connection, batch, asset_ids, columns)


def _merge(connection: sqlite3.Connection, batch: Batch, asset_ids: NDArray[np.int64], columns: Sequence[str]) -> int:
    """Join a batch with the rows that are there already; returns how many values differ.

    The greater value stays and the lesser goes to `conflicts`, so that any order of arrival ends in the same.
    """
    query = f"SELECT {', '.join(columns)} FROM readings WHERE asset_id = ? AND time = ?"
    keys = zip(asset_ids.tolist(), batch.times.tolist(), strict=True)
    there = np.array([connection.execute(query, key).fetchone() for key in keys], dtype=np.float64)
    # fmin and fmax pass over NaN: what was not read yields to what was
    greater, lesser = np.fmax(there, batch.values), np.fmin(there, batch.values)
    rows, places = np.nonzero(lesser < greater)
    point_ids = np.array([int(column[1:]) for column in columns], dtype=np.int64)
    connection.executemany(
        "INSERT INTO conflicts VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        _rows([asset_ids[rows], batch.times[rows], point_ids[places]], lesser[rows, places, None]),
    )
    changed = np.flatnonzero(((greater != there) & ~np.isnan(greater)).any(axis=1))
    connection.executemany(
        f"INSERT INTO readings ({', '.join(['asset_id', 'time', *columns])}) "
        f"VALUES ({', '.join('?' * (2 + len(columns)))}) "
        f"ON CONFLICT DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in columns)}",
        _rows([asset_ids[changed], batch.times[changed]], greater[changed]),
    )
    return len(rows)


def _rows(keys: Sequence[NDArray[np.int64]], values: NDArray[np.float64]) -> Iterable[tuple[int | float, ...]]:
    """Rows for executemany, made piece by piece, so that a long history is not held twice. SQLite binds NaN as NULL."""
    for start in range(0, len(values), _CHUNK):
        part = slice(start, start + _CHUNK)
        numbers = [column.tolist() for column in values[part].T]
        yield from zip(*(key[part].tolist() for key in keys), *numbers, strict=True)


def _insert_events(connection: sqlite3.Connection, events: Sequence[Event]) -> None:
    ids = {name: _asset_id(connection, name) for name in dict.fromkeys(event.asset for event in events)}
    connection.executemany(
        "INSERT INTO events VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(event.time_us, ids[event.asset], event.kind.value, event.code) for event in events],
    )


def _asset_id(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT id FROM assets WHERE name = ?", (name,)).fetchone()
    if row is None:
        row = connection.execute("INSERT INTO assets (name) VALUES (?) RETURNING id", (name,)).fetchone()
    return int(row[0])


def _point_columns(connection: sqlite3.Connection, points: Sequence[str]) -> list[str]:
    """The column of each point; new points get theirs, undone with the transaction like everything else."""
    known = dict(connection.execute("SELECT name, id FROM points").fetchall())
    new = [name for name in points if name not in known]
    if len(known) + len(new) > MOST_POINTS:
        raise StoreError(
            f"{len(new)} new points beside the {len(known)} stored are too many: the embedded store holds "
            f"{MOST_POINTS} ({new[0]!r} is new); name fewer, or use InfluxDB"
        )
    for name in new:
        (known[name],) = connection.execute("INSERT INTO points (name) VALUES (?) RETURNING id", (name,)).fetchone()
    if new:
        add_columns(connection, [f"p{known[name]}" for name in new])
        log.info("%d new points: %s", len(new), ", ".join(new) if len(new) <= 10 else f"{new[0]} to {new[-1]}")
    return [f"p{known[name]}" for name in points]
