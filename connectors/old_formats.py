"""Stores that an earlier pm wrote, brought to the present format in one transaction when they are opened.

Format 1 had a column `p<id>` for every point in every row: 2,000 points at most, and each row paid for the points of
all other assets.
"""

from __future__ import annotations

import logging
import sqlite3

import numpy as np

from connectors.layouts import packed_points
from connectors.packing import pack

log = logging.getLogger(__name__)

_CHUNK = 20_000
_COUNTED = 1000
"""Columns counted in one query; SQLite allows 2,000 in a result."""


def from_format_1(connection: sqlite3.Connection, readings: str) -> None:
    """Rewrite the readings of format 1 within the transaction at hand. readings: the new table's definition."""
    connection.execute("ALTER TABLE assets ADD COLUMN points BLOB NOT NULL DEFAULT x''")
    connection.execute("ALTER TABLE readings RENAME TO readings_1")
    connection.execute(readings)
    points = [point for (point,) in connection.execute("SELECT id FROM points ORDER BY id")]
    for (asset,) in connection.execute("SELECT id FROM assets ORDER BY id").fetchall():
        own = _points_read(connection, asset, points)
        connection.execute("UPDATE assets SET points = ? WHERE id = ?", (packed_points(own), asset))
        _copy(connection, asset, own)
    connection.execute("DROP TABLE readings_1")


def _points_read(connection: sqlite3.Connection, asset: int, points: list[int]) -> list[int]:
    own: list[int] = []
    for start in range(0, len(points), _COUNTED):
        part = points[start : start + _COUNTED]
        counts = ", ".join(f"count(p{point})" for point in part)
        query = f"SELECT {counts} FROM readings_1 WHERE asset_id = ?"
        found = connection.execute(query, (asset,)).fetchone()
        own += [point for point, count in zip(part, found, strict=True) if count]
    return own


def _copy(connection: sqlite3.Connection, asset: int, points: list[int]) -> None:
    columns = ", ".join(["time", *(f"p{point}" for point in points)])
    rows = connection.execute(f"SELECT {columns} FROM readings_1 WHERE asset_id = ? ORDER BY time", (asset,))
    while part := rows.fetchmany(_CHUNK):
        times = np.array([row[0] for row in part], dtype=np.int64)
        values = np.array([row[1:] for row in part], dtype=np.float64).reshape(len(part), len(points))
        layouts, cells = pack(times, values)
        packed = zip([asset] * len(part), times.tolist(), layouts, cells, strict=True)
        connection.executemany("INSERT INTO readings VALUES (?, ?, ?, ?)", packed)
