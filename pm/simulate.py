"""A simulated plant: readings, events, and the hidden truth of what was degrading.

Same settings, same plant; more days, the same first days. See docs/simulated-plant.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pm import plant_frames as frames
from pm.domain import Asset, Event, EventKind, History, Reading, Recording, from_us, to_us
from pm.errors import PmError
from pm.plant import FAILURE_MODES, KINDS, POINTS, Kind
from pm.plant_feed import Feed, feed
from pm.plant_life import AssetLife, Life
from pm.plant_signals import Weather, built, load_share, planned_running, readings
from pm.plant_streams import Streams

LEADS = (1, 6, 24, 48, 72)
"""Hours of lead at which the ceiling is told, as the scorecard tells recall."""
_HOUR = timedelta(hours=1)
_LINES = 4
_UNDER_WAY = ["asset", "failure_mode", "onset", "end"]


class SettingsError(PmError):
    """A plant cannot be simulated with these settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantSettings:
    """What plant to simulate."""

    assets: int = 40
    """Number of assets; the five kinds take turns."""
    start: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    """Time of the first reading, with a zone."""
    days: float = 120
    """How long. A longer simulation begins with the shorter one."""
    interval: timedelta = timedelta(hours=1)
    """Between readings: one minute to one day, and a day must hold it a whole number of times."""
    seed: int = 0
    """Not negative. Same seed, same plant."""
    mtbf_days: float = 48.0
    """Mean calendar days between failures of one asset, maintenance as it is."""
    name: str = "simulated-plant"
    """Name of the recording."""

    def __post_init__(self) -> None:
        day = timedelta(days=1)
        wrong = [
            message
            for broken, message in (
                (self.assets < 1, f"assets = {self.assets}: at least 1"),
                (self.start.tzinfo is None, f"start = {self.start}: give it a time zone"),
                (not self.days > 0, f"days = {self.days}: more than 0"),
                (
                    not timedelta(minutes=1) <= self.interval <= day or day % self.interval != timedelta(0),
                    f"interval = {self.interval}: a whole part of a day, from one minute up",
                ),
                (self.seed < 0, f"seed = {self.seed}: 0 or more"),
                (not self.mtbf_days >= 5, f"mtbf_days = {self.mtbf_days}: 5 or more"),
            )
            if broken
        ]
        if wrong:
            raise SettingsError("simulated plant: " + "; ".join(wrong))

    @property
    def steps(self) -> int:
        """Number of readings of an asset that never stops."""
        return max(1, int(timedelta(days=self.days) / self.interval))


@dataclass(frozen=True)
class SimulatedPlant:
    """A plant as its readers see it, and what only its maker knows."""

    recording: Recording
    truth: pd.DataFrame
    """One row per failure, by time: `asset`, `failure_mode`, `onset` (UTC; when its signature began, at the earliest
    the first reading; NaT for a sudden failure), `visible` (when its clearest point left that point's noise; NaT when
    it never did), `failure` (UTC), `lead_hours` (failure - onset; 0 for a sudden one), `amplitude` (of the signature:
    1 is usual, 0 none)."""
    averted: pd.DataFrame
    """Degradations that did not end in a failure here, by onset: `asset`, `failure_mode`, `onset`, `visible`, `end`,
    `outcome` (maintenance: renewed before it failed; running: not over at the end of the recording), `amplitude`."""
    arrivals: pd.DataFrame
    """Row by row with `recording.history.readings`: `published` (when the row is sent, at least its time) and
    `doubled` (when it is sent once more; NaT for never)."""

    def degrading(self, at: datetime) -> Mapping[str, tuple[str, ...]]:
        """Assets with degradations under way at a time (onset <= at <= end), each with their failure modes, sorted."""
        when = pd.Timestamp(at)
        every = pd.concat([self.truth.rename(columns={"failure": "end"})[_UNDER_WAY], self.averted[_UNDER_WAY]])
        now = every[(every["onset"] <= when) & (every["end"] >= when)]
        return {str(asset): tuple(sorted(set(modes))) for asset, modes in now.groupby("asset")["failure_mode"]}


def simulate(settings: PlantSettings) -> SimulatedPlant:
    """Simulate a plant. Deterministic; raises nothing that the settings let through."""
    steps, hours = settings.steps, settings.interval / _HOUR
    weather = Weather.of(settings.start, steps, settings.interval, Streams(settings.seed).of("weather"))
    assets: list[Asset] = []
    lives: list[Life] = []
    feeds: list[Feed] = []
    for number, kind in enumerate(KINDS[: settings.assets]):
        group = _group(settings, kind, range(number, settings.assets, len(KINDS)), weather)
        assets += group[0]
        lives += group[1]
        feeds += group[2]
    order = sorted(range(len(assets)), key=lambda i: assets[i].name)
    assets, lives, feeds = ([column[i] for i in order] for column in (assets, lives, feeds))  # type: ignore[assignment]
    times = pd.date_range(settings.start.astimezone(UTC), periods=steps, freq=settings.interval, unit="us")
    frame, arrivals = frames.readings(assets, feeds, times)
    history = History(
        interval=settings.interval,
        points=POINTS,
        failure_modes=FAILURE_MODES,
        assets=tuple(assets),
        readings=frame,
        events=frames.events(assets, lives, times, hours, Streams(settings.seed)),
    )
    recording = Recording(
        name=settings.name,
        interval_text=_interval_text(settings.interval),
        about=f"simulated plant: {settings.assets} assets, {settings.days:g} days, seed {settings.seed}",
        source="pm simulate",
        licence="CC0-1.0",
        history=history,
    )
    truth, averted = frames.truth(assets, lives, times, hours)
    return SimulatedPlant(recording, truth, averted, arrivals)


def ceiling(truth: pd.DataFrame, leads: tuple[int, ...] = LEADS) -> dict[str, float]:
    """Share of failures whose signature begins at least so many hours before: `{"24h": 0.67}`. No forecaster that goes
    by the signs can warn of more. An empty truth has a ceiling of 0."""
    return {f"{lead}h": float((truth["lead_hours"] >= lead).mean()) if len(truth) else 0.0 for lead in leads}


def write_truth(plant: SimulatedPlant, path: Path) -> None:
    """Failures and averted degradations as one CSV, by their end.

    Columns asset, failure_mode, onset, visible, end, outcome (failure, maintenance, running), lead_hours, amplitude;
    times in UTC; empty where there is none. Replaces `path` at once or not at all.
    """
    failures = plant.truth.rename(columns={"failure": "end"}).assign(outcome="failure")
    columns = ["asset", "failure_mode", "onset", "visible", "end", "outcome", "lead_hours", "amplitude"]
    rows = [row for frame in (failures, plant.averted) for row in frame.reindex(columns=columns).to_dict("records")]
    table = pd.DataFrame(rows, columns=columns).sort_values(["end", "asset"], kind="stable")
    for column in ("onset", "visible", "end"):
        table[column] = pd.to_datetime(table[column], utc=True).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    half = path.with_name(path.name + ".part")
    table.to_csv(half, index=False, float_format="%.3f", lineterminator="\n")
    half.replace(path)


def deliveries(
    plant: SimulatedPlant, start: datetime, end: datetime
) -> Iterator[tuple[datetime, list[Reading], list[Event]]]:
    """The plant as it is heard: for each step T with start < T <= end, what is published by T and not earlier.

    Late rows come late, doubled ones twice, rows that a gateway kept come in a heap; nothing comes before its time.
    What is published after `end` comes with a later call that goes on from there. Empty steps are yielded too.
    """
    history = plant.recording.history
    if history.readings.empty:
        return
    step = history.interval // timedelta(microseconds=1)
    first, last = to_us(start), to_us(end)
    origin = int(frames.microseconds(history.readings["time"]).min())
    rows, row_steps = _publications(plant, origin, step)
    events = history.events
    event_steps = origin + -(-(frames.microseconds(events["time"]) - origin) // step) * step
    values = history.readings[[point.name for point in history.points]].to_numpy()
    names = np.array([point.name for point in history.points])
    assets, times = history.readings["asset"].to_numpy(), frames.microseconds(history.readings["time"])
    for at in range(origin + ((first - origin) // step + 1) * step, last + 1, step):
        sent = rows[slice(*np.searchsorted(row_steps, [at, at + 1]))]
        happened = events.iloc[slice(*np.searchsorted(event_steps, [at, at + 1]))]
        yield (
            from_us(at),
            [
                Reading(
                    assets[row],
                    int(times[row]),
                    dict(zip(names[known].tolist(), values[row, known].tolist(), strict=True)),
                )
                for row, known in zip(sent, ~np.isnan(values[sent]), strict=True)
            ],
            [
                Event(asset, time, EventKind(kind), code)
                for time, asset, kind, code in zip(
                    frames.microseconds(happened["time"]).tolist(),
                    *(happened[column].tolist() for column in ("asset", "kind", "code")),
                    strict=True,
                )
            ],
        )


def _publications(plant: SimulatedPlant, origin: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows in the order of their publication, doubled ones twice, and the step (us) in which each is published."""
    doubled = np.flatnonzero(plant.arrivals["doubled"].notna())
    rows = np.concatenate([np.arange(len(plant.arrivals)), doubled])
    when = np.concatenate(
        [frames.microseconds(plant.arrivals["published"]), frames.microseconds(plant.arrivals["doubled"].iloc[doubled])]
    )
    order = np.lexsort((rows, when))
    return rows[order], origin + -(-(when[order] - origin) // step) * step


def _group(
    settings: PlantSettings, kind: Kind, numbers: range, weather: Weather
) -> tuple[list[Asset], list[Life], list[Feed]]:
    """The assets of one kind: who they are, what they go through, and how that is read."""
    hours = settings.interval / _HOUR
    assets, builds, lives, loads, streams = [], [], [], [], []
    for number in numbers:
        own = Streams(settings.seed).within("asset").within(number)
        rng = own.of("build")
        variant = int(rng.integers(len(kind.variants)))
        build = built(kind, variant, rng)
        shifts, weekend = ((3, True), (3, False), (2, False), (2, True))[rng.choice(4, p=(0.5, 0.2, 0.2, 0.1))]
        planned = planned_running(shifts, weekend, settings.start, settings.steps, settings.interval)
        load = load_share(planned, settings.interval, float(rng.uniform(0.6, 0.85)), own.within("load"))
        life = AssetLife(
            kind=kind,
            planned=planned,
            load=load,
            ambient=weather.outside + build.hall,
            hours=hours,
            mean_days=settings.mtbf_days,
            rng=own.of("life"),
        ).run()
        assets.append(
            Asset(
                f"{kind.name}-{number // len(KINDS) + 1:03d}",
                kind.variants[variant],
                {
                    "kind": kind.name,
                    "line": f"line-{int(rng.integers(_LINES)) + 1}",
                    "rated_kw": kind.rated_kw[variant],
                    "age_years": int(rng.integers(0, 16)),
                },
            )
        )
        builds.append(build)
        lives.append(life)
        loads.append(load)
        streams.append(own)
    true = readings(
        kind=kind,
        builds=builds,
        lives=lives,
        load=np.stack(loads, axis=1),
        weather=weather,
        interval=settings.interval,
        streams=streams,
    )
    feeds = [
        feed({name: values[:, i] for name, values in true.items()}, life, hours, own.within("feed"))
        for i, (life, own) in enumerate(zip(lives, streams, strict=True))
    ]
    return assets, lives, feeds


def _interval_text(interval: timedelta) -> str:
    seconds = int(interval.total_seconds())
    unit, length = next((u, n) for u, n in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)) if seconds % n == 0)
    return f"{seconds // length}{unit}"
