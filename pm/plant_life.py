"""The life of one simulated asset: wear grows with use, failures come of wear, maintenance takes wear away.

Everything here runs forward in time: what happens at a step depends on earlier steps and on draws made earlier, never
on how long the simulation is. So a longer simulation begins with the shorter one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gamma

import numpy as np
from numpy.typing import NDArray

from pm.plant import MEASURED, SIGNATURES, Kind, Mode

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

FAINT_SHARE = 0.06
"""Share of degradations whose signature is so weak that it drowns in noise."""
SERVICE_HOURS = (750.0, 150.0)
"""Running hours between services: mean and standard deviation."""
SERVICE_PATIENCE_HOURS = 240.0
"""How long a due service waits for a planned stop before it is done at any time."""
_PREVENTED = {Mode.BEARING: 1.53, Mode.SEAL: 1.72, Mode.LUBRICATION: 2.0, Mode.WINDING: 1.11, Mode.CONTROL: 1.03}
"""Wear per calendar hour over the plant, less what services renew: keeps the failure rate at what the settings say."""


@dataclass(slots=True)
class Degradation:
    """A signature that began: what it came to is hidden from any forecaster. Steps count from the start."""

    mode: Mode
    onset: int | None
    """Step at which it began to show; None for a sudden failure."""
    visible: int | None
    """Step at which its clearest point left the noise; None when it never did."""
    end: int
    outcome: str
    """failure, maintenance, or running: not yet ended."""
    amplitude: float


@dataclass(slots=True)
class Life:
    """What one asset went through, by step."""

    up: Flags
    """It runs: planned to and not under repair."""
    dark: Flags
    """Powered down for repair: nothing is read."""
    severity: dict[Mode, Floats]
    """Progress of each degradation from 0 (none) to 1 (failure)."""
    amplitude: dict[Mode, Floats]
    degradations: list[Degradation] = field(default_factory=list)
    events: list[tuple[int, str, str]] = field(default_factory=list)
    """Maintenance and failures: step, kind, code."""


@dataclass(slots=True)
class _Clock:
    """Wear of one component since it was renewed."""

    since: float
    life: float
    lead: float
    amplitude: float
    onset: int | None = None
    visible: int | None = None


@dataclass(slots=True)
class _Service:
    """The next service, drawn when the last one ended."""

    since: float
    hours: float
    waits: bool
    delay_hours: float
    length_hours: float


class AssetLife:
    """Simulates the life of one asset.

    planned: whether the plan lets it run, by step. load: share of full load, by step. hours: length of a step.
    mean_days: calendar days between failures of an average asset. rng: this asset's own stream.
    """

    def __init__(
        self,
        *,
        kind: Kind,
        planned: Flags,
        load: Floats,
        ambient: Floats,
        hours: float,
        mean_days: float,
        rng: np.random.Generator,
    ) -> None:
        self._kind = kind
        self._planned = planned
        self._hours = hours
        self._mean_days = mean_days
        self._rng = rng
        self._steps = len(planned)
        self._wear = {
            mode: np.concatenate([[0.0], np.cumsum(rate * hours)])
            for mode, rate in _wear_rates(kind, planned, load, ambient).items()
        }
        self._ran = np.concatenate([[0.0], np.cumsum(planned * hours)])
        self._stops = np.flatnonzero(~planned)
        self._life = Life(
            up=planned.copy(),
            dark=np.zeros(self._steps, dtype=bool),
            severity={mode: np.zeros(self._steps) for mode in kind.modes},
            amplitude={mode: np.ones(self._steps) for mode in kind.modes},
        )

    def run(self) -> Life:
        """The whole life; to be called once."""
        clocks = {mode: self._renewed(mode, 0.0, worn=True) for mode in self._kind.modes}
        service = self._next_service(0.0)
        service.since -= self._rng.uniform(0.0, 0.9) * service.hours
        step = 0
        while step < self._steps:
            failing, fails_at = self._next_failure(clocks)
            served_at = max(self._service_step(service), step)
            end = min(fails_at + 1 if fails_at <= served_at else served_at, self._steps)
            for mode, clock in clocks.items():
                self._trace(mode, clock, step, end)
            if end == self._steps and min(fails_at, served_at) >= self._steps:
                break
            if fails_at <= served_at:
                resumes = self._fail(failing, clocks, fails_at)
            else:
                resumes = self._serve(clocks, service, served_at)
                service = self._next_service(self._ran[min(resumes, self._steps)])
            step = resumes
        for mode, clock in clocks.items():
            self._close(mode, clock, self._steps, "running")
        return self._life

    def _renewed(self, mode: Mode, since: float, *, worn: bool = False) -> _Clock:
        """A component as good as new, or, where the plant has run before, worn as one met at any moment is: the life it
        is met in is longer than most (size-biased Weibull), and any part of it may be over."""
        signature = SIGNATURES[mode]
        share = signature.share / sum(SIGNATURES[m].share for m in self._kind.modes)
        mean = self._mean_days * 24.0 / share / _PREVENTED[mode]
        lead = self._rng.uniform(*signature.lead) if signature.lead[1] else 0.0
        scale, shape = mean / gamma(1.0 + 1.0 / signature.shape), signature.shape
        life = scale * (self._rng.gamma(1.0 + 1.0 / shape) ** (1.0 / shape) if worn else self._rng.weibull(shape))
        life = max(life, 1.2 * lead + 24.0)
        since -= self._rng.uniform() * life if worn else 0.0
        if not lead:
            return _Clock(since=since, life=life, lead=0.0, amplitude=0.0)
        amplitude = float(np.clip(self._rng.lognormal(0.0, 0.2), 0.6, 1.6))
        if self._rng.random() < FAINT_SHARE:
            amplitude *= 0.15
        return _Clock(since=since, life=life, lead=lead, amplitude=amplitude)

    def _next_service(self, since: float) -> _Service:
        return _Service(
            since=since,
            hours=max(200.0, self._rng.normal(*SERVICE_HOURS)),
            waits=self._rng.random() < 0.7,
            delay_hours=self._rng.uniform(12.0, 160.0),
            length_hours=self._rng.uniform(2.0, 6.0),
        )

    def _service_step(self, service: _Service) -> int:
        """Step of the next service; at or beyond the end when it is not reached."""
        due = int(np.searchsorted(self._ran, service.since + service.hours))
        if service.waits:
            stop = int(np.searchsorted(self._stops, due))
            patience = due + self._in_steps(SERVICE_PATIENCE_HOURS)
            return min(int(self._stops[stop]), patience) if stop < len(self._stops) else patience
        return due + self._in_steps(service.delay_hours)

    def _next_failure(self, clocks: Mapping[Mode, _Clock]) -> tuple[Mode, int]:
        """The component that wears through first, and the step during which it does."""
        first, at = self._kind.modes[0], self._steps
        for mode, clock in clocks.items():
            step = int(np.searchsorted(self._wear[mode], clock.since + clock.life)) - 1
            if step < at:
                first, at = mode, step
        return first, at

    def _trace(self, mode: Mode, clock: _Clock, start: int, end: int) -> None:
        """Writes the progress of a degradation over [start, end)."""
        if not clock.lead or end <= start:
            return
        wear = self._wear[mode]
        begins = int(np.searchsorted(wear[1:], clock.since + clock.life - clock.lead, side="right"))
        begins = max(begins, start)
        if begins >= end:
            return
        progress = 1.0 - (clock.since + clock.life - wear[begins + 1 : end + 1]) / clock.lead
        progress = np.clip(progress, 0.0, 1.0)
        self._life.severity[mode][begins:end] = progress
        self._life.amplitude[mode][begins:end] = clock.amplitude
        if clock.onset is None:
            clock.onset = begins
        if clock.visible is None:
            seen = np.flatnonzero(progress >= self._visible_progress(mode, clock.amplitude))
            clock.visible = begins + int(seen[0]) if len(seen) else None

    def _visible_progress(self, mode: Mode, amplitude: float) -> float:
        """Progress from which the clearest effect stands one noise deviation above nothing."""
        strongest = max(self._clearness(mode), default=0.0) * amplitude
        return float((1.0 / strongest) ** (1.0 / SIGNATURES[mode].growth)) if strongest > 1.0 else np.inf

    def _clearness(self, mode: Mode) -> list[float]:
        effects = SIGNATURES[mode].effects
        return [
            abs(effect) / MEASURED[point].noise for point, effect in effects.items() if point in self._kind.responses
        ]

    def _fail(self, mode: Mode, clocks: dict[Mode, _Clock], at: int) -> int:
        self._life.events += [(at, "failure", mode.value), (at, "maintenance", mode.value)]
        self._close(mode, clocks[mode], at, "failure")
        resumes = self._stop(
            clocks, at + 1, self._rng.uniform(*SIGNATURES[mode].downtime), dark=self._rng.random() < 0.6
        )
        clocks[mode] = self._renewed(mode, self._wear[mode][min(resumes, self._steps)])
        return resumes

    def _serve(self, clocks: dict[Mode, _Clock], service: _Service, at: int) -> int:
        """A service: oil always, and sometimes parts that are due or look worn, degrading ones more readily."""
        renewed = []
        for mode, clock in clocks.items():
            if mode is Mode.CONTROL:
                continue
            worn = self._life.severity[mode][at - 1] if at else 0.0
            chance = {Mode.LUBRICATION: 0.5, Mode.SEAL: 0.25, Mode.BEARING: 0.15, Mode.WINDING: 0.03}[mode]
            if self._rng.random() < chance + 0.3 * worn:
                renewed.append(mode)
                self._close(mode, clock, at, "maintenance")
        codes = [mode.value for mode in renewed] or ["inspection"]
        self._life.events += [(at, "maintenance", code) for code in codes]
        resumes = self._stop(clocks, at, service.length_hours, dark=False)
        for mode in renewed:
            clocks[mode] = self._renewed(mode, self._wear[mode][min(resumes, self._steps)])
        return resumes

    def _stop(self, clocks: Mapping[Mode, _Clock], at: int, hours: float, *, dark: bool) -> int:
        """Stands still for so long; the wear that the plan would have brought does not count. Step of the restart."""
        resumes = at + max(1, self._in_steps(hours))
        start, end = min(at, self._steps), min(resumes, self._steps)
        self._life.up[start:end] = False
        self._life.dark[start:end] = dark
        for mode, clock in clocks.items():
            clock.since += self._wear[mode][end] - self._wear[mode][start]
            if clock.onset is not None and start < end:  # what is worn stays worn while it stands
                self._life.severity[mode][start:end] = self._life.severity[mode][max(start - 1, 0)]
        return resumes

    def _close(self, mode: Mode, clock: _Clock, at: int, outcome: str) -> None:
        if clock.onset is None and outcome != "failure":
            return
        self._life.degradations.append(
            Degradation(mode, clock.onset, clock.visible, min(at, self._steps), outcome, clock.amplitude)
        )

    def _in_steps(self, hours: float) -> int:
        return round(hours / self._hours)


def _wear_rates(kind: Kind, planned: Flags, load: Floats, ambient: Floats) -> dict[Mode, Floats]:
    """Hours of wear per hour. A control board ages by the calendar, all else by use."""
    rates = {
        Mode.BEARING: planned * (0.45 + load**2),
        Mode.SEAL: planned * (0.5 + 0.7 * load),
        Mode.LUBRICATION: planned * (0.6 + 0.4 * load + 0.008 * np.maximum(ambient, 0.0)),
        Mode.WINDING: planned * (0.4 + load**2 + 0.01 * np.maximum(ambient, 0.0)),
        Mode.CONTROL: np.ones(len(planned)),
    }
    return {mode: rates[mode] for mode in kind.modes}
