"""InfluxDB's line protocol, written: readings and events as lines, in pieces that a server takes in one request.

Numbers are always written as floats: a field that began as an integer would refuse every float after it.
https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from connectors.batches import EMPTY_MARKER, Batch
from pm.domain import Event

READINGS = "readings"
EVENTS = "events"
CONFLICTS = "conflicts"

_KEY_ESCAPES = str.maketrans({",": "\\,", "=": "\\=", " ": "\\ "})
_TEXT_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\"})


def reading_lines(batch: Batch) -> Iterator[str]:
    """One line per row, time in microseconds. A row without any value carries a marker: a line must have a field."""
    fields = [f"{point.translate(_KEY_ESCAPES)}=" for point in batch.points]
    series = [f"{READINGS},asset={asset.translate(_KEY_ESCAPES)} " for asset in batch.assets]
    for asset, time, row in zip(batch.asset_of.tolist(), batch.times.tolist(), batch.values.tolist(), strict=True):
        read = ",".join([f"{field}{value!r}" for field, value in zip(fields, row, strict=True) if value == value])
        yield f"{series[asset]}{read or EMPTY_MARKER + '=1'} {time}"


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
