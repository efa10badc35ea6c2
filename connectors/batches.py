"""Rows on their way into a store, checked and columnar. Both stores take the same and refuse the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pm.domain import Event, EventKind, Reading, from_us
from pm.errors import StoreError

EMPTY_MARKER = "_empty"
"""Field that InfluxDB needs to hold a row without any value; no point may have its name."""

_RESERVED = {"time", "asset", EMPTY_MARKER}
_LONGEST_NAME = 255
_ESCAPING = re.compile(r'\\([,= "\\]|$)')
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories: control characters, half surrogates, line and paragraph separators."""
_EXACT_US = 2**53
"""Microseconds up to which a float holds every whole number: 1684 to 2255, inside what InfluxDB can tell."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of readings, one per asset and time.

    asset_of: index into `assets`, one per row. times: microseconds since the epoch.
    values: rows x points, float64; NaN where nothing was read, never infinite, never -0.0.
    """

    assets: tuple[str, ...]
    asset_of: NDArray[np.intp]
    times: NDArray[np.int64]
    points: tuple[str, ...]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.times)

    def rows(self, chosen: NDArray[np.intp] | slice) -> Batch:
        """Some of the rows, in the order given."""
        return Batch(self.assets, self.asset_of[chosen], self.times[chosen], self.points, self.values[chosen])

    def in_order(self) -> Batch:
        """Sorted by asset name, then time."""
        rank = np.empty(len(self.assets), dtype=np.intp)
        rank[sorted(range(len(self.assets)), key=self.assets.__getitem__)] = np.arange(len(self.assets))
        return self.rows(np.lexsort((self.times, rank[self.asset_of])))


def from_readings(readings: Iterable[Reading]) -> list[Batch]:
    """Readings in batches: partial rows of one asset and time are joined, and a second value of a point is put off
    to a later batch, so that within a batch no two values compete.

    Raises StoreError for a name, time or value that a store cannot hold.
    """
    readings = list(readings)
    if not readings:
        return []
    assets, times, _ = zip(*readings, strict=True)
    if len(set(zip(assets, times, strict=True))) == len(readings):
        return [_from_rows(readings)]  # the usual case: nothing to join
    layers: list[dict[tuple[str, int], dict[str, float]]] = [{}]
    for reading in readings:
        _place(layers, reading)
    return [_from_rows([Reading(*key, values) for key, values in layer.items()]) for layer in layers]


def _place(layers: list[dict[tuple[str, int], dict[str, float]]], reading: Reading) -> None:
    key = (reading.asset, reading.time_us)
    for layer in layers:
        row = layer.get(key)
        if row is None:
            layer[key] = dict(reading.values)
            return
        if all(row.get(point, value) == value for point, value in reading.values.items()):
            row.update(reading.values)
            return
    layers.append({key: dict(reading.values)})


def _from_rows(rows: Sequence[Reading]) -> Batch:
    """Rows of different assets and times as one batch. Those with the same points are taken over together."""
    assets, times, readings = zip(*rows, strict=True)
    index = {asset: number for number, asset in enumerate(dict.fromkeys(assets))}
    asset_of = np.fromiter(map(index.__getitem__, assets), np.intp, len(rows))
    shapes = list(map(tuple, readings))
    alike: dict[tuple[str, ...], list[int]] = {shape: [] for shape in dict.fromkeys(shapes)}
    columns = {point: column for column, point in enumerate(dict.fromkeys(chain.from_iterable(alike)))}
    if len(alike) == 1:
        values = _read(readings, len(columns))
    else:
        for number, shape in enumerate(shapes):
            alike[shape].append(number)
        values = np.full((len(rows), len(columns)), np.nan)
        for points, numbers in alike.items():
            places = np.ix_(numbers, [columns[point] for point in points])
            values[places] = _read([readings[number] for number in numbers], len(points))
    return _checked(tuple(index), asset_of, np.array(times, dtype=np.int64), tuple(columns), values)


def _read(readings: Sequence[Mapping[str, float]], width: int) -> NDArray[np.float64]:
    """The values of readings of the same `width` points, rows x points."""
    whole = chain.from_iterable(reading.values() for reading in readings)
    return np.fromiter(whole, np.float64, len(readings) * width).reshape(len(readings), width)


def from_frame(readings: pd.DataFrame) -> list[Batch]:
    """A frame as `History.readings` lays out in batches: one, or more where an asset and time stand twice.

    Raises StoreError for a name, time or value that a store cannot hold.
    """
    if not len(readings):
        return []
    asset_of, assets = _codes(readings["asset"])
    times = frame_times(readings)
    points = tuple(str(column) for column in readings.columns if column not in ("time", "asset"))
    values = readings[list(points)].to_numpy(dtype=np.float64, na_value=np.nan)
    whole = _checked(assets, asset_of, times, points, values).in_order()
    same = (np.diff(whole.times) == 0) & (np.diff(whole.asset_of) == 0)
    if not same.any():
        return [whole]
    repeat = np.zeros(len(whole), dtype=np.intp)
    for row in np.flatnonzero(same) + 1:
        repeat[row] = repeat[row - 1] + 1
    return [whole.rows(np.flatnonzero(repeat == k)) for k in range(int(repeat.max()) + 1)]


def _codes(names: pd.Series) -> tuple[NDArray[np.intp], tuple[str, ...]]:
    codes, found = pd.factorize(names)
    if (codes < 0).any():
        raise StoreError(f"row {int(np.flatnonzero(codes < 0)[0])} of the readings names no asset; give every row one")
    return codes.astype(np.intp), tuple(str(name) for name in found)


def frame_times(frame: pd.DataFrame) -> NDArray[np.int64]:
    """The `time` column in microseconds. Raises StoreError where it is not aware or has holes."""
    times = frame["time"]
    if not isinstance(times.dtype, pd.DatetimeTZDtype) or times.isna().any():
        raise StoreError(f"column time is {times.dtype}, or has rows without one; give every row a time with a zone")
    return pd.DatetimeIndex(times).as_unit("us").asi8.astype(np.int64)


def _checked(
    assets: tuple[str, ...],
    asset_of: NDArray[np.intp],
    times: NDArray[np.int64],
    points: tuple[str, ...],
    values: NDArray[np.float64],
) -> Batch:
    check_names("asset", assets)
    check_names("point", points)
    check_times(times)
    infinite = np.isinf(values)
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        raise StoreError(
            f"{assets[asset_of[row]]}, {points[column]} at {from_us(int(times[row])):%Y-%m-%d %H:%M:%S}Z reads "
            f"{values[row, column]}; a store holds finite numbers only, so leave the point out where nothing was read"
        )
    return Batch(assets, asset_of, times, points, values + 0.0)  # + 0.0: -0.0 becomes 0.0, as SQLite holds it


def check_names(what: str, names: Iterable[str]) -> None:
    """Refuse names that one of the stores cannot hold or a frame cannot carry. Raises StoreError."""
    for name in names:
        if not 0 < len(name) <= _LONGEST_NAME:
            raise StoreError(
                f"{what} name {name!r:.60} has {len(name)} characters, 1 to {_LONGEST_NAME} fit; rename it"
            )
        if not name.isprintable() and any(unicodedata.category(c) in _UNPRINTABLE for c in name):
            raise StoreError(f"{what} name {name!r:.60} has a control character; rename it")
        if _ESCAPING.search(name):
            raise StoreError(
                f'{what} name {name!r} has a backslash at its end or before a space or one of , = " \\, '
                "which InfluxDB cannot hold; rename it"
            )
        if what == "point" and name in _RESERVED:
            raise StoreError(f"point name {name!r} is reserved; rename the point")


def check_times(times: NDArray[np.int64]) -> None:
    """Refuse times outside what both stores tell exactly. Raises StoreError."""
    wrong = np.abs(times) > _EXACT_US
    if wrong.any():
        raise StoreError(
            f"time {int(times[wrong][0])} us after 1970 is outside the years 1685 to 2255; mend the clock of its source"
        )


def events_from_frame(events: pd.DataFrame) -> list[Event]:
    """The rows of a frame as `History.events` lays out. Raises StoreError for what no store can hold."""
    if not len(events):
        return []
    columns = (events["asset"], frame_times(events).tolist(), events["kind"], events["code"])
    return checked_events([Event(str(a), t, EventKind(k), str(c)) for a, t, k, c in zip(*columns, strict=True)])


def checked_events(events: Sequence[Event]) -> list[Event]:
    """The same events, once each, by time. Raises StoreError for a name or time that a store cannot hold."""
    check_names("asset", {event.asset for event in events})
    check_names("event code", {event.code for event in events})
    check_times(np.fromiter((event.time_us for event in events), np.int64, len(events)))
    return sorted(set(events), key=lambda event: (event.time_us, event.asset, event.kind, event.code))
