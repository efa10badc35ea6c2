"""MQTT packets in a stream of bytes: many PUBLISH read at once, many PUBACK written at once. Pure.

The specification (OASIS, MQTT 5.0): 2.1 fixed header, 3.3 PUBLISH, 3.4 PUBACK; 3.1.1 differs by having no properties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

PUBACK: Final = 0x40
_PUBACK_OK: Final = (PUBACK << 24) + (2 << 16)
_PUBLISH: Final = 0x30
_NOT_PLAIN: Final = 0xF4
"""Bits of the first byte that a PUBLISH of QoS 0 or 1 has as `_PUBLISH`, whatever its marks (dup, QoS 1, retain)."""

Publish = tuple[bytes, bytes, int, int, bool]
"""Topic, payload, packet id (0 with QoS 0), QoS (0 or 1), retained."""


def _variable(data: bytes, at: int) -> tuple[int, int] | None:
    """A variable byte integer: its value and where it ends; None while it is not complete.

    One of more than four bytes, which is none, has the value -1 and ends after the fifth.
    """
    value, shift = 0, 0
    for position in range(at, min(at + 5, len(data))):
        if shift == 28:
            return -1, position + 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
    return None


def packet_size(data: bytes, at: int) -> int | None:
    """Bytes of the packet that begins at `at`, its header included; None while the header is not complete."""
    length = _variable(data, at + 1)
    return None if length is None else length[1] - at + max(length[0], 0)


def read_publishes(
    data: bytes, at: int, into: list[Publish], *, properties_valid: Callable[[bytes], bool] | None
) -> int:
    """Append the PUBLISH packets from `at` on; the position of the first byte that is not read.

    properties_valid: judges the properties of a message that has some; they are passed over. None before MQTT 5, where
    there are none.

    Reading ends at a packet that is not complete, and at every packet that is not a plain PUBLISH: of another kind, of
    QoS 2, without a topic (aliases are never allowed here), malformed. That one is for the session to judge.
    """
    end = len(data)
    append = into.append
    while at + 4 <= end:
        head = data[at]
        if head & _NOT_PLAIN != _PUBLISH:
            break
        stop, body = data[at + 1], at + 2
        if stop >= 0x80:
            if data[body] < 0x80:  # up to 16 KiB, as nearly all
                stop, body = stop & 0x7F | data[body] << 7, body + 1
            else:
                length = _variable(data, at + 1)
                if length is None or length[0] < 0:
                    break
                stop, body = length
        stop += body
        topic_at = body + 2
        if stop > end or stop < topic_at:
            break
        payload_at = topic_end = topic_at + (data[body] << 8 | data[body + 1])
        mid = 0
        if head & 2:
            payload_at += 2
            if payload_at > stop:
                break
            mid = data[topic_end] << 8 | data[topic_end + 1]
            if not mid:
                break
        if properties_valid is not None:
            if payload_at >= stop:
                break
            properties = data[payload_at]
            properties_at = payload_at
            payload_at += 1
            if properties:
                if properties >= 0x80:
                    length = _variable(data, properties_at)
                    if length is None or length[0] < 0:
                        break
                    properties, payload_at = length
                payload_at += properties
                if payload_at > stop or not properties_valid(data[properties_at:payload_at]):
                    break
        if payload_at > stop or topic_end == topic_at:
            break
        append((data[topic_at:topic_end], data[payload_at:stop], mid, head >> 1 & 1, head & 1 == 1))
        at = stop
    return at


def pubacks(packet_ids: Sequence[int]) -> bytes:
    """The PUBACK packets of these messages, one after the other, each saying success."""
    packets = np.full(len(packet_ids), _PUBACK_OK, dtype=">u4")
    packets += np.asarray(packet_ids, dtype=np.uint32)
    return packets.tobytes()
