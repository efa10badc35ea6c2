"""A forecaster that a test can work out by hand, and small plants around it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np

from pm.domain import (
    Asset,
    Event,
    EventKind,
    Explanation,
    FailureMode,
    Forecast,
    History,
    Point,
    Reason,
    Recording,
    to_us,
)
from tests.forecasting_cases import HOUR, START, event_frame, reading_frame


def hour(count: float) -> datetime:
    return START + HOUR * count


class HeatForecaster:
    """Believes the latest `heat` of the last day: at 60 degrees or less nothing is wrong, at 70 all is lost."""

    def __init__(
        self, version: str = "heat@1", steps: int = 72, thresholds: Mapping[float, float] | None = None
    ) -> None:
        self.version = version
        self.lookback = timedelta(hours=24)
        self.thresholds = thresholds or {0.05: 0.8, 0.2: 0.5, 1.0: 0.3}
        self.steps = steps
        self.asked: list[tuple[str, ...]] = []

    def forecast(self, history: History, at: datetime) -> list[Forecast]:
        self.asked.append(tuple(asset.name for asset in history.assets))
        rows = history.readings[(history.readings["time"] <= at) & history.readings["heat"].notna()]
        latest = rows.groupby("asset")["heat"].last()
        found = []
        for asset in history.assets:
            p = min(max((latest.get(asset.name, 60.0) - 60.0) / 10.0, 0.001), 0.999)
            hazard = 1.0 - math.exp(math.log1p(-p) / self.steps)
            modes = {"bearing": 0.7 * p, "seal": 0.3 * p}
            found.append(
                Forecast(
                    asset.name, at, self.version, None, 72 / self.steps, (hazard,) * self.steps, modes, 100.0 * (1 - p)
                )
            )
        return found

    def explain(self, history: History, at: datetime, asset: str, limit: int = 5) -> Explanation:
        assert [a.name for a in history.assets] == [asset]
        return Explanation(
            [Reason("noise", -0.25), Reason("heat", 1.94), Reason("age", 0.5), Reason("site", 0.01)][:limit]
        )


def plant_of(
    heats: Mapping[str, Mapping[int, float]], events: list[Event], hours: int, step: timedelta = HOUR
) -> History:
    """Assets at 60 degrees every step from 0 to `hours`, but for the heats named by hour; NaN means no reading then."""
    parts = []
    for name, given in heats.items():
        values = np.array([given.get(h, 60.0) for h in range(hours + 1)])
        kept = np.flatnonzero(~np.isnan(values))
        parts.append((name, [START + step * int(h) for h in kept], {"heat": values[kept]}))
    return History(
        interval=step,
        points=(Point("heat"),),
        failure_modes=(FailureMode("bearing"), FailureMode("seal")),
        assets=tuple(Asset(name, "pump") for name in heats),
        readings=reading_frame(parts),
        events=event_frame(events),
    )


def hot(first: int, last: int, degrees: float = 68.0) -> dict[int, float]:
    """That heat from hour `first` to hour `last`."""
    return dict.fromkeys(range(first, last + 1), degrees)


def event(asset: str, at: float, kind: EventKind, code: str) -> Event:
    return Event(asset, to_us(hour(at)), kind, code)


def recording_of(history: History, name: str = "case") -> Recording:
    text = "1d" if history.interval == timedelta(days=1) else "1h"
    return Recording(name, text, "a case", "made by a test", "CC0", history)


def cut(history: History, at: datetime) -> History:
    """Nothing dated after `at`."""
    return replace(
        history,
        readings=history.readings[history.readings["time"] <= at].reset_index(drop=True),
        events=history.events[history.events["time"] <= at].reset_index(drop=True),
    )
