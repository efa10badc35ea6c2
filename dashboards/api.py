"""The pages' content as JSON, behind the same login; read-only but for the acknowledgement."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Blueprint, Response, request
from flask_login import login_required

from dashboards import alerts as alert_pages
from dashboards import asset as asset_page
from dashboards import fleet
from dashboards.auth import deciders_only
from dashboards.sources import sources
from pm.alerts import OPEN
from pm.data_alerts import data_alert_json
from pm.errors import TransitionError
from pm.notices import alert_json, explanation_json, reasons_json, time_text

pages = Blueprint("api", __name__, url_prefix="/api")


def _json(content: Any, status: int = 200) -> Response:
    """Strict JSON; NaN becomes null."""
    return Response(orjson.dumps(content), status=status, mimetype="application/json")


def _row(row: fleet.Row) -> dict[str, Any]:
    forecast = row.forecast
    return {
        "asset": row.asset.name,
        "model": row.asset.model,
        "state": row.state,
        "abstained": row.why_none or None,
        "because": row.because or None,
        "p24": row.p24,
        "p48": row.p48,
        "p72": row.p72,
        "failure_mode": row.mode,
        "rul_hours": forecast.rul_hours if forecast else None,
        "forecast_at": time_text(forecast.time if forecast else None),
        "last_reading_at": time_text(row.last_reading),
        "alert": row.alert.id if row.alert else None,
    }


@pages.get("/fleet")
@login_required  # type: ignore[untyped-decorator]
def fleet_rows() -> Response:
    held = sources()
    found = fleet.chosen(
        fleet.rows(held),
        sort=request.args.get("sort", ""),
        state=request.args.get("state", ""),
        text=request.args.get("q", ""),
    )
    return _json(
        {
            "plant": held.plant.name,
            "plant_time": time_text(held.time()),
            "last_assessment": time_text(held.records.last_assessment()),
            "threshold": fleet.threshold(held),
            "assets": [_row(row) for row in found],
        }
    )


@pages.get("/assets/<path:name>")
@login_required  # type: ignore[untyped-decorator]
def one_asset(name: str) -> Response:
    held = sources()
    asset = asset_page.known_asset(held, name)
    row = asset_page.asset_row(held, asset)
    forecast = row.forecast
    alerts = held.records.alerts(asset=name)
    why, why_from = asset_page.reasons(held, row, alerts)
    return _json(
        _row(row)
        | {
            "reasons": reasons_json(why.reasons),
            "reasons_of": why_from,
            "explanation": explanation_json(why),
            "static": dict(asset.static),
            "hazard": list(forecast.hazard) if forecast else [],
            "step_hours": forecast.step_hours if forecast else None,
            "p72_by_mode": dict(forecast.mode_probability) if forecast else {},
            "alerts": [alert_json(alert) for alert in alerts],
        }
    )


@pages.get("/figures/<path:name>")
@login_required  # type: ignore[untyped-decorator]
def asset_figures(name: str) -> Response:
    """The charts of an asset's page, as plotly.js takes them."""
    held = sources()
    asset = asset_page.known_asset(held, name)
    return _json(asset_page.figures(held, asset, request.args.get("range", ""), request.args.getlist("point")))


@pages.get("/alerts")
@login_required  # type: ignore[untyped-decorator]
def all_alerts() -> Response:
    """Standing alerts; with `?all=1` the newest closed ones too."""
    everything = request.args.get("all", "") not in ("", "0")
    states = None if everything else OPEN
    return _json({"alerts": [alert_json(alert) for alert in sources().records.alerts(states)]})


@pages.get("/data-alerts")
@login_required  # type: ignore[untyped-decorator]
def data_alerts() -> Response:
    """Open data alerts; with `?all=1` the newest closed ones too."""
    everything = request.args.get("all", "") not in ("", "0")
    found = sources().records.data_alerts(closed=100 if everything else 0)
    return _json({"data_alerts": [data_alert_json(alert) for alert in found]})


@pages.get("/alerts/<alert_id>")
@login_required  # type: ignore[untyped-decorator]
def one_alert(alert_id: str) -> Response:
    return _json(alert_json(alert_pages.known_alert(sources(), alert_id)))


@pages.post("/alerts/<alert_id>/acknowledge")
@deciders_only
def acknowledge(alert_id: str) -> Response:
    """Acknowledge; 409 where the alert's state does not allow it. The CSRF token goes into the header X-CSRFToken."""
    held = sources()
    try:
        return _json(alert_json(alert_pages.decide(held, alert_pages.known_alert(held, alert_id), "acknowledge")))
    except TransitionError as error:
        return _json({"error": str(error)}, 409)
