"""A recording takes the way of live data, at its own time: feed, ingest, store, assessment, alerts, scorecard."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from connectors.embedded import EmbeddedStore
from pm.assess import Assessor, threshold_for
from pm.config import AlertsSection, AssessSection, IngestSection, PlantSection
from pm.domain import (
    Alert,
    Asset,
    Event,
    EventKind,
    FailureMode,
    Forecast,
    History,
    Point,
    Reading,
    Recording,
    Silence,
    to_us,
)
from pm.errors import RecordingError, StoreError
from pm.ingest import FeedClock, Ingest
from pm.ports import Delivery, Forecaster, LinkState, Reject
from pm.replay_files import ForecastFile, read_forecasts, write_alerts
from pm.replay_log import MemoryLog
from pm.report import write_replay
from pm.rolling import RollingStore
from pm.scorecard import FailureTime, score, spans

log = logging.getLogger(__name__)

FORECASTS, ALERTS = "forecasts.parquet", "alerts.csv"


def replay(
    recording: Recording,
    forecaster: Forecaster,
    *,
    out: Path,
    assets: Sequence[str] | None = None,
    plant: PlantSection | None = None,
    assess: AssessSection | None = None,
    alerts: AlertsSection | None = None,
    every: timedelta | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Replay a recording and write `forecasts.parquet`, `alerts.csv`, `report.json` and `report.html` into `out`.

    assets: those to replay; all when None. plant: its interval is passed over for the recording's own. every: time
    between assessments, the recording's interval when None; the first is one such time after the first reading, the
    last at or before the last reading. A forecast is written for each asset and assessment while the asset was
    observed (from its first reading to its last). seed: of the bootstrap intervals. progress: called with the share
    done. Returns the content of `report.json`; the same inputs give the same files but for the wall time.
    Raises RecordingError for an unknown asset or nothing to replay, ModelError when the forecaster does not fit.
    """
    began = time.perf_counter()
    history = _only(recording, assets)
    plant = (plant or PlantSection()).model_copy(update={"interval": history.interval})
    assess, alerts = assess or AssessSection(), alerts or AlertsSection()
    threshold = threshold_for(forecaster, alerts.budget)
    every = history.interval if every is None else every
    moments = list(ticks(history, every))
    if not moments:
        raise RecordingError(
            f"recording {recording.name}: nothing to replay; its readings span less than one step of {every}"
        )
    observed = observed_spans(history)
    session = Session(history, forecaster, plant=plant, assess=assess, alerts=alerts)
    log.info(
        "replaying %s: %d assets, %d steps with %s",
        recording.name,
        len(history.assets),
        len(moments),
        forecaster.version,
    )
    with ForecastFile(out / FORECASTS, [mode.code for mode in history.failure_modes]) as file:
        for number, at in enumerate(moments, start=1):
            found = session.step(at)
            at_us = to_us(at)
            file.add(
                [f for f in found if f.asset in observed and observed[f.asset][0] <= at_us <= observed[f.asset][1]]
            )
            if progress is not None and (number % 25 == 0 or number == len(moments)):
                progress(number / len(moments))
    raised = session.alerts()
    failures = _failures(history)
    rng = np.random.default_rng(seed)
    scorecard = score(spans(raised), failures, observed, minimum_lead=alerts.minimum_lead, rng=rng)
    write_alerts(out / ALERTS, raised, failures)
    return write_replay(
        out,
        recording_name=recording.name,
        model=forecaster.version,
        forecasts=read_forecasts(out / FORECASTS),
        observed=observed,
        scorecard=scorecard,
        alert_budget=alerts.budget,
        minimum_lead=alerts.minimum_lead,
        threshold=threshold,
        wall_seconds=time.perf_counter() - began,
        rng=rng,
        zone=ZoneInfo(plant.timezone),
    )


class Session:
    """One replay under way: the service's own ingest and assessment around a recording instead of a broker."""

    def __init__(
        self,
        history: History,
        forecaster: Forecaster,
        *,
        plant: PlantSection,
        assess: AssessSection,
        alerts: AlertsSection,
    ) -> None:
        store = RollingStore(EmbeddedStore(None))
        self._feed = RecordedFeed(history)
        self._clock = FeedClock()
        self._ingest = Ingest(
            self._feed, store, _NoDeadLetters(), section=IngestSection(), now_us=lambda: 0, watermark=self._clock
        )
        self._log = MemoryLog()
        self._assessor = Assessor(
            store=store,
            log=self._log,
            register=RecordedRegister(history),
            forecaster=forecaster,
            plant=plant,
            assess=assess,
            alerts=alerts,
        )

    def step(self, at: datetime) -> Sequence[Forecast]:
        """Ingest everything dated up to `at` and assess at `at`; the forecasts issued. Times must ascend."""
        self._feed.play(at)
        self._ingest.step()
        if self._clock.now() != at:
            raise StoreError(f"replay at {at.isoformat()}: {self._ingest.counts.trouble}")
        return self._assessor.assess(at).forecasts

    def alerts(self) -> list[Alert]:
        """Every alert so far, by time of raising and asset."""
        return self._log.alerts()


class RecordedFeed:
    """A `pm.ports.Feed` of a recording: one delivery per `play`, ending with the clock's."""

    name = "recording"
    connected = True
    dropped = 0

    def __init__(self, history: History) -> None:
        readings = history.readings
        times = pd.DatetimeIndex(readings["time"]).as_unit("us").asi8
        order = np.lexsort((readings["asset"].to_numpy(object), times))
        self._points = [name for name in readings.columns if name not in ("time", "asset")]
        self._times = times[order]
        self._assets = readings["asset"].to_numpy(object)[order]
        self._values = readings[self._points].to_numpy(np.float64)[order]
        self._events = [
            Event(asset, time_us, EventKind(kind), code)
            for asset, time_us, kind, code in zip(
                history.events["asset"],
                pd.DatetimeIndex(history.events["time"]).as_unit("us").asi8.tolist(),
                history.events["kind"],
                history.events["code"],
                strict=True,
            )
        ]
        self._event_times = np.array([event.time_us for event in self._events], np.int64)
        self._played_readings = self._played_events = 0
        self._waiting: deque[Delivery] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def link(self) -> LinkState:
        return LinkState(self.name, True, "", self.waiting, 0, 1, 0, False, 0)

    def play(self, to: datetime) -> None:
        """Make everything dated up to `to` and not played yet the next delivery."""
        clock_us = to_us(to)
        rows = slice(self._played_readings, int(np.searchsorted(self._times, clock_us, side="right")))
        events = slice(self._played_events, int(np.searchsorted(self._event_times, clock_us, side="right")))
        self._played_readings, self._played_events = rows.stop, events.stop
        readings = tuple(
            Reading(asset, time_us, {p: v for p, v in zip(self._points, values, strict=True) if v == v})  # not NaN
            for asset, time_us, values in zip(
                self._assets[rows], self._times[rows].tolist(), self._values[rows].tolist(), strict=True
            )
        )
        self._waiting.append(Delivery(clock_us, readings, tuple(self._events[events]), clock_us=clock_us))

    def open(self) -> None:
        """Nothing to connect to."""

    def take(self, limit: int, timeout: float) -> list[Delivery]:
        return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """A recording forgets nothing, and needs no telling."""

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True)
class RecordedRegister:
    """`pm.ports.AssetRegister` out of a recording."""

    history: History

    def assets(self) -> tuple[Asset, ...]:
        return self.history.assets

    def points(self) -> tuple[Point, ...]:
        return self.history.points

    def failure_modes(self) -> tuple[FailureMode, ...]:
        return self.history.failure_modes

    def silences(self) -> Mapping[str, Silence]:
        """A recording is of what was heard."""
        return {}


class _NoDeadLetters:
    """What a store refuses of a recording ends its replay: a report on a part of it would mislead."""

    def add_dead_letters(self, rejects: Sequence[Reject]) -> None:
        raise RecordingError(f"the recording holds what no store takes: {rejects[0].reason}")


def ticks(history: History, every: timedelta) -> Iterator[datetime]:
    """The times of a replay's assessments: one step after the first reading, and on, up to the last reading."""
    if every <= timedelta(0):
        raise RecordingError(f"every {every}: the time between assessments must be more than nothing; write 1h or 1d")
    if history.readings.empty:
        return
    at = history.readings["time"].min().to_pydatetime() + every
    last = history.readings["time"].max().to_pydatetime()
    while at <= last:
        yield at
        at += every


def observed_spans(history: History) -> dict[str, tuple[int, int]]:
    """First and last reading of every asset that was read, in microseconds since the epoch."""
    times = history.readings.groupby("asset")["time"].agg(["min", "max"])
    return {
        str(name): (to_us(first.to_pydatetime()), to_us(last.to_pydatetime()))
        for name, first, last in times.itertuples()
    }


def _only(recording: Recording, assets: Sequence[str] | None) -> History:
    history = recording.history
    if assets is None:
        return history
    unknown = set(assets) - {asset.name for asset in history.assets}
    if unknown:
        raise RecordingError(f"recording {recording.name} has no asset {min(unknown)!r}; assets.csv names those it has")
    return history.only(assets)


def _failures(history: History) -> list[FailureTime]:
    events = history.events
    failed = events[events["kind"] == EventKind.FAILURE.value]
    return [
        FailureTime(asset, code, to_us(at.to_pydatetime()))
        for asset, code, at in zip(failed["asset"], failed["code"], failed["time"], strict=True)
    ]
