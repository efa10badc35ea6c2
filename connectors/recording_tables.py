"""The CSV tables of a recording: assets and events."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from connectors.recording_problems import Problems
from pm.domain import EARLIEST, LATEST, Asset, EventKind, to_us
from pm.errors import RecordingError

Static = float | int | str
_ASSET_COLUMNS = ("asset", "model")
_EVENT_COLUMNS = ("time", "asset", "kind", "code")
_WHOLE = re.compile(r"-?(?:0|[1-9]\d*)")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def text_of(path: Path, problems: Problems) -> str:
    """A file's text; a missing file or one that is not UTF-8 is fatal."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        problems.fatal(path, "is missing; a recording has recording.toml, assets.csv, events.csv and readings.parquet")
    except OSError as error:
        problems.fatal(path, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.fatal(path, f"is not UTF-8 at byte {error.start}; save it as UTF-8")


def read_assets(path: Path, problems: Problems) -> tuple[Asset, ...]:
    """assets.csv. A static column is whole numbers, numbers or text: the narrowest that holds all of its cells."""
    header, rows = _table(path, _ASSET_COLUMNS, problems)
    name_at, model_at = header.index("asset"), header.index("model")
    seen: dict[str, int] = {}
    for line, cells in rows:
        name = cells[name_at]
        if not name or _CONTROL.search(name):
            problems.add(path, f"asset {name!r}: give it a name without control characters", line)
        elif name in seen:
            problems.add(path, f"asset {name} stands in row {seen[name]} already; remove one of them", line)
        seen.setdefault(name, line)
    statics = {
        column: _typed(path, column, [(line, cells[i]) for line, cells in rows], problems)
        for i, column in enumerate(header)
        if column not in _ASSET_COLUMNS
    }
    return tuple(
        Asset(cells[name_at], cells[model_at], {column: values[i] for column, values in statics.items()})
        for i, (_, cells) in enumerate(rows)
    )


def read_events(path: Path, assets: set[str], modes: set[str], problems: Problems) -> pd.DataFrame:
    """events.csv as `History.events` lays it out."""
    header, rows = _table(path, _EVENT_COLUMNS, problems)
    unknown = [column for column in header if column not in _EVENT_COLUMNS]
    if unknown:
        problems.add(path, f"column {unknown[0]} is not known; events have {', '.join(_EVENT_COLUMNS)}", 1)
    places = [header.index(column) for column in _EVENT_COLUMNS]
    events: dict[tuple[int, str, str, str], int] = {}
    for line, cells in rows:
        time, asset, kind, code = (cells[place] for place in places)
        us = _time_us(path, time, line, problems)
        if asset not in assets:
            problems.add(path, f"asset {asset!r} is not in assets.csv; add it there or mend its name", line)
        if kind not in set(EventKind):
            problems.add(path, f"kind {kind!r} is none of {', '.join(EventKind)}", line)
        if not code or _CONTROL.search(code):
            problems.add(path, f"code {code!r}: give it a code without control characters", line)
        elif kind == EventKind.FAILURE and code not in modes:
            problems.add(
                path, f'failure code {code!r} is not in recording.toml; add [failure_modes."{code}"] there', line
            )
        if us is None:
            continue
        event = (us, asset, kind, code)
        if event in events:
            problems.add(path, f"the same event stands in row {events[event]} already; remove one of them", line)
        events.setdefault(event, line)
    return events_frame(sorted(events))


def events_frame(events: Sequence[tuple[int, str, str, str]]) -> pd.DataFrame:
    """`History.events` from (microseconds, asset, kind, code) in canonical order."""
    columns = list(zip(*events, strict=True)) or [(), (), (), ()]
    return pd.DataFrame(
        {
            "time": pd.to_datetime(pd.Series(columns[0], dtype="int64"), unit="us", utc=True).astype(
                "datetime64[us, UTC]"
            ),
            **{name: pd.Series(columns[i], dtype="str") for i, name in enumerate(_EVENT_COLUMNS[1:], start=1)},
        }
    )


def write_assets(assets: Sequence[Asset], path: Path) -> None:
    """assets.csv. Raises RecordingError where a static column would not read back as it is."""
    columns = list(assets[0].static) if assets else []
    for asset in assets:
        if list(asset.static) != columns:
            different = set(asset.static).symmetric_difference(columns)
            raise RecordingError(
                f"{path.name}: asset {asset.name} differs from {assets[0].name} in its static columns "
                f"({', '.join(sorted(different)) or 'their order'}); give every asset the same ones"
            )
    for column in columns:
        values = [asset.static[column] for asset in assets]
        texts = [value for value in values if isinstance(value, str)]
        if texts and (len(texts) < len(values) or all(_NUMBER.fullmatch(text) or not text for text in texts)):
            raise RecordingError(
                f"{path.name}: static column {column} holds text that would be read back as numbers, or text beside "
                f"numbers (first {texts[0]!r}); make all of it numbers, or text that no number looks like"
            )
    _write(
        path,
        [*_ASSET_COLUMNS, *columns],
        ([asset.name, asset.model, *(_cell(v) for v in asset.static.values())] for asset in assets),
    )


def write_events(events: pd.DataFrame, path: Path) -> None:
    """events.csv in canonical order."""
    ordered = events.sort_values(list(_EVENT_COLUMNS), kind="stable")
    times = ordered["time"].dt.tz_convert("UTC")
    rows = zip(times, ordered["asset"], ordered["kind"], ordered["code"], strict=True)
    _write(path, _EVENT_COLUMNS, ([_time_text(time), *rest] for time, *rest in rows))


def _typed(path: Path, column: str, cells: list[tuple[int, str]], problems: Problems) -> list[Static]:
    texts = [text for _, text in cells]
    filled = [text for text in texts if text]
    if not filled or not all(_NUMBER.fullmatch(text) for text in filled):
        return list(texts)
    if all(_WHOLE.fullmatch(text) and text != "-0" for text in texts):
        return [int(text) for text in texts]
    if any(_padded(text) for text in filled):
        return list(texts)
    values: list[Static] = []
    for line, text in cells:
        value = float(text) if text else float("nan")
        if not abs(value) < float("inf"):
            problems.add(path, f"{column} is {text or 'empty'}: write a number, or leave the column out", line)
        values.append(value)
    return values


def _padded(text: str) -> bool:
    """007 is a label, not a number."""
    return re.fullmatch(r"0\d+", text) is not None


def _table(path: Path, needed: Iterable[str], problems: Problems) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows with their line numbers. Rows of the wrong length are problems and left out."""
    text = text_of(path, problems)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = list(_numbered(reader))
    except csv.Error as error:
        problems.fatal(path, f"is not CSV at line {reader.line_num}: {error}; mend its quotes")
    if not lines:
        problems.fatal(path, f"is empty; its first line names the columns: {','.join(needed)}")
    header = lines[0][1]
    for column in needed:
        if column not in header:
            problems.fatal(path, f"column {column} is missing; the first line must name {', '.join(needed)}")
    for column in header:
        if header.count(column) > 1 or not column or _CONTROL.search(column):
            problems.fatal(path, f"column name {column!r} is empty, not printable or there twice; rename it")
    rows = []
    for line, cells in lines[1:]:
        if len(cells) == len(header):
            rows.append((line, cells))
        elif cells:
            problems.add(path, f"has {len(cells)} cells where the header has {len(header)}; is it cut off?", line)
    return header, rows


def _numbered(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line that each begins on."""
    line = 1
    for cells in reader:
        yield line, cells
        line = reader.line_num + 1  # type: ignore[attr-defined]


def _time_us(path: Path, text: str, line: int, problems: Problems) -> int | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        problems.add(path, f"time {text!r} is not a time; write it as 2026-11-23T10:00:00Z", line)
        return None
    if time.tzinfo is None:
        problems.add(path, f"time {text} has no zone; end it with Z for UTC", line)
        return None
    if not EARLIEST <= time <= LATEST:
        problems.add(path, f"time {text} lies outside {EARLIEST:%Y} to {LATEST:%Y}; mend it", line)
        return None
    return to_us(time)


def _time_text(time: datetime) -> str:
    return time.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def _cell(value: Static) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordingError(f"static value {value!r} is neither a number nor text; make it one of them")
    return repr(float(value)) if isinstance(value, float) else str(int(value))


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(header)
        out.writerows(rows)
