"""Which points an asset has in the embedded store, and in which order its rows hold them.

Each asset lists its own points, so that an asset of one kind pays nothing for the points of another. The list only
grows at its end: rows that were packed before a point came stay as they are. Assets with the same list are packed and
unpacked together, so a new asset takes the list of others like it where it can.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from connectors.batches import Batch
from pm.errors import StoreError

log = logging.getLogger(__name__)

_ROOMY = 2
"""A new asset takes another's list when that has at most so many times the points it needs."""
MOST_POINTS = 50_000
"""Points of a store; a guard against a source that makes up names without end."""
_LISTED = 10
"""New names that the log lists one by one."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the rows of a batch go.

    asset_ids: one per asset of the batch. point_ids: one per point of the batch.
    lists: the distinct lists of points (their ids) among the assets. list_of: index into `lists`, one per asset.
    """

    asset_ids: NDArray[np.int64]
    point_ids: NDArray[np.int64]
    lists: tuple[NDArray[np.int64], ...]
    list_of: NDArray[np.intp]


def points_of(packed: bytes) -> NDArray[np.int64]:
    """The ids of an asset's points, in the order its rows hold them."""
    return np.frombuffer(packed, dtype="<u4").astype(np.int64)


def packed_points(point_ids: Sequence[int] | NDArray[np.int64]) -> bytes:
    return np.asarray(point_ids, dtype="<u4").tobytes()


def places(points: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.intp]:
    """The place of each wanted point among an asset's points, -1 where it has none."""
    if not len(points):
        return np.full(len(wanted), -1, dtype=np.intp)
    order = np.argsort(points)
    found = order[np.minimum(np.searchsorted(points, wanted, sorter=order), len(points) - 1)]
    return np.where(points[found] == wanted, found, -1)


def place(connection: sqlite3.Connection, batch: Batch) -> Placed:
    """Find where a batch's rows go; make new assets and points known, and let assets' lists grow, where needed."""
    point_ids = np.array(ids_of(connection, "points", batch.points), dtype=np.int64)
    _refuse_too_many(connection, batch.points)
    has = _has(batch)
    query = "SELECT name, id, points FROM assets WHERE name IN (SELECT value FROM json_each(?))"
    known = {name: (asset, packed) for name, asset, packed in connection.execute(query, (_json(batch.assets),))}
    packed = [known[name][1] if name in known else None for name in batch.assets]
    _grow(packed, has, point_ids, connection)
    for number, (name, now) in enumerate(zip(batch.assets, packed, strict=True)):
        if name not in known:
            insert = "INSERT INTO assets (name, points) VALUES (?, ?) RETURNING id"
            known[name] = (connection.execute(insert, (name, now)).fetchone()[0], now)
        elif known[name][1] != now:
            connection.execute("UPDATE assets SET points = ? WHERE id = ?", (packed[number], known[name][0]))
    distinct: dict[bytes | None, int] = {}
    list_of = np.array([distinct.setdefault(one, len(distinct)) for one in packed], dtype=np.intp)
    return Placed(
        asset_ids=np.array([known[name][0] for name in batch.assets], dtype=np.int64),
        point_ids=point_ids,
        lists=tuple(points_of(one or b"") for one in distinct),
        list_of=list_of,
    )


def ids_of(connection: sqlite3.Connection, table: str, names: Sequence[str]) -> list[int]:
    """The ids of `points` or `assets` by name; new names are added, in the order given."""
    query = f"SELECT name, id FROM {table} WHERE name IN (SELECT value FROM json_each(?))"
    known = dict(connection.execute(query, (_json(names),)).fetchall())
    new = [name for name in dict.fromkeys(names) if name not in known]
    for name in new:
        (known[name],) = connection.execute(f"INSERT INTO {table} (name) VALUES (?) RETURNING id", (name,)).fetchone()
    if new:
        listed = ", ".join(new) if len(new) <= _LISTED else f"{new[0]} to {new[-1]}"
        log.info("%d new %s: %s", len(new), table, listed)
    return [known[name] for name in names]


def _refuse_too_many(connection: sqlite3.Connection, points: Sequence[str]) -> None:
    (stored,) = connection.execute("SELECT count(*) FROM points").fetchone()
    if stored > MOST_POINTS:
        raise StoreError(
            f"{stored} points are too many: the embedded store holds {MOST_POINTS} "
            f"({points[-1]!r} is among the latest); name fewer, or look whether a source makes up names"
        )


def _json(names: Sequence[str]) -> str:
    """Names travel as one JSON list, so that any number of them fits into a statement."""
    return orjson.dumps(list(names)).decode()


def _has(batch: Batch) -> NDArray[np.bool_]:
    """Which points each asset of a batch reads in it, assets x points."""
    shape = len(batch.assets), len(batch.points)
    has = np.zeros(shape, dtype=bool)
    for number in range(shape[1]):
        has[batch.asset_of[~np.isnan(batch.values[:, number])], number] = True
    return has


def _grow(
    packed: list[bytes | None], has: NDArray[np.bool_], point_ids: NDArray[np.int64], connection: sqlite3.Connection
) -> None:
    """Give every asset of `packed` a list that holds the points it has, in place; None is an asset without one."""
    numbers: dict[bytes | None, list[int]] = {}
    for number, one in enumerate(packed):
        numbers.setdefault(one, []).append(number)
    lacking: list[int] = []
    for one, alike in numbers.items():
        missing = places(points_of(one or b""), point_ids) < 0
        lacks = has[alike][:, missing].any(axis=1) if one is not None else np.ones(len(alike), dtype=bool)
        lacking += np.array(alike)[lacks].tolist()
    if not lacking:
        return
    stored = [one for (one,) in connection.execute("SELECT DISTINCT points FROM assets")]
    lists = {one: frozenset(points_of(one).tolist()) for one in stored}
    found: dict[tuple[bytes, bytes], bytes] = {}
    for number in lacking:
        begun = packed[number] or b""
        needed = point_ids[has[number]]
        key = begun, needed.tobytes()
        if key not in found:
            found[key] = _list_for(begun, needed, lists)
            lists.setdefault(found[key], frozenset(points_of(found[key]).tolist()))
        packed[number] = found[key]


def _list_for(begun: bytes, needed: NDArray[np.int64], lists: dict[bytes, frozenset[int]]) -> bytes:
    """The shortest known list that goes on from `begun`, holds what is needed and not much more; else a new one."""
    all_needed = {*needed.tolist(), *points_of(begun).tolist()}
    fitting = [
        one
        for one, points in lists.items()
        if one.startswith(begun) and len(points) <= _ROOMY * len(all_needed) and points >= all_needed
    ]
    if fitting:
        return min(fitting, key=lambda one: (len(one), one))
    new = np.sort(needed[places(points_of(begun), needed) < 0])
    return begun + packed_points(new)
