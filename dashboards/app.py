"""The dashboard as a Flask application: settings, security headers, static files, errors."""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import logging
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from flask import Flask, Response, current_app, jsonify, render_template, request
from flask_login import current_user
from flask_wtf.csrf import CSRFError, CSRFProtect

from dashboards import alerts as alert_pages
from dashboards import api, asset, auth, fleet, letters, metrics_page, wording
from dashboards.sources import Explain, Page, Retry, Sources, sources
from pm.config import AlertsSection, DashboardSection, PlantSection
from pm.domain import AlertState
from pm.errors import PmError
from pm.ports import ReadingStore
from pm.records import Records

log = logging.getLogger(__name__)

YEAR = 365 * 24 * 3600
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' {styles}; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

REFUSALS = {
    400: "The request cannot be understood. If this page was open for long, load it again and repeat the step.",
    403: "Your role may look, not decide. Ask an admin for the role operator.",
    404: "There is nothing at this address.",
    405: "This address does not take that kind of request.",
    413: "The request is too large.",
}
UNAVAILABLE = "The service's records or its store cannot be reached now. If this lasts, run 'pm doctor' on the server."
FAILED = "The service could not answer. Its log says why, and 'pm doctor' on the server what to mend."


def create_app(
    *,
    records: Records,
    store: ReadingStore,
    plant: PlantSection,
    dashboard: DashboardSection,
    alerts: AlertsSection,
    now: Callable[[], datetime | None],
    status: Callable[[], Mapping[str, Any]],
    explain: Explain | None = None,
    retry: Retry | None = None,
    metrics: Page | None = None,
    metrics_token: str = "",
) -> Flask:
    """The dashboard, to be served by a WSGI server.

    now: plant time, None before anything was heard.
    status: what the service says of itself, by label; `threshold` (the 72 h probability above which alerts are raised)
        is drawn into the charts, `trouble` stands on top of the fleet, every other entry is shown as it stands.
    explain: the inputs that move an asset's forecast now; without it reasons are those of the asset's alerts.
    retry: reads dead letters again; without it they can be looked at and dropped.
    metrics: what /metrics serves, to users who are logged in and to whoever shows `metrics_token`, where there is one.
    """
    app = Flask("dashboards", template_folder="templates", static_folder="static")
    app.config.update(
        SECRET_KEY=dashboard.secret_key.get_secret_value() or records.secret("session"),
        SESSION_COOKIE_NAME="pm_session",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_SECURE=dashboard.secure_cookies,
        SESSION_REFRESH_EACH_REQUEST=False,  # pages refresh by themselves; a login must still end
        PERMANENT_SESSION_LIFETIME=dashboard.session,
        MAX_CONTENT_LENGTH=64 * 1024,
        SEND_FILE_MAX_AGE_DEFAULT=3600,
        WTF_CSRF_TIME_LIMIT=None,  # a token lasts as long as its session
    )
    app.extensions["pm"] = Sources(
        records=records,
        store=store,
        plant=plant,
        alerts=alerts,
        now=now,
        status=status,
        explain=explain,
        retry=retry,
        metrics=metrics,
        metrics_token=metrics_token,
    )
    CSRFProtect(app)
    auth.install(app)
    for room in (auth, fleet, asset, alert_pages, letters, api, metrics_page):
        app.register_blueprint(room.pages)
    app.add_url_rule("/healthz", "healthz", _healthz)
    app.add_url_rule(f"/static/plotly-{plotly_version()}.min.js", "plotly", _plotly)
    app.jinja_env.filters.update(
        percent=wording.percent,
        duration=wording.duration,
        ago=wording.ago,
        signed=wording.signed,
        clock=lambda time: wording.clock(time, sources().zone),
    )
    app.context_processor(_frame)
    app.after_request(_secured)
    app.extensions["pm.policy"] = POLICY.format(styles=" ".join(f"'sha256-{hash}'" for hash in plotly_styles()))
    for status_code in (*REFUSALS, 500, 503):
        app.register_error_handler(status_code, _refusal)
    app.register_error_handler(CSRFError, _refusal)
    app.register_error_handler(PmError, _failure)
    return app


def _frame() -> dict[str, Any]:
    """What every page shows around its own content."""
    held = sources()
    around: dict[str, Any] = {"plant": held.plant, "plant_time": None, "waiting": 0, "letters_kept": 0}
    if current_user.is_authenticated:
        around["plant_time"] = held.time()
        around["letters_kept"] = held.records.dead_letter_count()
        around["waiting"] = len(held.records.alerts([AlertState.UNACKNOWLEDGED, AlertState.RETURNED_UNACKNOWLEDGED]))
    return around


def _secured(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", current_app.extensions["pm.policy"])
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if request.endpoint not in ("static", "plotly"):
        response.headers.setdefault("Cache-Control", "no-store")
    return response


def _healthz() -> tuple[Response, int]:
    """For probes, without login: 200 while the records answer, else 503."""
    try:
        sources().records.last_assessment()
    except PmError as error:
        log.warning("health check failed: %s", error)
        return jsonify(status="records unavailable"), 503
    return jsonify(status="ok"), 200


@cache
def _plotly_file() -> Path:
    """plotly.min.js as plotly's own wheel ships it; plotly itself, which is slow to import, is not."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("plotly is not installed; install pm with its dependencies")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


@cache
def plotly_version() -> str:
    """Version of plotly.js, which makes its address change when it does."""
    with _plotly_file().open(encoding="utf-8") as file:
        found = re.search(r"plotly\.js v([\w.-]+)", file.read(500))
    return found[1] if found else "unknown"


@cache
def plotly_styles() -> tuple[str, ...]:
    """SHA-256 (base64) of each style sheet that plotly.js puts into a page: an empty one, and its map's.

    Only these are let through, where a blanket 'unsafe-inline' would let through anybody's.
    """
    script = _plotly_file().read_text(encoding="utf-8")
    sheets = ["", *(sheet.replace("\\'", "'") for sheet in re.findall(r"\.textContent='((?:[^'\\]|\\.)+)'", script))]
    return tuple(base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode() for sheet in sheets)


@cache
def _plotly_packed() -> bytes:
    return gzip.compress(_plotly_file().read_bytes(), 6, mtime=0)


def _plotly() -> Response:
    packed = "gzip" in request.headers.get("Accept-Encoding", "")
    response = Response(_plotly_packed() if packed else _plotly_file().read_bytes(), mimetype="text/javascript")
    if packed:
        response.headers["Content-Encoding"] = "gzip"
    response.headers["Vary"] = "Accept-Encoding"
    response.headers["Cache-Control"] = f"public, max-age={YEAR}, immutable"
    return response


def _refusal(error: Any) -> tuple[str | Response, int]:
    """A page (or JSON under /api) for what cannot be answered; nothing of the inside is shown."""
    code = int(getattr(error, "code", None) or 500)
    if code >= 500:
        return _failed(FAILED, code)
    words = REFUSALS.get(code, REFUSALS[400])
    if request.path.startswith("/api/"):
        return jsonify(error=words), code
    return render_template("refusal.html", words=words, code=code), code


def _failure(error: PmError) -> tuple[str | Response, int]:
    """The records or the store refused. What they said may name hosts and paths, so it is for the log alone."""
    log.warning("%s %s: %s", request.method, request.path, error)
    return _failed(UNAVAILABLE if error.retryable else FAILED, 503 if error.retryable else 500)


def _failed(words: str, code: int) -> tuple[str | Response, int]:
    """A page that needs neither a user nor the records, since these may be what failed."""
    if request.path.startswith("/api/"):
        return jsonify(error=words), code
    bare = current_app.jinja_env.get_template("failure.html")
    return bare.render(words=words, plant=sources().plant, request=request, again=code == 503), code
