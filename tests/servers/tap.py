"""A tap on the way to a broker: passes bytes on both ways and keeps the packets that the client sent."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

CONNECT, PUBLISH, SUBSCRIBE, DISCONNECT = 1, 3, 8, 14


@dataclass(frozen=True)
class Packet:
    """One MQTT packet of the client's."""

    kind: int
    flags: int
    body: bytes

    @property
    def topic(self) -> str:
        """Of a PUBLISH."""
        return self.body[2 : 2 + int.from_bytes(self.body[:2])].decode()

    @property
    def qos(self) -> int:
        return self.flags >> 1 & 3

    @property
    def retain(self) -> bool:
        return bool(self.flags & 1)


@dataclass
class Tap:
    port: int
    packets: list[Packet] = field(default_factory=list)
    sockets: list[socket.socket] = field(default_factory=list)

    def of(self, kind: int) -> list[Packet]:
        return [packet for packet in self.packets if packet.kind == kind]

    def cut(self) -> None:
        """Break every connection, without a word."""
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def tap(broker_port: int) -> Iterator[Tap]:
    listener = socket.create_server(("127.0.0.1", 0))
    tapped = Tap(listener.getsockname()[1])

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", broker_port))
                tapped.sockets += [client, server]
                for source, sink, keep in ((client, server, True), (server, client, False)):
                    threading.Thread(
                        target=_pass_on, args=(source, sink, tapped if keep else None), daemon=True
                    ).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield tapped
    finally:
        listener.close()
        tapped.cut()


def _pass_on(source: socket.socket, sink: socket.socket, kept: Tap | None) -> None:
    left = b""
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            if kept is not None:
                left = _split(left + piece, kept.packets)
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_RDWR)


def _split(data: bytes, into: list[Packet]) -> bytes:
    """The packets that are complete; what is left."""
    while len(data) >= 2:
        length = shift = 0
        at = 1
        while at < len(data):
            length |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if data[at - 1] < 128:
                break
        else:
            return data
        if len(data) < at + length:
            return data
        into.append(Packet(data[0] >> 4, data[0] & 15, data[at : at + length]))
        data = data[at + length :]
    return data
