"""What the pages are made from: the service's records, the store, plant time and the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from zoneinfo import ZoneInfo

from flask import current_app

from pm.config import AlertsSection, PlantSection
from pm.domain import Explanation
from pm.ports import ReadingStore
from pm.records import Records

Explain = Callable[[str, datetime], Explanation]
"""Why an asset's forecast at a time is what it is."""
Retry = Callable[[Sequence[int]], tuple[int, int]]
"""Reads the dead letters of these numbers again: how many are stored now, how many are dead letters still."""

Page = Callable[[str | None], tuple[bytes, str]]
"""Metrics as text with their content type, for a request's Accept header."""


@dataclass(frozen=True, slots=True)
class Sources:
    records: Records
    store: ReadingStore
    plant: PlantSection
    alerts: AlertsSection
    now: Callable[[], datetime | None]
    status: Callable[[], Mapping[str, Any]]
    explain: Explain | None = None
    retry: Retry | None = None
    metrics: Page | None = None
    metrics_token: str = ""

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.plant.timezone)

    def time(self) -> datetime | None:
        """Plant time; where no feed has been heard in this process, the last assessment's."""
        return self.now() or self.records.last_assessment()


def sources() -> Sources:
    """The sources of the application that serves this request."""
    return cast(Sources, current_app.extensions["pm"])
