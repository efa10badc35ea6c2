"""JSON out of untrusted payloads, strictly, and what stands at a path of it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from connectors.values import PayloadError, short

ABSENT: Final = object()
"""Stands at a path where nothing does."""
_DEEPEST: Final = 32
"""Levels of nested values that are read."""

Path = tuple[str, ...]
"""The steps to a place: keys of objects, positions in arrays."""


def load(payload: bytes) -> Any:
    """What the payload holds. Raises PayloadError, also where a key stands twice in an object."""
    if not payload.strip():
        raise PayloadError("the payload is empty")
    try:
        parsed = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise PayloadError(f"not JSON: {error}") from None
    refuse_doubled_keys(payload, strings_in(parsed))
    return parsed


def split(text: str) -> Path:
    return tuple(text.split(".")) if text else ()


def at(place: Any, path: Path) -> Any:
    """What stands at a path, ABSENT where nothing does."""
    for step in path:
        if type(place) is dict:
            place = place.get(step, ABSENT)
        elif type(place) is list and step.isdecimal() and step.isascii() and len(step) < 7:
            index = int(step)
            place = place[index] if index < len(place) else ABSENT
        else:
            return ABSENT
    return place


def found(sample: Any, whole: Any, path: Path) -> Any:
    """What stands at a path of the sample, or else of the whole payload; None without a path and where nothing does."""
    if not path:
        return None
    there = at(sample, path)
    if there is ABSENT and whole is not sample:
        there = at(whole, path)
    return None if there is ABSENT else there


def leaves(values: Mapping[str, Any], before: str = "", depth: int = 1) -> Iterable[tuple[str, Any]]:
    """Values and their names; nested names are joined by dots. Raises PayloadError where it goes too deep."""
    if depth > _DEEPEST:
        raise PayloadError(f"values are nested deeper than {_DEEPEST} levels")
    for key, value in values.items():
        if type(value) is dict:
            yield from leaves(value, f"{before}{key}.", depth + 1)
        else:
            yield f"{before}{key}", value


def strings_in(parsed: Any) -> int:
    """How many strings (keys and texts) a JSON value holds."""
    count, waiting = 0, [parsed]
    while waiting:
        value = waiting.pop()
        if type(value) is str:
            count += 1
        elif type(value) is dict:
            count += len(value)
            waiting += value.values()
        elif type(value) is list:
            waiting += value
    return count


def refuse_doubled_keys(payload: bytes, strings: int | None) -> None:
    """JSON with a key twice is refused: orjson keeps the last one in silence.

    Every string has two quotes, so the count of quotes tells whether there is anything beside the `strings` seen.
    Only then (doubled keys, escaped quotes, texts in keys that are passed over) is it read again, slowly.
    """
    if strings is not None and payload.count(b'"') == 2 * strings:
        return

    def pairs(items: list[tuple[str, Any]]) -> None:
        seen = set()
        for key, _ in items:
            if key in seen:
                raise PayloadError(f"key {short(key)} stands twice in an object")
            seen.add(key)

    try:
        json.loads(payload, object_pairs_hook=pairs, parse_int=float)
    except (ValueError, RecursionError):
        raise PayloadError("not JSON that can be checked for doubled keys") from None
