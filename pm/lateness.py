"""What came after an assessment that would have seen it, and what the forecast would have been with it. Pure.

A forecast stays as it was issued. Beside it stands what the same model says of the same time once all is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pm.domain import HORIZON, REPORTED_HOURS, Event, Forecast, Reading, from_us

ALIKE = 1e-6
"""Probabilities that differ by less are the same: a model computes a few assets and all of them in other orders."""


@dataclass(frozen=True, slots=True)
class Late:
    """What came late of one asset: readings and events dated from `first` to `last`."""

    asset: str
    first: datetime
    last: datetime
    came: datetime
    """Plant time at which the first of it was stored."""
    lasting: bool = False
    """An event is among it, which every later forecast sees, where a reading matters for the model's lookback."""

    def __or__(self, other: Late) -> Late:
        """Both of one asset; in whichever order, and however often, the same."""
        return Late(
            self.asset,
            min(self.first, other.first),
            max(self.last, other.last),
            min(self.came, other.came),
            self.lasting or other.lasting,
        )


@dataclass(frozen=True, slots=True)
class Revision:
    """What a forecast would have been with what came late."""

    forecast: Forecast
    """By the same model, for the same time."""
    late: Late
    at: datetime
    """Plant time of the assessment that found it."""


def late_among(
    readings: Iterable[Reading], events: Iterable[Event], *, assessed_us: int, came: datetime
) -> dict[str, Late]:
    """By asset, what is dated at or before the latest assessment that has begun.

    assessed_us: that assessment's time, in microseconds since the epoch. came: plant time of now.
    """
    spans: dict[str, tuple[int, int, bool]] = {}
    for lasting, dated in ((False, readings), (True, events)):
        for one in dated:
            if one.time_us <= assessed_us:
                first, last, before = spans.get(one.asset, (one.time_us, one.time_us, False))
                spans[one.asset] = (min(first, one.time_us), max(last, one.time_us), before or lasting)
    return {
        asset: Late(asset, from_us(first), from_us(last), came, lasting)
        for asset, (first, last, lasting) in spans.items()
    }


def reach(late: Late, now: datetime, lookback: timedelta) -> tuple[datetime, datetime]:
    """From when (itself not) until when (itself too) the forecasts were issued that are worth revising.

    Only those whose horizon is not over: of the others it is known by now what became of them.
    """
    start = max(late.first - timedelta(microseconds=1), now - HORIZON)
    return start, now if late.lasting else min(now, late.last + lookback)


def differs(issued: Forecast, revised: Forecast) -> bool:
    """Whether two forecasts for one time say different things."""
    if issued.abstained is not revised.abstained:
        return True
    pairs = ((issued.probability(hours), revised.probability(hours)) for hours in REPORTED_HOURS)
    return any(a is not None and b is not None and abs(a - b) > ALIKE for a, b in pairs)
