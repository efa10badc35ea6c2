"""Payloads of another form than ours, read as the configuration describes them: one MappedForm a template. Pure.

What can be decided before a message comes is decided when the form is made: paths are split, units worked out, the zone
looked up. Whatever the bytes are, the end is defined: readings, or a PayloadError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from connectors.payload_csv import rows
from connectors.payload_json import ABSENT, Path, at, found, leaves, load, split
from connectors.payload_lines import parse_lines
from connectors.topics import name_fault
from connectors.units import Conversion, conversion
from connectors.value_quality import quality_of
from connectors.values import (
    MAX_BYTES,
    MAX_SAMPLES,
    PayloadError,
    as_text,
    check_name,
    check_point,
    epoch_us,
    known_points,
    merged,
    short,
    time_us,
)
from pm.config import MappingSection
from pm.domain import Doubtful, Quality, Reading
from pm.errors import FeedError

_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_EPOCHS: Final = ("s", "ms", "us", "ns")
_LONGEST_TIME: Final = 64


class MappedForm:
    """How the payloads of one topic template are read. Made once; used by one thread at a time."""

    def __init__(self, section: MappingSection) -> None:
        """Raises FeedError, naming the topic and the mend, where the description cannot work."""
        self._section = section
        place = f"mqtt.mapping of {section.topic!r}"
        self._csv = section.format == "csv"
        self._text = section.text_numbers or self._csv
        self._samples = split(section.samples)
        self._asset, self._time = self._own(section.asset_path), self._own(section.time)
        self._name, self._value = self._own(section.name), self._own(section.value)
        self._quality, self._values = self._own(section.quality), self._own(section.values)
        self._points = {point: self._own(path) for point, path in section.points.items()}
        self._ignore = frozenset(section.ignore)
        self._own_keys = frozenset(
            path[0] for path in (self._time, self._quality, self._asset, self._name) if len(path) == 1
        )
        for point in (*section.points, *section.rename.values(), *section.units):
            if fault := name_fault(point):
                raise FeedError(f"{place}: point {point!r} {fault}")
        if section.points and (section.name or section.values):
            raise FeedError(f"{place}: points names each value's path; remove name and values, or points")
        try:
            self._units: dict[str, Conversion] = {point: conversion(rule) for point, rule in section.units.items()}
        except FeedError as error:
            raise FeedError(f"{place}: {error}") from None
        self._zone: tzinfo | None = None
        if section.time_zone:
            try:
                self._zone = ZoneInfo(section.time_zone)
            except (KeyError, ValueError, OSError):
                raise FeedError(f"{place}: {section.time_zone!r} is not a time zone; as Europe/Berlin") from None
        if section.time_format not in ("auto", *_EPOCHS) and "%" not in section.time_format:
            raise FeedError(
                f"{place}: time_format {section.time_format!r} is none of auto, s, ms, us, ns or a form with %"
            )

    def _own(self, path: str) -> Path:
        """A path; a column of CSV may have dots in its name."""
        return (path,) if self._csv and path else split(path)

    def parse(
        self, payload: bytes, asset: str, point: str | None, received_us: int, doubtful: list[Doubtful] | None = None
    ) -> tuple[Reading, ...]:
        """The readings of one message, one for each asset and time in it.

        asset: as the topic names it, "" where it does not. point: the point that the topic names. received_us: the time
        of samples that carry none. doubtful: takes the values that are uncertain or bad. Raises PayloadError.
        """
        if len(payload) > MAX_BYTES:
            raise PayloadError(f"the payload is {len(payload)} bytes; at most {MAX_BYTES} are read")
        if self._section.format == "lines":
            return self._renamed(parse_lines(payload, asset, received_us))
        whole = rows(payload, self._section.columns, self._section.delimiter) if self._csv else load(payload)
        samples = whole if self._csv else at(whole, self._samples)
        if samples is ABSENT:
            raise PayloadError(f"nothing stands at {self._section.samples}")
        items = samples if type(samples) is list else [samples]
        if not items:
            raise PayloadError("no samples")
        if len(items) > MAX_SAMPLES:
            raise PayloadError(f"{len(items)} samples; at most {MAX_SAMPLES} are read")
        by_asset: dict[str, list[Reading]] = {}
        for item in items:
            reading = self._reading(item, whole, asset, point, received_us, doubtful)
            by_asset.setdefault(reading.asset, []).append(reading)
        return tuple(reading for of_asset in by_asset.values() for reading in merged(of_asset))

    def _reading(
        self,
        sample: Any,
        whole: Any,
        asset: str,
        point: str | None,
        received_us: int,
        doubtful: list[Doubtful] | None,
    ) -> Reading:
        if self._asset:
            named = found(sample, whole, self._asset)
            asset = str(named) if type(named) is int else named
        check_name("asset", asset)
        at_us = self._time_us(found(sample, whole, self._time), received_us)
        said = found(sample, whole, self._quality)
        numbers: dict[str, float] = {}
        for name, value in self._named(sample, whole, point):
            if name in self._ignore:
                continue
            renamed = self._section.rename.get(name, name)
            if renamed not in known_points:
                check_point(renamed)
            quality = quality_of(said.get(name) if type(said) is dict else said, self._section.quality_codes)
            if quality is not Quality.GOOD and doubtful is not None and value is not None:
                doubtful.append(Doubtful(asset, at_us, renamed, as_text(value), quality))
            if quality is Quality.BAD:
                continue
            number = self._number(renamed, value)
            if number is not None and numbers.setdefault(renamed, number) != number:
                raise PayloadError(f"{renamed} has two values in one sample: {numbers[renamed]} and {number}")
        return Reading(asset, at_us, numbers)

    def _named(self, sample: Any, whole: Any, point: str | None) -> Iterable[tuple[str, Any]]:
        """Names and values of a sample, as they come."""
        if self._points:
            named = [(name, found(sample, whole, path)) for name, path in self._points.items()]
            if all(value is None for _, value in named) and not self._any(sample, whole):
                raise PayloadError(
                    f"none of the points' paths is there ({', '.join(list(self._section.points.values())[:3])})"
                )
            return named
        if self._name:
            name = found(sample, whole, self._name)
            if type(name) is not str:
                raise PayloadError(f"the point's name at {self._section.name} is {short(name)}, not text")
            return [(name, self._single(sample))]
        if point is not None:
            return [(point, self._single(sample))]
        if self._values:
            values = found(sample, whole, self._values)
        else:
            values = sample
            if type(sample) is dict:
                values = sample.get("values")
                if type(values) is not dict:
                    values = {key: value for key, value in sample.items() if key not in self._own_keys}
        if type(values) is not dict:
            raise PayloadError(f"{short(values)} is not an object of values")
        if not values:
            raise PayloadError("no values")
        return leaves(values)

    def _any(self, sample: Any, whole: Any) -> bool:
        return any(at(place, path) is not ABSENT for path in self._points.values() for place in (sample, whole))

    def _single(self, sample: Any) -> Any:
        if type(sample) is not dict and type(sample) is not list:
            return sample
        value = at(sample, self._value)
        if value is ABSENT:
            raise PayloadError(f"no value at {self._section.value}")
        return value

    def _number(self, name: str, value: Any) -> float | None:
        if value is None or (value == "" and self._csv):
            return None
        if type(value) is float:
            number = value
        elif type(value) is int or (type(value) is bool and self._section.booleans):
            number = float(value)
        elif type(value) is str and self._text and (read := self._from_text(value)) is not None:
            number = read
        else:
            raise PayloadError(f"{name} is {short(value)}, not a number")
        convert = self._units.get(name)
        if convert is not None:
            number = convert(number)
        if not math.isfinite(number):
            raise PayloadError(f"{name} is {short(value)}, too large for a number")
        return number

    def _from_text(self, text: str) -> float | None:
        text = text.strip()
        if self._section.decimal == ",":
            if "." in text:
                return None
            text = text.replace(",", ".", 1)
        if self._section.booleans and text.lower() in ("true", "false"):
            return float(text.lower() == "true")
        return float(text) if _NUMBER.fullmatch(text) else None

    def _time_us(self, time: Any, received_us: int) -> int:
        form = self._section.time_format
        if time is None or (time == "" and self._csv):
            return received_us
        if type(time) is str:
            time = time.strip()
            if len(time) > _LONGEST_TIME:
                raise PayloadError(f"time {short(time)} is too long for a time")
            if form in ("auto", *_EPOCHS) and _NUMBER.fullmatch(time):
                time = int(time) if time.lstrip("+-").isdecimal() else float(time)
        if form == "auto":
            return time_us(time, received_us, self._zone)
        if form in _EPOCHS:
            if type(time) is not int and type(time) is not float:
                raise PayloadError(f"time is {short(time)}, not a number of {form}")
            return epoch_us(time, form)
        if type(time) is not str:
            raise PayloadError(f"time is {short(time)}, not text like {form}")
        try:
            moment = datetime.strptime(time, form)  # noqa: DTZ007 - the zone follows
        except ValueError:
            raise PayloadError(f"time {short(time)} is not like {form}") from None
        return time_us(moment.isoformat(), received_us, self._zone)

    def _renamed(self, readings: tuple[Reading, ...]) -> tuple[Reading, ...]:
        renamed_readings = []
        for reading in readings:
            numbers: dict[str, float] = {}
            for name, value in reading.values.items():
                if name in self._ignore:
                    continue
                renamed = self._section.rename.get(name, name)
                number = self._number(renamed, value)
                if number is not None and numbers.setdefault(renamed, number) != number:
                    raise PayloadError(f"{renamed} has two values in one sample: {numbers[renamed]} and {number}")
            renamed_readings.append(Reading(reading.asset, reading.time_us, numbers))
        return tuple(renamed_readings)
