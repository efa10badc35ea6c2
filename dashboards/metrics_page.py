"""The metrics of this process for Prometheus, behind a login or a bearer token."""

from __future__ import annotations

from flask import Blueprint, Response, abort, request
from flask_login import current_user

from dashboards.sources import sources
from pm.metrics import allowed

pages = Blueprint("metrics", __name__)


@pages.get("/metrics")
def page() -> Response:
    """A stranger without the token is told what is missing; where no token is set, a login alone lets in."""
    held = sources()
    if not current_user.is_authenticated and not allowed(request.headers.get("Authorization"), held.metrics_token):
        refusal = "log in, or send the bearer token of metrics.token_file\n"
        return Response(refusal, 401, {"WWW-Authenticate": "Bearer"}, mimetype="text/plain")
    if held.metrics is None:
        abort(404)
    text, content_type = held.metrics(request.headers.get("Accept"))
    return Response(text, content_type=content_type)
