"""What `pm ingest --watch` shows: how each feed stands, which assets were heard most and least. Pure but for a lock."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from pm.domain import from_us
from pm.ports import Delivery, Reject

if TYPE_CHECKING:
    from pm.ingest import Ingest


@dataclass(frozen=True, slots=True)
class FeedNow:
    """One feed at one moment; counts are since the start."""

    name: str
    state: str
    """stopped (acknowledges nothing), spooling (the store is away), away, silent, or connected."""
    messages: int
    """Messages received."""
    readings: int
    """Readings stored."""
    delay_ms: float
    """From receiving to having stored, of the latest batch."""
    queue: int
    """Messages in memory, not yet taken."""
    unacknowledged: int
    spooled: int
    """Messages on disk that wait for the store."""
    dead_letters: int
    dropped: int

    @classmethod
    def of(cls, ingest: Ingest) -> FeedNow:
        counts, link, condition = ingest.counts, ingest.feed.link, ingest.condition
        if condition.stopped:
            state = "stopped"
        elif condition.store_away:
            state = "spooling"
        elif not link.connected:
            state = "away"
        else:
            state = "silent" if link.silent else "connected"
        return cls(
            name=link.name,
            state=state,
            messages=link.messages,
            readings=counts.readings,
            delay_ms=counts.lag_ms,
            queue=link.waiting,
            unacknowledged=ingest.unacknowledged,
            spooled=counts.spooled,
            dead_letters=counts.rejects,
            dropped=link.dropped,
        )


@dataclass(frozen=True, slots=True)
class FeedRow:
    """One feed, and how fast it was since the row before."""

    now: FeedNow
    messages_per_second: float
    readings_per_second: float


def rows(before: Sequence[FeedNow], now: Sequence[FeedNow], seconds: float) -> list[FeedRow]:
    """The feeds of `now` with their rates since `before`, `seconds` earlier; 0 for one that was not there."""
    old = {feed.name: feed for feed in before}
    found = []
    for feed in now:
        then = old.get(feed.name, feed)
        found.append(
            FeedRow(
                feed,
                max(0.0, (feed.messages - then.messages) / seconds),
                max(0.0, (feed.readings - then.readings) / seconds),
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class AssetRow:
    """One asset as it was heard."""

    name: str
    readings: int
    """Stored since the watch began."""
    last: datetime | None
    """Time of its latest reading."""


class AssetsHeard:
    """Counts readings by asset: a `pm.ports.IngestObserver`. Called by ingest's threads, asked by another."""

    def __init__(self, known: Mapping[str, datetime]) -> None:
        """known: time of the latest reading of each asset that the store has already."""
        self._last = dict(known)
        self._count: Counter[str] = Counter()
        self._lock = threading.Lock()

    def stored(self, batch: Sequence[Delivery], rejects: Sequence[Reject], seconds: float) -> None:
        count: Counter[str] = Counter()
        last: dict[str, int] = {}
        for delivery in batch:
            for reading in delivery.readings:
                count[reading.asset] += 1
                if reading.time_us > last.get(reading.asset, -(2**63)):
                    last[reading.asset] = reading.time_us
        with self._lock:
            self._count += count
            for name, time_us in last.items():
                time, before = from_us(time_us), self._last.get(name)
                if before is None or time > before:
                    self._last[name] = time

    def busiest(self, most: int) -> list[AssetRow]:
        """Those with the most readings since the watch began, and at least one."""
        with self._lock:
            return [AssetRow(name, count, self._last.get(name)) for name, count in self._count.most_common(most)]

    def most_silent(self, most: int) -> list[AssetRow]:
        """Those whose latest reading is the oldest."""
        with self._lock:
            names = sorted(self._last, key=self._last.__getitem__)[:most]
            return [AssetRow(name, self._count[name], self._last[name]) for name in names]
