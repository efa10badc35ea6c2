"""What the sensors of a simulated asset would read if every sensor and line were perfect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from pm.plant import MEASURED, SIGNATURES, Kind
from pm.plant_life import Floats, Life
from pm.plant_streams import Streams

DECOYS_PER_HOUR = 1.0 / (24.0 * 40.0)
"""Steps in one point that end without a failure, per asset."""
_NOISE_MEMORY_HOURS = 5.0
"""Correlation time of the slow half of the noise."""
_SCALING = {"flow", "current"}
"""Points that grow with rated power."""


@dataclass(frozen=True)
class Weather:
    """Air in the hall, by step: the season, the day, and weather that comes and goes."""

    outside: Floats

    @classmethod
    def of(cls, start: datetime, steps: int, interval: timedelta, rng: np.random.Generator) -> Weather:
        hours = np.arange(steps) * (interval / timedelta(hours=1))
        year = 2 * np.pi * (hours / 24.0 + start.timetuple().tm_yday - 110.0) / 365.25
        day = 2 * np.pi * (hours + start.hour - 9.0) / 24.0
        noise = rng.standard_normal((steps, 1))
        slow = correlated(noise, 36.0, interval / timedelta(hours=1))[:, 0]
        return cls(16.0 + 8.0 * np.sin(year) + 3.0 * np.sin(day) + 2.5 * slow)


def correlated(noise: Floats, memory_hours: float, hours: float) -> Floats:
    """White noise (steps x columns) to noise of variance 1 with an exponential correlation of so many hours."""
    keep = np.exp(-hours / memory_hours)
    out = np.empty_like(noise)
    state = noise[0]
    out[0] = state
    fresh = noise * np.sqrt(1.0 - keep**2)
    for step in range(1, len(noise)):
        state = keep * state + fresh[step]
        out[step] = state
    return out


def lagged(target: Floats, lag_hours: float, hours: float) -> Floats:
    """First-order lag (steps x columns): how a warm body follows."""
    follow = 1.0 - np.exp(-hours / lag_hours)
    out = np.empty_like(target)
    state = target[0]
    out[0] = state
    for step in range(1, len(target)):
        state = state + follow * (target[step] - state)
        out[step] = state
    return out


def planned_running(shifts: int, weekend: bool, start: datetime, steps: int, interval: timedelta) -> NDArray[np.bool_]:
    """Whether the plan lets an asset run: 1 to 3 shifts from six in the morning, on weekends or not.

    A step dated t is the interval that ends at t, so the hour looked at is just before.
    """
    seconds = (np.arange(steps) - 0.5) * interval.total_seconds()
    hours = start.hour + start.minute / 60.0 + seconds / 3600.0
    since_six = np.mod(hours - 6.0, 24.0)
    weekday = np.floor((hours - 6.0) / 24.0 + start.weekday()) % 7  # a shift belongs to the day it began on
    runs: NDArray[np.bool_] = since_six < 8.0 * shifts
    return runs if weekend else np.logical_and(runs, weekday < 5)


def load_share(planned: NDArray[np.bool_], interval: timedelta, base: float, streams: Streams) -> Floats:
    """Share of full load: orders that last for hours to days, with small unrest on top."""
    hours = interval / timedelta(hours=1)
    steps = len(planned)
    changes = streams.of("orders").random(steps) < hours / 18.0
    levels = np.clip(base + 0.13 * streams.of("order size").standard_normal(steps), 0.3, 1.05)
    latest = np.maximum.accumulate(np.where(changes, np.arange(steps), 0))
    unrest = correlated(streams.of("unrest").standard_normal((steps, 1)), 2.0, hours)[:, 0]
    return np.clip(levels[latest] + 0.03 * unrest, 0.25, 1.1) * planned


@dataclass(frozen=True)
class Built:
    """How one asset differs from the drawing of its kind: the model's scale and its own tolerances."""

    scale: Mapping[str, float]
    hall: float
    """Degrees that its place is warmer than outside."""


def built(kind: Kind, variant: int, rng: np.random.Generator) -> Built:
    """Draws an asset's tolerances. Models of a kind differ by size and by a fixed offset in vibration and heat."""
    scale = {}
    for point in MEASURED:
        tolerance = float(rng.normal(1.0, 0.04))
        offset = 1.0 + 0.12 * (variant - 0.5 * (len(kind.variants) - 1))
        tolerance = 1.0 if point == "load" else tolerance
        size = kind.rated_kw[variant] / kind.rated_kw[0] if point in _SCALING else 1.0
        scale[point] = max(tolerance, 0.5) * size * (offset if point in {"vibration", "oil_temperature"} else 1.0)
    return Built(scale, float(rng.normal(4.0, 1.5)))


def readings(
    *,
    kind: Kind,
    builds: list[Built],
    lives: list[Life],
    load: Floats,
    weather: Weather,
    interval: timedelta,
    streams: list[Streams],
) -> dict[str, Floats]:
    """True values of every point of a group of assets of one kind, steps x assets by point.

    load: steps x assets. streams: one for each asset, used for its noise and its decoys.
    """
    hours = interval / timedelta(hours=1)
    steps = len(load)
    up = np.stack([life.up for life in lives], axis=1)
    ambient = weather.outside[:, None] + np.array([b.hall for b in builds])
    effects = _effects(kind, lives, steps)
    decoys = _decoys(kind, steps, hours, streams)
    out: dict[str, Floats] = {}
    for name, response in kind.responses.items():
        measured = MEASURED[name]
        noise = np.stack([s.of(name).standard_normal((steps, 2)) for s in streams], axis=1)
        jitter = np.sqrt(0.5) * (noise[:, :, 0] + correlated(noise[:, :, 1], _NOISE_MEMORY_HOURS, hours))
        if name == "ambient_temperature":
            out[name] = ambient + 0.3 * jitter
            continue
        scale = np.array([b.scale[name] for b in builds])
        value = response.at * scale * (response.idle + (1.0 - response.idle) * load**response.power)
        value = value * (1.0 + effects.get(name, 0.0) + decoys.get(name, 0.0)) * up
        if measured.lag_hours:
            value = ambient + lagged(value, measured.lag_hours, hours) * (1.0 + measured.noise * jitter)
        else:
            value = value * (1.0 + measured.noise * jitter)
            floor = 0.03 if name == "vibration" else 0.0  # neighbours shake a standing asset too
            value = np.maximum(value, floor * (1.0 + 0.2 * jitter))
        out[name] = value
    return out


def _effects(kind: Kind, lives: list[Life], steps: int) -> dict[str, Floats]:
    """Relative change of each point by everything that is degrading, steps x assets."""
    out: dict[str, Floats] = {}
    for mode in kind.modes:
        signature = SIGNATURES[mode]
        progress = np.stack([life.severity[mode] for life in lives], axis=1)
        amplitude = np.stack([life.amplitude[mode] for life in lives], axis=1)
        grown = amplitude * progress**signature.growth
        late = amplitude * progress**3
        for shares, strength in ((signature.effects, grown), (signature.late_effects, late)):
            for point, share in shares.items():
                if point in kind.responses:
                    out[point] = out.get(point, np.zeros((steps, len(lives)))) + share * strength
    return out


def _decoys(kind: Kind, steps: int, hours: float, streams: list[Streams]) -> dict[str, Floats]:
    """Transient steps in one point that look like the beginning of something and end without a failure."""
    largest: dict[str, float] = {}
    for mode in kind.modes:
        for point, share in SIGNATURES[mode].effects.items():
            if point in kind.responses and abs(share) > abs(largest.get(point, 0.0)):
                largest[point] = share
    names = list(largest)
    out = {name: np.zeros((steps, len(streams))) for name in names}
    for column, own in enumerate(streams):
        draws = own.of("decoys").random((steps, 4))
        for start in np.flatnonzero(draws[:, 0] < DECOYS_PER_HOUR * hours):
            _, which, long, high = draws[start]
            name = names[int(which * len(names))]
            end = start + max(1, round((6.0 + 54.0 * long**2) / hours))
            out[name][start:end, column] += largest[name] * (0.25 + 0.5 * high)
    return out
