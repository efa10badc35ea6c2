"""InfluxDB line protocol as a payload: `measurement,tag=a field=1.0,other=2i 1764324000000000000`. Pure."""

from __future__ import annotations

import re
from typing import Final

from connectors.values import MAX_SAMPLES, PayloadError, check_point, decoded, epoch_us, finite, merged, short
from pm.domain import Reading

_NUMBER: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([iu]?)", re.ASCII)
_TIMESTAMP: Final = re.compile(r"-?\d{1,19}", re.ASCII)
_UNESCAPED: Final = {mark: re.compile(rf"(?<!\\){mark}") for mark in (" ", ",", "=")}
_ESCAPED: Final = re.compile(r"\\([ ,=\\])")


def parse_lines(payload: bytes, asset: str, received_us: int) -> tuple[Reading, ...]:
    """InfluxDB line protocol; the measurement's name does not matter, a tag `asset` must be that of the topic."""
    lines = [line for line in map(str.strip, decoded(payload).split("\n")) if line and not line.startswith("#")]
    if not lines:
        raise PayloadError("the payload is empty")
    if len(lines) > MAX_SAMPLES:
        raise PayloadError(f"the payload has {len(lines)} lines; at most {MAX_SAMPLES} are read")
    return merged(_line(line, asset, received_us) for line in lines)


def _line(line: str, asset: str, received_us: int) -> Reading:
    parts = [part for part in _UNESCAPED[" "].split(line) if part]
    if len(parts) not in (2, 3) or "=" not in parts[1]:
        raise PayloadError(f"{short(line)} is neither JSON nor line protocol (measurement,tag=a field=1.0 time)")
    for tag in _UNESCAPED[","].split(parts[0])[1:]:
        key, tagged = _pair(tag, line)
        if key == "asset" and tagged != asset:
            raise PayloadError(f"tag asset={short(tagged)} contradicts the topic's asset {asset!r}")
    values: dict[str, float] = {}
    for field in _UNESCAPED[","].split(parts[1]):
        name, text = _pair(field, line)
        number = _NUMBER.fullmatch(text)
        if not number:
            raise PayloadError(f"{short(name)} is {short(text)}, not a number")
        check_point(name)
        value = finite(name, number[1])
        if values.setdefault(name, value) != value:
            raise PayloadError(f"{name} stands twice in {short(line)}")
    if len(parts) == 2:
        return Reading(asset, received_us, values)
    if not _TIMESTAMP.fullmatch(parts[2]):
        raise PayloadError(f"time {short(parts[2])} is not a whole number")
    return Reading(asset, epoch_us(int(parts[2])), values)


def _pair(text: str, line: str) -> tuple[str, str]:
    pair = _UNESCAPED["="].split(text)
    if len(pair) != 2 or not all(pair):
        raise PayloadError(f"{short(text)} in {short(line)} is not key=value")
    return _ESCAPED.sub(r"\1", pair[0]), _ESCAPED.sub(r"\1", pair[1])
