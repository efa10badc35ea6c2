"""From the feed to the store: batches, written in one call, acknowledged only then. Nothing is lost on the way.

While the store is away, batches go to a spool on disk, where there is one, and are stored later in their order. Without
one, or when it is full, the acknowledging stops, and so in time the broker. A message that the store refuses for what
it holds becomes a dead letter, and the rest of its batch is stored.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple, Protocol

from pm.condition import Condition
from pm.config import IngestSection
from pm.domain import from_us
from pm.errors import PmError, RowsRefused, StoreError, StoreUnavailable
from pm.ports import (
    AssetSink,
    DeadLetters,
    Delivery,
    DeliverySpool,
    Feed,
    IngestObserver,
    LateSink,
    ReadingStore,
    Reject,
)

log = logging.getLogger(__name__)

_FIRST_WAIT = 0.25
"""Seconds that an empty feed is waited on before looking at the stop event again."""
_DRY_WAIT = 0.005
"""Seconds without a message after which a batch is written although it is not full: a broker that allows few messages
in flight sends no more until these are acknowledged."""
_DRAIN = 4
"""Batches' worth of messages that the spool gives at a time: faster than messages can come in, so that it empties."""
_RETRY = (0.5, 30.0)
"""Seconds until a batch that could not be stored is tried again, at first and at most; it doubles between."""


class Watermark(Protocol):
    """Takes the plant time up to which everything is stored."""

    def advance(self, to: datetime) -> None:
        """May raise a retryable `PmError`; it is then told again."""


class FeedClock:
    """Plant time as the feed tells it: a `pm.ports.Clock` and a `Watermark`. Never goes back. Safe between threads."""

    def __init__(self, start: datetime | None = None, keep: Callable[[datetime], None] | None = None) -> None:
        """start: plant time known from before. keep: told every new time first, to write it down."""
        self._now = start
        self._keep = keep
        self._moved = threading.Condition()

    def now(self) -> datetime | None:
        with self._moved:
            return self._now

    def advance(self, to: datetime) -> None:
        with self._moved:
            if self._now is not None and to <= self._now:
                return
            if self._keep is not None:
                self._keep(to)
            self._now = to
            self._moved.notify_all()

    def wait_beyond(self, time: datetime | None, timeout: float) -> datetime | None:
        """Wait at most `timeout` seconds until plant time is later than `time`; plant time then."""
        with self._moved:
            self._moved.wait_for(lambda: self._now is not None and (time is None or self._now > time), timeout)
            return self._now


@dataclass(frozen=True, slots=True)
class IngestCounts:
    """What ingest has done since it started."""

    messages: int = 0
    """Messages acknowledged, whatever they held."""
    readings: int = 0
    """Readings stored (wide rows; one that came twice counts twice)."""
    events: int = 0
    rejects: int = 0
    """Dead letters."""
    batches: int = 0
    lag_ms: float = 0.0
    """Milliseconds from receiving the oldest message of the latest batch to having stored it."""
    spooled: int = 0
    """Messages on disk that wait for the store; 0 while all is well."""
    held: int = 0
    """Messages of the batch that waits for the store; 0 while all is well."""
    trouble: str = ""
    """Why it waits, or empty."""


class Settled(NamedTuple):
    """What became of a batch."""

    rejects: list[Reject]
    """The messages of it that are dead letters now."""
    seconds: float
    """How long the store took for the rest."""


class Ingest:
    """The loop. One thread runs it; `counts` may be read from any."""

    def __init__(
        self,
        feed: Feed,
        store: ReadingStore,
        dead_letters: DeadLetters,
        *,
        section: IngestSection,
        now_us: Callable[[], int],
        assets: AssetSink | None = None,
        watermark: Watermark | None = None,
        spool: DeliverySpool | None = None,
        late: LateSink | None = None,
        observers: Sequence[IngestObserver] = (),
    ) -> None:
        """now_us: the machine's clock in microseconds, for the lag alone. assets: told of each asset's first message.

        watermark: told of the feed's clock messages, once all that came before is stored. spool: where batches are kept
        while the store is away; None to leave them with the feed. late: told of what is stored, before it is
        acknowledged. observers: told of each batch that is stored.
        """
        self.feed = feed
        self.condition = Condition(feed.name)
        self._store = store
        self._dead_letters = dead_letters
        self._section = section
        self._now_us = now_us
        self._assets = assets
        self._watermark = watermark
        self._spool = spool
        self._late = late
        self._observers = tuple(observers)
        self._taken = 0
        self._next_drain = 0.0
        self._known: set[str] = set()
        self._held: list[Delivery] = []
        self._retry = _RETRY[0]
        self._counts = IngestCounts()

    @property
    def counts(self) -> IngestCounts:
        return self._counts

    @property
    def unacknowledged(self) -> int:
        """Messages received that are durable nowhere yet."""
        return self.feed.waiting + self._taken

    @property
    def spool_bytes(self) -> int:
        """Bytes on disk that wait for the store."""
        return self._spool.bytes if self._spool is not None else 0

    @property
    def spool_damage(self) -> int:
        """Places on disk that cannot be read any more."""
        return self._spool.corrupt if self._spool is not None else 0

    def run(self, stop: threading.Event) -> None:
        """Ingest until `stop` is set. What is not stored by then is not acknowledged, and comes again."""
        while not stop.is_set():
            if not self.step() and self._held:
                stop.wait(self._retry)
                self._retry = min(2 * self._retry, _RETRY[1])

    def step(self) -> bool:
        """Collect a batch (or take the one held back), store it, acknowledge it. False when nothing was done."""
        if self._spool is not None and self._spool.held:
            return self._step_behind(self._spool)
        batch = self._held or self._collect()
        if not batch:
            return False
        try:
            settled = self._settle(batch)
        except PmError as error:
            if self._spool is not None and error.retryable:
                self.condition.spooling(error)
                self._wait_for_store(error)
                return self._keep(self._spool, batch)
            self._hold(batch, error)
            return False
        self._acknowledge(batch, "stored")
        self._retry = _RETRY[0]
        self._count(batch, settled)
        return True

    def _step_behind(self, spool: DeliverySpool) -> bool:
        """While the spool holds anything: store some of it when the store may be back, keep behind it what comes.

        A crash after storing and before dropping brings the same again, which changes nothing in the store.
        """
        stored = False
        if time.monotonic() >= self._next_drain:
            batch = spool.peek(_DRAIN * self._section.batch)
            try:
                settled = self._settle(batch)
            except PmError as error:
                self.condition.spooling(error)
                self._wait_for_store(error)
            else:
                spool.drop(len(batch))
                self._retry, stored = _RETRY[0], True
                self._count(batch, settled, acknowledged=0)
                self._counts = replace(self._counts, spooled=spool.held)
                self.condition.draining(spool.held)
        if stored and not self.feed.waiting and not self._held:
            return True
        batch = self._held or self._collect()
        return self._keep(spool, batch) if batch else stored

    def _keep(self, spool: DeliverySpool, batch: list[Delivery]) -> bool:
        """The batch on disk, and acknowledged; held back where the disk takes no more."""
        try:
            spool.append(batch)
        except PmError as error:
            self._hold(batch, error)
            return False
        self._acknowledge(batch, "kept on disk")
        counts = self._counts
        self._counts = replace(counts, messages=counts.messages + len(batch), spooled=spool.held, held=0)
        return True

    def _acknowledge(self, batch: Sequence[Delivery], where: str) -> None:
        self.feed.acknowledge(batch)
        self.condition.acknowledging(len(batch), where)
        self._held = []
        self._taken = 0

    def _wait_for_store(self, error: PmError) -> None:
        """Longer each time before the store is tried again."""
        wait = max(self._retry, error.wait) if isinstance(error, StoreUnavailable) else self._retry
        self._next_drain = time.monotonic() + wait
        self._retry = min(2 * self._retry, _RETRY[1])
        self._counts = replace(self._counts, trouble=str(error))

    def _collect(self) -> list[Delivery]:
        """Up to a batch: ends when it is full, when the oldest has waited `flush`, or when the feed runs dry."""
        limit = self._section.batch
        batch = self.feed.take(limit, _FIRST_WAIT)
        deadline = time.monotonic() + self._section.flush / 1000
        while batch and len(batch) < limit and time.monotonic() < deadline:
            more = self.feed.take(limit - len(batch), _DRY_WAIT)
            if not more:
                break
            batch += more
        self._taken = len(batch)
        return batch

    def _settle(self, batch: Sequence[Delivery]) -> Settled:
        """Everything of the batch on durable ground. May be repeated as a whole."""
        started = time.perf_counter()
        refused = self._write(batch)
        seconds = time.perf_counter() - started
        if self._late is not None:
            self._late.note(batch)
        rejects = [*(reject for delivery in batch for reject in delivery.rejects), *refused]
        if rejects:
            rejects = [reject if reject.feed else replace(reject, feed=self.feed.name) for reject in rejects]
            self._dead_letters.add_dead_letters(rejects)
            for reject in rejects[:3]:
                log.warning("dead letter from %s: %s", reject.topic, reject.reason)
            if len(rejects) > 3:
                log.warning("and %d more dead letters", len(rejects) - 3)
        self._introduce(batch)
        if self._watermark is not None:
            clocks = [d.clock_us for d in batch if d.clock_us is not None]
            # The earliest too: ticks count from the first plant time ever heard, which may share a batch with others.
            for clock in sorted({min(clocks), max(clocks)}) if clocks else ():
                self._watermark.advance(from_us(clock))
        return Settled(rejects, seconds)

    def _write(self, batch: Sequence[Delivery]) -> list[Reject]:
        """Store the batch; what the store refuses is halved until the messages at fault stand alone."""
        readings = [reading for delivery in batch for reading in delivery.readings]
        events = [event for delivery in batch for event in delivery.events]
        if not readings and not events:
            return []
        try:
            self._store.write(readings, events)
        except RowsRefused as error:
            return [
                Reject(delivery.topic, delivery.payload, reason, delivery.received_us)
                for delivery in batch
                if (reason := _reason(delivery, error))
            ]
        except StoreError as error:
            if error.retryable:
                raise
            if len(batch) > 1:
                middle = len(batch) // 2
                return self._write(batch[:middle]) + self._write(batch[middle:])
            self._store.points()  # raises when it is the store that is ill and not the message
            only = batch[0]
            return [Reject(only.topic, only.payload, str(error), only.received_us)]
        return []

    def _introduce(self, batch: Sequence[Delivery]) -> None:
        names = {reading.asset for delivery in batch for reading in delivery.readings}
        names.update(event.asset for delivery in batch for event in delivery.events)
        names -= self._known
        if names and self._assets is not None:
            self._assets.ensure_assets(sorted(names))
        self._known |= names

    def _hold(self, batch: list[Delivery], error: PmError) -> None:
        self.condition.holding(error, len(batch))
        if isinstance(error, StoreUnavailable):
            self._retry = max(self._retry, error.wait)
        self._held = batch
        self._counts = replace(self._counts, held=len(batch), trouble=str(error))

    def _count(self, batch: Sequence[Delivery], settled: Settled, acknowledged: int | None = None) -> None:
        """acknowledged: messages of the batch that are acknowledged now; all when None."""
        before = self._counts
        received = min((d.received_us for d in batch if d.received_us), default=0)
        self._counts = IngestCounts(
            messages=before.messages + (len(batch) if acknowledged is None else acknowledged),
            readings=before.readings + sum(len(d.readings) for d in batch),
            events=before.events + sum(len(d.events) for d in batch),
            rejects=before.rejects + len(settled.rejects),
            batches=before.batches + 1,
            lag_ms=max(0.0, (self._now_us() - received) / 1000) if received else before.lag_ms,
        )
        for observer in self._observers:
            observer.stored(batch, settled.rejects, settled.seconds)


def _reason(delivery: Delivery, error: RowsRefused) -> str:
    """Why the store refused something of this message, or "" where it took all of it."""
    rows = (error.readings.get((reading.asset, reading.time_us), "") for reading in delivery.readings)
    events = (error.events.get((e.asset, e.time_us, e.kind.value, e.code), "") for e in delivery.events)
    return next(filter(None, (*rows, *events)), "")
