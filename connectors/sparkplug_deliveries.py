"""Deliveries and dead letters made of a host's messages. Pure."""

from __future__ import annotations

from connectors.sparkplug_nodes import NO_NEWS, Message
from pm.ports import Delivery, Reject


def rejected(message: Message, why: str) -> Delivery:
    """A message of which nothing can be read."""
    return Delivery(
        NO_NEWS,
        rejects=(reject(message, why),),
        topic=message.topic,
        payload=message.payload,
        received_us=message.received_us,
    )


def dated(message: Message) -> int:
    """When it says that it was sent, in microseconds; never after it was received."""
    return min(message.stamp_ms * 1000, message.received_us) or message.received_us


def reject(message: Message, why: str) -> Reject:
    return Reject(message.topic, message.payload, why, message.received_us)


def listed(words: tuple[str, ...]) -> str:
    """A few of them, and how many more: a reason is one line."""
    return "; ".join(words[:3]) + (f"; and {len(words) - 3} more" if len(words) > 3 else "")
