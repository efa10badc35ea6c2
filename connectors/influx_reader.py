"""Questions to InfluxDB: put in InfluxQL, in pieces that server and client can bear, answered in chunked CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import numpy as np

from connectors.influx_http import Connection, TooManyFiles, Unit
from connectors.influx_versions import Dialect, raise_told
from connectors.influxql import (
    Answer,
    among,
    between,
    between_ns,
    identifier,
    parse_readings,
    parse_rows,
    parse_times,
)
from connectors.line_protocol import CONFLICTS, READINGS
from pm.domain import EARLIEST, LATEST, to_us

ALL_TIME = (to_us(EARLIEST), to_us(LATEST))
_LONGEST_READ_US = 28 * 86_400_000_000
"""Four weeks. Longer reads are asked in pieces, so that neither server nor client holds a year of a fleet at once."""
_SHORTEST_READ_US = 60_000_000
_ASSETS_PER_QUERY = 200
_FIELDS_PER_COUNT = 500
_NUMERIC = {"float", "integer", "unsigned"}


class InfluxReader:
    """What is asked of one database. Safe to use from several threads."""

    def __init__(self, connection: Connection, bucket: str, server: Callable[[], Dialect]) -> None:
        """server: who answers, found at the first question."""
        self._connection = connection
        self._bucket = bucket
        self._server = server
        self._longest_read_us = _LONGEST_READ_US

    def fields(self, measurement: str = READINGS) -> list[str]:
        """Numeric fields of a measurement, the marker of empty rows among them."""
        rows = parse_rows(self.ask(f"SHOW FIELD KEYS FROM {identifier(measurement)}"), ("fieldKey", "fieldType"))
        return sorted({name for name, kind in rows if kind in _NUMERIC})

    def counted(self, measurement: str, start: datetime, end: datetime) -> int:
        """How many values a measurement holds with start < time <= end. The server counts."""
        fields = self.fields(measurement)
        counted = 0
        for first in range(0, len(fields), _FIELDS_PER_COUNT):
            some = fields[first : first + _FIELDS_PER_COUNT]
            names = [f"c{number}" for number in range(len(some))]
            cells = ", ".join(f"count({identifier(field)}) AS {name}" for field, name in zip(some, names, strict=True))
            ask = self.question(f"SELECT {cells} FROM {identifier(measurement)}", "")
            for body in self.in_pieces(to_us(start), to_us(end), ask):
                counted += sum(int(cell or 0) for row in parse_rows(body, names) for cell in row)
        return counted

    def ends(
        self, order: str, start_us: int = ALL_TIME[0], end_us: int = ALL_TIME[1], assets: Sequence[str] | None = None
    ) -> dict[str, int]:
        """Time of the first (ASC) or last (DESC) row of every asset."""
        found: dict[str, int] = {}
        for some in self.parts(assets):
            ask = self.question(
                f"SELECT * FROM {identifier(READINGS)}",
                f'{among(some)} GROUP BY "asset" ORDER BY time {order} LIMIT 1',
            )
            for body in self.in_pieces(start_us, end_us, ask):
                piece = parse_times(body)
                found = {**piece, **found} if order == "ASC" else {**found, **piece}
        return found

    def answers(
        self, fields: Sequence[str], start: datetime, end: datetime, assets: Sequence[str] | None
    ) -> Iterator[Answer]:
        selected = ", ".join(identifier(field) for field in fields)
        for some in self.parts(assets):
            position, last = max(to_us(start), ALL_TIME[0]), min(to_us(end), ALL_TIME[1])
            seek = last - position > _LONGEST_READ_US
            ask = self.question(f"SELECT {selected} FROM {identifier(READINGS)}", f'{among(some)} GROUP BY "asset"')
            while position < last:
                if seek:
                    position = self._next(position, last, some)
                    if position >= last:
                        break
                stop = min(position + self._longest_read_us, last)
                rows = 0
                for body in self.in_pieces(position, stop, ask):
                    answer = parse_readings(body, len(fields))
                    rows += len(answer.times)
                    yield answer
                position, seek = stop, not rows

    def kept(
        self, start_us: int, end_us: int, assets: Sequence[str] | None
    ) -> dict[tuple[str, str, int], dict[int, float]]:
        """Conflicts with start < time <= end: values by asset, point and time, and by their nanosecond."""
        fields = self.fields(CONFLICTS)
        kept: dict[tuple[str, str, int], dict[int, float]] = {}
        if not fields:
            return kept
        selected = ", ".join(identifier(field) for field in fields)
        for some in self.parts(assets):
            select = f"SELECT {selected} FROM {identifier(CONFLICTS)}"
            ask = self.question(select, f'{among(some)} GROUP BY "asset"', "ns")
            for body in self.in_pieces(start_us, end_us, ask):
                answer = parse_readings(body, len(fields))
                for row, column in np.argwhere(~np.isnan(answer.values)):
                    time_us, slot = divmod(int(answer.times[row]), 1000)
                    key = (answer.assets[answer.asset_of[row]], fields[column], time_us)
                    kept.setdefault(key, {})[slot] = float(answer.values[row, column])
        return kept

    def _next(self, start: int, end: int, assets: Sequence[str] | None) -> int:
        """Just before the next row, so that a long read passes over years without any; `end` where none is left."""
        ask = self.question(f"SELECT * FROM {identifier(READINGS)}", f"{among(assets)} ORDER BY time LIMIT 1")
        for body in self.in_pieces(start, end, ask):
            if rows := parse_rows(body, ("time",)):
                return int(rows[0][0]) - 1
        return end

    def parts(self, assets: Sequence[str] | None) -> Iterator[Sequence[str] | None]:
        """The assets in groups that fit into one question."""
        if assets is None:
            yield None
            return
        most = self._server().longest_assets
        group: list[str] = []
        size = 0
        for asset in assets:
            if group and (len(group) == _ASSETS_PER_QUERY or size + len(asset) > most):
                yield group
                group, size = [], 0
            group.append(asset)
            size += len(asset) + 15
        if group:
            yield group

    def question(self, select: str, rest: str, unit: Unit = "us") -> Callable[[int, int], bytes]:
        """A question that is put for a time, start < time <= end in microseconds; `unit` is that of its answers.

        In nanoseconds every one of a microsecond belongs to it.
        """

        def ask(start: int, end: int) -> bytes:
            time = between(start, end) if unit == "us" else between_ns(start * 1000 + 999, end * 1000 + 999)
            return self.ask(f"{select} WHERE {time}{rest}", epoch="u" if unit == "us" else "ns")

        return ask

    def in_pieces(
        self, start_us: int, end_us: int, ask: Callable[[int, int], bytes], whole_us: int = 1
    ) -> Iterator[bytes]:
        """Answers about a time, in order. It is halved, at whole multiples of `whole_us`, wherever the server says that
        the question touches more files than it opens for one (3 Core), and later reads begin with what went well."""
        if end_us <= start_us:
            return
        try:
            yield ask(start_us, end_us)
        except TooManyFiles:
            middle = (start_us + end_us) // 2 // whole_us * whole_us
            if not start_us < middle < end_us or end_us - start_us <= _SHORTEST_READ_US:
                raise
            self._longest_read_us = min(self._longest_read_us, middle - start_us)
            yield from self.in_pieces(start_us, middle, ask, whole_us)
            yield from self.in_pieces(middle, end_us, ask, whole_us)

    def ask(self, query: str, epoch: str = "u") -> bytes:
        """The CSV answer to a question. One without rows may hide an error, so it is asked for again as JSON."""
        server = self._server()
        parameters = [("db", self._bucket), ("epoch", epoch), ("chunked", "true")]
        body = self._connection.ask(
            query, accept="application/csv", parameters=parameters, in_address=server.question_in_address
        )
        if server.csv_hides_errors and (not body.strip() or body.startswith(b"error\n")):
            again = self._connection.ask(
                query, accept="application/json", parameters=parameters, in_address=server.question_in_address
            )
            raise_told(again, self._connection.url)
        return body
