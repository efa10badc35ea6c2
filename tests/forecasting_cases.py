"""Small histories for the forecaster's tests: wear that shows in one point before each failure, and dirt around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import torch

from forecasting.predict import TransformerForecaster
from forecasting.train import fit
from forecasting.windows import schema_of
from pm.config import TrainSection
from pm.domain import Asset, Event, EventKind, FailureMode, History, Point, from_us, to_us

START = datetime(2025, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)

TINY = TrainSection(
    context=24,
    life=40,
    patch=4,
    width=16,
    layers=1,
    heads=2,
    dropout=0.0,
    life_dropout=0.0,
    epochs=2,
    batch=16,
    learning_rate=1e-3,
    hold_out=0.0,
    device="cpu",
    onnx=False,
)
"""Trains in a second or two."""


def history_of(
    readings: pd.DataFrame, events: list[Event], assets: tuple[Asset, ...], interval: timedelta = HOUR
) -> History:
    points = tuple(Point(str(name)) for name in readings.columns if name not in ("time", "asset"))
    modes = sorted({event.code for event in events if event.kind is EventKind.FAILURE}) or ["bearing"]
    return History(interval, points, tuple(FailureMode(mode) for mode in modes), assets, readings, event_frame(events))


def event_frame(events: list[Event]) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "time": pd.to_datetime([from_us(event.time_us) for event in events], utc=True).as_unit("us"),
            "asset": pd.Series([event.asset for event in events], dtype=str),
            "kind": pd.Series([event.kind.value for event in events], dtype=str),
            "code": pd.Series([event.code for event in events], dtype=str),
        }
    )
    return frame.sort_values(["time", "asset", "kind", "code"], ignore_index=True)


def reading_frame(parts: list[tuple[str, list[datetime], dict[str, np.ndarray]]]) -> pd.DataFrame:
    frames = [
        pd.DataFrame({"time": pd.DatetimeIndex(times).as_unit("us"), "asset": asset, **values})
        for asset, times, values in parts
    ]
    frame = pd.concat(frames, ignore_index=True)
    return frame.astype({"asset": str}).sort_values(["asset", "time"], ignore_index=True)


def worn_plant(assets: int = 6, days: int = 40, seed: int = 0) -> History:
    """Assets that fail about every 15 days, heating up for 60 h before; errors, repairs, gaps and a decoy point."""
    rng = np.random.default_rng(seed)
    count = days * 24
    parts, events, fleet = [], [], []
    for number in range(assets):
        name = f"pump-{number}"
        fleet.append(
            Asset(name, ("small", "large")[number % 2], {"age": number, "site": "north" if number < 3 else "south"})
        )
        heat, noise = rng.normal(60, 1, count), rng.normal(5, 2, count)
        failed = rng.integers(150, 300)
        while failed < count:
            ramp = np.arange(max(0, failed - 60), failed + 1)
            heat[ramp] += 10 * (ramp - failed + 60) / 60
            time = to_us(START + HOUR * int(failed))
            mode = ("bearing", "seal")[int(rng.integers(2))]
            events.append(Event(name, time, EventKind.FAILURE, mode))
            events.append(Event(name, time, EventKind.MAINTENANCE, mode))
            if rng.random() < 0.7:
                events.append(Event(name, time - 20 * 3_600_000_000, EventKind.ERROR, "hot"))
            failed += int(rng.integers(200, 420))
        decoys = rng.integers(0, count, 3)
        events += [Event(name, to_us(START + HOUR * int(hour)), EventKind.ERROR, "hot") for hour in decoys]
        heat[rng.random(count) < 0.05] = np.nan
        kept = np.flatnonzero(rng.random(count) > 0.03)
        times = [START + HOUR * int(hour) for hour in kept]
        parts.append((name, times, {"heat": heat[kept], "noise": noise[kept]}))
    return history_of(reading_frame(parts), events, tuple(fleet))


def hanging(history: History, asset: str, points: Sequence[str], first: int, hours: int) -> History:
    """The history with these points of an asset reading for so many readings what the one with this number read."""
    readings = history.readings.copy()
    rows = np.flatnonzero((readings["asset"] == asset).to_numpy())[first : first + hours]
    for point in points:
        known = readings[point].iloc[rows].dropna()
        readings.loc[readings.index[rows], point] = float(known.iloc[0])
    return replace(history, readings=readings)


def tiny_forecaster(
    plant: History, train: Sequence[str], validation: Sequence[str], settings: TrainSection
) -> TransformerForecaster:
    """Trained on one thread: so small a network is slower on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained = fit(plant, train, validation, schema_of(plant, settings), settings, name="tiny")
    finally:
        torch.set_num_threads(before)
    return TransformerForecaster(trained.artefact)
