"""Messages that have come and are not yet taken: a bounded queue between the network's threads and ingest's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from connectors.mqtt_packets import Publish


class Arrived(NamedTuple):
    """Messages that came together on one connection."""

    generation: int
    """Number of the connection."""
    first_us: int
    """Time of receipt of the first; each counts a microsecond more, so that no two have the same."""
    messages: Sequence[Publish]


class Arrivals:
    """A queue of at most `limit` messages.

    A message of QoS 1 waits for room as long as it takes, and with it whoever reads from the broker. One of QoS 0, of
    which nothing is promised, waits `patience` seconds and is then dropped and counted, before the broker thinks that
    we are dead; until there is room again the next ones are dropped at once.
    """

    def __init__(self, limit: int, *, patience: float) -> None:
        self.waiting = 0
        """Messages in the queue."""
        self.dropped = 0
        self.overrun = False
        """Messages are being dropped."""
        self._limit = limit
        self._patience = patience
        self._changed = threading.Condition()
        self._queue: deque[Arrived] = deque()
        self._closed = False
        self._next_us = 0

    def put(self, messages: Sequence[Publish], *, generation: int, now_us: int) -> bool:
        """Queue messages in their order, waiting for room; whether messages began to be dropped meanwhile."""
        was_overrun = self.overrun
        first_us = max(now_us, self._next_us)
        self._next_us = first_us + len(messages)
        at = 0
        with self._changed:
            while at < len(messages) and not self._closed:
                room = self._limit - self.waiting
                if room > 0:
                    part = messages[at : at + room]
                    self._queue.append(Arrived(generation, first_us + at, part))
                    self.waiting += len(part)
                    at += len(part)
                    self._changed.notify_all()
                elif not self._room(messages[at][3]):
                    at += 1
        return self.overrun and not was_overrun

    def take(self, limit: int, timeout: float) -> list[Arrived]:
        """Up to `limit` messages, waiting at most `timeout` seconds for the first."""
        taken = []
        with self._changed:
            if not self.waiting and timeout > 0:
                self._changed.wait(timeout)
            while self._queue and limit > 0:
                arrived = self._queue.popleft()
                if len(arrived.messages) > limit:
                    generation, first_us, messages = arrived
                    self._queue.appendleft(Arrived(generation, first_us + limit, messages[limit:]))
                    arrived = Arrived(generation, first_us, messages[:limit])
                taken.append(arrived)
                limit -= len(arrived.messages)
                self.waiting -= len(arrived.messages)
            if taken:
                self._changed.notify_all()
        return taken

    def forget_unacknowledged(self) -> None:
        """Let go of the messages of QoS 1 and 2: the broker sends them again."""
        with self._changed:
            kept = [Arrived(a.generation, a.first_us, [m for m in a.messages if not m[3]]) for a in self._queue]
            self._queue = deque(arrived for arrived in kept if arrived.messages)
            self.waiting = sum(len(arrived.messages) for arrived in self._queue)
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more; whoever waits for room goes on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _room(self, qos: int) -> bool:
        """Whether there is room for one more of this QoS, waiting for it; the lock is held."""
        patience = None if qos else 0.0 if self.overrun else self._patience
        if self._changed.wait_for(lambda: self._closed or self.waiting < self._limit, patience):
            self.overrun = self.overrun and bool(qos)
            return True
        self.overrun = True
        self.dropped += 1
        return False
