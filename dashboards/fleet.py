"""The fleet by risk: every asset with its probabilities, its state and its trend."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from flask import Blueprint, current_app, render_template, request
from flask_login import login_required

from dashboards.sources import Sources, sources
from dashboards.wording import since
from pm.domain import Alert, AlertState, Asset, Forecast

pages = Blueprint("fleet", __name__)

TREND = timedelta(days=7)
"""How far back the trend of the 72 h probability is drawn."""
PAGE = 100
"""Assets on one page."""

WARNING = (AlertState.UNACKNOWLEDGED, AlertState.ACKNOWLEDGED)
"""States of an alert whose condition still holds and that nobody has put aside."""
STATES = ("alert", "no forecast", "ok")
SORTS = ("risk", "asset", "life", "reading")

Run = tuple[tuple[float, float], ...]
"""Neighbouring (hours before now, probability) of a trend; abstentions part one run from the next."""


@dataclass(frozen=True, slots=True)
class Row:
    """One asset as the fleet's page shows it."""

    asset: Asset
    forecast: Forecast | None
    alert: Alert | None
    """Its standing alert, whatever its state."""
    p24: float | None
    p48: float | None
    p72: float | None
    last_reading: datetime | None

    @property
    def state(self) -> str:
        """alert (one stands), no forecast (abstained, or none issued yet), or ok."""
        if self.alert is not None:
            return "alert"
        return "no forecast" if self.p72 is None else "ok"

    @property
    def why_none(self) -> str:
        """Why there is no probability; empty where there is one."""
        if self.p72 is not None:
            return ""
        if self.forecast is None or self.forecast.abstained is None:
            return "not assessed yet"
        return self.forecast.abstained.value

    @property
    def because(self) -> str:
        """More than `why_none`, where the forecast says it: what is strange, or that all points are stuck."""
        return self.forecast.because if self.forecast is not None else ""

    @property
    def mode(self) -> str | None:
        return self.forecast.leading_mode() if self.forecast is not None else None

    @property
    def warning(self) -> bool:
        return self.alert is not None and self.alert.state in WARNING


def rows(held: Sources) -> list[Row]:
    """Every registered asset, in no order."""
    forecasts = {forecast.asset: forecast for forecast in held.records.latest_forecasts()}
    alerts = held.records.standing_alerts()
    span = held.store.span()
    return [row(asset, forecasts.get(asset.name), alerts.get(asset.name), span) for asset in held.records.assets()]


def row(
    asset: Asset, forecast: Forecast | None, alert: Alert | None, span: Mapping[str, tuple[datetime, datetime]]
) -> Row:
    p24, p48, p72 = (forecast.probability(hours) if forecast else None for hours in (24, 48, 72))
    last = span[asset.name][1] if asset.name in span else None
    return Row(asset, forecast, alert, p24, p48, p72, last)


def _by_risk(row: Row) -> tuple[Any, ...]:
    return (not row.warning, row.p72 is None, -(row.p72 or 0.0), row.asset.name)


def _by_life(row: Row) -> tuple[Any, ...]:
    life = row.forecast.rul_hours if row.forecast is not None else None
    return (math.inf if life is None else life, row.asset.name)


def _by_reading(row: Row) -> tuple[Any, ...]:
    return (row.last_reading is not None, row.last_reading.timestamp() if row.last_reading else 0.0, row.asset.name)


_ORDER: Mapping[str, Callable[[Row], tuple[Any, ...]]] = {
    "risk": _by_risk,
    "asset": lambda row: (row.asset.name,),
    "life": _by_life,
    "reading": _by_reading,
}


def chosen(found: Sequence[Row], *, sort: str, state: str, text: str) -> list[Row]:
    """The rows in this state whose asset, model or mode contains `text`; unknown choices mean all, by risk.

    By risk: assets with a warning first, then by falling probability, those without a forecast last.
    """
    text = text.casefold().strip()
    kept = [
        row
        for row in found
        if (state not in STATES or row.state == state)
        and (not text or any(text in word.casefold() for word in (row.asset.name, row.asset.model, row.mode or "")))
    ]
    return sorted(kept, key=_ORDER.get(sort, _by_risk))


def threshold(held: Sources) -> float | None:
    """The 72 h probability above which alerts are raised, as the service says; None while no model is champion."""
    value = held.status().get("threshold")
    return float(value) if value is not None else None


class Trends:
    """Trends of the 72 h probability, kept until the next assessment changes them."""

    def __init__(self) -> None:
        self._at: datetime | None = None
        self._runs: dict[str, tuple[Run, ...]] = {}
        self._lock = threading.Lock()

    def of(self, held: Sources, asset: str, at: datetime) -> tuple[Run, ...]:
        with self._lock:
            if self._at != at:
                self._at, self._runs = at, {}
            known = self._runs.get(asset)
        if known is None:
            known = runs(held.records.forecast_history(asset, at - TREND, at), at)
            with self._lock:
                if self._at == at:
                    self._runs[asset] = known
        return known


def trends() -> Trends:
    """The kept trends of the application that serves this request."""
    return cast(Trends, current_app.extensions.setdefault("pm.trends", Trends()))


def runs(history: Sequence[Forecast], at: datetime) -> tuple[Run, ...]:
    """The trend's unbroken stretches: (hours from `at`, not above 0; probability)."""
    found: list[list[tuple[float, float]]] = [[]]
    for forecast in history:
        share = forecast.probability()
        if share is None:
            found.append([])
        else:
            found[-1].append(((forecast.time - at) / timedelta(hours=1), share))
    return tuple(tuple(run) for run in found if run)


def sparkline(trend: Sequence[Run], *, width: float = 96.0, height: float = 24.0) -> list[str]:
    """SVG polyline points of each run: `TREND` across, probabilities 0 to 1 from bottom to top, a pixel of rim."""
    hours = TREND / timedelta(hours=1)
    lines = []
    for run in trend:
        places = [(width * (1 + x / hours), 1 + (height - 2) * (1 - y)) for x, y in run]
        if len(places) == 1:
            places.append((places[0][0] + 1.5, places[0][1]))
        lines.append(" ".join(f"{x:.1f},{y:.1f}" for x, y in places))
    return lines


@pages.get("/")
@login_required  # type: ignore[untyped-decorator]
def page() -> str:
    held = sources()
    found = rows(held)
    sort, state, text = (request.args.get(key, "") for key in ("sort", "state", "q"))
    kept = chosen(found, sort=sort, state=state, text=text)
    number = max(1, min(request.args.get("page", 1, type=int), math.ceil(len(kept) / PAGE) or 1))
    shown = kept[(number - 1) * PAGE : number * PAGE]
    at = held.records.last_assessment()
    now = held.time()
    limit = threshold(held)
    said = held.status()
    return render_template(
        "fleet.html",
        rows=shown,
        trends={row.asset.name: sparkline(trends().of(held, row.asset.name, at)) for row in shown} if at else {},
        total=len(found),
        kept=len(kept),
        standing=sum(row.alert is not None for row in found),
        unacknowledged=sum(
            row.alert is not None and row.alert.state in (AlertState.UNACKNOWLEDGED, AlertState.RETURNED_UNACKNOWLEDGED)
            for row in found
        ),
        at_risk=sum(row.p72 is not None and row.p72 >= limit for row in found) if limit is not None else None,
        abstaining=sum(row.p72 is None for row in found),
        threshold=limit,
        last_assessment=at,
        assessed_ago=since(at, now),
        champion=held.records.champion(),
        status={key: value for key, value in said.items() if key not in ("threshold", "trouble")},
        trouble=said.get("trouble"),
        data_alerts=held.records.data_alerts(),
        now=now,
        since=since,
        sort=sort if sort in SORTS else "risk",
        state=state if state in STATES else "",
        text=text,
        page_number=number,
        page_count=math.ceil(len(kept) / PAGE) or 1,
    )
