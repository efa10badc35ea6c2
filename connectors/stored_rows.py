"""Rows into the embedded store and out of it: packed, joined with what is there already, read an asset at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from connectors.batches import Batch
from connectors.layouts import Placed, place
from connectors.packing import SPARSE, pack, unpack, unpack_rows
from pm.errors import StoreError

_CHUNK = 20_000
"""Rows packed at a time, so that a long history is not held twice."""

_INSERT = "INSERT INTO readings VALUES (?, ?, ?, ?)"

# group_concat joins the rows inside SQLite: one object for Python instead of one for each of a million readings, and
# other threads run meanwhile. It joins bytes as they are, whatever they hold; its order is not relied on.
_JOINED = """
SELECT CAST(group_concat(cells, '') FILTER (WHERE layout = :width) AS BLOB),
       CAST(group_concat(cells, '') FILTER (WHERE layout = 0) AS BLOB),
       count(*) FILTER (WHERE layout NOT IN (0, :width))
FROM readings WHERE asset_id = :asset AND time > :start AND time <= :end
"""
_JOINED_NARROWER = """
SELECT layout, CAST(group_concat(cells, '') AS BLOB)
FROM readings WHERE asset_id = :asset AND time > :start AND time <= :end AND layout NOT IN (0, :width) GROUP BY layout
"""


def insert(connection: sqlite3.Connection, batch: Batch) -> int:
    """Store one batch; returns how many of its values differ from what was stored before."""
    placed = place(connection, batch)
    conflicts = 0
    for number, points in enumerate(placed.lists):
        rows = _rows_of(batch, placed, number)
        spread, columns = _spread(placed, points)
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            values = batch.values[part]
            if spread is not None:
                values = np.full((len(part), len(points)), np.nan)
                values[:, spread] = batch.values[np.ix_(part, columns)]
            keys = placed.asset_ids[batch.asset_of[part]], batch.times[part]
            conflicts += _insert_alike(connection, keys, values, points)
    return conflicts


def _rows_of(batch: Batch, placed: Placed, number: int) -> NDArray[np.intp]:
    if len(placed.lists) == 1:
        return np.arange(len(batch))
    return np.flatnonzero(placed.list_of[batch.asset_of] == number)


def _spread(placed: Placed, points: NDArray[np.int64]) -> tuple[NDArray[np.intp] | None, NDArray[np.intp]]:
    """To which places which columns of the batch go; None where they lie as they are to lie already."""
    if np.array_equal(points, placed.point_ids):
        return None, np.arange(len(points))
    column_of = {point: column for column, point in enumerate(placed.point_ids.tolist())}
    both = [(where, column_of[point]) for where, point in enumerate(points.tolist()) if point in column_of]
    spread, columns = np.array(both, dtype=np.intp).reshape(-1, 2).T
    return spread, columns


def _insert_alike(
    connection: sqlite3.Connection,
    keys: tuple[NDArray[np.int64], NDArray[np.int64]],
    values: NDArray[np.float64],
    points: NDArray[np.int64],
) -> int:
    """Store rows of assets with the same points. keys: asset ids, times. values: rows x points."""
    assets, times = keys[0].tolist(), keys[1].tolist()
    layouts, cells = pack(keys[1], values)
    before = connection.total_changes
    connection.executemany(f"{_INSERT} ON CONFLICT DO NOTHING", zip(assets, times, layouts, cells, strict=True))
    if connection.total_changes - before == len(times):
        return 0  # the usual case: every row is new
    query = "SELECT layout, cells FROM readings WHERE asset_id = ? AND time = ?"
    there = [connection.execute(query, key).fetchone() for key in zip(assets, times, strict=True)]
    other = [row for row, stored in enumerate(there) if stored != (layouts[row], cells[row])]
    if not other:
        return 0
    stored = unpack_rows([there[row][0] for row in other], [there[row][1] for row in other], len(points))
    return _merge(connection, (keys[0][other], keys[1][other]), values[other], stored, points)


def _merge(
    connection: sqlite3.Connection,
    keys: tuple[NDArray[np.int64], NDArray[np.int64]],
    values: NDArray[np.float64],
    there: NDArray[np.float64],
    points: NDArray[np.int64],
) -> int:
    """Join rows with those that are there already; returns how many values differ.

    The greater value stays and the lesser goes to `conflicts`, so that any order of arrival ends in the same.
    """
    # fmin and fmax pass over NaN: what was not read yields to what was
    greater, lesser = np.fmax(there, values), np.fmin(there, values)
    rows, columns = np.nonzero(lesser < greater)
    connection.executemany(
        "INSERT INTO conflicts VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        zip(
            *(column.tolist() for column in (keys[0][rows], keys[1][rows], points[columns], lesser[rows, columns])),
            strict=True,
        ),
    )
    changed = np.flatnonzero(((greater != there) & ~np.isnan(greater)).any(axis=1))
    layouts, cells = pack(keys[1][changed], greater[changed])
    replaced = zip(keys[0][changed].tolist(), keys[1][changed].tolist(), layouts, cells, strict=True)
    connection.executemany(
        f"{_INSERT} ON CONFLICT DO UPDATE SET layout = excluded.layout, cells = excluded.cells", replaced
    )
    return len(rows)


def read(
    connection: sqlite3.Connection, asset: int, width: int, start_us: int, end_us: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """One asset's rows with start < time <= end by time: times, and values rows x `width`, NaN where not read.

    width: how many points the asset has. Raises StoreError where a row is damaged.
    """
    try:
        parts = [
            unpack(layout, joined, width) for layout, joined in _joined(connection, asset, width, start_us, end_us)
        ]
    except ValueError as error:
        raise StoreError(f"a row of asset number {asset} is damaged ({error}); put a backup in place") from error
    if len(parts) == 1:
        times, values = parts[0]
    else:
        times = np.concatenate([np.empty(0, dtype=np.int64), *(part[0] for part in parts)])
        values = np.concatenate([np.empty((0, width)), *(part[1] for part in parts)])
    if len(times) > 1 and not (times[1:] > times[:-1]).all():
        order = np.argsort(times)
        times, values = times[order], values[order]
    return times, values


def _joined(
    connection: sqlite3.Connection, asset: int, width: int, start_us: int, end_us: int
) -> Iterator[tuple[int, bytes]]:
    """Rows of an asset in a stretch of time, joined by layout."""
    window = {"asset": asset, "width": width, "start": start_us, "end": end_us}
    try:
        whole, cells, narrower = connection.execute(_JOINED, window).fetchone()
        others: Sequence[tuple[int, bytes]] = (
            connection.execute(_JOINED_NARROWER, window).fetchall() if narrower else ()
        )
    except sqlite3.DataError:  # more than SQLite puts into one value (a thousand million bytes)
        middle = _middle(connection, window)
        yield from _joined(connection, asset, width, start_us, middle)
        yield from _joined(connection, asset, width, middle, end_us)
        return
    if whole is not None and width:
        yield width, whole
    if cells is not None:
        yield SPARSE, cells
    yield from others


def _middle(connection: sqlite3.Connection, window: dict[str, int]) -> int:
    query = "SELECT {}(time) FROM readings WHERE asset_id = :asset AND time > :start AND time <= :end"
    (first,) = connection.execute(query.format("min"), window).fetchone()
    (last,) = connection.execute(query.format("max"), window).fetchone()
    return int(first + (last - first) // 2)
