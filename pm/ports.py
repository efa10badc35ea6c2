"""What the edges must do: stores of readings, feeds of readings, forecasters, clocks, ways to tell people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from pm.domain import Alert, Asset, Event, Forecast, History, Reading, Reason

if TYPE_CHECKING:
    import pandas as pd


class ReadingStore(Protocol):
    """Readings and events on durable ground. `tests/store_contract.py` is the suite that every store passes.

    Writing is idempotent: the same reading twice is one row; a later partial row of the same asset and time adds its
    points and keeps the others. A call that returns has made its data durable; a call that raises may be repeated.
    Raises `StoreUnavailable` when trying again can help, `StoreError` when it cannot.
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

    def points(self) -> tuple[str, ...]:
        """Names of every point stored, in the order first seen."""

    def span(self) -> Mapping[str, tuple[datetime, datetime]]:
        """First and last reading time of every asset."""

    def counts(self) -> Mapping[str, int]:
        """`{"readings": rows, "events": rows}`, for reports and doctors."""

    def delete_assets(self, assets: Sequence[str]) -> None:
        """Remove these assets' readings and events (an import that failed half-way takes itself back)."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Reject:
    """A message that no parser could read, kept with its reason: a dead letter."""

    topic: str
    payload: bytes
    reason: str
    received_us: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one message of a feed brought. Exactly one of the four is filled, or none for a message to pass over."""

    receipt: object
    """Handed back to `Feed.acknowledge`; its form is the feed's own."""
    readings: tuple[Reading, ...] = ()
    events: tuple[Event, ...] = ()
    rejects: tuple[Reject, ...] = ()
    clock_us: int | None = None
    """Plant time that the publisher says is complete: every reading and event up to it has been published."""


class Feed(Protocol):
    """A source of readings that waits for an acknowledgement: MQTT now, OPC UA later."""

    def open(self) -> None:
        """Connect and subscribe. Raises `FeedError` where trying again cannot help."""

    def take(self, limit: int, timeout: float) -> list[Delivery]:
        """Up to `limit` deliveries, waiting at most `timeout` seconds for the first."""

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Tell the source that these are durable; it may forget them."""

    def close(self) -> None: ...


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

    def explain(self, history: History, at: datetime, asset: str, limit: int = 5) -> list[Reason]:
        """The inputs that moved this asset's forecast most, strongest first."""


class Clock(Protocol):
    """Plant time. The wall clock in a plant; the feed's own in a replay or a sped-up simulation."""

    def now(self) -> datetime | None:
        """The latest plant time that is complete, or None when nothing has been heard yet."""


class Notifier(Protocol):
    """A way to tell the outside about alerts, forecasts and the service's state. Never raises; logs its failures."""

    def alert(self, alert: Alert) -> None: ...

    def forecasts(self, forecasts: Sequence[Forecast]) -> None: ...


class AssetRegister(Protocol):
    """What is known of assets beyond their readings."""

    def assets(self) -> tuple[Asset, ...]: ...
