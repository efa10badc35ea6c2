"""How ingest fares with one feed: whether the store takes its batches, whether it acknowledges. One line a change."""

from __future__ import annotations

import logging

from pm.errors import PmError

log = logging.getLogger(__name__)


class Condition:
    """Told of every batch; writes a line to the log when something has changed, and none while it stays as it is."""

    def __init__(self, feed: str) -> None:
        """feed: its name, which begins each line."""
        self._feed = feed
        self._away = False
        self._stopped: type[PmError] | None = None

    @property
    def store_away(self) -> bool:
        """Messages go to disk, since the store does not take them."""
        return self._away

    @property
    def stopped(self) -> bool:
        """Neither the store nor the disk takes messages, so none is acknowledged."""
        return self._stopped is not None

    def spooling(self, error: PmError) -> None:
        """The store does not take a batch, and the disk is to have it."""
        if not self._away:
            log.warning("%s: %s; messages are kept on disk until it is back", self._feed, error)
        self._away = True

    def draining(self, left: int) -> None:
        """The store has taken some of what the disk has; `left` messages are still on it."""
        if self._away and left:
            log.info("%s: the store is back; %d more messages come from disk", self._feed, left)
        self._away = False
        if not left:
            log.info("%s: the store is back, and what was kept on disk is in it", self._feed)

    def holding(self, error: PmError, messages: int) -> None:
        """Nothing takes a batch; it waits unacknowledged."""
        if self._stopped is not type(error):
            level = logging.WARNING if error.retryable else logging.ERROR
            log.log(level, "%s: %s; %d messages wait unacknowledged", self._feed, error, messages)
        self._stopped = type(error)

    def acknowledging(self, messages: int, where: str) -> None:
        """A batch is durable `where` it says, and acknowledged."""
        if self._stopped is not None:
            log.info("%s: ingest goes on: %d messages that waited are %s", self._feed, messages, where)
        self._stopped = None
