"""The vocabulary: what a plant has, what is read from it, what is forecast, what is raised.

Frozen values without behaviour beyond their own arithmetic. Times in the decisions are aware `datetime`s in UTC;
bulk sensor data carries microseconds since the epoch (the store's resolution), because millions of `datetime`
objects would cost more than the rest of the pipeline.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

HORIZON = timedelta(hours=72)
HORIZON_HOURS = 72
REPORTED_HOURS = (24, 48, 72)
"""The horizons at which probabilities are reported and scored."""

EARLIEST = datetime(1678, 1, 1, tzinfo=UTC)
LATEST = datetime(2261, 1, 1, tzinfo=UTC)
"""All time, as far as every store can tell it (InfluxDB counts nanoseconds in 64 bits)."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_INTERVAL = re.compile(r"(\d+)([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def to_us(time: datetime) -> int:
    """Microseconds since the epoch of an aware datetime, exact (no float on the way)."""
    return (time - _EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """The aware UTC datetime of so many microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=us)


def parse_interval(text: str) -> timedelta:
    """`"10m"`, `"1h"`, `"1d"` as a timedelta. Raises ValueError on anything else."""
    match = _INTERVAL.fullmatch(text)
    if not match or int(match[1]) == 0:
        raise ValueError(f"interval {text!r} is not a number and a unit; write it as 10m, 1h or 1d")
    return timedelta(seconds=int(match[1]) * _UNIT_SECONDS[match[2]])


class EventKind(StrEnum):
    """What an event of an asset is."""

    ERROR = "error"
    MAINTENANCE = "maintenance"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Point:
    """A measurement point, by its name the same on every asset that has it."""

    name: str
    unit: str = ""
    low: float | None = None
    """Readings under this are out of range (in `unit`)."""
    high: float | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class FailureMode:
    """One way in which assets fail; `code` is what failure events carry."""

    code: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Asset:
    """One machine of the plant."""

    name: str
    model: str
    static: Mapping[str, float | int | str] = field(default_factory=dict)
    """What does not change while it runs (age at the start, capacity, site), by column."""


class Reading(NamedTuple):
    """What one asset's points read at one time: a wide row. A point that was not read is absent, never NaN.

    A tuple, as thousands are made a second.
    """

    asset: str
    time_us: int
    values: Mapping[str, float]


class Quality(StrEnum):
    """What a source says of a value that it sends."""

    GOOD = "good"
    UNCERTAIN = "uncertain"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A value of which its source says that it is uncertain (it is a reading all the same) or bad (it is none)."""

    asset: str
    time_us: int
    point: str
    value: str
    """As it came, since a bad value need not be a number."""
    quality: Quality


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an asset at a time, known from then on and not before."""

    asset: str
    time_us: int
    kind: EventKind
    code: str


@dataclass(frozen=True, slots=True)
class Silence:
    """An asset whose source has said that it can say nothing of it now (a device's death, a lost connection)."""

    asset: str
    since_us: int | None
    """None where it is heard again."""
    because: str


@dataclass(frozen=True)
class History:
    """Readings and events of some assets over some time, columnar: what training and forecasting take.

    readings: columns `time` (datetime64[us, UTC]), `asset` (str), one float column per point (NaN where not read);
        one row per asset and time, sorted by asset, then time.
    events: columns `time` (datetime64[us, UTC]), `asset`, `kind`, `code` (all str); sorted by time, asset, kind, code.
    """

    interval: timedelta
    points: tuple[Point, ...]
    failure_modes: tuple[FailureMode, ...]
    assets: tuple[Asset, ...]
    readings: pd.DataFrame
    events: pd.DataFrame

    def known_at(self, at: datetime) -> History:
        """What of it is dated up to `at`."""
        readings, events = self.readings, self.events
        return replace(
            self,
            readings=readings[(readings["time"] <= at).to_numpy()].reset_index(drop=True),
            events=events[(events["time"] <= at).to_numpy()].reset_index(drop=True),
        )

    def only(self, names: Collection[str]) -> History:
        """The history of these assets alone; itself when they are all of them."""
        wanted = set(names)
        kept = tuple(asset for asset in self.assets if asset.name in wanted)
        if len(kept) == len(self.assets):
            return self
        readings, events = self.readings, self.events
        return replace(
            self,
            assets=kept,
            readings=readings[readings["asset"].isin(wanted)].reset_index(drop=True),
            events=events[events["asset"].isin(wanted)].reset_index(drop=True),
        )


@dataclass(frozen=True)
class Recording:
    """A named history with its origin: the folder of `docs/recordings.md` in memory."""

    name: str
    interval_text: str
    about: str
    source: str
    licence: str
    history: History


class Abstention(StrEnum):
    """Why a forecast carries no probability."""

    STALE = "stale"
    OFF = "off"
    UNSEEN_CONDITION = "unseen condition"
    """The inputs are of another kind than those that the model was trained on; `Forecast.because` says which."""
    TOO_LITTLE_HISTORY = "too little history"


@dataclass(frozen=True, slots=True)
class Reason:
    """How much one input adds to the log of the cumulative hazard over the horizon, against the fleet's average."""

    feature: str
    contribution: float


@dataclass(frozen=True, slots=True)
class Precedent:
    """A failure in the history that a model learned from, before which things looked as they do now."""

    asset: str
    failed_at: datetime
    failure_mode: str
    hours_left: float
    """From the moment that looks alike to the failure."""
    likeness: float
    """Cosine of the two moments' embeddings: 1 for the same, 0 for nothing in common."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a forecast is what it is; empty where there was nothing to go by."""

    reasons: Sequence[Reason] = ()
    """The strongest inputs, strongest first."""
    rest: float = 0.0
    """What all other inputs add."""
    change: float | None = None
    """Log of the cumulative hazard over the horizon less the fleet's average; None where it was not worked out."""
    average: float | None = None
    """Probability of failing within the horizon that the model gives the fleet's average inputs."""
    began: datetime | None = None
    """Since when the forecast has left its early level; None where it has not."""
    earlier: bool = False
    """Whether it may have begun before `began`, as far back as was looked."""
    precedents: Sequence[Precedent] = ()
    """The most alike, the most alike first."""

    @property
    def residual(self) -> float:
        """What the contributions leave of the change unexplained: rounding, unless something is wrong."""
        told = sum(reason.contribution for reason in self.reasons) + self.rest
        return 0.0 if self.change is None else self.change - told


@dataclass(frozen=True, slots=True)
class Forecast:
    """The probability that an asset fails within the next hours, as known at `time`.

    Where `abstained` is set every number is None (never 0): an unknown is a value of its own.
    """

    asset: str
    time: datetime
    model: str
    """Version and hash of the forecaster that issued it."""
    abstained: Abstention | None = None
    step_hours: float = 1.0
    hazard: tuple[float, ...] = ()
    """Probability of failing in each step given survival until then; `HORIZON_HOURS / step_hours` values."""
    mode_probability: Mapping[str, float] = field(default_factory=dict)
    """Cumulative incidence within the horizon, by failure mode; sums to the probability at the horizon."""
    rul_hours: float | None = None
    """Expected remaining life in hours, capped as the model says."""
    because: str = ""
    """What is strange, where it abstains from that: the points and what they read; that all of them are stuck."""

    def probability(self, hours: float = HORIZON_HOURS) -> float | None:
        """P(failure within `hours` after `time`); None when abstained. `hours` is rounded down to whole steps."""
        if self.abstained is not None:
            return None
        survival = 1.0
        for hazard in self.hazard[: int(hours / self.step_hours + 1e-9)]:
            survival *= 1.0 - hazard
        return 1.0 - survival

    def leading_mode(self) -> str | None:
        """The failure mode with the highest probability, or None when there is none."""
        return max(self.mode_probability, key=self.mode_probability.__getitem__, default=None)


class AlertState(StrEnum):
    """ISA-18.2 states of an alert."""

    UNACKNOWLEDGED = "unacknowledged"
    ACKNOWLEDGED = "acknowledged"
    RETURNED_UNACKNOWLEDGED = "returned-unacknowledged"
    SHELVED = "shelved"
    SUPPRESSED = "suppressed"
    OUT_OF_SERVICE = "out-of-service"
    CLOSED = "closed"


class Cause(StrEnum):
    """What moves an alert from one state to another; `pm.alerts` says which of them each state allows."""

    ACKNOWLEDGE = "acknowledge"
    """A person has seen it."""
    CLEAR = "clear"
    """The forecast has returned to normal."""
    RAISE_AGAIN = "raise again"
    """The forecast has left normal again before the alert was closed."""
    SHELVE = "shelve"
    """A person puts it aside until a stated time."""
    UNSHELVE = "unshelve"
    SUPPRESS = "suppress"
    """The plant's logic hides it (its cause is known, its asset is being repaired)."""
    UNSUPPRESS = "unsuppress"
    OUT_OF_SERVICE = "out of service"
    """A person takes alerting of this asset out of service, for maintenance of the alerting itself."""
    IN_SERVICE = "in service"
    CLOSE = "close"
    """It is over, for the reason given: the asset failed, was maintained, or a person says so."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A warning that an asset is likely to fail within the horizon, and what became of it."""

    id: str
    asset: str
    failure_mode: str
    raised_at: datetime
    state: AlertState
    cause: str
    """What moved the forecast, in words."""
    probability_at_raise: float
    model: str
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    cleared_at: datetime | None = None
    closed_at: datetime | None = None
    closed_because: str | None = None
    shelved_until: datetime | None = None
    reasons: Sequence[Reason] = ()
    explanation: Explanation | None = None
    """What there is beside the reasons, which are its own."""
