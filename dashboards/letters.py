"""Dead letters: what could not be read or stored, why, and what a person decides about it."""

from __future__ import annotations

import logging
import math
import threading
from datetime import datetime
from typing import Any, cast

from flask import Blueprint, abort, current_app, flash, redirect, render_template, request, url_for
from flask_login import current_user, login_required
from werkzeug.wrappers import Response

from dashboards.auth import deciders_only, local_path
from dashboards.sources import Sources, sources
from dashboards.wording import payload_text, size
from pm.domain import from_us
from pm.errors import PmError
from pm.record_letters import DeadLetter, LetterStep, Wanted

log = logging.getLogger(__name__)
pages = Blueprint("letters", __name__)

PAGE = 50
"""Dead letters on one page."""
AT_ONCE = 1000
"""Dead letters of one step at most: a request must end, and a form has its limit."""
SHORT, LONG = 120, 4000
"""Characters of a payload in the list, and when it is opened."""
LISTED = 10
"""Dead letters shown before a step is confirmed."""
STEPS = {"retry": "read again", "drop": "dropped"}
"""What can be done, by its place in the address, and how it stands in the journal."""


def wanted_of(values: Any) -> Wanted:
    """The filter that an address or a form names."""
    return Wanted(*(str(values.get(key, "")).strip()[:500] for key in ("feed", "reason", "q")))


def chosen(held: Sources) -> list[int]:
    """The numbers that a form names, or with `all` those of its filter, the oldest first; at most `AT_ONCE`."""
    if request.form.get("all"):
        return held.records.dead_letter_numbers(wanted_of(request.form), AT_ONCE)
    numbers = {int(text) for text in request.form.getlist("number") if text.isascii() and text.isdigit()}
    return sorted(number for number in numbers if number < 2**63)[:AT_ONCE]


def step_time(held: Sources, letters: list[DeadLetter]) -> datetime:
    """Plant time of a step. Where none has come yet, perhaps since nothing can be read, that of the newest letter."""
    return held.time() or max(from_us(letter.reject.received_us) for letter in letters)


def _back() -> str:
    return local_path(request.form.get("back")) or url_for("letters.listing")


def _one_at_a_time() -> threading.Lock:
    """Two who read the same letters again at once would keep what still cannot be read twice."""
    return cast(threading.Lock, current_app.extensions.setdefault("pm.retrying", threading.Lock()))


@pages.get("/letters")
@login_required  # type: ignore[untyped-decorator]
def listing() -> str:
    held = sources()
    records, wanted = held.records, wanted_of(request.args)
    kept = records.dead_letter_count(wanted)
    count = math.ceil(kept / PAGE) or 1
    number = max(1, min(request.args.get("page", 1, type=int), count))
    said = held.status()
    return render_template(
        "letters.html",
        shown=records.dead_letters(PAGE, wanted, (number - 1) * PAGE),
        kept=kept,
        total=records.dead_letter_count(),
        reasons=records.dead_letter_reasons(),
        feeds=records.dead_letter_feeds(),
        steps=records.letter_steps(),
        wanted=wanted,
        asked={"feed": wanted.feed or None, "reason": wanted.reason or None, "q": wanted.text or None},
        at_once=AT_ONCE,
        retries=held.retry is not None,
        on_disk=said.get("messages on disk, waiting for the store"),
        trouble=said.get("trouble"),
        short=lambda payload: payload_text(payload, SHORT),
        long=lambda payload: payload_text(payload, LONG),
        size=size,
        from_us=from_us,
        page_number=number,
        page_count=count,
    )


@pages.post("/letters/<what>/confirm")
@deciders_only
def confirm(what: str) -> str | Response:
    """What is about to be done with which letters, to be said once more."""
    held = sources()
    if what not in STEPS:
        abort(404)
    letters = held.records.dead_letters_of(chosen(held))
    if not letters:
        flash("Choose dead letters first; those that you chose may be gone by now.", "problem")
        return redirect(_back(), 303)
    return render_template(
        "letters_confirm.html",
        what=what,
        letters=letters,
        listed=LISTED,
        left=held.records.dead_letter_count(wanted_of(request.form)) - len(letters) if request.form.get("all") else 0,
        back=_back(),
        short=lambda payload: payload_text(payload, SHORT),
        from_us=from_us,
    )


@pages.post("/letters/<what>")
@deciders_only
def act(what: str) -> Response:
    held = sources()
    if what not in STEPS or (what == "retry" and held.retry is None):
        abort(404)
    letters = held.records.dead_letters_of(chosen(held))
    if not letters:
        flash("These dead letters are gone already.", "problem")
        return redirect(_back(), 303)
    numbers = [letter.number for letter in letters]
    try:
        gone = _retry(held, numbers) if what == "retry" else held.records.delete_dead_letters(numbers)
    except PmError as error:
        if not error.retryable:
            raise
        log.warning("dead letters could not be %s: %s", STEPS[what], error)
        flash("The store cannot be reached now. The dead letters are kept; try again later.", "problem")
        return redirect(_back(), 303)
    if gone is None:
        flash("Somebody else is reading dead letters again just now. Try again in a moment.", "problem")
        return redirect(_back(), 303)
    reasons = {letter.reject.reason for letter in letters}
    about = min(reasons) if len(reasons) == 1 else f"{len(reasons)} reasons"
    step = LetterStep(step_time(held, letters), current_user.name, STEPS[what], len(letters), gone, about)
    held.records.note_letters(step)
    log.info("%d of %d dead letters %s by %s", gone, len(letters), STEPS[what], current_user.name)
    if what == "drop":
        flash(f"{_count(gone)} dropped.", "done")
    elif left := len(letters) - gone:
        flash(f"{_count(gone)} stored; {_count(left)} still cannot be read, kept with the reason of now.", "problem")
    else:
        flash(f"{_count(gone)} stored.", "done")
    return redirect(_back(), 303)


def _retry(held: Sources, numbers: list[int]) -> int | None:
    """How many were stored; None while somebody else does the same."""
    lock = _one_at_a_time()
    if held.retry is None or not lock.acquire(blocking=False):
        return None
    try:
        return held.retry(numbers)[0]
    finally:
        lock.release()


def _count(number: int) -> str:
    return f"{number:,} dead letter{'' if number == 1 else 's'}"
