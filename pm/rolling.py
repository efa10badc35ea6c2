"""A store whose latest window stays in memory, for a replay that asks for nearly the same window thousands of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pm.domain import LATEST, Event, Reading, from_us, to_us
from pm.ports import ReadingStore


@dataclass(frozen=True)
class _Window:
    """Readings with start < time <= end as arrays, sorted by asset, then time."""

    start: datetime
    end: datetime
    wanted: Sequence[str] | None
    """Assets as the caller named them; None for all."""
    assets: tuple[str, ...]
    """Sorted, so that the order of codes is the order of names."""
    columns: Mapping[str, int]
    """Row of `values` of each point."""
    code: NDArray[np.int64]
    """[N] index into `assets`."""
    times: NDArray[np.int64]
    """[N] microseconds since the epoch."""
    values: NDArray[np.float64]
    """[P, N], as a frame's columns lie."""


@dataclass(frozen=True)
class _Events:
    """Events with start < time <= end."""

    start: datetime
    end: datetime
    wanted: Sequence[str] | None
    frame: pd.DataFrame


class RollingStore:
    """A `ReadingStore` over another that keeps the window it served last, and what was written since.

    Answers are always equal to the other store's, if every write goes through this one. A write that is more than new
    rows after the window (late data, a second row of one asset and time, a point never seen) lets the window go, and
    the next answer is the other store's own. Not for several threads.
    """

    def __init__(self, store: ReadingStore) -> None:
        self._store = store
        self._window: _Window | None = None
        self._written: dict[tuple[str, int], Mapping[str, float]] = {}
        self._events: _Events | None = None
        self._events_written: list[int] = []

    def write(self, readings: Sequence[Reading], events: Sequence[Event] = ()) -> None:
        self._store.write(readings, events)
        for reading in readings:
            key = (reading.asset, reading.time_us)
            if self._window is not None and not self._adds_to(self._window, key, reading.values):
                self._window = None
            self._written[key] = reading.values
        if self._window is None:
            self._written.clear()
        if self._events is not None and any(from_us(event.time_us) <= self._events.end for event in events):
            self._events = None
        self._events_written += [event.time_us for event in events]

    def _adds_to(self, window: _Window, key: tuple[str, int], values: Mapping[str, float]) -> bool:
        """Whether a row is new, later than the window, and of points that it has."""
        return key not in self._written and key[1] > to_us(window.end) and values.keys() <= window.columns.keys()

    def write_history(self, readings: pd.DataFrame, events: pd.DataFrame) -> None:
        self._store.write_history(readings, events)
        self._forget()

    def readings(
        self, start: datetime, end: datetime, assets: Sequence[str] | None = None, points: Sequence[str] | None = None
    ) -> pd.DataFrame:
        if points is not None:
            return self._store.readings(start, end, assets, points)
        kept = self._window
        if kept is None or not kept.start <= start <= kept.end <= end or kept.wanted != assets:
            window = _window(self._store.readings(start, end, assets), start, end, assets)
            self._written.clear()
            # What is stored beyond the window already was not seen being written, so such a window cannot move.
            self._window = window if all(last <= end for _, last in self._store.span().values()) else None
        else:
            self._window = window = self._moved(kept, start, end)
            end_us = to_us(end)
            self._written = {key: values for key, values in self._written.items() if key[1] > end_us}
        return _frame(window)

    def _moved(self, old: _Window, start: datetime, end: datetime) -> _Window:
        """The window later: without what is too old by now, with what was written since."""
        start_us, end_us = to_us(start), to_us(end)
        wanted = None if old.wanted is None else frozenset(old.wanted)
        new = sorted(key for key in self._written if key[1] <= end_us and (wanted is None or key[0] in wanted))
        assets = _with_all(old.assets, {asset for asset, _ in new})
        place = {asset: index for index, asset in enumerate(assets)}
        code = np.array([place[asset] for asset, _ in new], np.int64)
        values = np.full((len(old.columns), len(new)), np.nan)
        for row, key in enumerate(new):
            for point, value in self._written[key].items():
                values[old.columns[point], row] = value + 0.0  # stores keep no negative zero
        kept = np.flatnonzero(old.times > start_us)
        codes = _recoded(old.code[kept], old.assets, assets)
        # Each asset's new rows go behind its old ones.
        behind = np.searchsorted(codes, code, side="right")
        return _Window(
            start=start,
            end=end,
            wanted=old.wanted,
            assets=assets,
            columns=old.columns,
            code=np.insert(codes, behind, code),
            times=np.insert(old.times[kept], behind, np.array([time for _, time in new], np.int64)),
            values=np.insert(old.values[:, kept], behind, values, axis=1),
        )

    def events(self, start: datetime, end: datetime, assets: Sequence[str] | None = None) -> pd.DataFrame:
        kept = self._events
        if kept is None or kept.start != start or kept.end > end or kept.wanted != assets:
            frame = self._store.events(start, end, assets)
            self._events_written = pd.DatetimeIndex(self._store.events(end, LATEST)["time"]).as_unit("us").asi8.tolist()
        elif any(time_us <= to_us(end) for time_us in self._events_written):
            # Events are sorted by time first, so that what came later belongs behind.
            new = self._store.events(kept.end, end, assets)
            frame = pd.concat([kept.frame, new], ignore_index=True) if len(new) else kept.frame
        else:
            frame = kept.frame
        self._events = _Events(start, end, assets, frame)
        end_us = to_us(end)
        self._events_written = [time_us for time_us in self._events_written if time_us > end_us]
        return frame.copy(deep=False)

    def downsampled(
        self,
        start: datetime,
        end: datetime,
        step: timedelta,
        assets: Sequence[str] | None = None,
        points: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        return self._store.downsampled(start, end, step, assets, points)

    def points(self) -> tuple[str, ...]:
        return self._store.points()

    def span(self) -> Mapping[str, tuple[datetime, datetime]]:
        return self._store.span()

    def counts(self) -> Mapping[str, int]:
        return self._store.counts()

    def conflicts(self) -> pd.DataFrame:
        return self._store.conflicts()

    def delete_assets(self, assets: Sequence[str]) -> None:
        self._store.delete_assets(assets)
        self._forget()

    def close(self) -> None:
        self._store.close()

    def _forget(self) -> None:
        self._window = self._events = None
        self._written.clear()
        self._events_written.clear()


def _window(frame: pd.DataFrame, start: datetime, end: datetime, wanted: Sequence[str] | None) -> _Window:
    points = tuple(name for name in frame.columns if name not in ("time", "asset"))
    code, names = pd.factorize(frame["asset"], sort=True)
    return _Window(
        start=start,
        end=end,
        wanted=wanted,
        assets=tuple(names),
        columns={point: row for row, point in enumerate(points)},
        code=code.astype(np.int64),
        times=pd.DatetimeIndex(frame["time"]).as_unit("us").asi8,
        values=frame[list(points)].to_numpy(np.float64).T,
    )


def _frame(window: _Window) -> pd.DataFrame:
    # All points as one block: a frame of a hundred separate columns costs whoever reads it more than it costs here.
    points = pd.Index(list(window.columns), dtype="str")
    frame = pd.DataFrame(window.values.T.copy(), columns=points, copy=False)
    names: Any = pd.array(list(window.assets), dtype="str")
    frame.insert(0, "time", pd.DatetimeIndex(window.times.view("datetime64[us]"), tz="UTC"))
    frame.insert(1, "asset", names.take(window.code))
    return frame


def _with_all(names: tuple[str, ...], more: set[str]) -> tuple[str, ...]:
    return names if more <= set(names) else tuple(sorted({*names, *more}))


def _recoded(code: NDArray[np.int64], names: tuple[str, ...], among: tuple[str, ...]) -> NDArray[np.int64]:
    if names == among:
        return code
    place = {name: index for index, name in enumerate(among)}
    return np.array([place[name] for name in names], np.int64)[code]
