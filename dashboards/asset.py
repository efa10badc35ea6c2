"""One asset: what lies ahead of it, what was forecast, what its points and events say, its alerts."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import pandas as pd
from flask import Blueprint, abort, current_app, render_template, request
from flask_login import login_required

from dashboards import asset_charts
from dashboards.fleet import Row, row, threshold
from dashboards.sources import Explain, Sources, sources
from dashboards.wording import chart_zone, since
from pm.domain import Alert, Asset, EventKind, Explanation, Forecast, Point, Reason, from_us
from pm.errors import PmError
from pm.lateness import Revision

log = logging.getLogger(__name__)
pages = Blueprint("asset", __name__)

RANGES = {
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
    "90d": timedelta(days=90),
    "1y": timedelta(days=365),
}
RANGE_WORDS = {"24h": "24 hours", "7d": "7 days", "30d": "30 days", "90d": "90 days", "1y": "a year"}
DEFAULT_RANGE = "7d"
MOST_INTERVALS = 3000
"""A time of more intervals is drawn summed up by the store: its readings would be too many to fetch and to see."""
STRETCHES = 730
"""Into so many stretches at most."""
SHOWN_POINTS = 12
"""Points drawn at first; the others by choice."""
SHOWN_EVENTS = 50
SHOWN_REVISED = 8


@dataclass(frozen=True, slots=True)
class Stretch:
    """The time that a page shows."""

    name: str
    start: datetime
    end: datetime


def stretch(held: Sources, asset: str, name: str) -> Stretch | None:
    """The stretch of this name up to plant time; up to the asset's last reading where that is all there is.

    An asset that fell silent long ago is shown at the end of its readings, not as an empty chart.
    """
    name = name if name in RANGES else DEFAULT_RANGE
    last = held.store.span().get(asset, (None, None))[1]
    now = held.time()
    end = last if now is None or (last is not None and now - last > RANGES[name]) else max(now, last or now)
    if end is None:
        return None
    return Stretch(name, end - RANGES[name], end)


def known_asset(held: Sources, name: str) -> Asset:
    """The registered asset of this name; 404 when there is none."""
    found = next((asset for asset in held.records.assets() if asset.name == name), None)
    if found is None:
        abort(404)
    return found


def asset_row(held: Sources, asset: Asset) -> Row:
    forecast = next((f for f in held.records.latest_forecasts() if f.asset == asset.name), None)
    return row(asset, forecast, held.records.standing_alerts().get(asset.name), held.store.span())


class Explained:
    """The reasons of the latest forecasts asked for: a page is made anew every few seconds, its reasons once."""

    def __init__(self, kept: int = 256) -> None:
        self._kept = kept
        self._known: OrderedDict[tuple[str, datetime, str], Explanation] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, explain: Explain, forecast: Forecast) -> Explanation:
        key = (forecast.asset, forecast.time, forecast.model)
        with self._lock:
            if key in self._known:
                return self._known[key]
        found = explain(forecast.asset, forecast.time)
        with self._lock:
            self._known[key] = found
            while len(self._known) > self._kept:
                self._known.popitem(last=False)
        return found


def reasons(held: Sources, found: Row, alerts: Sequence[Alert]) -> tuple[Explanation, str]:
    """Why the forecast is what it is, and of when these reasons are: of now where they can be had, else of an alert."""
    if held.explain is not None and found.forecast is not None and found.p72 is not None:
        try:
            explained = cast(Explained, current_app.extensions.setdefault("pm.explained", Explained()))
            why = explained.of(held.explain, found.forecast)
            if why.reasons or why.change is not None:
                return why, "now"
        except PmError as error:
            log.warning("no reasons for %s: %s", found.asset.name, error)
    raised = next((alert for alert in alerts if alert.reasons), None)
    if raised is None:
        return Explanation(), "none"
    return raised.explanation or Explanation(raised.reasons), "alert"


@dataclass(frozen=True, slots=True)
class Read:
    """What an asset read in a period: every reading, or a long period summed up by the store."""

    points: tuple[Point, ...]
    """The points read at all, registered ones with their units first."""
    frame: pd.DataFrame
    step: timedelta | None
    """Length of the stretches summed up; None where `frame` holds the readings themselves."""


def read_in(held: Sources, asset: str, period: Stretch) -> Read:
    """What was read in a period."""
    interval, length = held.plant.interval, period.end - period.start
    step = None if length <= MOST_INTERVALS * interval else interval * -(-length // (STRETCHES * interval))
    if step is None:
        frame = held.store.readings(period.start, period.end, [asset])
        read = [name for name in frame.columns if name not in ("time", "asset") and frame[name].notna().any()]
    else:
        frame = held.store.downsampled(period.start, period.end, step, [asset])
        read = list(dict.fromkeys(frame["point"]))
    registered = [point for point in held.records.points() if point.name in read]
    known = {point.name for point in registered}
    return Read((*registered, *(Point(name) for name in read if name not in known)), frame, step)


def picked(points: Sequence[Point], wanted: Sequence[str], why: Sequence[Reason]) -> tuple[Point, ...]:
    """The points to draw: those wanted, else the first dozen with those that the reasons name in front."""
    if chosen := [point for point in points if point.name in wanted]:
        return tuple(chosen)
    named = [point for reason in why for point in points if point.name in reason.feature.split()]
    return tuple(dict.fromkeys([*named, *points]))[:SHOWN_POINTS]


@dataclass(frozen=True, slots=True)
class Revised:
    """A forecast as it was issued, and as it would have been with what came late."""

    issued: Forecast
    revision: Revision


def revised_in(held: Sources, asset: str, period: Stretch) -> list[Revised]:
    """The forecasts of a period that late readings would have changed, newest first."""
    revisions = held.records.revisions(asset, period.start, period.end)
    if not revisions:
        return []
    issued = {one.time: one for one in held.records.forecast_history(asset, period.start, period.end)}
    found = [Revised(issued[one.forecast.time], one) for one in revisions if one.forecast.time in issued]
    return found[::-1]


def figures(held: Sources, asset: Asset, range_name: str, wanted: Sequence[str]) -> dict[str, Any]:
    """Every figure of the asset's page by its place: `ahead`, `behind`, `point:<name>`."""
    found = asset_row(held, asset)
    made: dict[str, Any] = {}
    if found.forecast is not None and found.p72 is not None:
        made["ahead"] = asset_charts.ahead(found.forecast)
    period = stretch(held, asset.name, range_name)
    if period is None:
        return made
    zone, zone_name = chart_zone(held.zone, period.end)
    events = held.store.events(period.start, period.end, [asset.name])
    history = held.records.forecast_history(asset.name, period.start, period.end)
    alerts = held.records.alerts(asset=asset.name)
    if history:
        failed = [time.to_pydatetime() for time in events.loc[events["kind"] == EventKind.FAILURE.value, "time"]]
        made["behind"] = asset_charts.behind(
            history, alerts, failed, threshold=threshold(held), start=period.start, end=period.end, zone=zone,
            zone_name=zone_name,
        )  # fmt: skip
    read = read_in(held, asset.name, period)
    shown = picked(read.points, wanted, ())
    drawn = (
        asset_charts.summed_figures(
            shown, read.frame, events, step=read.step, start=period.start, end=period.end, zone=zone
        )
        if read.step
        else asset_charts.point_figures(
            shown, read.frame, events, interval=held.plant.interval, start=period.start, end=period.end, zone=zone
        )
    )
    return made | {f"point:{name}": figure for name, figure in drawn.items()}


@pages.get("/assets/<path:name>")
@login_required  # type: ignore[untyped-decorator]
def page(name: str) -> str:
    held = sources()
    asset = known_asset(held, name)
    found = asset_row(held, asset)
    alerts = held.records.alerts(asset=name)
    why, why_from = reasons(held, found, alerts)
    period = stretch(held, name, request.args.get("range", DEFAULT_RANGE))
    points: tuple[Point, ...] = ()
    events: list[dict[str, Any]] = []
    revised: list[Revised] = []
    if period is not None:
        revised = revised_in(held, name, period)
        points = read_in(held, name, period).points
        frame = held.store.events(period.start, period.end, [name])
        events = [
            {"time": time.to_pydatetime(), "kind": kind, "code": code}
            for time, kind, code in zip(frame["time"], frame["kind"], frame["code"], strict=True)
        ][::-1]
    wanted = [point for point in request.args.getlist("point") if point]
    now = held.time()
    return render_template(
        "asset.html",
        asset=asset,
        row=found,
        modes=sorted(found.forecast.mode_probability.items(), key=lambda item: -item[1]) if found.forecast else [],
        about={mode.code: mode.about for mode in held.records.failure_modes()},
        alerts=alerts,
        why=why,
        reasons_from=why_from,
        reason_scale=max((abs(reason.contribution) for reason in why.reasons), default=1.0) or 1.0,
        threshold=threshold(held),
        period=period,
        ranges=RANGE_WORDS,
        points=points,
        drawn=picked(points, wanted, why.reasons),
        wanted=wanted,
        events=events[:SHOWN_EVENTS],
        event_count=len(events),
        revised=revised[:SHOWN_REVISED],
        revised_count=len(revised),
        now=now,
        from_us=from_us,
        silence=held.records.silences().get(name),
        since=since,
        version=f"{found.last_reading}|{found.forecast.time if found.forecast else None}|{len(alerts)}",
    )
