"""Late readings: noted by ingest before they are acknowledged, and looked at by the assessment that comes next.

An assessment says that it has begun before it reads anything. Whoever stores a reading and finds no assessment begun
that should have seen it knows that every such assessment is still to read; so none is missed, in whatever order the
two come.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from pm.assess import Assessor
from pm.domain import Forecast, to_us
from pm.lateness import Late, Revision, differs, late_among, reach
from pm.ports import Clock, Delivery
from pm.record_late import Stamped
from pm.records import Records

log = logging.getLogger(__name__)

BEGUN_TICK = "assessment begun"
"""Under this name the records keep the time of the latest assessment that has begun."""
MOST = 5000
"""Forecasts revised after one assessment at most (and at least one asset's): the next must not wait for them."""


def begin(records: Records, at: datetime) -> None:
    """Say that the assessment of this time has begun; before it reads anything."""
    last = records.last_tick(BEGUN_TICK)
    if last is None or at > last:
        records.set_tick(BEGUN_TICK, at)


class LateWatch:
    """A `pm.ports.LateSink`: compares what was stored with the assessments begun, and notes what they had to miss."""

    def __init__(self, records: Records, clock: Clock, present: Callable[[], datetime]) -> None:
        """clock: never behind the schedule's, and never after an assessment begun. present: when something came."""
        self._records = records
        self._clock = clock
        self._present = present

    def note(self, deliveries: Sequence[Delivery]) -> None:
        """Raises a retryable `PmError` where it cannot be noted now."""
        complete = self._clock.now()
        if complete is None:
            return
        # No assessment is later than plant time, so that what is newer, as nearly all is, needs no look at the records.
        complete_us = to_us(complete)
        readings = [one for delivery in deliveries for one in delivery.readings if one.time_us <= complete_us]
        events = [one for delivery in deliveries for one in delivery.events if one.time_us <= complete_us]
        if not readings and not events:
            return
        begun = self._records.last_tick(BEGUN_TICK)
        if begun is None:
            return
        marks = late_among(readings, events, assessed_us=to_us(begun), came=self._present())
        self._records.note_late(list(marks.values()))


def reassess(assessor: Assessor, records: Records, at: datetime) -> list[Revision]:
    """Look again at the forecasts that late readings touch, after the assessment at `at`; what was found to differ.

    Only forecasts of the present forecaster whose horizon is not over. What was issued, and its alerts, stay as they
    are. May be repeated; a crash leaves all of it to the next time.
    """
    settled: list[Stamped] = []
    issued: dict[datetime, dict[str, tuple[Forecast, Late]]] = {}
    count = 0
    for mark, stamp in records.late():
        start, end = reach(mark, at, assessor.reach)
        found = [
            forecast
            for forecast in (records.forecast_history(mark.asset, start, end) if start < end else ())
            if forecast.model == assessor.forecaster.version
        ]
        if settled and count + len(found) > MOST:
            break
        count += len(found)
        settled.append((mark, stamp))
        for forecast in found:
            issued.setdefault(forecast.time, {})[forecast.asset] = (forecast, mark)
    if not settled:
        return []
    revised: list[Revision] = []
    alike: list[tuple[str, datetime]] = []
    for time, forecasts in sorted(issued.items()):
        for again in assessor.again(time, sorted(forecasts)):
            before, mark = forecasts[again.asset]
            if differs(before, again):
                revised.append(Revision(again, mark, at))
            else:
                alike.append((again.asset, time))
    records.record_revisions(settled, revised, alike)
    log.info(
        "late readings of %s: %d forecasts looked at again, %d would have been different",
        _names(mark.asset for mark, _ in settled),
        count,
        len(revised),
    )
    return revised


def _names(assets: Iterable[str], shown: int = 3) -> str:
    names = sorted(assets)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
