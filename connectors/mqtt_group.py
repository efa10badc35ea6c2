"""Several ingest processes on one shared subscription; where one is gone, another takes what the broker kept for it.

A broker goes on queueing a member's part of the messages under its lasting session, and drops them when that ends. So
each member says on `pm/ingest/{group}/{client id}` (retained, with a last will) whether it is there. When one has been
away for `mqtt.takeover_after`, the next one present connects under its client id, ends that session's subscriptions,
so that the broker divides among the others, and takes what was kept. Should the lost one return, its connection ends
the other's, and what was not acknowledged by then comes to it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from paho.mqtt import client as paho

from connectors.mqtt import MqttFeed, Receipt
from connectors.mqtt_packets import Publish
from pm.config import BrokerSection
from pm.errors import PmError
from pm.ports import Delivery, LinkState

log = logging.getLogger(__name__)

PRESENCE: Final = "pm/ingest/{group}/{member}"
_HERE: Final = b"here"
_GONE: Final = b"gone"
_TAKEN_WAIT: Final = 0.05
"""Seconds that the own messages are waited for while those of another member are taken too."""
_QUIET_SECONDS: Final = 2.0
"""A session that was taken over and has brought nothing for so long is empty."""


class _Member(MqttFeed):
    """The member that this process is: it says so, and hears of the others."""

    def __init__(self, section: BrokerSection, heard: Callable[[str, bool], None], **options: Any) -> None:
        self._own_presence = PRESENCE.format(group=section.share, member=section.client_id)
        self._presence = PRESENCE.format(group=section.share, member="")
        self._beside = self._presence.encode()
        self._on_presence = heard
        super().__init__(section, **options)
        self._filters = (*self._filters, f"{self._presence}+")

    def close(self) -> None:
        if self.connected:
            self._session.client.publish(self._own_presence, _GONE, qos=1, retain=True)
        super().close()

    def _prepare(self, client: paho.Client) -> None:
        super()._prepare(client)
        client.will_set(self._own_presence, _GONE, qos=1, retain=True)

    def _on_open(self, session_present: bool) -> None:
        super()._on_open(session_present)
        self._session.client.publish(self._own_presence, _HERE, qos=1, retain=True)

    def _delivery(self, generation: int, message: Publish, received_us: int) -> Delivery:
        topic, payload, mid, qos, _ = message
        if topic.startswith(self._beside):
            self._on_presence(topic.decode(errors="replace")[len(self._presence) :], payload == _HERE)
            return Delivery(Receipt(self, generation, mid, qos))
        return super()._delivery(generation, message, received_us)


class _Taken(MqttFeed):
    """The session of a member that is gone: nothing new is subscribed, what the broker kept is taken.

    It does not connect again: whoever has ended its connection is the member itself.
    """

    def __init__(self, section: BrokerSection, **options: Any) -> None:
        self.outstanding = 0
        """Messages taken from it that are not acknowledged yet."""
        self.stored = 0
        super().__init__(section, **options)

    def take(self, limit: int, timeout: float) -> list[Delivery]:
        taken = super().take(limit, timeout)
        self.outstanding += len(taken)
        return taken

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        super().acknowledge(deliveries)
        self.outstanding -= len(deliveries)
        self.stored += len(deliveries)

    @property
    def empty(self) -> bool:
        """Everything that was kept is stored."""
        quiet = self._monotonic() - self._heard > _QUIET_SECONDS
        return self._unsubscribed.is_set() and quiet and not self.waiting and not self.outstanding

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "reconnect_on_failure": False}

    def _subscribe(self, session_present: bool) -> None:
        self._subscribed.set()
        if session_present:
            self._session.client.unsubscribe([*self._filters, PRESENCE.format(group=self._share, member="+")])
        else:
            self._unsubscribed.set()


class GroupFeed:
    """A member of a group, as a `pm.ports.Feed`: its own messages, and those of members that are gone."""

    def __init__(
        self, section: BrokerSection, *, monotonic: Callable[[], float] = time.monotonic, **options: Any
    ) -> None:
        """options: as for MqttFeed, for this process's feed and for those that it takes over."""
        self._section = section
        self._options = {**options, "monotonic": monotonic}
        self._monotonic = monotonic
        self._own = _Member(section, self._heard, **self._options)
        self._here = {section.client_id}
        self._gone: dict[str, float] = {}
        """Members that are gone and not yet looked after, since when."""
        self._taken: dict[str, _Taken] = {}
        self._counting = threading.Lock()
        self._ended_messages = self._ended_dropped = 0
        """Of the sessions taken over that are done with."""

    @property
    def name(self) -> str:
        return self._own.name

    @property
    def connected(self) -> bool:
        return self._own.connected

    @property
    def waiting(self) -> int:
        """Messages received and not yet taken."""
        return self._own.waiting + sum(feed.waiting for feed in list(self._taken.values()))

    @property
    def dropped(self) -> int:
        return self._own.dropped + self._ended_dropped + sum(feed.dropped for feed in list(self._taken.values()))

    @property
    def link(self) -> LinkState:
        """The connection of this process itself, with the messages of those taken over counted in."""
        own = self._own.link
        with self._counting:
            taken = self._ended_messages + sum(feed.link.messages for feed in self._taken.values())
            return replace(own, waiting=self.waiting, messages=own.messages + taken, dropped=self.dropped)

    def open(self) -> None:
        """As `MqttFeed.open`."""
        self._own.open()

    def take(self, limit: int, timeout: float) -> list[Delivery]:
        self._look_after()
        found: list[Delivery] = []
        for feed in self._taken.values():
            found += feed.take(limit - len(found), 0.0)
        if len(found) < limit:
            patience = min(timeout, _TAKEN_WAIT) if self._taken else timeout
            found += self._own.take(limit - len(found), 0.0 if found else patience)
        return found

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        for feed in (self._own, *self._taken.values()):
            mine = [d for d in deliveries if isinstance(d.receipt, Receipt) and d.receipt.link is feed]
            if mine:
                feed.acknowledge(mine)

    def close(self) -> None:
        for feed in self._taken.values():
            feed.close()
        self._taken.clear()
        self._own.close()

    def _heard(self, member: str, here: bool) -> None:
        """A member has said that it is there, or the broker that it is gone."""
        if member == self._section.client_id or not member:
            return
        if here:
            self._here.add(member)
            self._gone.pop(member, None)
            if member in self._taken:
                self._end(member)
        else:
            self._here.discard(member)
            self._gone.setdefault(member, self._monotonic())

    def _look_after(self) -> None:
        """Take over whoever has been gone for long enough, and end with those whose messages are all stored."""
        for member in [member for member, feed in self._taken.items() if feed.empty or not feed.connected]:
            self._end(member)
        patience = self._section.takeover_after.total_seconds()
        for member, since in list(self._gone.items()):
            if self.connected and self._monotonic() - since >= patience and self._is_mine(member):
                del self._gone[member]
                self._take_over(member)

    def _is_mine(self, member: str) -> bool:
        """Every member that is there comes to the same answer: the next one by name, and after the last the first."""
        present = sorted(self._here)
        return next((name for name in present if name > member), present[0]) == self._section.client_id

    def _take_over(self, member: str) -> None:
        log.warning("%s: member %r is gone; taking what the broker kept for it", self.name, member)
        feed = _Taken(self._section.model_copy(update={"client_id": member}), **{**self._options, "memory": None})
        try:
            feed.open()
        except PmError as error:
            log.error("%s", error)
            self._gone[member] = self._monotonic()
            return
        with self._counting:
            self._taken[member] = feed

    def _end(self, member: str) -> None:
        feed = self._taken[member]
        empty = feed.empty
        feed.close()
        link = feed.link
        with self._counting:  # who reads the counts meanwhile sees none twice
            del self._taken[member]
            self._ended_messages += link.messages
            self._ended_dropped += link.dropped
        if empty:
            log.info("%s: %d messages of %r are stored", self.name, feed.stored, member)
            return
        log.info("%s: the session of %r has ended before it was empty; the rest comes again", self.name, member)
        if member not in self._here:
            self._gone[member] = self._monotonic()


def feed_of(section: BrokerSection, **options: Any) -> MqttFeed | GroupFeed:
    """The feed of one broker, alone or as a member of a group; options as for MqttFeed. Raises FeedError."""
    return GroupFeed(section, **options) if section.share else MqttFeed(section, **options)
