"""Looks after ingest each second: what is lost, refused or kept waiting is a data alert, closed when it is over."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Protocol

from pm.data_alerts import LASTING, DataAlert, Fault, Sign
from pm.errors import PmError
from pm.ports import Delivery, Reject

if TYPE_CHECKING:
    from pm.ingest import Ingest

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
PATIENCE: Final = timedelta(seconds=60)
"""The store may be away for so long before that is a data alert: a restart of it is none."""
AGAIN: Final = timedelta(seconds=30)
"""A fault that lasts is noted so often, so that one whose process is gone can be told and closed."""


class DataAlertLog(Protocol):
    """Where data alerts are kept; `pm.records.Records` in a plant."""

    def note_data(self, signs: Sequence[Sign], at: datetime) -> list[DataAlert]: ...

    def close_data(self, open_alerts: Sequence[DataAlert], at: datetime) -> None: ...

    def data_alerts(self, *, closed: int = 0) -> list[DataAlert]: ...


class _FeedLook:
    """What was seen of one feed so far; a `pm.ports.IngestObserver`, since a refused message has its reason there."""

    def __init__(self) -> None:
        self.ingest: Ingest | None = None
        self.refused = 0
        self.reason = ""
        self._told = {Fault.DROPPED: 0, Fault.DAMAGED: 0, Fault.REFUSED: 0}
        self._waits_since: datetime | None = None

    def stored(self, batch: Sequence[Delivery], rejects: Sequence[Reject], seconds: float) -> None:
        if rejects:
            self.refused += len(rejects)
            self.reason = f"the latest on {rejects[-1].topic}: {rejects[-1].reason}"

    def signs(self, now: datetime) -> list[Sign]:
        """What has come since the last look."""
        if self.ingest is None:
            return []
        link, condition, name = self.ingest.feed.link, self.ingest.condition, self.ingest.feed.name
        totals = {
            Fault.DROPPED: (link.dropped, "QoS 0, and no room: publish with QoS 1, or raise ingest.queue"),
            Fault.DAMAGED: (self.ingest.spool_damage, "see the log; check the disk"),
            Fault.REFUSED: (self.refused, f"{self.reason}; see pm deadletters list"),
        }
        found = [
            Sign(name, fault, total - self._told[fault], about)
            for fault, (total, about) in totals.items()
            if total > self._told[fault]
        ]
        self._told = {fault: total for fault, (total, _) in totals.items()}
        waits = condition.stopped or condition.store_away
        self._waits_since = (self._waits_since or now) if waits else None
        if self._waits_since is not None and now - self._waits_since >= PATIENCE:
            counts = self.ingest.counts
            where = "none is acknowledged" if condition.stopped else "kept on disk"
            found.append(Sign(name, Fault.WAITING, counts.spooled + counts.held, f"{where}: {counts.trouble}"))
        if link.silent:
            found.append(Sign(name, Fault.SILENT, 1, "longer than mqtt.silent_after; check that the plant publishes"))
        return found


class DataWatch:
    """`look` is called by one thread. Where the records are away, what was seen is owed and noted later."""

    def __init__(
        self,
        alerts: DataAlertLog,
        *,
        quiet: timedelta,
        now: Callable[[], datetime],
        tell: Callable[[Sequence[DataAlert]], None] | None = None,
    ) -> None:
        """quiet: after so long without another sign a data alert is over. now: the machine's clock.

        tell: told of data alerts that have changed, newest first.
        """
        self._alerts = alerts
        self._quiet = quiet
        self._now = now
        self._tell = tell
        self._feeds: list[_FeedLook] = []
        self._owed: dict[tuple[str, Fault], Sign] = {}
        self._noted: dict[tuple[str, Fault], datetime] = {}
        """Faults that last and are seen now, by when they were last noted."""
        self._shown: dict[int, DataAlert] | None = None
        self._next = 0.0

    def observer(self) -> _FeedLook:
        """What looks on at one ingest; `follow` says at which."""
        return _FeedLook()

    def follow(self, look: _FeedLook, ingest: Ingest) -> None:
        look.ingest = ingest
        self._feeds.append(look)

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set; what was seen by then is noted."""
        while not stop.wait(LOOK_SECONDS):
            self.look()
        self.look()

    def look(self) -> None:
        """Look once."""
        now = self._now()
        signs = [sign for feed in self._feeds for sign in feed.signs(now)]
        for sign in signs:
            self._owe(sign, now)
        ended = self._noted.keys() - {(sign.source, sign.fault) for sign in signs}
        # Others' alerts are looked at less often than our own feeds.
        if not self._owed and not ended and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 5 * LOOK_SECONDS
        try:
            self._keep(now, ended)
        except PmError as error:
            if not error.retryable:
                raise
            log.debug("data alerts wait for the records: %s", error)

    def _owe(self, sign: Sign, now: datetime) -> None:
        key = sign.source, sign.fault
        if sign.fault in LASTING:
            if now - self._noted.get(key, now - AGAIN) < AGAIN:
                return
        elif (owed := self._owed.get(key)) is not None:
            sign = replace(sign, count=owed.count + sign.count)
        self._owed[key] = sign

    def _keep(self, now: datetime, ended: set[tuple[str, Fault]]) -> None:
        if self._owed:
            raised = self._alerts.note_data(list(self._owed.values()), now)
            self._noted |= {key: now for key in self._owed if key[1] in LASTING}
            self._owed.clear()
            for alert in raised:
                log.warning("data alert: %s", alert.text)
        found = self._alerts.data_alerts()
        over = [a for a in found if (a.source, a.fault) in ended or now - a.last_at > max(self._quiet, 2 * AGAIN)]
        if over:
            self._alerts.close_data(over, now)
            for alert in over:
                lasted = timedelta(seconds=round((now - alert.raised_at).total_seconds()))
                log.info("data alert is over after %s: %s", lasted, alert.text)
        for key in ended:
            del self._noted[key]
        if self._tell is not None:
            self._tell_changes(self._tell)

    def _tell_changes(self, tell: Callable[[Sequence[DataAlert]], None]) -> None:
        """The newest of each source and fault, where it is not as it was told."""
        newest: dict[tuple[str, Fault], DataAlert] = {}
        for alert in self._alerts.data_alerts(closed=100):
            newest.setdefault((alert.source, alert.fault), alert)
        shown = self._shown or {}
        tell([alert for alert in newest.values() if shown.get(alert.number) != alert])
        self._shown = {alert.number: alert for alert in newest.values()}
