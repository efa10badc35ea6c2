"""Rows of readings as the embedded store keeps them: packed, so that a column of a thousand rows is read in one piece.

A row is one asset's readings at one time. Its *layout* says how its cells are packed, in little-endian 8-byte words:

- n > 0: the time, then the values of the asset's first n points (NaN where not read);
- 0: for each point that was read its time, the point's place among the asset's points and its value; a row in which
  nothing was read has one such cell, at place -1. Taken where it is shorter, so that a point that reports alone
  costs nothing for the hundreds beside it.

Every packed row names its time, so that rows can be joined in the database and taken apart here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SPARSE = 0
"""The layout of rows that hold few of their asset's points."""
_CELL = np.dtype([("time", "<i8"), ("place", "<i8"), ("value", "<f8")])
_NOTHING = -1


def pack(times: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[list[int], list[bytes]]:
    """Layout and packed cells of each row.

    times: microseconds since the epoch. values: rows x the asset's points, NaN where not read.
    """
    rows, width = values.shape
    reads = np.count_nonzero(~np.isnan(values), axis=1)
    dense = _CELL.itemsize * np.maximum(reads, 1) >= 8 * (1 + width) if width else np.zeros(rows, dtype=bool)
    if dense.all():
        return [width] * rows, _packed_dense(times, values)
    cells = np.empty(rows, dtype=object)
    cells[dense] = _packed_dense(times[dense], values[dense])
    cells[~dense] = _packed_sparse(times[~dense], values[~dense])
    return np.where(dense, width, SPARSE).tolist(), cells.tolist()


def _packed_dense(times: NDArray[np.int64], values: NDArray[np.float64]) -> list[bytes]:
    whole = np.empty((len(times), 1 + values.shape[1]), dtype="<f8")
    whole.view("<i8")[:, 0] = times
    whole[:, 1:] = values
    size = 8 * whole.shape[1]
    packed = whole.tobytes()
    return [packed[start : start + size] for start in range(0, len(packed), size)]


def _packed_sparse(times: NDArray[np.int64], values: NDArray[np.float64]) -> list[bytes]:
    row, place = np.nonzero(~np.isnan(values))
    counts = np.bincount(row, minlength=len(times))
    empty = np.flatnonzero(counts == 0)
    order = np.argsort(np.concatenate((row, empty)), kind="stable")
    cells = np.empty(len(order), dtype=_CELL)
    cells["time"] = times[np.concatenate((row, empty))[order]]
    cells["place"] = np.concatenate((place, np.full(len(empty), _NOTHING)))[order]
    cells["value"] = np.concatenate((values[row, place], np.full(len(empty), np.nan)))[order]
    stops = _CELL.itemsize * np.cumsum(np.maximum(counts, 1))
    packed = cells.tobytes()
    return [packed[start:stop] for start, stop in zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True)]


def unpack(layout: int, joined: bytes, width: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Times, and values rows x `width`, of rows of one asset and one layout, joined in any order.

    width: how many points the asset has. Raises ValueError where the bytes are not such rows.
    """
    if layout == SPARSE:
        return _unpacked_sparse(joined, width)
    if layout > width or len(joined) % (8 * (1 + layout)):
        raise ValueError(f"{len(joined)} bytes are no rows of {layout} of {width} points")
    whole = np.frombuffer(joined, dtype="<f8").reshape(-1, 1 + layout)
    values = whole[:, 1:]
    if layout < width:
        values = np.full((len(whole), width), np.nan)
        values[:, :layout] = whole[:, 1:]
    return whole.view("<i8")[:, 0], values


def _unpacked_sparse(joined: bytes, width: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    cells = np.frombuffer(joined, dtype=_CELL)  # raises ValueError for a part of a cell
    place = cells["place"]
    if len(cells) and not -1 <= int(place.min()) <= int(place.max()) < width:
        raise ValueError(f"cells of places {place.min()} to {place.max()} are none of {width} points")
    times, row = np.unique(cells["time"], return_inverse=True)
    values = np.full((len(times), width), np.nan)
    some = place != _NOTHING
    values[row[some], place[some]] = cells["value"][some]
    return times, values


def unpack_rows(layouts: Sequence[int], cells: Sequence[bytes], width: int) -> NDArray[np.float64]:
    """Values of rows that came one by one, rows x `width`; they may be of several assets with the same points."""
    values = np.full((len(cells), width), np.nan)
    layout_of = np.array(layouts, dtype=np.int64)
    for layout in np.unique(layout_of).tolist():
        rows = np.flatnonzero(layout_of == layout).tolist()
        joined = b"".join([cells[row] for row in rows])
        if layout != SPARSE:
            values[rows] = unpack(layout, joined, width)[1]
            continue
        found = np.frombuffer(joined, dtype=_CELL)
        row = np.repeat(rows, [len(cells[row]) // _CELL.itemsize for row in rows])
        some = found["place"] != _NOTHING
        values[row[some], found["place"][some]] = found["value"][some]
    return values
