"""Login, logout and who may decide."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    current_app,
    jsonify,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask_login import LoginManager, current_user, login_required, login_user, logout_user
from flask_wtf import FlaskForm
from werkzeug.wrappers import Response as BaseResponse
from wtforms import PasswordField, StringField
from wtforms.validators import InputRequired, Length

from dashboards.sources import sources

log = logging.getLogger(__name__)
pages = Blueprint("auth", __name__)

P = ParamSpec("P")
R = TypeVar("R")

ATTEMPTS = 5
PAUSE_SECONDS = 30.0


class Throttle:
    """After so many wrong passwords in a row from one address for one name, a pause before the next is looked at.

    Kept in memory and bounded: it slows guessing, it does not lock anyone out.
    """

    def __init__(self, *, attempts: int, pause: float, clock: Callable[[], float], kept: int = 10_000) -> None:
        self._attempts = attempts
        self._pause = pause
        self._clock = clock
        self._kept = kept
        self._failures: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, key: tuple[str, str]) -> float:
        """Seconds until another attempt is looked at; 0 for now."""
        with self._lock:
            count, last = self._failures.get(key, (0, 0.0))
            return max(0.0, last + self._pause - self._clock()) if count >= self._attempts else 0.0

    def failed(self, key: tuple[str, str]) -> None:
        with self._lock:
            count, _ = self._failures.pop(key, (0, 0.0))
            self._failures[key] = (count + 1, self._clock())
            while len(self._failures) > self._kept:
                self._failures.popitem(last=False)

    def passed(self, key: tuple[str, str]) -> None:
        with self._lock:
            self._failures.pop(key, None)


@dataclass(frozen=True, slots=True)
class Visitor:
    """A logged-in user, as Flask-Login asks for one."""

    name: str
    role: str
    is_authenticated: bool = True
    is_active: bool = True
    is_anonymous: bool = False

    def get_id(self) -> str:
        return self.name

    @property
    def decides(self) -> bool:
        """Whether this user may acknowledge, shelve and close."""
        return self.role in ("operator", "admin")


class LoginForm(FlaskForm):  # type: ignore[misc]  # flask_wtf carries no types
    name = StringField("Name", validators=[InputRequired("Write your name."), Length(max=200)])
    password = PasswordField("Password", validators=[InputRequired("Write your password."), Length(max=1000)])


def install(app: Flask) -> None:
    """Sessions of `app` are users of the records, looked up at every request, so that disabling one ends them."""
    manager = LoginManager()
    manager.login_view = "auth.login"
    manager.user_loader(_visitor)
    manager.unauthorized_handler(_unauthorized)
    manager.init_app(app)
    app.extensions["pm.throttle"] = Throttle(attempts=ATTEMPTS, pause=PAUSE_SECONDS, clock=time.monotonic)


def _visitor(name: str) -> Visitor | None:
    user = next((user for user in sources().records.users() if user.name == name), None)
    return Visitor(user.name, user.role) if user is not None and not user.disabled else None


def _unauthorized() -> BaseResponse | tuple[Response, int]:
    if request.path.startswith("/api/"):
        return jsonify(error="log in first"), 401
    wanted = request.full_path.rstrip("?") if request.method == "GET" else None
    return redirect(url_for("auth.login", next=wanted if wanted != "/" else None))


def deciders_only(view: Callable[P, R]) -> Callable[P, R]:
    """Lets operators and admins through; a viewer is refused with 403, a stranger sent to the login."""

    @wraps(view)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        if not current_user.decides:
            abort(403)
        return view(*args, **kwargs)

    return login_required(guarded)  # type: ignore[no-any-return]


def local_path(target: str | None) -> str | None:
    """`target` when it is a path on this host, else None: a login must not send people elsewhere."""
    if not target or not target.startswith("/") or target.startswith(("//", "/\\")):
        return None
    if any(ord(letter) < 32 or letter == "\\" for letter in target):
        return None
    parts = urlsplit(target)
    return None if parts.scheme or parts.netloc else target


@pages.route("/login", methods=["GET", "POST"])
def login() -> str | BaseResponse | tuple[str, int]:
    target = local_path(request.args.get("next")) or url_for("fleet.page")
    if current_user.is_authenticated:
        return redirect(target)
    form = LoginForm()
    problem, status = None, 200
    if form.validate_on_submit():
        throttle = _throttle()
        key = (form.name.data, request.remote_addr or "")
        if (seconds := throttle.wait(key)) > 0:
            problem, status = f"Too many wrong passwords. Try again in {seconds:.0f} s.", 429
        elif user := sources().records.check_password(form.name.data, form.password.data):
            throttle.passed(key)
            session.clear()
            session.permanent = True
            login_user(Visitor(user.name, user.role))
            log.info("%s logged in", user.name)
            return redirect(target)
        else:
            throttle.failed(key)
            log.warning("wrong password for %r from %s", form.name.data[:80], request.remote_addr)
            problem, status = "Name or password is wrong.", 401
    elif form.is_submitted():
        problem, status = "Write your name and your password.", 400
    nobody = not sources().records.users()
    return render_template("login.html", form=form, problem=problem, nobody=nobody), status


def _throttle() -> Throttle:
    return cast(Throttle, current_app.extensions["pm.throttle"])


@pages.post("/logout")
@login_required  # type: ignore[untyped-decorator]
def logout() -> BaseResponse:
    logout_user()
    session.clear()
    return redirect(url_for("auth.login"))
