"""Messages made beforehand and sent as fast as the broker takes them: a publisher that costs next to nothing."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Final

import orjson

ASSETS: Final = 100
T0: Final = 1_700_000_000_000_000
"""Time of message 0 in microseconds; each further one of JSON is a millisecond later."""
_PIECE: Final = 100
"""Messages of one write, where they are sent as fast as they go."""
_IDS: Final = 65_535
_CONTEXT: Final = multiprocessing.get_context("spawn")

Message = tuple[str, bytes]


def scalars(count: int, first: int = 0) -> Iterable[Message]:
    """Single numbers, dated when they come: `plant/asset-7/point3` holds the number of the message."""
    for number in range(first, first + count):
        yield f"plant/asset-{number % ASSETS}/point{number // ASSETS % 10}", b"%d.0" % number


def objects(count: int, first: int = 0, points: int = 10) -> Iterable[Message]:
    """JSON of `points` points, dated by the sender; point0 is the number of the message."""
    for number in range(first, first + count):
        values = {f"point{k}": number + k / 8 for k in range(points)}
        body = orjson.dumps({"time": (T0 + 1000 * number) / 1e6, "values": values})
        yield f"plant/asset-{number % ASSETS}/readings", body


def packet(topic: str, payload: bytes, packet_id: int) -> bytes:
    """A PUBLISH of MQTT 3.1.1: of QoS 1, or of QoS 0 where the packet id is 0."""
    body = len(topic.encode()).to_bytes(2) + topic.encode() + (packet_id.to_bytes(2) if packet_id else b"") + payload
    length, size = b"", len(body)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return (b"\x32" if packet_id else b"\x30") + length + bytes([size]) + body


class Flood:
    """A publisher in a process of its own."""

    def __init__(self, port: int, make: Callable[..., Iterable[Message]], *arguments: int, qos: int = 1) -> None:
        """make: what gives the messages, of these arguments."""
        self.ready, self.go = _CONTEXT.Event(), _CONTEXT.Event()
        self.confirmed = _CONTEXT.Value("q", 0)
        """Messages that the broker has confirmed (sent, with QoS 0)."""
        self.process = _CONTEXT.Process(
            target=_send, args=(port, make, arguments, qos, self.ready, self.go, self.confirmed), daemon=True
        )
        self.process.start()

    def start(self) -> None:
        """Send, once all is encoded and the broker has let it in."""
        self.ready.wait()
        self.go.set()

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def connected(port: int, client_id: bytes) -> socket.socket:
    connect = b"\0\4MQTT\4\2\0\0" + len(client_id).to_bytes(2) + client_id
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(b"\x10" + bytes([len(connect)]) + connect)
    assert connection.recv(4)[3:] == b"\0", "the broker refused the publisher"
    return connection


def _send(
    port: int,
    make: Callable[..., Iterable[Message]],
    arguments: Sequence[int],
    qos: int,
    ready: Event,
    go: Event,
    confirmed: Synchronized[int],
) -> None:
    packets = [packet(*message, qos and number % _IDS + 1) for number, message in enumerate(make(*arguments))]
    pieces = [b"".join(packets[start : start + _PIECE]) for start in range(0, len(packets), _PIECE)]
    count = len(packets)
    del packets
    with connected(port, b"flood") as connection:
        ready.set()
        go.wait()
        answers = threading.Thread(target=_count, args=(connection, confirmed), daemon=True)
        if qos:
            answers.start()
        for piece in pieces:
            connection.sendall(piece)
        if not qos:
            confirmed.value = count
        time.sleep(3600)  # connected until killed: an edge node that leaves would be dead


def _count(connection: socket.socket, confirmed: Synchronized[int]) -> None:
    """Count the PUBACK packets, four bytes each."""
    taken = 0
    while piece := connection.recv(1 << 16):
        taken += len(piece)
        confirmed.value = taken // 4


class Paced:
    """A publisher at a steady rate: JSON of 10 with QoS 1, each dated when it is handed to the network."""

    def __init__(self, port: int, rate: float) -> None:
        self.ready, self.go = _CONTEXT.Event(), _CONTEXT.Event()
        self._over = _CONTEXT.Event()
        self._sent, self._confirmed = _CONTEXT.Value("q", 0), _CONTEXT.Value("q", 0)
        self._process = _CONTEXT.Process(
            target=_pace,
            args=(port, rate, self.ready, self.go, self._over, self._sent, self._confirmed),
            daemon=True,
        )
        self._process.start()

    def finish(self) -> int:
        """How many messages were sent, all of them confirmed by now."""
        self._over.set()
        self._process.join()
        return int(self._sent.value)


def _pace(
    port: int,
    rate: float,
    ready: Event,
    go: Event,
    over: Event,
    sent: Synchronized[int],
    confirmed: Synchronized[int],
) -> None:
    with connected(port, b"paced") as connection:
        threading.Thread(target=_count, args=(connection, confirmed), daemon=True).start()
        ready.set()
        go.wait()
        began = time.monotonic()
        number = 0
        while not over.is_set():
            due = int(rate * (time.monotonic() - began))
            now_us = time.time_ns() // 1000
            packets = []
            for at_us, mine in enumerate(range(number, due), now_us):
                values = {f"point{k}": mine + k / 8 for k in range(10)}
                body = orjson.dumps({"time": at_us / 1e6, "values": values})
                packets.append(packet(f"plant/asset-{mine % ASSETS}/readings", body, mine % _IDS + 1))
            connection.sendall(b"".join(packets))
            number = due
            time.sleep(0.005)
        sent.value = number
        while confirmed.value < number:
            time.sleep(0.01)
