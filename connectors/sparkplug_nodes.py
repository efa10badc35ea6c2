"""What a Sparkplug B host remembers: edge nodes, their births, the messages that wait. Pure, and without behaviour."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from connectors.sparkplug import MetricTable
from connectors.sparkplug_topics import Origin
from pm.domain import Point, Silence
from pm.ports import Delivery


class News(NamedTuple):
    """A delivery's receipt: what it says beside its readings, to be made known once these are durable."""

    silences: tuple[Silence, ...] = ()
    points: tuple[Point, ...] = ()
    qos: int = 0
    """Sparkplug data is published with QoS 0: nobody sends it again."""


NO_NEWS: Final = News()


@dataclass(slots=True)
class HostCounts:
    """Since the start."""

    births: int = 0
    deaths: int = 0
    lost: int = 0
    """Gaps in the order of a node's messages that no late message filled."""
    requests: int = 0
    """Births asked for."""
    stray_deaths: int = 0
    """Deaths of another session than the node's present one (bdSeq)."""
    unfit: int = 0
    """Values whose sender called them bad or stale; they are not stored."""


@dataclass(slots=True, eq=False)
class Message:
    origin: Origin
    topic: str
    payload: bytes
    received_us: int
    seq: int = 0
    stamp_ms: int = 0
    parsed: Any = None
    """Let go while the message is held: it is many times as large as its bytes."""

    @property
    def size(self) -> int:
        """Bytes that it takes while it is held, roughly."""
        return len(self.payload) + 500


@dataclass(slots=True, eq=False)
class Scope:
    """A node's own metrics, or a device's."""

    table: MetricTable | None = None
    """As the latest birth has it; kept over a death."""
    born: bool = False
    """Born in the node's present session."""


@dataclass(slots=True, eq=False)
class Node:
    group: str
    name: str
    own: Scope = field(default_factory=Scope)
    devices: dict[str, Scope] = field(default_factory=dict)
    alive: bool = False
    bd_seq: int | None = None
    expected: int | None = None
    """The sequence number that is next; None out of step."""
    last: int = 255
    """The latest sequence number seen."""
    ahead: dict[int, Message] = field(default_factory=dict)
    ahead_since_us: int = 0
    held: deque[Message] = field(default_factory=deque)
    asked_us: int = 0
    ask_wait_us: int = 0
    birth: Delivery | None = None
    """The values of the node's own birth, until it shows whether the node has devices."""

    def scope(self, device: str) -> Scope:
        if not device:
            return self.own
        found = self.devices.get(device)
        if found is None:
            found = self.devices[device] = Scope()
        return found
