"""The bulk transport beside stock paho: the same bytes in any cuts bring the same messages and the same answers."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from connectors.mqtt_bulk import BulkClient
from connectors.mqtt_packets import Publish, packet_size, pubacks, read_publishes

V5, V311 = paho.MQTTv5, paho.MQTTv311
CONNACK = {V5: b"\x20\x03\x00\x00\x00", V311: b"\x20\x02\x00\x00"}


def variable(value: int) -> bytes:
    found = bytearray()
    while True:
        value, low = divmod(value, 128)
        found.append(low | (0x80 if value else 0))
        if not value:
            return bytes(found)


def packet(head: int, body: bytes) -> bytes:
    return bytes([head]) + variable(len(body)) + body


def publish(
    protocol: int,
    topic: bytes,
    payload: bytes,
    *,
    qos: int = 1,
    mid: int = 1,
    retain: bool = False,
    dup: bool = False,
    properties: bytes = b"",
) -> bytes:
    body = len(topic).to_bytes(2) + topic
    if qos:
        body += mid.to_bytes(2)
    if protocol == V5:
        body += variable(len(properties)) + properties
    return packet(0x30 | dup << 3 | qos << 1 | retain, body + payload)


@dataclass
class Seen:
    """What a client made of a stream."""

    messages: list[Publish] = field(default_factory=list)
    confirmed: list[int] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    sent: bytes = b""


class Wire:
    """A client on one end of a pair of sockets, and the test as the broker on the other."""

    def __init__(self, kind: str, protocol: Any) -> None:
        self.seen = Seen()
        self.broker, self._end = socket.socketpair()
        self.broker.settimeout(5)
        if kind == "bulk":
            self.client: paho.Client = BulkClient(client_id="x", protocol=protocol, deliver=self.seen.messages.extend)
        else:
            self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id="x", protocol=protocol, manual_ack=True)
        self.client._create_socket_connection = lambda: self._end  # type: ignore[method-assign]
        self.client.on_message = lambda _c, _u, m: self.seen.messages.append(
            (m._topic, bytes(m.payload), m.mid, m.qos, bool(m.retain))
        )
        self.client.on_subscribe = lambda _c, _u, mid, *_: self.seen.confirmed.append(mid)
        self.client.on_disconnect = lambda _c, _u, _f, reason, _p: self.seen.lost.append(str(reason))
        self.client.connect("x", keepalive=600)
        self.broker.recv(4096)
        self.play([CONNACK[protocol]])
        assert self.client.is_connected()

    def play(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            try:
                self.broker.sendall(piece)
            except OSError:
                return  # the client has hung up already
            self._read()

    def _read(self) -> None:
        """Let the client read all that is there."""
        while (connection := self.client.socket()) is not None:
            there = select.select([connection], [], [], 0)[0]
            if not there and not getattr(connection, "pending", lambda: 0)():
                return
            self.client.loop(0)

    def acknowledge(self) -> None:
        if isinstance(self.client, BulkClient):
            for qos, mid in ((m[3], m[2]) for m in self.seen.messages if m[3]):
                if qos == 1:
                    self.client.acknowledge([mid])
                else:
                    self.client.ack(mid, qos)
        else:
            for _, _, mid, qos, _ in self.seen.messages:
                if qos:
                    self.client.ack(mid, qos)
        while self.client.socket() is not None and self.client.want_write():
            self.client.loop_write()

    def end(self) -> Seen:
        self.acknowledge()
        self.broker.setblocking(False)
        try:
            while piece := self.broker.recv(1 << 20):
                self.seen.sent += piece
        except OSError:
            pass
        self.broker.close()
        self.client.disconnect()
        self._end.close()
        return self.seen


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[a:b] for a, b in pairwise(edges)]


def played(kind: str, protocol: Any, pieces: Sequence[bytes]) -> Seen:
    wire = Wire(kind, protocol)
    wire.play(pieces)
    return wire.end()


def expiry() -> bytes:
    properties = Properties(PacketTypes.PUBLISH)
    properties.MessageExpiryInterval = 60
    properties.UserProperty = [("unit", "°C"), ("k", "v" * 150)]
    return bytes(properties.pack())[2:]  # two bytes of length


names = st.text(alphabet="ab/é$", min_size=1, max_size=12).map(str.encode)
bodies = st.one_of(st.binary(max_size=40), st.binary(min_size=100, max_size=140), st.just(b"x" * 20_000))


@st.composite
def packets(draw: st.DrawFn, protocol: int) -> bytes:
    kind = draw(st.sampled_from(["publish"] * 6 + ["two", "ping", "suback", "release", "odd"]))
    mid = draw(st.integers(1, 65535))
    if kind == "ping":
        return b"\xd0\x00"
    if kind == "suback":
        return packet(0x90, mid.to_bytes(2) + (b"\x00" if protocol == V5 else b"") + b"\x01")
    if kind == "release":  # ends a message of QoS 2, or none that is known
        return packet(0x62, draw(st.sampled_from([7, 8, mid])).to_bytes(2))
    if kind == "odd":  # none at all
        return draw(st.binary(min_size=1, max_size=12))
    return publish(
        protocol,
        draw(st.one_of(names, st.just(b""), st.just(b"\xff\xfe"))) if kind == "publish" else draw(names),
        draw(bodies),
        qos=2 if kind == "two" else draw(st.sampled_from([0, 1, 1, 1])),
        mid=draw(st.sampled_from([7, 8])) if kind == "two" else mid,
        retain=draw(st.booleans()),
        dup=draw(st.booleans()),
        properties=draw(st.sampled_from([b"", b"", expiry(), b"\x02\x00", b"\x99\x01"])),
    )


@pytest.mark.parametrize("protocol", [V5, V311])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_stream_in_any_cuts_is_to_the_bulk_transport_what_it_is_to_paho(protocol: Any, data: st.DataObject) -> None:
    stream = b"".join(data.draw(st.lists(packets(protocol), max_size=12), "packets"))
    pieces = cut(stream, data.draw(st.lists(st.integers(0, 1 << 20), max_size=8), "cuts"))
    assert played("bulk", protocol, pieces) == played("paho", protocol, [stream])


def test_every_byte_alone_brings_the_same() -> None:
    stream = b"".join(
        publish(V5, b"plant/a/n", b"%d" % number, mid=number, properties=expiry() if number % 2 else b"")
        + (b"\xd0\x00" if number % 3 == 0 else b"")
        for number in range(1, 10)
    )
    seen = played("bulk", V5, [stream[at : at + 1] for at in range(len(stream))])
    assert seen == played("paho", V5, [stream])
    assert [int(payload) for _, payload, *_ in seen.messages] == list(range(1, 10))
    assert seen.sent.endswith(pubacks(range(1, 10)))


def test_a_long_message_in_many_pieces_is_put_together_once() -> None:
    payload = bytes(range(256)) * 12_000  # 3 MB
    stream = publish(V5, b"a", payload, mid=1) + publish(V5, b"b", b"short", mid=2)
    seen = played("bulk", V5, [stream[at : at + 50_000] for at in range(0, len(stream), 50_000)])
    assert seen.messages == [(b"a", payload, 1, 1, False), (b"b", b"short", 2, 1, False)]


def test_a_connection_that_ends_within_a_message_is_lost_as_with_paho() -> None:
    stream = publish(V5, b"a", b"whole", mid=1) + publish(V5, b"b", b"cut off", mid=2)[:-3]
    found = []
    for kind in ("bulk", "paho"):
        wire = Wire(kind, V5)
        wire.play([stream])
        wire.broker.shutdown(socket.SHUT_RDWR)
        wire._read()
        found.append((wire.seen.messages, wire.seen.lost))
        wire.end()
    assert found[0] == found[1] == ([(b"a", b"whole", 1, 1, False)], ["Unspecified error"])


def test_many_messages_are_acknowledged_by_one_write() -> None:
    wire = Wire("bulk", V5)
    wire.play([b"".join(publish(V5, b"t", b"1", mid=mid) for mid in range(1, 2001))])
    assert len(wire.seen.messages) == 2000
    assert isinstance(wire.client, BulkClient)
    wire.client.acknowledge([mid for _, _, mid, _, _ in wire.seen.messages])
    assert wire.broker.recv(1 << 20) == b"".join(b"\x40\x02" + mid.to_bytes(2) for mid in range(1, 2001))
    wire.seen.messages.clear()
    wire.end()


def test_messages_before_the_answer_to_connecting_are_told_after_it() -> None:
    """A broker sends what it kept in the same breath as the answer; the session must be open by then."""
    wire = Wire("bulk", V5)
    order: list[str] = []
    client = BulkClient(client_id="x", protocol=V5, deliver=lambda found: order.append(f"{len(found)} messages"))
    broker, end = socket.socketpair()
    client._create_socket_connection = lambda: end  # type: ignore[method-assign]
    client.on_connect = lambda *_: order.append("open")
    client.connect("x")
    broker.sendall(CONNACK[V5] + publish(V5, b"t", b"1") * 3)
    for _ in range(3):
        client.loop(0)
    assert order == ["open", "3 messages"]
    broker.close()
    client.disconnect()
    wire.end()


@given(st.binary(max_size=60), st.booleans())
def test_no_bytes_harm_the_reader(data: bytes, mqtt5: bool) -> None:
    found: list[Publish] = []
    stop = read_publishes(data, 0, found, properties_valid=(lambda _: True) if mqtt5 else None)
    assert 0 <= stop <= len(data) and (stop > 0) == bool(found)
    size = packet_size(data, stop) if stop < len(data) else None
    assert size is None or size >= 2
