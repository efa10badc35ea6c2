"""Recordings: the folder format of docs/recordings.md, read, checked and written.

What is wrong is refused with the file, the row and the mend named; nothing is half read or half written.
"""

from __future__ import annotations

import difflib
import math
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from connectors import recording_readings as readings_file
from connectors import recording_tables as tables
from connectors.recording_problems import Problems
from pm.domain import FailureMode, History, Point, Recording, parse_interval
from pm.errors import RecordingError

FORMAT = 1
_TEXTS = ("name", "interval", "about", "source", "licence")
_REQUIRED = ("name", "interval")
_KEYS = ("format", *_TEXTS, "points", "failure_modes")
_POINT_KEYS = ("unit", "low", "high", "description")
_MODE_KEYS = ("about",)


def read(folder: Path) -> Recording:
    """The recording in `folder`, checked whole.

    Raises RecordingError with up to ten of its problems, each with its file and row: CSV rows are counted as lines of
    the file, the header being line 1; rows of Parquet files from 0.
    """
    if not folder.is_dir():
        raise RecordingError(f"{folder}: no such folder; name the folder that holds recording.toml")
    problems = Problems(folder)
    about = _read_about(folder / "recording.toml", problems)
    assets = tables.read_assets(folder / "assets.csv", problems)
    known = {asset.name for asset in assets}
    problems.stop()  # the tables are judged by what these two say
    points = about["points"]
    modes = about["failure_modes"]
    events = tables.read_events(folder / "events.csv", known, {mode.code for mode in modes}, problems)
    readings = readings_file.read_readings(folder, [point.name for point in points], known, problems)
    problems.stop()
    history = History(parse_interval(about["interval"]), points, modes, assets, readings, events)
    return Recording(about["name"], about["interval"], about["about"], about["source"], about["licence"], history)


def write(recording: Recording, folder: Path) -> None:
    """Write a recording; the folder appears whole or not at all.

    Points are stored as 32-bit floats where every value survives that exactly, else as 64-bit. Raises RecordingError
    when the folder exists and is not empty, or when the recording breaks a rule that `read` would refuse.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecordingError(f"{folder}: exists and is not empty; name another folder or remove this one first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        half.chmod(0o755)
        history = recording.history
        (half / "recording.toml").write_text(_about_text(recording), encoding="utf-8", newline="\n")
        tables.write_assets(history.assets, half / "assets.csv")
        tables.write_events(history.events, half / "events.csv")
        readings_file.write_readings(
            history.readings, [point.name for point in history.points], half / "readings.parquet"
        )
        _check(recording, half, folder)
        if folder.exists():
            folder.rmdir()
        half.rename(folder)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


def _check(recording: Recording, half: Path, folder: Path) -> None:
    """Reads what was written, so that nobody finds out a year later that it cannot be read."""
    try:
        again = read(half)
    except RecordingError as error:
        raise RecordingError(str(error).replace(str(half), f"{folder} not written")) from None
    if fingerprint(again) != fingerprint(recording):
        raise RecordingError(
            f"{folder}: not written, it would not read back as it is; does interval {recording.interval_text} "
            f"say {recording.history.interval}, and is every asset, point and failure mode named once?"
        )


def fingerprint(source: Recording | History) -> str:
    """SHA-256 over what a history says: interval, points, failure modes, assets, readings, events.

    Neither the order of rows, assets, points and modes nor how the files store them matters. A recording's name and
    origin are not part of it.
    """
    return readings_file.fingerprint(source.history if isinstance(source, Recording) else source)


def _read_about(path: Path, problems: Problems) -> dict[str, Any]:
    """recording.toml, its points and failure modes as the vocabulary has them. Stops at what cannot be read on from."""
    try:
        raw = tomllib.loads(tables.text_of(path, problems))
    except tomllib.TOMLDecodeError as error:
        problems.fatal(path, f"is not TOML: {error}; mend that place")
    if raw.get("format", FORMAT) != FORMAT or isinstance(raw.get("format"), bool | float):
        problems.fatal(path, f"format = {raw['format']!r}: this pm reads format = {FORMAT}; convert it or update pm")
    if "format" not in raw:
        problems.add(path, f"format is missing; write format = {FORMAT}")
    _refuse_unknown(path, "", raw, _KEYS, problems)
    for key in _TEXTS:
        if not isinstance(raw.get(key, ""), str):
            problems.add(path, f"{key} = {raw[key]!r} is not text; put it in quotes")
            raw[key] = ""
        elif key in _REQUIRED and not raw.get(key):
            problems.add(path, f"{key} is missing; write {key} = " + ('"1h"' if key == "interval" else '"..."'))
    if raw.get("interval"):
        try:
            parse_interval(raw["interval"])
        except ValueError as error:
            problems.add(path, str(error))
    return {
        **{key: raw.get(key, "") for key in _TEXTS},
        "points": tuple(_points(path, _tables(path, raw, "points", problems), problems)),
        "failure_modes": tuple(_modes(path, _tables(path, raw, "failure_modes", problems), problems)),
    }


def _tables(path: Path, raw: Mapping[str, Any], key: str, problems: Problems) -> dict[str, dict[str, Any]]:
    found = raw.get(key, {})
    if not isinstance(found, dict) or not all(isinstance(table, dict) for table in found.values()):
        problems.add(path, f'{key} is not made of tables; write each one as [{key}."name"]')
        return {}
    return found


def _points(path: Path, found: Mapping[str, Mapping[str, Any]], problems: Problems) -> Iterable[Point]:
    if not found:
        problems.add(path, 'no point is named; write a [points."name"] table for each column of the readings')
    for name, table in found.items():
        where = f"points.{name}"
        if name in readings_file.RESERVED or not name:
            problems.add(path, f"{where}: a point cannot be called {name!r}; give it another name")
        _refuse_unknown(path, f"{where}.", table, _POINT_KEYS, problems)
        limits: dict[str, float | None] = {}
        for key in ("low", "high"):
            value = table.get(key)
            right = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
            if not right or (value is not None and not math.isfinite(value)):
                problems.add(path, f"{where}.{key} = {value!r} is not a finite number")
                value = None
            limits[key] = None if value is None else float(value)
        low, high = limits["low"], limits["high"]
        if low is not None and high is not None and low >= high:
            problems.add(path, f"{where}: low = {low:g} is not under high = {high:g}; exchange or mend them")
        texts = {key: _text(path, where, table, key, problems) for key in ("unit", "description")}
        yield Point(name, texts["unit"], low, high, texts["description"])


def _modes(path: Path, found: Mapping[str, Mapping[str, Any]], problems: Problems) -> Iterable[FailureMode]:
    for code, table in found.items():
        _refuse_unknown(path, f"failure_modes.{code}.", table, _MODE_KEYS, problems)
        yield FailureMode(code, _text(path, f"failure_modes.{code}", table, "about", problems))


def _text(path: Path, where: str, table: Mapping[str, Any], key: str, problems: Problems) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        problems.add(path, f"{where}.{key} = {value!r} is not text; put it in quotes")
        return ""
    return value


def _refuse_unknown(
    path: Path, where: str, table: Mapping[str, Any], known: tuple[str, ...], problems: Problems
) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            mend = f"do you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            problems.add(path, f"{where}{key}: no such key; {mend}")


def _about_text(recording: Recording) -> str:
    lines = [f"format = {FORMAT}"]
    for key, value in (
        ("name", recording.name),
        ("interval", recording.interval_text),
        ("about", recording.about),
        ("source", recording.source),
        ("licence", recording.licence),
    ):
        lines.append(f"{key} = {_quoted(value)}")
    for point in recording.history.points:
        lines += ["", f"[points.{_quoted(point.name)}]", f"unit = {_quoted(point.unit)}"]
        lines += [
            f"{key} = {value!r}" for key, value in (("low", point.low), ("high", point.high)) if value is not None
        ]
        lines += [f"description = {_quoted(point.description)}"] if point.description else []
    for mode in recording.history.failure_modes:
        lines += ["", f"[failure_modes.{_quoted(mode.code)}]", f"about = {_quoted(mode.about)}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A TOML basic string."""
    out = []
    for character in text:
        if character in '"\\':
            out.append("\\" + character)
        elif character < " " or character == "\x7f":
            out.append(f"\\u{ord(character):04x}")
        else:
            out.append(character)
    return '"' + "".join(out) + '"'
