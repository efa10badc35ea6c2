"""paho's session on a connection that is read and acknowledged in bulk.

Stock paho makes three calls of recv and one of select for every message, and one of send for every acknowledgement.
Here the plain messages (PUBLISH of QoS 0 and 1) are taken out of the stream by the hundred; every other packet goes to
paho, byte for byte, in its place in the order. So connecting, subscribing, keep-alive and reconnecting are paho's own.
What it leans on inside paho: `_create_socket` and `_packet_queue`; `tests/test_mqtt_bulk.py` holds it equal to paho.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.exception import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from connectors.mqtt_packets import PUBACK, Publish, packet_size, pubacks, read_publishes

_CHUNK: Final = 1 << 18
"""Bytes asked of the network at once."""


@lru_cache(maxsize=1000)
def properties_valid(block: bytes) -> bool:
    """Whether paho would take these properties of a PUBLISH (their length stands first)."""
    try:
        Properties(PacketTypes.PUBLISH).unpack(block)  # type: ignore[no-untyped-call]
    except (struct.error, IndexError, KeyError, ValueError, MQTTException):  # what paho's own reading may raise
        return False
    return True


class BulkSocket:
    """The connection as paho sees it: without the plain messages, which `deliver` gets instead.

    `deliver` is called on the thread that reads, between the packets that came before and after; while it waits,
    nothing more is read.
    """

    def __init__(self, connection: socket.socket, deliver: Callable[[list[Publish]], None], *, mqtt5: bool) -> None:
        self._connection = connection
        self._deliver = deliver
        self._properties_valid = properties_valid if mqtt5 else None
        self._data = b""
        self._at = 0
        """Everything in `_data` before is done with."""
        self._for_session = 0
        """Bytes from `_at` on that belong to a packet of paho's."""
        self._pieces: list[bytes] = []
        """What has come of a packet too long for one read, after `_data`."""
        self._missing = 0
        """Bytes without which `_data` and `_pieces` hold nothing complete."""

    def recv(self, size: int) -> bytes:
        """The next bytes of the packets that are for the session; empty when the other side has closed.

        Raises BlockingIOError (or its like of TLS) when there are none now.
        """
        if not self._for_session and not self._advance():
            if not self._receive():
                return b""
            if not self._advance():
                raise BlockingIOError
        piece = self._data[self._at : self._at + min(size, self._for_session)]
        self._at += len(piece)
        self._for_session -= len(piece)
        return piece

    def send(self, data: bytes | bytearray) -> int:
        return self._connection.send(data)

    def pending(self) -> int:
        """Bytes that have come already, of which select() knows nothing; 0 when more must come first."""
        held = 0 if self._missing else len(self._data) - self._at
        return held + (self._connection.pending() if isinstance(self._connection, ssl.SSLSocket) else 0)

    def fileno(self) -> int:
        return self._connection.fileno()

    def setblocking(self, flag: bool) -> None:
        self._connection.setblocking(flag)

    def shutdown(self, how: int) -> None:
        self._connection.shutdown(how)

    def close(self) -> None:
        self._connection.close()

    def _advance(self) -> bool:
        """Deliver the plain messages that are complete; whether a packet for the session comes next."""
        if self._missing:
            return False
        found: list[Publish] = []
        self._at = read_publishes(self._data, self._at, found, properties_valid=self._properties_valid)
        if found:
            self._deliver(found)
        left = len(self._data) - self._at
        size = packet_size(self._data, self._at)
        if size is not None and size <= left:
            self._for_session = size
            return True
        self._missing = 1 if size is None else size - left
        return False

    def _receive(self) -> bool:
        """Read once; False when the other side has closed."""
        piece = self._connection.recv(_CHUNK)
        if not piece:
            return False
        self._pieces.append(piece)
        self._missing -= len(piece)
        if self._missing <= 0:
            self._data = b"".join((self._data[self._at :], *self._pieces))
            self._pieces.clear()
            self._at = self._missing = 0
        return True


class BulkClient(paho.Client):
    """A paho client whose plain messages come by the hundred, to `deliver`, and are acknowledged by the hundred.

    `on_message` gets what is not plain: messages of QoS 2.
    """

    def __init__(
        self, *, client_id: str, protocol: MQTTProtocolVersion, deliver: Callable[[list[Publish]], None], **options: Any
    ):
        self._deliver = deliver
        self.failure: OSError | None = None
        """Why the latest attempt to connect failed; paho itself does not tell."""
        self._mqtt5 = protocol == paho.MQTTv5
        super().__init__(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol, manual_ack=True, **options
        )

    def _create_socket(self) -> Any:
        try:
            connection = super()._create_socket()
        except OSError as error:
            self.failure = error
            raise
        return BulkSocket(connection, self._deliver, mqtt5=self._mqtt5)  # type: ignore[arg-type]

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """Acknowledge these messages of QoS 1, in this order, by one write. May be called from any thread."""
        self._packet_queue(PUBACK, pubacks(packet_ids), 0, 0)
