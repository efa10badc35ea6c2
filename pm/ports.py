"""What the edges must do: stores of readings, feeds of readings, forecasters, clocks, ways to tell people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pm.domain import (
    Alert,
    Asset,
    Cause,
    Doubtful,
    Event,
    Explanation,
    FailureMode,
    Forecast,
    History,
    Point,
    Reading,
    Silence,
)

if TYPE_CHECKING:
    import pandas as pd


class ReadingStore(Protocol):
    """Readings and events on durable ground. `tests/store_contract.py` is the suite that every store passes.

    Writing is idempotent: the same reading twice is one row; a later partial row of the same asset and time adds its
    points and keeps the others. A call that returns has made its data durable; a call that raises may be repeated.
    Where two different values arrive for one asset, point and time, the greater is kept as the reading and the other in
    `conflicts`, so that no order of arrival changes what is stored.
    Raises `StoreUnavailable` when trying again can help, `RowsRefused` when all but the rows it names are durable,
    `StoreError` when nothing can help.
    """

    def write(self, readings: Sequence[Reading], events: Sequence[Event] = ()) -> None:
        """Store a batch; durable when it returns."""

    def write_history(self, readings: pd.DataFrame, events: pd.DataFrame) -> None:
        """Store columnar history (the frames of `History`); all of it or none of it where the store can."""

    def readings(
        self, start: datetime, end: datetime, assets: Sequence[str] | None = None, points: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Readings with start < time <= end as `History.readings` lays out; every known point when none is named."""

    def events(self, start: datetime, end: datetime, assets: Sequence[str] | None = None) -> pd.DataFrame:
        """Events with start < time <= end as `History.events` lays out."""

    def downsampled(
        self,
        start: datetime,
        end: datetime,
        step: timedelta,
        assets: Sequence[str] | None = None,
        points: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Readings with start < time <= end in stretches of `step`, for long views: what lies in each, not every one.

        A stretch ends at a whole multiple of `step` since 1970, its end inside. Columns `time` (that end,
        datetime64[us, UTC]), `asset`, `point` (str), `lowest`, `mean`, `highest` (float64) and `count` (int64, of the
        readings); one row per asset, point and stretch in which anything was read, sorted by asset, point and time.
        Raises ValueError where `step` is not at least a millisecond, in whole milliseconds.
        """

    def points(self) -> tuple[str, ...]:
        """Names of every point stored, in the order first seen."""

    def span(self) -> Mapping[str, tuple[datetime, datetime]]:
        """First and last reading time of every asset."""

    def counts(self) -> Mapping[str, int]:
        """`{"readings": rows, "events": rows}`, for reports and doctors."""

    def conflicts(self) -> pd.DataFrame:
        """Values that came beside a greater one of their asset, point and time: columns `time`, `asset`, `point`,
        `value`, sorted in that order."""

    def delete_assets(self, assets: Sequence[str]) -> None:
        """Remove these assets' readings, events and conflicts (an import that failed half-way takes itself back)."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Reject:
    """A message that no parser could read, kept with its reason: a dead letter."""

    topic: str
    payload: bytes
    reason: str
    received_us: int
    feed: str = ""
    """Name of the feed that brought it; ingest says it."""


class Delivery(NamedTuple):
    """What one message of a feed brought. Exactly one of the four is filled, or none for a message to pass over.

    A tuple, as thousands are made a second.
    """

    receipt: object
    """Handed back to `Feed.acknowledge`; its form is the feed's own."""
    readings: tuple[Reading, ...] = ()
    events: tuple[Event, ...] = ()
    rejects: tuple[Reject, ...] = ()
    clock_us: int | None = None
    """Plant time that the publisher says is complete: every reading and event up to it has been published."""
    topic: str = ""
    payload: bytes = b""
    received_us: int = 0
    """Where it came from, what it said and when: kept until it is stored, for a dead letter if the store refuses it."""
    doubtful: tuple[Doubtful, ...] = ()
    """Values whose source says that they are uncertain or bad."""
    tags: tuple[tuple[str, str], ...] = ()
    """What the topic says of the asset beside its name (site, line), sorted."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """One connection of a feed, as metrics and pages show it. Counts are since the start."""

    name: str
    connected: bool
    protocol: str
    """What is spoken on it ("MQTT 5"), or empty before the first connection."""
    waiting: int
    """Messages received and not yet taken."""
    messages: int
    """Messages received, those that came again included."""
    connections: int
    dropped: int
    """Messages of which nothing is promised (QoS 0) that found no room."""
    silent: bool
    """Connected, and without any message for longer than configured."""
    silences: int
    """How often it has fallen silent."""


class Feed(Protocol):
    """A source of readings that waits for an acknowledgement: MQTT now, OPC UA later. How to add one: docs/feeds.md.

    A feed bounds its own memory. What its source sends beyond that is left waiting there where the source can wait, and
    else dropped and counted. `take` and `acknowledge` are called by one thread; the properties may be read by any.
    """

    @property
    def name(self) -> str:
        """What people know the source by, in logs, metrics and data alerts; the same after a restart."""

    @property
    def connected(self) -> bool:
        """Whether the source can be heard now."""

    @property
    def waiting(self) -> int:
        """Messages received and not yet taken."""

    @property
    def dropped(self) -> int:
        """Messages that found no room and are lost, since the feed was opened; never any that waits for an
        acknowledgement."""

    @property
    def link(self) -> LinkState:
        """The connection now, with its counts."""

    def open(self) -> None:
        """Connect and subscribe. Raises `FeedError` where trying again cannot help."""

    def take(self, limit: int, timeout: float) -> list[Delivery]:
        """Up to `limit` deliveries, waiting at most `timeout` seconds for the first."""

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Tell the source that these are durable; it may forget them."""

    def close(self) -> None: ...


class DeadLetters(Protocol):
    """Where messages are kept that no parser could read or no store would take."""

    def add_dead_letters(self, rejects: Sequence[Reject]) -> None:
        """Keep these; durable when it returns. Raises a retryable `PmError` when it cannot now."""


class LateSink(Protocol):
    """Learns what was stored after an assessment that would have seen it."""

    def note(self, deliveries: Sequence[Delivery]) -> None:
        """Called when these are stored and before they are acknowledged; durable when it returns.

        Raises a retryable `PmError` when it cannot now.
        """


class DeliverySpool(Protocol):
    """Deliveries on durable ground while the store is away, in order. Used by one thread."""

    held: int
    """Deliveries that it holds."""
    bytes: int
    """What it takes on disk."""
    corrupt: int
    """Places in it that cannot be read any more."""

    def append(self, deliveries: Sequence[Delivery]) -> None:
        """Keep these behind all that is held; durable when it returns. Raises a retryable `PmError` when it is full."""

    def peek(self, limit: int) -> list[Delivery]:
        """Up to `limit` of the oldest; none only where nothing is held."""

    def drop(self, count: int) -> None:
        """Forget the `count` oldest, which `peek` gave."""


class IngestObserver(Protocol):
    """Looks on at what ingest stores: metrics, a live table. Called by ingest's thread once a batch, so it is quick."""

    def stored(self, batch: Sequence[Delivery], rejects: Sequence[Reject], seconds: float) -> None:
        """This batch is durable, these messages of it as dead letters; storing took so long."""


class AssetSink(Protocol):
    """Learns of assets from their first message."""

    def ensure_assets(self, names: Sequence[str]) -> None:
        """Make these assets known; those known already stay as they are."""


class SourceRegister(Protocol):
    """Learns what sources say of assets and points beside their readings."""

    def note_source(self, silences: Sequence[Silence], points: Sequence[Point]) -> None:
        """Keep who is silent since when (or heard again), and the units of points that nobody described."""


class Publisher(Protocol):
    """Sends messages to the feed's other end: recordings played, simulated plants."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Send one message, at least once; waits while too many are unconfirmed. Raises `FeedUnavailable`."""

    def flush(self, timeout: float = 60.0) -> None:
        """Return when every message is confirmed. Raises `FeedUnavailable` after `timeout` seconds."""


class Forecaster(Protocol):
    """A trained model with everything it needs to forecast."""

    @property
    def version(self) -> str:
        """Version and hash, as forecasts and alerts carry it."""

    @property
    def lookback(self) -> timedelta:
        """How far back readings matter; events matter from the beginning."""

    @property
    def thresholds(self) -> Mapping[float, float]:
        """Alert threshold on the 72 h probability, by alert budget (false alerts per asset-month)."""

    def forecast(self, history: History, at: datetime) -> list[Forecast]:
        """One forecast per asset of `history.assets`, from nothing dated after `at`."""

    def explain(self, history: History, at: datetime, asset: str, limit: int = 5) -> Explanation:
        """Why this asset's forecast is what it is, the strongest `limit` inputs by name."""


class Clock(Protocol):
    """Plant time. The wall clock in a plant; the feed's own in a replay or a sped-up simulation."""

    def now(self) -> datetime | None:
        """The latest plant time that is complete, or None when nothing has been heard yet."""


class Notifier(Protocol):
    """A way to tell the outside about alerts, forecasts and the service's state. Never raises; logs its failures."""

    def alert(self, alert: Alert) -> None: ...

    def forecasts(self, forecasts: Sequence[Forecast]) -> None: ...


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What the alert policy remembers of one asset between two assessments."""

    above: int = 0
    """Assessments in a row at or above the threshold."""
    below: int = 0
    """Assessments in a row below the cleared level, while raised."""
    standing: bool = False
    """Raised and not yet cleared, whatever a person did with the alert meanwhile."""
    renewed_us: int | None = None
    """The latest maintenance or failure that the policy has heeded, or None."""


@dataclass(frozen=True, slots=True)
class AlertChange:
    """A step that an assessment takes with an alert that is open already."""

    alert: str
    """Id of the alert."""
    cause: Cause
    because: str | None = None
    """Why, for `Cause.CLOSE`: "failed (bearing)"."""


class AssessmentLog(Protocol):
    """Where an assessment leaves what it found, and finds what the one before left.

    The records in a plant, memory in a replay.
    """

    def policy_state(self) -> Mapping[str, PolicyState]:
        """The policy's memory by asset; an asset never assessed is absent."""

    def standing_alerts(self) -> Mapping[str, Alert]:
        """The alert of each asset that is not closed (the newest, should there be two)."""

    def last_assessment(self) -> datetime | None:
        """Plant time of the latest assessment recorded."""

    def record(
        self,
        at: datetime,
        *,
        forecasts: Sequence[Forecast],
        raised: Sequence[Alert],
        changes: Sequence[AlertChange],
        policy: Mapping[str, PolicyState],
    ) -> tuple[Alert, ...]:
        """Keep one assessment, all of it or none. Changes are made first, in order, then `raised` are added.

        A change applies `pm.alerts.transition` to the alert as it is by then, which may not be as the assessment read
        it: a person may have acknowledged it meanwhile. A step its state no longer allows is passed over.
        Returns the alerts changed and raised, as they stand afterwards. An assessment already recorded at `at` is
        left as it is, and () is returned.
        """


class AssetRegister(Protocol):
    """What is known of assets beyond their readings."""

    def assets(self) -> tuple[Asset, ...]: ...

    def points(self) -> tuple[Point, ...]: ...

    def failure_modes(self) -> tuple[FailureMode, ...]: ...

    def silences(self) -> Mapping[str, Silence]:
        """Assets whose source has said that it is silent, by name."""
