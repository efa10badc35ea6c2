"""The dirt of real feeds: what sensors, lines and gateways do to true values before anybody sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pm.plant import MEASURED
from pm.plant_life import Flags, Floats, Life
from pm.plant_streams import Streams

_DAY = 24.0
LOST_ROW_SHARE = 0.003
LOST_VALUE_SHARE = 0.002
LATE_SHARE = 0.02
DOUBLED_SHARE = 0.01
SILENCE_DAYS, SILENCE_HOURS = 45.0, (1.0, 10.0)
"""Whole assets that send nothing and lose it: days between, and how long."""
BUFFERED_DAYS, BUFFERED_HOURS = 60.0, (2.0, 12.0)
"""Gateways that keep what they cannot send and deliver it all at once."""
STUCK_DAYS, STUCK_HOURS = 60.0, (6.0, 60.0)
DRIFT_DAYS, DRIFT_HOURS = 120.0, (72.0, 240.0)
SLIP_DAYS, SLIP_HOURS = 120.0, (2.0, 12.0)
"""Values sent in another unit: psi for bar, Fahrenheit for Celsius."""


@dataclass(frozen=True)
class Feed:
    """What one asset's readings look like from outside, by step."""

    values: dict[str, Floats]
    """By point; NaN where nothing was read."""
    sent: Flags
    """A row exists."""
    delay_hours: Floats
    """How long after its time a row is published."""
    doubled_after_hours: Floats
    """How long after that it is published once more; NaN for never."""


def feed(truth: Mapping[str, Floats], life: Life, hours: float, streams: Streams) -> Feed:
    """True values of one asset (by point) as they come in. hours: length of a step."""
    steps = len(life.up)
    values = {}
    for name, true in truth.items():
        own = streams.within(name)
        value = _drifting(true, hours, own, life.up)
        value = _slipping(name, value, hours, own)
        value = np.round(value, MEASURED[name].decimals) + 0.0  # no negative zero
        value = _stuck(value, hours, own)
        values[name] = np.where(own.of("lost").random(steps) < LOST_VALUE_SHARE, np.nan, value)
    silent = np.zeros(steps, dtype=bool)
    for start, end, _ in _spells(steps, hours, SILENCE_DAYS, SILENCE_HOURS, streams.of("silence")):
        silent[start:end] = True
    lost = streams.of("lost rows").random(steps) < LOST_ROW_SHARE
    late, doubled = _arrivals(steps, hours, streams)
    return Feed(values, ~(silent | lost | life.dark), late, doubled)


def _spells(
    steps: int, hours: float, every_days: float, lasts: tuple[float, float], rng: np.random.Generator
) -> list[tuple[int, int, float]]:
    """Spells at random times: first step, step after the last, and a number in [0, 1) to do with as one likes."""
    draws = rng.random((steps, 3))
    starts = np.flatnonzero(draws[:, 0] < hours / (every_days * _DAY))
    lengths = np.maximum(1, np.round((lasts[0] + (lasts[1] - lasts[0]) * draws[:, 1]) / hours)).astype(int)
    return [(int(start), min(int(start + lengths[start]), steps), float(draws[start, 2])) for start in starts]


def _drifting(value: Floats, hours: float, streams: Streams, up: Flags) -> Floats:
    """A sensor that wanders off by up to a tenth, slowly, until somebody sets it right."""
    out = value
    for start, end, draw in _spells(len(value), hours, DRIFT_DAYS, DRIFT_HOURS, streams.of("drift")):
        out = out.copy() if out is value else out
        goal = 0.10 * (2.0 * draw - 1.0)
        grown = np.arange(1, end - start + 1) * hours / DRIFT_HOURS[1]
        out[start:end] *= np.where(up[start:end], 1.0 + goal * grown, 1.0)
    return out


def _slipping(name: str, value: Floats, hours: float, streams: Streams) -> Floats:
    slip = MEASURED[name].slip
    if slip is None:
        return value
    out = value.copy()
    for start, end, _ in _spells(len(value), hours, SLIP_DAYS, SLIP_HOURS, streams.of("slip")):
        out[start:end] = value[start:end] * slip[0] + slip[1]
    return out


def _stuck(value: Floats, hours: float, streams: Streams) -> Floats:
    out = value
    for start, end, _ in _spells(len(value), hours, STUCK_DAYS * 4, STUCK_HOURS, streams.of("stuck")):
        out = out.copy() if out is value else out
        out[start:end] = out[start]
    return out


def _arrivals(steps: int, hours: float, streams: Streams) -> tuple[Floats, Floats]:
    """Delay of each row, and after how long it comes once more (NaN: never), in hours."""
    draws = streams.of("arrivals").random((steps, 4))
    delay: NDArray[np.float64] = np.where(draws[:, 0] < LATE_SHARE, 0.5 + 5.5 * draws[:, 1] ** 2, 0.0)
    for start, end, _ in _spells(steps, hours, BUFFERED_DAYS, BUFFERED_HOURS, streams.of("buffered")):
        delay[start:end] = np.maximum(delay[start:end], (end - np.arange(start, end)) * hours)
    doubled = np.where(draws[:, 2] < DOUBLED_SHARE, 3.0 * draws[:, 3], np.nan)
    return delay, doubled
