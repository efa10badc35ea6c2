"""InfluxQL: what is asked, quoted safely, and the CSV that comes back, read into columns.

The same text serves InfluxDB 1.8, 2.x and 3, of which only 1.8 and 2.x know anything richer in common.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from connectors.frames import Summary
from pm.errors import StoreError


def identifier(name: str) -> str:
    """A measurement, field or tag name in a query."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def literal(text: str) -> str:
    """A text value in a query."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def between(start_us: int, end_us: int) -> str:
    """The condition start < time <= end; whole nanoseconds are the one unit that every version reads alike."""
    return between_ns(start_us * 1000, end_us * 1000)


def between_ns(start_ns: int, end_ns: int) -> str:
    """The condition start < time <= end of nanoseconds."""
    return f"time > {start_ns} AND time <= {end_ns}"


def among(assets: Sequence[str] | None) -> str:
    """The condition that a row is of one of these assets, or nothing for all."""
    if assets is None:
        return ""
    return " AND (" + " OR ".join(f'"asset" = {literal(name)}' for name in assets) + ")"


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of a CSV answer about readings, in the order in which they came.

    asset_of: index into `assets`. times: microseconds. values: rows x fields asked for, NaN where empty.
    """

    assets: tuple[str, ...]
    asset_of: NDArray[np.intp]
    times: NDArray[np.int64]
    values: NDArray[np.float64]


def parse_readings(body: bytes, fields: int) -> Answer:
    """CSV of `SELECT <fields> ... GROUP BY asset` with epoch=u: name, tags, time, then the fields.

    Version 3 leaves `tags` empty and gives the asset a column of its own.
    """
    names = _header(body)
    places = [place for place, name in enumerate(names) if place > 2 and name != "asset"]
    if names and len(places) != fields:
        raise StoreError(
            f"InfluxDB answers with {len(places)} fields where {fields} were asked for; names with commas?"
        )
    types = {place: pa.float64() for place in places}
    table = _columns(body, len(names), {**types, 2: pa.int64()})
    values = np.empty((fields, table.num_rows))
    for row, place in enumerate(places):
        values[row] = table[place].to_numpy()
    assets, asset_of = _assets(table, names)
    return Answer(assets=assets, asset_of=asset_of, times=table[2].to_numpy(), values=values.T)


def parse_times(body: bytes) -> dict[str, int]:
    """CSV of a query with GROUP BY asset and one row each: the row's time by asset, whatever its fields."""
    names = _header(body)
    table = _columns(body, len(names), {2: pa.int64()})
    assets, asset_of = _assets(table, names)
    return {assets[code]: time for code, time in zip(asset_of.tolist(), table[2].to_pylist(), strict=True)}


def parse_summaries(body: bytes, points: Sequence[str], size_us: int) -> list[Summary]:
    """CSV of `SELECT lowest, mean, highest, count of each point ... GROUP BY asset, time()`, without the stretches in
    which nothing was read. The server names a stretch by its first microsecond, and we by its end."""
    names = _header(body)
    if not names:
        return []
    places = [place for place, name in enumerate(names) if place > 2 and name != "asset"]
    if len(places) != 4 * len(points):
        raise StoreError(f"InfluxDB answers with {len(places)} columns where {4 * len(points)} were asked for")
    table = _columns(body, len(names), {**{place: pa.float64() for place in places}, 2: pa.int64()})
    assets, asset_of = _assets(table, names)
    rows = []
    for number, point in enumerate(points):
        lowest, mean, highest, count = (table[place].to_numpy() for place in places[4 * number : 4 * number + 4])
        for row in np.flatnonzero(count > 0):
            end_us = int(table[2][int(row)].as_py()) - 1 + size_us
            cells = float(lowest[row]), float(mean[row]), float(highest[row]), int(count[row])
            rows.append(Summary(assets[asset_of[row]], point, end_us, *cells))
    return rows


def _assets(table: pa.Table, names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    """The assets of an answer and each row's index into them, from the column of its own or from the tags."""
    own_column = "asset" in names[3:]
    labels = table[names.index("asset", 3) if own_column else 1].combine_chunks().dictionary_encode()
    found = labels.dictionary.to_pylist()
    assets = tuple(found if own_column else (tag_value(text, "asset") for text in found))
    return assets, labels.indices.to_numpy().astype(np.intp)


def parse_rows(body: bytes, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """CSV of any other answer as text: the named columns, wherever they stand."""
    names = _header(body)
    if not names:
        return []
    table = _columns(body, len(names), {})
    return list(zip(*(table[names.index(name)].to_pylist() for name in columns), strict=True))


def _header(body: bytes) -> list[str]:
    return next(csv.reader([body.partition(b"\n")[0].decode()]), [])


def _columns(body: bytes, width: int, types: Mapping[int, pa.DataType]) -> pa.Table:
    """CSV by place, as text where no type is given. The header is dropped, and so are its repetitions: version 3 sends
    it with every chunk. Version 3 writes `null` where the others leave a cell empty."""
    header, _, rows = body.partition(b"\n")
    rows = rows.replace(b"\n" + header + b"\n", b"\n")
    kinds = {str(place): types.get(place, pa.string()) for place in range(max(width, 3))}
    if not rows.strip():
        return pa.table({place: pa.array([], kind) for place, kind in kinds.items()})
    return pyarrow.csv.read_csv(
        io.BytesIO(rows),
        read_options=pyarrow.csv.ReadOptions(column_names=list(kinds)),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=kinds, null_values=["", "null"], strings_can_be_null=False
        ),
    )


def tag_value(tags: str, key: str) -> str:
    """The value of a tag in the `tags` column, `asset=a\\ 1,kind=error`, escapes undone; "" where it is not there."""
    for part in _split(tags):
        name, _, value = part.partition("=")
        if name == key:
            return _unescape(value)
    return ""


def _split(tags: str) -> list[str]:
    """Parts between commas that no backslash stands before."""
    parts: list[str] = []
    for piece in tags.split(","):
        if parts and parts[-1].endswith("\\"):
            parts[-1] += "," + piece
        else:
            parts.append(piece)
    return parts


def _unescape(text: str) -> str:
    """Undo the backslashes before comma, equals and space; any other backslash is itself."""
    return text.replace("\\,", ",").replace("\\=", "=").replace("\\ ", " ")
