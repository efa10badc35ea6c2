"""InfluxDB's line protocol, written: readings and events as lines, in pieces that a server takes in one request.

Numbers are always written as floats: a field that began as an integer would refuse every float after it.
https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import orjson

from connectors.batches import EMPTY_MARKER, Batch
from pm.domain import Event

READINGS = "readings"
EVENTS = "events"
CONFLICTS = "conflicts"

_NOTHING = ("null", "")
_KEY_ESCAPES = str.maketrans({",": "\\,", "=": "\\=", " ": "\\ "})
_TEXT_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\"})


def reading_lines(batch: Batch) -> Iterator[str]:
    """One line per row, time in microseconds. A row without any value carries a marker: a line must have a field.

    Names are escaped once for a batch; numbers become their shortest exact text all at once, where NaN is null.
    """
    keys = [f"{point.translate(_KEY_ESCAPES)}=" for point in batch.points]
    series = [f"{READINGS},asset={asset.translate(_KEY_ESCAPES)} " for asset in batch.assets]
    whole_row = ",".join(f"{key.replace('%', '%%')}%s" for key in keys)
    numbers = orjson.dumps(np.ascontiguousarray(batch.values).ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
    cells = numbers[1:-1].decode().split(",")
    whole = np.isfinite(batch.values).all(axis=1) if keys else np.zeros(len(batch), dtype=np.bool_)
    rows = zip(batch.asset_of.tolist(), batch.times.tolist(), np.asarray(whole).tolist(), strict=True)
    for place, (asset, time, is_whole) in enumerate(rows):
        own = cells[place * len(keys) : (place + 1) * len(keys)]
        if is_whole:
            read = whole_row % tuple(own)
        else:
            read = ",".join([key + cell for key, cell in zip(keys, own, strict=False) if cell not in _NOTHING])
        yield f"{series[asset]}{read or EMPTY_MARKER + '=1'} {time}"


def longest_line(batch: Batch) -> int:
    """Bytes that a line of this batch has at most, near enough: every point read, numbers at their longest."""
    names = sum(2 + 2 * len(point.encode()) for point in batch.points)
    return 64 + 24 * len(batch.points) + names + 2 * max((len(asset.encode()) for asset in batch.assets), default=0)


def conflict_line(asset: str, time_ns: int, point: str, value: float) -> str:
    """One value that stands beside a greater one, at its time and nanosecond."""
    tag, field = asset.translate(_KEY_ESCAPES), point.translate(_KEY_ESCAPES)
    return f"{CONFLICTS},asset={tag} {field}={value!r} {time_ns}"


def event_lines(events: Iterable[Event]) -> Iterator[str]:
    """One line per event. The code is a tag (`event`) beside the field: two events of one asset, time and kind differ
    only in their code, and lines that differ only in fields would overwrite each other."""
    for event in events:
        tags = ",".join(
            f"{key}={value.translate(_KEY_ESCAPES)}"
            for key, value in (("asset", event.asset), ("event", event.code), ("kind", event.kind.value))
        )
        yield f'{EVENTS},{tags} code="{event.code.translate(_TEXT_ESCAPES)}" {event.time_us}'


def bodies(lines: Iterable[str], *, most_lines: int = 10_000, most_bytes: int = 4_000_000) -> Iterator[bytes]:
    """Lines joined into request bodies; a single line longer than `most_bytes` goes alone."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        encoded = line.encode()
        if piece and (len(piece) >= most_lines or size + len(encoded) > most_bytes):
            yield b"\n".join(piece)
            piece, size = [], 0
        piece.append(encoded)
        size += len(encoded) + 1
    if piece:
        yield b"\n".join(piece)
