"""Histories into the store and out of it again: recordings equal to what went in, and the plant's own past."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pandas as pd

from pm.domain import EARLIEST, LATEST, EventKind, History, Recording
from pm.errors import RecordingError
from pm.ports import ReadingStore

if TYPE_CHECKING:
    from pm.records import Records


def import_recording(recording: Recording, store: ReadingStore, records: Records, *, readings: bool = True) -> None:
    """Store a recording's readings and events and register its assets, points and failure modes.

    Repeating an import changes nothing. With `readings` false only the register learns of it, for assets whose
    readings are to come over MQTT. All of it or none of it: what a failure leaves half done is taken back. Raises
    RecordsError when an asset is known from another recording, and whatever the store raises.
    """
    first_time = recording.name not in records.recordings()
    records.put_recording(recording)
    if not readings:
        return
    try:
        store.write_history(recording.history.readings, recording.history.events)
    except BaseException:
        if first_time:
            store.delete_assets([asset.name for asset in recording.history.assets])
            records.forget_recording(recording.name)
        raise


def export_recording(store: ReadingStore, records: Records, name: str) -> Recording:
    """The recording of this name out of the store, with whatever its assets have read and met since."""
    if name not in records.recordings():
        known = ", ".join(records.recordings()) or "none"
        raise RecordingError(f"no recording {name!r} was imported; known are: {known}")
    described = records.recording(name)
    return replace(described, history=_filled(described.history, store, EARLIEST, LATEST))


def plant_history(
    store: ReadingStore,
    records: Records,
    interval: timedelta,
    *,
    assets: Sequence[str] | None = None,
    start: datetime = EARLIEST,
    end: datetime = LATEST,
) -> History:
    """What the plant's assets (some of them, or all) read with start < time <= end, and every event up to `end`.

    Points and failure modes that the feed brought and no recording described are registered on the way.
    """
    records.ensure_points(store.points())
    described = History(
        interval=interval,
        points=records.points(),
        failure_modes=records.failure_modes(),
        assets=tuple(a for a in records.assets() if assets is None or a.name in set(assets)),
        readings=store.readings(EARLIEST, EARLIEST),
        events=store.events(EARLIEST, EARLIEST),
    )
    history = _filled(described, store, start, end)
    codes = history.events.loc[history.events["kind"] == EventKind.FAILURE.value, "code"].unique()
    if set(codes) - {mode.code for mode in history.failure_modes}:
        records.ensure_failure_modes(codes)
        history = replace(history, failure_modes=records.failure_modes())
    return history


def merged(histories: Sequence[History]) -> History:
    """Several histories as one, to learn from together. Raises RecordingError where they do not fit."""
    if len(histories) == 1:
        return histories[0]
    intervals = {history.interval for history in histories}
    if len(intervals) > 1:
        raise RecordingError(
            f"the recordings have different intervals ({', '.join(map(str, sorted(intervals)))}); train on those alike"
        )
    names = [asset.name for history in histories for asset in history.assets]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise RecordingError(f"asset {doubled[0]} is in two of the recordings; rename it in one")
    points = {point.name: point for history in reversed(histories) for point in history.points}
    modes = {mode.code: mode for history in reversed(histories) for mode in history.failure_modes}
    readings = pd.concat([history.readings for history in histories], ignore_index=True)
    events = pd.concat([history.events for history in histories], ignore_index=True)
    return History(
        interval=histories[0].interval,
        points=tuple(points.values()),
        failure_modes=tuple(modes.values()),
        assets=tuple(asset for history in histories for asset in history.assets),
        readings=readings.sort_values(["asset", "time"], ignore_index=True),
        events=events.sort_values(["time", "asset", "kind", "code"], ignore_index=True),
    )


def _filled(described: History, store: ReadingStore, start: datetime, end: datetime) -> History:
    """The stored readings and events of what a history describes. Events matter from the beginning."""
    names = [asset.name for asset in described.assets]
    # Every point is asked for, since rows in which nothing was read are kept only then.
    readings = store.readings(start, end, names)
    columns = ["time", "asset", *(point.name for point in described.points)]
    return replace(
        described,
        readings=readings.reindex(columns=columns),
        events=store.events(EARLIEST, end, names),
    )
