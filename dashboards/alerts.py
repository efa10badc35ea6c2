"""Alerts: those that stand, those that are closed, one with its journal, and what a person decides about it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from flask_login import current_user, login_required
from werkzeug.wrappers import Response

from dashboards.auth import deciders_only, local_path
from dashboards.fleet import threshold
from dashboards.sources import Sources, sources
from dashboards.wording import since
from pm.alerts import ALLOWED, OPEN
from pm.domain import Alert, AlertState, Cause
from pm.errors import RecordsError, TransitionError

pages = Blueprint("alerts", __name__)

SHELVE_HOURS = (1, 4, 8, 12, 24, 72, 168)
MAX_SHELVE_HOURS = 24.0 * 30
CLOSED_SHOWN = 100
DATA_CLOSED_SHOWN = 10
URGENCY = {
    AlertState.UNACKNOWLEDGED: 0,
    AlertState.RETURNED_UNACKNOWLEDGED: 1,
    AlertState.ACKNOWLEDGED: 2,
    AlertState.SHELVED: 3,
    AlertState.SUPPRESSED: 4,
    AlertState.OUT_OF_SERVICE: 5,
}
"""Order of standing alerts: what waits for a person first."""

CAUSES: Mapping[str, Cause] = {
    "acknowledge": Cause.ACKNOWLEDGE,
    "shelve": Cause.SHELVE,
    "unshelve": Cause.UNSHELVE,
    "out-of-service": Cause.OUT_OF_SERVICE,
    "in-service": Cause.IN_SERVICE,
    "close": Cause.CLOSE,
}
"""What a person can do, by its place in the address."""


def offered(state: AlertState) -> tuple[str, ...]:
    """What a page offers for an alert in this state."""
    return tuple(what for what, cause in CAUSES.items() if state in ALLOWED[cause])


def lead_hours(alert: Alert, now: datetime | None) -> float | None:
    """Hours from raising to now, or to the end of a closed alert."""
    return since(alert.raised_at, alert.closed_at or now)


def decision_time(held: Sources) -> datetime:
    """Plant time of a decision. An alert stands, so something was assessed before; 503 where even that is unknown."""
    now = held.time()
    if now is None:
        abort(503)
    return now


def known_alert(held: Sources, alert_id: str) -> Alert:
    """The alert of this id; 404 when there is none."""
    try:
        return held.records.alert(alert_id)
    except RecordsError as error:
        if error.retryable:
            raise
        abort(404)


def decide(held: Sources, alert: Alert, what: str, *, hours: float | None = None, because: str | None = None) -> Alert:
    """Carry out what a person decided. Raises TransitionError where the alert's state does not allow it."""
    at = decision_time(held)
    return held.records.change_alert(
        alert.id,
        CAUSES[what],
        at=at,
        by=current_user.name,
        until=at + timedelta(hours=hours) if hours is not None else None,
        because=because,
    )


@pages.get("/alerts")
@login_required  # type: ignore[untyped-decorator]
def listing() -> str:
    held = sources()
    standing = held.records.alerts(OPEN)
    now = held.time()
    return render_template(
        "alerts.html",
        standing=sorted(standing, key=lambda alert: (URGENCY[alert.state], -alert.raised_at.timestamp())),
        closed=held.records.alerts([AlertState.CLOSED], limit=CLOSED_SHOWN),
        limit=CLOSED_SHOWN,
        data_alerts=held.records.data_alerts(closed=DATA_CLOSED_SHOWN),
        offered=offered,
        lead=lambda alert: lead_hours(alert, now),
        threshold=threshold(held),
        budget=held.alerts.budget,
        champion=held.records.champion(),
    )


@pages.get("/alerts/<alert_id>")
@login_required  # type: ignore[untyped-decorator]
def page(alert_id: str) -> str:
    held = sources()
    alert = known_alert(held, alert_id)
    now = held.time()
    return render_template(
        "alert.html",
        alert=alert,
        offers=offered(alert.state),
        shelve_hours=SHELVE_HOURS,
        journal=held.records.journal(alert_id),
        about={mode.code: mode.about for mode in held.records.failure_modes()},
        lead=lead_hours(alert, now),
        reason_scale=max((abs(reason.contribution) for reason in alert.reasons), default=1.0) or 1.0,
    )


@pages.post("/alerts/<alert_id>/<what>")
@deciders_only
def act(alert_id: str, what: str) -> Response:
    held = sources()
    if what not in CAUSES:
        abort(404)
    alert = known_alert(held, alert_id)
    back = local_path(request.form.get("back")) or url_for("alerts.page", alert_id=alert_id)
    hours = request.form.get("hours", type=float) if what == "shelve" else None
    because = request.form.get("because", "").strip()[:500] if what == "close" else None
    if what == "shelve" and (hours is None or not 0 < hours <= MAX_SHELVE_HOURS):
        flash(f"Say for how many hours to shelve the alert: more than 0 and up to {MAX_SHELVE_HOURS:g}.", "problem")
    elif what == "close" and not because:
        flash("Say why the alert is closed; the reason stays in its journal.", "problem")
    else:
        try:
            changed = decide(held, alert, what, hours=hours, because=because)
            flash(f"Alert of {alert.asset}: now {changed.state.value.replace('-', ' ')}.", "done")
        except TransitionError as error:
            flash(str(error), "problem")
    return redirect(back, 303)
