"""A Sparkplug B host's memory of edge nodes: births, aliases, order, deaths. Pure; time is an argument.

A node is **in step** while its births are known and every message has the sequence number after the one before. A
message ahead of its turn waits `reorder_us` for those before it. When they do not come, or data comes that no birth
explains, the node is asked for its births (Node Control/Rebirth) and what it sends meanwhile is held: it is read by the
new birth, so an alias whose meaning changed with a lost one is never taken for another. Where no birth comes within
`birth_us`, the birth known before is used; where there is none, what carries its own names and types is read, and the
rest is a dead letter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from connectors.sparkplug import (
    MetricTable,
    Readout,
    death_number,
    parse_columns,
    parse_payload,
    read_birth,
    read_data,
    read_metrics,
    sequence_number,
)
from connectors.sparkplug_deliveries import dated, listed, reject, rejected
from connectors.sparkplug_limits import ASK_AGAIN_US, HELD_BYTES, MOST_AHEAD, MOST_NODES, NODE_ALONE_US
from connectors.sparkplug_names import AssetNames
from connectors.sparkplug_nodes import NO_NEWS, HostCounts, Message, News, Node
from connectors.sparkplug_topics import Verb, parse_topic
from connectors.values import PayloadError
from pm.domain import Reading, Silence
from pm.ports import Delivery

_DATA: Final = (Verb.NDATA, Verb.DDATA)


class SparkplugHost:
    """What is known of every edge node. Messages in, in the order heard; deliveries and requests out."""

    def __init__(
        self,
        names: AssetNames,
        *,
        reorder_us: int,
        birth_us: int,
        max_future_us: int | None = None,
        most_held: int = HELD_BYTES,
    ) -> None:
        """names: assets by group, node and device. reorder_us: how long a message waits for those before it.

        birth_us: how long messages wait for the birth that explains them. max_future_us: values dated further ahead of
        their receipt are refused; None where plant time is not now. most_held: payload bytes that wait for births.
        """
        self._most_held = most_held
        self._names = names
        self._reorder_us = reorder_us
        self._birth_us = birth_us
        self._max_future_us = max_future_us
        self._nodes: dict[tuple[str, str], Node] = {}
        self._silent: dict[str, bool] = {}
        self._asking: list[tuple[str, str]] = []
        self._held_bytes = 0
        self.counts = HostCounts()

    @property
    def held(self) -> int:
        """Messages that wait for a birth or for their turn."""
        return sum(len(node.held) + len(node.ahead) for node in self._nodes.values())

    @property
    def alive(self) -> int:
        """Edge nodes that are born and not dead."""
        return sum(node.alive for node in self._nodes.values())

    def requests(self) -> list[tuple[str, str]]:
        """Group and node of everyone to be asked for births, since last asked here."""
        asking, self._asking = self._asking, []
        return asking

    def hear(self, topic: str, payload: bytes, received_us: int) -> list[Delivery]:
        """One message. Never raises for what it holds: that is a delivery with a dead letter. What waits for another
        message comes with that one, or with `tick`."""
        origin = parse_topic(topic)
        if origin is None:
            return [Delivery(NO_NEWS)]
        node = self._nodes.get((origin.group, origin.node))
        message = Message(origin, topic, payload, received_us)
        if node is None:
            if len(self._nodes) >= MOST_NODES:
                return [rejected(message, f"more than {MOST_NODES} edge nodes; name those wanted in sparkplug.groups")]
            node = self._nodes[origin.group, origin.node] = Node(origin.group, origin.node)
        try:
            message.parsed = parse_columns(payload) if origin.verb in _DATA else parse_payload(payload)
            message.stamp_ms = message.parsed.timestamp
            if origin.verb is not Verb.NDEATH:
                message.seq = sequence_number(message.parsed)
        except PayloadError as error:
            return [rejected(message, str(error))]
        if origin.verb is Verb.NDEATH:
            return list(self._node_dies(node, message))
        if origin.verb is Verb.NBIRTH:
            return list(self._node_is_born(node, message))
        if origin.verb in _DATA and message.seq == node.expected and not node.ahead and node.scope(origin.device).born:
            node.expected, node.last = (message.seq + 1) & 255, message.seq
            return self._data(node, message)  # as nearly every message; what follows says the same at greater length
        return list(self._in_turn(node, message))

    def tick(self, now_us: int) -> list[Delivery]:
        """What time alone brings: gaps that stay, births that do not come."""
        found: list[Delivery] = []
        for node in self._nodes.values():
            if node.ahead and node.ahead_since_us + self._reorder_us <= now_us:
                found += self._fall_out_of_step(node, now_us)
            if node.held and node.held[0].received_us + self._birth_us <= now_us:
                found += self._give_up_waiting(node, now_us - self._birth_us)
            if node.birth is not None and node.birth.received_us + NODE_ALONE_US <= now_us:
                found += self._own_birth(node)
        return found

    def disconnected(self, at_us: int) -> list[Delivery]:
        """The connection to the broker is lost: whatever anyone says meanwhile is not heard."""
        found: list[Delivery] = []
        for node in self._nodes.values():
            found += self._own_birth(node)
            found += self._set_aside(node)
            node.expected = None
            node.asked_us = node.ask_wait_us = 0
            found += self._silenced(node, ("", *node.devices), at_us, "the connection to the broker is lost")
        return found

    # Order

    def _in_turn(self, node: Node, message: Message) -> Iterator[Delivery]:
        if node.expected is None:
            self._ask(node, message.received_us)
            yield from self._out_of_step(node, message)
            return
        gap = (message.seq - node.expected) & 255
        if gap == 0:
            yield from self._next(node, message)
            while node.ahead and node.expected in node.ahead:
                yield from self._next(node, node.ahead.pop(node.expected))
        elif gap < 128 and message.seq not in node.ahead:
            if not node.ahead:
                node.ahead_since_us = message.received_us
            node.ahead[message.seq] = message
            if len(node.ahead) > MOST_AHEAD:
                yield from self._fall_out_of_step(node, message.received_us)
        else:
            yield from self._late(node, message)

    def _next(self, node: Node, message: Message) -> Iterator[Delivery]:
        node.expected = (message.seq + 1) & 255
        node.last = message.seq
        if node.ahead:
            node.ahead_since_us = message.received_us
        yield from self._apply(node, message)

    def _late(self, node: Node, message: Message) -> Iterator[Delivery]:
        """After its turn: its values are as good as any, but what it says of births and deaths may be over."""
        scope = node.scope(message.origin.device)
        if message.origin.verb is Verb.DDEATH:
            yield Delivery(NO_NEWS)
        elif message.origin.verb is Verb.DBIRTH and scope.born:
            yield self._birth(read_birth(message.parsed), message)
        else:
            yield from self._apply(node, message)

    def _out_of_step(self, node: Node, message: Message) -> Iterator[Delivery]:
        """A device's birth and death speak for themselves; data waits for the node's birth."""
        if message.origin.verb in (Verb.DBIRTH, Verb.DDEATH):
            yield from self._apply(node, message)
        else:
            yield from self._hold(node, message)

    def _set_aside(self, node: Node) -> list[Delivery]:
        """The messages that wait for their turn, in their order, as of a node out of step."""
        first = node.expected or 0
        waiting = sorted(node.ahead.values(), key=lambda message: (message.seq - first) & 255)
        node.ahead.clear()
        return [delivery for message in waiting for delivery in self._out_of_step(node, message)]

    def _fall_out_of_step(self, node: Node, now_us: int) -> list[Delivery]:
        self.counts.lost += 1
        self._ask(node, now_us)
        found = self._set_aside(node)
        node.expected = None
        return found

    # What messages do

    def _apply(self, node: Node, message: Message) -> Iterator[Delivery]:
        origin = message.origin
        if origin.verb is Verb.DBIRTH:
            yield from self._device_is_born(node, message)
        elif origin.verb is Verb.DDEATH:
            node.scope(origin.device).born = False
            self.counts.deaths += 1
            yield from self._silenced(node, (origin.device,), dated(message), "its device death was published")
        elif node.scope(origin.device).born:
            yield from self._data(node, message)
        else:
            self._ask(node, message.received_us)
            yield from self._hold(node, message)

    def _node_is_born(self, node: Node, message: Message) -> Iterator[Delivery]:
        bd_seq = death_number(message.parsed)
        again = node.alive and bd_seq == node.bd_seq
        yield from self._set_aside(node)
        node.alive, node.bd_seq = True, bd_seq
        node.expected, node.last = (message.seq + 1) & 255, message.seq
        node.asked_us = node.ask_wait_us = 0
        node.own.table, node.own.born = read_birth(message.parsed), True
        for scope in node.devices.values():
            scope.born = False
        self.counts.births += 1
        if not again:
            yield from self._silenced(node, tuple(node.devices), message.received_us, "its node was born anew")
        delivery = self._birth(node.own.table, message)
        if self._names.node_waits:
            node.birth = delivery
        else:
            yield delivery
        # What overtook the birth is dated after it, and comes in the turn that it would have had.
        overtakers = self._taken(node, lambda held: held.stamp_ms >= message.stamp_ms > 0)
        for held in self._taken(node, lambda held: not held.origin.device):
            yield self._last_reading(node.own.table, held)
        for held in sorted(overtakers, key=lambda held: (held.seq - message.seq - 1) & 255):
            if held.seq == node.expected:
                held.parsed = parse_columns(held.payload)
                yield from self._next(node, held)
            elif held.origin.device:
                yield from self._hold(node, held)
            else:
                yield self._last_reading(node.own.table, held)

    def _device_is_born(self, node: Node, message: Message) -> Iterator[Delivery]:
        origin = message.origin
        scope = node.scope(origin.device)
        scope.table, scope.born = read_birth(message.parsed), True
        self.counts.births += 1
        self._names.node_has_devices(origin.group, origin.node)
        if self._names.node_waits:
            node.birth = None
        yield self._birth(scope.table, message)
        for held in self._taken(node, lambda held: held.origin.device == origin.device):
            yield self._last_reading(scope.table, held)

    def _node_dies(self, node: Node, message: Message) -> Iterator[Delivery]:
        """A death counts for the session that its bdSeq names. A later number than the birth's is of a session whose
        birth was never heard, so the one we know is over too."""
        bd_seq = death_number(message.parsed)
        known = node.bd_seq
        stray = known is not None and (bd_seq is None or (bd_seq - known) & 255 >= 128)
        if not node.alive or stray:
            self.counts.stray_deaths += 1
            yield Delivery(NO_NEWS)
            return
        yield from self._own_birth(node)
        yield from self._set_aside(node)
        node.alive = node.own.born = False
        node.expected = None
        for scope in node.devices.values():
            scope.born = False
        self.counts.deaths += 1
        yield from self._silenced(node, ("", *node.devices), message.received_us, "its edge node's death was published")

    # Readings

    def _birth(self, table: MetricTable, message: Message) -> Delivery:
        claim = self._names.claim(*message.origin[1:])
        if claim.refusal is not None:
            return rejected(message, claim.refusal)
        if claim.asset is None:
            return Delivery(NO_NEWS)
        readout = read_metrics(message.parsed, table, message.received_us, latest_us=self._latest(message))
        delivery = self._delivery(message, claim.asset, readout, table.faults)
        ended = self._heard(claim.asset) or delivery.receipt.silences  # type: ignore[attr-defined]
        return delivery._replace(receipt=News(ended, table.points)) if ended or table.points else delivery

    def _data(self, node: Node, message: Message) -> list[Delivery]:
        found = [] if node.birth is None else self._own_birth(node)
        origin = message.origin
        claim = self._names.claim(origin.group, origin.node, origin.device)
        if claim.asset is None:
            found.append(Delivery(NO_NEWS) if claim.refusal is None else rejected(message, claim.refusal))
            return found
        table = node.scope(origin.device).table or MetricTable()
        try:
            readout = read_data(
                message.parsed, message.payload, table, message.received_us, latest_us=self._latest(message)
            )
        except PayloadError as error:
            return [*found, rejected(message, str(error))]
        found.append(self._delivery(message, claim.asset, readout))
        if readout.unknown:  # the rest of it waits for a birth that knows it
            self._ask(node, message.received_us)
            found += self._hold(node, message)
        return found

    def _latest(self, message: Message) -> int | None:
        return None if self._max_future_us is None else message.received_us + self._max_future_us

    def _delivery(self, message: Message, asset: str, readout: Readout, faults: tuple[str, ...] = ()) -> Delivery:
        self.counts.unfit += readout.unfit
        faults += readout.faults
        return Delivery(
            News(self._heard(asset)) if readout.values and self._silent.get(asset) else NO_NEWS,
            readings=tuple([Reading(asset, time_us, values) for time_us, values in readout.values.items()]),
            rejects=(reject(message, listed(faults)),) if faults else (),
            topic=message.topic,
            payload=message.payload,
            received_us=message.received_us,
        )

    @staticmethod
    def _own_birth(node: Node) -> list[Delivery]:
        delivery, node.birth = node.birth, None
        return [] if delivery is None else [delivery]

    # Waiting for births

    def _hold(self, node: Node, message: Message) -> Iterator[Delivery]:
        message.parsed = None
        self._held_bytes += message.size
        node.held.append(message)
        while self._held_bytes > self._most_held:
            oldest = min((n for n in self._nodes.values() if n.held), key=lambda n: n.held[0].received_us)
            yield from self._give_up_waiting(oldest, oldest.held[0].received_us)

    def _taken(self, node: Node, wanted: Callable[[Message], bool]) -> list[Message]:
        """The held messages that are wanted; the others are held on."""
        taken: list[Message] = []
        kept: deque[Message] = deque()
        for message in node.held:
            (taken if wanted(message) else kept).append(message)
        node.held = kept
        self._held_bytes -= sum(message.size for message in taken)
        return taken

    def _give_up_waiting(self, node: Node, until_us: int) -> Iterator[Delivery]:
        """Read what has been held since `until_us` or longer by what is known. A node that was in step once counts as
        in step again, and then all of it is read."""
        resume = node.alive and node.expected is None
        while node.held and (resume or node.held[0].received_us <= until_us):
            message = node.held.popleft()
            self._held_bytes -= message.size
            node.last = message.seq
            yield self._last_reading(node.scope(message.origin.device).table, message)
        if resume:
            node.expected = (node.last + 1) & 255

    def _last_reading(self, table: MetricTable | None, message: Message) -> Delivery:
        """A held message by this table, or by its own names and types; what stays unknown is a dead letter."""
        claim = self._names.claim(*message.origin[1:])
        if claim.asset is None:
            return Delivery(NO_NEWS) if claim.refusal is None else rejected(message, claim.refusal)
        try:
            parsed = parse_payload(message.payload)
        except PayloadError as error:
            return rejected(message, str(error))
        readout = read_metrics(
            parsed, table or MetricTable(), message.received_us, latest_us=self._latest(message), guess=True
        )
        faults: tuple[str, ...] = ()
        if readout.unknown:
            faults = (f"no birth names {listed(readout.unknown)}; let the edge node answer Node Control/Rebirth",)
        return self._delivery(message, claim.asset, readout, faults)

    def _ask(self, node: Node, now_us: int) -> None:
        if node.asked_us and now_us < node.asked_us + node.ask_wait_us:
            return
        node.asked_us = now_us
        node.ask_wait_us = min(max(2 * node.ask_wait_us, ASK_AGAIN_US[0]), ASK_AGAIN_US[1])
        self._asking.append((node.group, node.name))
        self.counts.requests += 1

    # Silence

    def _silenced(self, node: Node, devices: Iterable[str], at_us: int, why: str) -> list[Delivery]:
        """The assets of these devices (the node's own for "") are heard no longer."""
        silences = []
        for device in devices:
            asset = self._names.claim(node.group, node.name, device).asset if node.scope(device).table else None
            if asset is not None and not self._silent.get(asset):
                self._silent[asset] = True
                silences.append(Silence(asset, at_us, why))
        return [Delivery(News(tuple(silences)), received_us=at_us)] if silences else []

    def _heard(self, asset: str) -> tuple[Silence, ...]:
        """That the asset is heard again, where that is not known yet: a silence may be remembered from before."""
        if self._silent.get(asset) is False:
            return ()
        self._silent[asset] = False
        return (Silence(asset, None, ""),)
