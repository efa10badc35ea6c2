"""Numbers, times and names out of untrusted payloads: a value of ours, or a PayloadError that says why. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import datetime, tzinfo
from typing import Any, Final

from connectors.topics import name_fault
from pm.domain import EARLIEST, LATEST, Reading, from_us, to_us
from pm.errors import PmError

MAX_BYTES = 1 << 20
"""Longest payload that is read."""
MAX_SAMPLES = 10_000
"""Most samples (array items or lines) in one payload."""

_EARLIEST_US: Final = to_us(EARLIEST)
_LATEST_US: Final = to_us(LATEST)
_MOST: Final = 1e19
_SIZES: Final = {"s": 0.0, "ms": 1e12, "us": 1e15, "ns": 1e18}
_RESERVED: Final = frozenset({"time", "asset"})

known_points: Final[set[str]] = set()
"""Point names found good before, so that the common case costs one look-up."""
_KNOWN_LIMIT = 10_000


class PayloadError(PmError):
    """The payload cannot be read; the text says why."""


def decoded(payload: bytes) -> str:
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PayloadError(f"not UTF-8 at byte {error.start}") from None


def finite(name: str, text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise PayloadError(f"{name} is {short(text)}, too large for a number")
    return value


def time_us(time: Any, received_us: int, zone: tzinfo | None = None) -> int:
    """Microseconds since the epoch of ISO text, or of a number by its magnitude.

    zone: of text that names none; None refuses it. In an hour that a zone has twice, the first is meant.
    """
    if time is None:
        return received_us
    if type(time) is str:
        try:
            moment = datetime.fromisoformat(time)
        except ValueError:
            raise PayloadError(f"time {short(time)} is not ISO 8601, as 2026-11-23T10:00:00Z is") from None
        if moment.tzinfo is None:
            if zone is None:
                raise PayloadError(f"time {short(time)} has no zone; add Z or an offset")
            moment = moment.replace(tzinfo=zone)
        return _in_range(to_us(moment), time)
    if type(time) is int or type(time) is float:
        return epoch_us(time)
    raise PayloadError(f"time is {short(time)}, neither text nor a number")


def epoch_us(number: float, unit: str = "auto") -> int:
    """Microseconds of a number of s, ms, us or ns since the epoch; auto tells by magnitude, clear from 1973 to 5138."""
    size = _SIZES.get(unit, abs(number))
    if not abs(number) <= _MOST:  # NaN too
        raise PayloadError(f"time {short(number)} is outside {EARLIEST.year} to {LATEST.year}")
    if size < 1e11:
        return _in_range(round(number * 1_000_000), number)
    if size < 1e14:
        return _in_range(round(number * 1000), number)
    if size < 1e17:
        return _in_range(round(number), number)
    return _in_range(int(number) // 1000, number)


def _in_range(time_us: int, given: object) -> int:
    if not _EARLIEST_US <= time_us <= _LATEST_US:
        raise PayloadError(f"time {short(given)} is outside {EARLIEST.year} to {LATEST.year}")
    return time_us


def check_name(what: str, name: str) -> None:
    if fault := name_fault(name):
        raise PayloadError(f"{what} {short(name)} {fault}")


def check_point(name: str) -> None:
    check_name("point", name)
    if name in _RESERVED:
        raise PayloadError(f"a point cannot be named {name!r}")
    if len(known_points) < _KNOWN_LIMIT:
        known_points.add(name)


def merged(readings: Iterable[Reading]) -> tuple[Reading, ...]:
    """Readings of one time as one, in the order first seen; a contradiction is refused, since either may be true."""
    by_time: dict[int, dict[str, float]] = {}
    asset = ""
    for reading in readings:
        asset = reading.asset
        values = by_time.setdefault(reading.time_us, {})
        for name, value in reading.values.items():
            if values.setdefault(name, value) != value:
                raise PayloadError(f"{name} has two values at {time_text(reading.time_us)}: {values[name]} and {value}")
    return tuple(Reading(asset, at_us, values) for at_us, values in by_time.items())


def time_text(time_us: int) -> str:
    """ISO 8601 in UTC, to the microsecond where it is not a whole second: 2026-11-23T10:00:00Z."""
    return from_us(time_us).replace(tzinfo=None).isoformat() + "Z"


def as_text(value: object) -> str:
    """A value as JSON writes it, cut."""
    try:
        return (value if isinstance(value, str) else json.dumps(value))[:200]
    except (ValueError, RecursionError):
        return "?"


def short(value: object) -> str:
    """`value` for a person, cut: a reason is one line whatever the payload was."""
    text = repr(value[:40] if isinstance(value, str | list) else value)
    return text if len(text) <= 60 else text[:57] + "…"
