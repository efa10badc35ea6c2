"""The embedded store: readings and events in one SQLite file, or in memory for a replay."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
import orjson
import pandas as pd
from numpy.typing import NDArray

from connectors import retention
from connectors.batches import Batch, checked_events, events_from_frame, from_frame, from_readings
from connectors.database import Database
from connectors.frames import Block, blocks_frame, downsampled_frame, events_frame, step_us, timed_frame
from connectors.layouts import ids_of, places, points_of
from connectors.stored_rows import insert, read
from pm.domain import Event, Reading, from_us, to_us

log = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_LOOK = 2.0
"""Seconds for which a read holds on to one state of the store."""
_UNKNOWN = -1
"""The id of a point that was never stored."""


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
            conflicts = sum(insert(connection, batch) for batch in batches)
            _insert_events(connection, events)
        if conflicts:
            log.warning("%s: %d readings differ from what was stored; see conflicts", self._database.name, conflicts)

    def readings(
        self, start: datetime, end: datetime, assets: Sequence[str] | None = None, points: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Readings with start < time <= end as `History.readings` lays out; every known point when none is named.

        Named points come in the order named, all NaN where unknown; rows in which none of them was read are left out.
        A long read sees each asset's rows as of one moment, and the next asset's perhaps some seconds later.
        """
        wanted, blocks = self._of_each(start, end, assets, points, lambda block: block)
        return blocks_frame(blocks, wanted)

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
        _, sums = self._of_each(start, end, assets, points, lambda block: block.summed_up(size))
        return downsampled_frame([row for rows in sums for row in rows])

    def _of_each(
        self,
        start: datetime,
        end: datetime,
        assets: Sequence[str] | None,
        points: Sequence[str] | None,
        then: Callable[[Block], T],
    ) -> tuple[tuple[str, ...], list[T]]:
        """The points asked for, and what `then` makes of each asset's readings of them, by the assets' names.

        No state of the store is held for long: the log of what is written meanwhile would grow without bound.
        """
        wanted = None if points is None else tuple(dict.fromkeys(points))
        window = to_us(start), to_us(end)
        found: list[T] = []
        done = ""
        while True:
            with self._database.reading() as connection:
                until = time.monotonic() + _LONGEST_LOOK
                known = dict(connection.execute("SELECT name, id FROM points ORDER BY id").fetchall())
                wanted = tuple(known) if wanted is None else wanted
                ids = np.array([known.get(name, _UNKNOWN) for name in wanted], dtype=np.int64)
                where: dict[bytes, NDArray[np.intp]] = {}
                for name, asset_id, packed in _assets(connection, assets, after=done):
                    if packed not in where:
                        where[packed] = places(points_of(packed), ids)
                    times, values = read(connection, asset_id, len(packed) // 4, *window)
                    block = Block(name, wanted, times, values, where[packed])
                    if points is not None:
                        block = block.without_empty_rows()
                    if len(block.times):
                        found.append(then(block))
                    done = name
                    if time.monotonic() > until:
                        break
                else:
                    return wanted, found

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
            for _, asset_id, _ in _assets(connection, assets):
                for table in ("readings", "events", "conflicts"):
                    connection.execute(f"DELETE FROM {table} WHERE asset_id = ?", (asset_id,))
                connection.execute("DELETE FROM assets WHERE id = ?", (asset_id,))

    def delete_before(self, time: datetime) -> int:
        """Remove readings dated before `time`, a little at a time beside whatever else is written, and give the room
        back; returns how many rows. Events stay: an asset's age follows from them."""
        deleted = retention.delete_before(self._database, to_us(time))
        given = retention.give_back(self._database)
        log.info("%s: %d rows before %s deleted, %d pages given back", self._database.name, deleted, time, given)
        return deleted

    def close(self) -> None:
        """Close every connection. Twice is once."""
        self._database.close()


def _among(assets: Sequence[str] | None) -> tuple[str, tuple[str, ...]]:
    """A condition on `assets.name` and its parameter; names travel as one JSON list, so that any number fits."""
    if assets is None:
        return "1", ()
    return "name IN (SELECT value FROM json_each(?))", (orjson.dumps(list(assets)).decode(),)


def _assets(
    connection: sqlite3.Connection, assets: Sequence[str] | None, *, after: str | None = None
) -> list[tuple[str, int, bytes]]:
    """(name, id, packed list of points) of these assets, or of all, by name."""
    where, named = _among(assets)
    query = f"SELECT name, id, points FROM assets WHERE {where} AND name > ? ORDER BY name"
    return connection.execute(query, (*named, after or "")).fetchall()


def _insert_events(connection: sqlite3.Connection, events: Sequence[Event]) -> None:
    names = list(dict.fromkeys(event.asset for event in events))
    ids = dict(zip(names, ids_of(connection, "assets", names), strict=True)) if names else {}
    connection.executemany(
        "INSERT INTO events VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        [(event.time_us, ids[event.asset], event.kind.value, event.code) for event in events],
    )
