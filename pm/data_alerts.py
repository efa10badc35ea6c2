"""Data alerts: readings lost, refused or kept waiting. They are about the service, not about an asset's health."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from pm.notices import time_text


class Fault(StrEnum):
    """What a data alert is about."""

    DROPPED = "dropped"
    """Messages are lost: sent with QoS 0, and no room for them."""
    DAMAGED = "damaged"
    """What was kept on disk for the store cannot be read again."""
    REFUSED = "refused"
    """Messages that nobody can read or store; they are kept as dead letters."""
    WAITING = "waiting"
    """The store takes nothing; messages wait on disk or with the broker."""
    SILENT = "silent"
    """The connection stands and brings nothing."""


LASTING: Final = frozenset({Fault.WAITING, Fault.SILENT})
"""Faults that are a state and end at once; the others are counted, and end when no more have come for a while."""

_WORDS: Final[Mapping[Fault, str]] = {
    Fault.DROPPED: "messages lost",
    Fault.DAMAGED: "damaged places of the spool",
    Fault.REFUSED: "dead letters",
    Fault.WAITING: "messages waiting",
    Fault.SILENT: "no message comes",
}


@dataclass(frozen=True, slots=True)
class Sign:
    """What was seen of a fault since the last look."""

    source: str
    """Name of the feed."""
    fault: Fault
    count: int
    """How many more; for a fault that lasts, how many there are now."""
    about: str
    """The latest in words, with the mend."""


@dataclass(frozen=True, slots=True)
class DataAlert:
    """A fault of a source from when it was first seen until it is over. Times are the machine's, not the plant's."""

    number: int
    source: str
    fault: Fault
    raised_at: datetime
    last_at: datetime
    """When it was last seen."""
    count: int
    about: str
    closed_at: datetime | None = None

    @property
    def text(self) -> str:
        """One line for a person."""
        count = "" if self.fault is Fault.SILENT else f": {self.count:,}"
        return f"{self.source}: {_WORDS[self.fault]}{count}{f' ({self.about})' if self.about else ''}"


def data_alert_json(alert: DataAlert) -> dict[str, Any]:
    """A data alert for other programs: on MQTT and in the dashboard's API."""
    return {
        "source": alert.source,
        "fault": alert.fault.value,
        "state": "open" if alert.closed_at is None else "closed",
        "raised_at": time_text(alert.raised_at),
        "last_at": time_text(alert.last_at),
        "closed_at": time_text(alert.closed_at),
        "count": alert.count,
        "about": alert.about,
    }
