"""Sparkplug B topics, and what a host says on them: its state, and the request for births. Pure."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

import orjson

from connectors.sparkplug_schema import DataType, Payload

NAMESPACE: Final = "spBv1.0"
REBIRTH: Final = "Node Control/Rebirth"


class Verb(StrEnum):
    """What a message of an edge node is."""

    NBIRTH = "NBIRTH"
    NDATA = "NDATA"
    NDEATH = "NDEATH"
    DBIRTH = "DBIRTH"
    DDATA = "DDATA"
    DDEATH = "DDEATH"


_NODE_VERBS: Final = {verb.value: verb for verb in (Verb.NBIRTH, Verb.NDATA, Verb.NDEATH)}
_DEVICE_VERBS: Final = {verb.value: verb for verb in (Verb.DBIRTH, Verb.DDATA, Verb.DDEATH)}


class Origin(NamedTuple):
    """Who sent a message: `device` is empty where it is the edge node itself."""

    verb: Verb
    group: str
    node: str
    device: str


@lru_cache(maxsize=100_000)
def parse_topic(topic: str) -> Origin | None:
    """`spBv1.0/{group}/{verb}/{node}[/{device}]` of an edge node's message; None for any other topic.

    Verbs of a node carry no device, and verbs of a device always do.
    """
    levels = topic.split("/")
    if len(levels) == 4 and levels[0] == NAMESPACE and levels[2] in _NODE_VERBS and all(levels):
        return Origin(_NODE_VERBS[levels[2]], levels[1], levels[3], "")
    if len(levels) == 5 and levels[0] == NAMESPACE and levels[2] in _DEVICE_VERBS and all(levels):
        return Origin(_DEVICE_VERBS[levels[2]], levels[1], levels[3], levels[4])
    return None


def topic_filters(groups: tuple[str, ...]) -> tuple[str, ...]:
    """What a host subscribes to for its readings: births, data and deaths of these groups, of all where none is named.

    Commands are left out: those that other hosts send are not for us.
    """
    return tuple(
        f"{NAMESPACE}/{group}/{verb}/+" + ("/+" if verb.value in _DEVICE_VERBS else "")
        for group in groups or ("+",)
        for verb in Verb
    )


def rebirth_request(group: str, node: str, now_ms: int) -> tuple[str, bytes]:
    """Topic and payload of the command that asks an edge node for all its births again."""
    asked = Payload(timestamp=now_ms)
    asked.metrics.add(name=REBIRTH, timestamp=now_ms, datatype=DataType.BOOLEAN, boolean_value=True)
    return f"{NAMESPACE}/{group}/NCMD/{node}", asked.SerializeToString()


def state_topic(host_id: str) -> str:
    return f"{NAMESPACE}/STATE/{host_id}"


def state_payload(online: bool, timestamp_ms: int) -> bytes:
    """A host's birth (online) or death certificate."""
    return orjson.dumps({"online": online, "timestamp": timestamp_ms})


def says_offline(payload: bytes) -> bool:
    """Whether a STATE payload says that its host is offline; whoever wrote it where it is ours, it is to be answered.
    An empty one (a retained state that was cleared) and one that is no STATE say so too."""
    try:
        said = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return True
    return not (isinstance(said, dict) and said.get("online") is True)
