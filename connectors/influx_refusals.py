"""Which rows a server refuses, found exactly and cheaply: every row of a batch ends stored or named.

InfluxDB 1.x and 2.x store the good lines of a body, refuse it with one reason and a count, and drop a whole line for
one field of it. So the lines that the reason can mean are put apart and posted again, and the fields of a line that are
not to blame are stored without the one that is. Version 3 names every line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from connectors.batches import Batch
from connectors.influx_http import Refusal

_FIELD = (re.compile(r'input field "((?:[^"\\]|\\.)*)" on measurement'), re.compile(r"for column '([^']*)'"))
MEND = "; mend the field's type in the database, or store into another bucket"


def settle(batch: Batch, post: Callable[[Batch], None]) -> dict[tuple[str, int], str]:
    """Store a batch with `post` and return why, by asset and time, of the rows that the server would not take whole.

    post: stores some rows as one body, one line each and in their order; raises Refusal. It is called once where
    nothing is refused, and about 2 log2(rows) times for one bad row that no reason points at.
    """
    refused: dict[tuple[str, int], str] = {}
    waiting = [batch]
    while waiting:
        part = waiting.pop()
        try:
            post(part)
        except Refusal as refusal:
            suspects = _suspects(part, refusal)
            others = np.setdiff1d(np.arange(len(part)), suspects)
            if len(others):  # posted again although they may be stored: only an answer without refusal says so
                waiting.append(part.rows(others))
            certain = bool(refusal.lines) or len(part) == 1 or (not len(others) and refusal.dropped == len(part))
            if certain:
                waiting += _named(part, suspects, refusal, refused)
            elif len(others):
                waiting.append(part.rows(suspects))
            else:
                in_time = suspects[np.argsort(part.times[suspects], kind="stable")]
                waiting += [part.rows(half) for half in np.array_split(in_time, 2)]
    return refused


def _suspects(part: Batch, refusal: Refusal) -> NDArray[np.intp]:
    """The rows that a reason can mean: those named, else those with the field named, else all."""
    named = np.array(sorted(place for place in refusal.lines if place < len(part)), dtype=np.intp)
    if len(named):
        return named
    point = _field(refusal.message)
    if point in part.points:
        with_it = np.flatnonzero(~np.isnan(part.values[:, part.points.index(point)]))
        if len(with_it):
            return with_it.astype(np.intp)
    return np.arange(len(part), dtype=np.intp)


def _named(part: Batch, rows: NDArray[np.intp], refusal: Refusal, refused: dict[tuple[str, int], str]) -> list[Batch]:
    """Note refused rows; returns what is left of them without the fields to blame."""
    values = part.values[rows].copy()
    for place, row in enumerate(rows.tolist()):
        message = refusal.lines.get(row, refusal.message)
        key = (part.assets[part.asset_of[row]], int(part.times[row]))
        point = _field(message)
        refused.setdefault(key, _DROPPED_COUNT.sub("", message) + (MEND if point else ""))
        values[place] = np.nan if point not in part.points else values[place]
        if point in part.points:
            values[place, part.points.index(point)] = np.nan
    rest = np.flatnonzero(~np.isnan(values).all(axis=1))
    if not len(rest):
        return []
    kept = rows[rest]
    return [Batch(part.assets, part.asset_of[kept], part.times[kept], part.points, values[rest])]


_DROPPED_COUNT = re.compile(r"^partial write: | dropped=\d+")


def _field(message: str) -> str:
    """The field that a reason names, or ""."""
    for form in _FIELD:
        if match := form.search(message):
            return re.sub(r"\\(.)", r"\1", match[1])
    return ""


def first_reason(refused: Mapping[tuple[str, int], str], events: Mapping[tuple[str, int, str, str], str]) -> str:
    """One line about what was refused."""
    asset, reason = next((key[0], reason) for key, reason in (*refused.items(), *events.items()))
    return f"{len(refused) + len(events)} rows refused, the first of {asset}: {reason}"
