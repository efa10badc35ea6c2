"""InfluxDB as a store of readings, through influxdb-client: line protocol in, InfluxQL out, for 1.8, 2.x and 3.

Writes go through the client's synchronous write service: its batching mode loses data when the server is down. Reads go
through the same client's ApiClient to `/query`, because Flux is gone in version 3.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from influxdb_client.rest import ApiException

from connectors.batches import EMPTY_MARKER, Batch, checked_events, events_from_frame, from_frame, from_readings
from connectors.frames import (
    Summary,
    downsampled_frame,
    events_frame,
    step_us,
    timed_frame,
)
from connectors.influx_conflicts import Frontier, Lesser, merged, slots, windows
from connectors.influx_frames import answers_frame, row_count
from connectors.influx_http import Connection, Refusal, TooManyFiles, Unit
from connectors.influx_refusals import first_reason, settle
from connectors.influx_versions import Dialect, detect, raise_told
from connectors.influxql import (
    Answer,
    among,
    between,
    between_ns,
    identifier,
    parse_readings,
    parse_rows,
    parse_summaries,
    parse_times,
)
from connectors.line_protocol import (
    CONFLICTS,
    EVENTS,
    READINGS,
    bodies,
    conflict_line,
    event_lines,
    longest_line,
    reading_lines,
)
from pm.domain import EARLIEST, LATEST, Event, Reading, from_us, to_us
from pm.errors import RowsRefused, StoreError

log = logging.getLogger(__name__)

_LONGEST_READ_US = 28 * 86_400_000_000
"""Four weeks. Longer reads are asked in pieces, so that neither server nor client holds a year of a fleet at once."""
_SHORTEST_READ_US = 60_000_000
_ASSETS_PER_QUERY = 200
_ROWS_PER_BODY = 10_000
_BYTES_PER_BODY = 4_000_000
"""Servers, and proxies before them, take 10 MB and more."""
_NUMERIC = {"float", "integer", "unsigned"}
_ALL_TIME = (to_us(EARLIEST), to_us(LATEST))


class InfluxStore:
    """`pm.ports.ReadingStore` on InfluxDB: measurement `readings`, tag `asset`, a float field per point; measurement
    `events`, tags `asset`, `kind` and `event` (the code), field `code`; measurement `conflicts` like `readings`.

    `token` is "user:password" for 1.8. The database is made at the first write where the server allows it, and keeps
    readings for `retention` (None: for ever). `only_writer` False has every row read back before it is written, for
    several processes that store readings of the same assets. Which version answers is found at the first use.
    Safe to use from several threads.
    """

    def __init__(
        self,
        *,
        url: str,
        bucket: str,
        org: str = "",
        token: str = "",
        verify_tls: bool = True,
        ca_file: str = "",
        timeout: timedelta = timedelta(seconds=30),
        retention: timedelta | None = None,
        only_writer: bool = True,
        pack: bool | None = None,
    ) -> None:
        """pack: gzip what is written; None does so where the server is not on this machine."""
        self._connection = Connection(
            url=url, org=org, token=token, verify_tls=verify_tls, ca_file=ca_file, timeout=timeout, pack=pack
        )
        self._bucket = bucket
        self._retention = retention
        self._frontier = Frontier(only_writer=only_writer)
        self._writing = threading.Lock()
        self._meeting = threading.Lock()
        self._dialect: Dialect | None = None
        self._longest_read_us = _LONGEST_READ_US

    def write(self, readings: Sequence[Reading], events: Sequence[Event] = ()) -> None:
        """Store a batch; durable when it returns, and where it raises RowsRefused all but the rows named. Lines may be
        stored where it raises anything else: write the same again."""
        self._store(from_readings(readings), checked_events(events))

    def write_history(self, readings: pd.DataFrame, events: pd.DataFrame) -> None:
        """Store columnar history. InfluxDB has no transactions: `delete_assets` takes back what came half-way."""
        self._store(from_frame(readings), events_from_frame(events))

    def readings(
        self, start: datetime, end: datetime, assets: Sequence[str] | None = None, points: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Readings with start < time <= end as `History.readings` lays out; every known point when none is named.

        Named points come in the order named, all NaN where unknown; rows in which none of them was read are left out.
        """
        fields = self._fields()
        wanted = tuple(f for f in fields if f != EMPTY_MARKER) if points is None else tuple(dict.fromkeys(points))
        asked = fields if points is None else [name for name in wanted if name in set(fields)]
        answers = list(self._answers(asked, start, end, assets)) if asked else []
        return answers_frame(answers, asked, wanted)

    def downsampled(
        self,
        start: datetime,
        end: datetime,
        step: timedelta,
        assets: Sequence[str] | None = None,
        points: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Lowest, mean and highest of every stretch of `step`, as `ReadingStore.downsampled` lays out. The server sums
        up, so that a year of a point is a short answer."""
        size = step_us(step)
        known = self.points()
        wanted = [name for name in (known if points is None else dict.fromkeys(points)) if name in set(known)]
        first, last = max(to_us(start), _ALL_TIME[0]), min(to_us(end), _ALL_TIME[1])
        if not wanted or first >= last:
            return downsampled_frame([])
        cells = ", ".join(f"min({x}), mean({x}), max({x}), count({x})" for x in map(identifier, wanted))
        rows: list[Summary] = []
        for some in self._parts(assets):
            # The server's stretches have their start inside; a microsecond later, they have their end inside.
            ask = self._question(
                f"SELECT {cells} FROM {identifier(READINGS)}",
                f'{among(some)} GROUP BY "asset", time({size // 1000}ms, 1u) fill(none)',
            )
            for body in self._in_pieces(first, last, ask, size):
                rows += parse_summaries(body, wanted, size)
        return downsampled_frame(rows)

    def events(self, start: datetime, end: datetime, assets: Sequence[str] | None = None) -> pd.DataFrame:
        """Events with start < time <= end as `History.events` lays out."""
        rows = []
        for some in self._parts(assets):
            ask = self._question(f'SELECT "asset", "kind", "code" FROM {identifier(EVENTS)}', among(some))
            for body in self._in_pieces(to_us(start), to_us(end), ask):
                rows += parse_rows(body, ("time", "asset", "kind", "code"))
        return events_frame(sorted((int(time), asset, kind, code) for time, asset, kind, code in rows))

    def points(self) -> tuple[str, ...]:
        """Names of every point stored, in alphabetical order: InfluxDB does not know which came first."""
        return tuple(name for name in self._fields() if name != EMPTY_MARKER)

    def span(self) -> Mapping[str, tuple[datetime, datetime]]:
        """First and last reading time of every asset, by name."""
        first, last = self._ends("ASC"), self._ends("DESC")
        return {asset: (from_us(first[asset]), from_us(last[asset])) for asset in sorted(first) if asset in last}

    def counts(self) -> Mapping[str, int]:
        """`{"readings": rows, "events": rows}`. InfluxDB counts values, not rows: this reads every row once."""
        fields = self._fields()
        rows = sum(map(row_count, self._answers(fields, EARLIEST, LATEST, None))) if fields else 0
        ask = self._question(f'SELECT count("code") FROM {identifier(EVENTS)}', "")
        counted = [parse_rows(body, ("count",)) for body in self._in_pieces(*_ALL_TIME, ask)]
        return {"readings": rows, "events": sum(int(cell) for found in counted for (cell,) in found)}

    def conflicts(self) -> pd.DataFrame:
        """Values that came beside a greater one of their asset, point and time: `time`, `asset`, `point`, `value`."""
        kept = self._kept(*_ALL_TIME, None)
        rows = [(time, *key, value) for (*key, time), values in kept.items() for value in values.values()]
        return timed_frame(sorted(rows), {"asset": "str", "point": "str", "value": "float64"})

    def delete_assets(self, assets: Sequence[str]) -> None:
        """Remove these assets' readings, events and conflicts. Version 3 cannot: raises StoreError."""
        server = self._server()
        with self._writing:
            for asset in dict.fromkeys(assets):
                for measurement in (READINGS, EVENTS, CONFLICTS):
                    server.delete(measurement, asset)
            self._frontier.forget(assets)

    def describe(self) -> str:
        """What answers, what it can do and how long it keeps readings: one line for `pm doctor`."""
        server = self._server()
        kept, wanted = server.retention(), self._retention
        told = f"keeps readings for {kept}" if kept else "keeps readings for ever, as far as it tells"
        if wanted and kept != wanted:
            told += f", where store.retention asks for {wanted}: change it there, pm changes no existing database"
        return f"{server.describe()}; {told}"

    def close(self) -> None:
        """Close the connections. Twice is once."""
        self._connection.close()

    def _server(self) -> Dialect:
        """The server, as found when it first answered."""
        with self._meeting:
            if self._dialect is None:
                found = detect(self._connection, self._bucket, self._retention)
                found.prepare()
                log.info("%s at %s", found.describe(), self._connection.url)
                self._dialect = found
            return self._dialect

    def _store(self, batches: Sequence[Batch], events: Sequence[Event]) -> None:
        server = self._server()
        refused: dict[tuple[str, int], str] = {}
        refused_events: dict[tuple[str, int, str, str], str] = {}
        with self._writing:
            for batch in batches:
                self._look_ahead(batch)
                size = max(1, min(_ROWS_PER_BODY, _BYTES_PER_BODY // longest_line(batch)))
                for start in range(0, len(batch), size):
                    refused |= self._store_part(server, batch.rows(slice(start, start + size)))
            for start in range(0, len(events), _ROWS_PER_BODY):
                refused_events |= self._store_events(server, events[start : start + _ROWS_PER_BODY])
        if refused or refused_events:
            raise RowsRefused(
                f"InfluxDB at {self._connection.url}: {first_reason(refused, refused_events)}",
                readings=refused,
                events=refused_events,
            )

    def _look_ahead(self, batch: Batch) -> None:
        """Ask for the newest rows of assets that are new to this process, as far as this batch can meet them."""
        unknown = self._frontier.unknown(batch.assets)
        if unknown:
            newest = self._ends("DESC", int(batch.times.min()) - 1, _ALL_TIME[1], unknown)
            self._frontier.learn(unknown, newest)

    def _store_part(self, server: Dialect, part: Batch) -> dict[tuple[str, int], str]:
        """Store rows that fit into one request; returns why, of those refused."""
        late = self._frontier.late(part)
        self._frontier.advance(part)
        ahead, behind = part, None
        if part.points and late.any():
            ahead, behind = part.rows(np.flatnonzero(~late)), self._compared(server, part.rows(np.flatnonzero(late)))
        refused: dict[tuple[str, int], str] = {}
        for rows in (ahead, behind):
            if rows is not None and len(rows):
                refused |= settle(rows, lambda some: self._post(server, "\n".join(reading_lines(some)).encode()))
        return refused

    def _compared(self, server: Dialect, late: Batch) -> Batch:
        """What rows bring beyond those that are stored. Of two values, the lesser is put among the conflicts first."""
        known = set(self._fields())
        points = [point for point in late.points if point in known]
        answers: list[Answer] = []
        if points:
            for start, end, assets in windows(late):
                answers += self._answers(points, from_us(start), from_us(end), assets)
        news, lesser = merged(late, answers, points)
        if lesser:
            self._keep(server, lesser)
            log.warning("%d readings differ from what was stored; see measurement %s", len(lesser), CONFLICTS)
        return news

    def _keep(self, server: Dialect, lesser: Sequence[Lesser]) -> None:
        times = [value.time_us for value in lesser]
        kept = self._kept(min(times) - 1, max(times), list(dict.fromkeys(value.asset for value in lesser)))
        try:
            placed = slots(lesser, kept)
        except OverflowError as error:
            raise StoreError(f"InfluxDB at {self._connection.url}: {error}; mend its source") from error
        lines = (conflict_line(one.asset, one.time_us * 1000 + slot, one.point, one.value) for one, slot in placed)
        for body in bodies(lines):
            self._post(server, body, "ns")

    def _kept(
        self, start_us: int, end_us: int, assets: Sequence[str] | None
    ) -> dict[tuple[str, str, int], dict[int, float]]:
        """Conflicts with start < time <= end: values by asset, point and time, and by their nanosecond."""
        fields = self._fields(CONFLICTS)
        kept: dict[tuple[str, str, int], dict[int, float]] = {}
        if not fields:
            return kept
        selected = ", ".join(identifier(field) for field in fields)
        for some in self._parts(assets):
            select = f"SELECT {selected} FROM {identifier(CONFLICTS)}"
            ask = self._question(select, f'{among(some)} GROUP BY "asset"', "ns")
            for body in self._in_pieces(start_us, end_us, ask):
                answer = parse_readings(body, len(fields))
                for row, column in np.argwhere(~np.isnan(answer.values)):
                    time_us, slot = divmod(int(answer.times[row]), 1000)
                    key = (answer.assets[answer.asset_of[row]], fields[column], time_us)
                    kept.setdefault(key, {})[slot] = float(answer.values[row, column])
        return kept

    def _store_events(self, server: Dialect, events: Sequence[Event]) -> dict[tuple[str, int, str, str], str]:
        """Store events that fit into one request, halving them where some are refused."""
        try:
            self._post(server, "\n".join(event_lines(events)).encode())
        except Refusal as refusal:
            if len(events) > 1:
                middle = len(events) // 2
                return self._store_events(server, events[:middle]) | self._store_events(server, events[middle:])
            [one] = events
            return {(one.asset, one.time_us, one.kind.value, one.code): refusal.message}
        return {}

    def _post(self, server: Dialect, body: bytes, unit: Unit = "us") -> None:
        """Lines in one request; the database is made where it is missing. Raises Refusal."""
        try:
            server.write(body, unit)
        except ApiException as missing:
            self._make(server)
            try:
                server.write(body, unit)
            except ApiException as again:
                raise self._connection.told(again) from missing

    def _make(self, server: Dialect) -> None:
        try:
            server.make()
        except StoreError as error:
            if error.retryable:
                raise
            raise StoreError(
                f"InfluxDB at {self._connection.url} has no bucket {self._bucket!r} and does not let this token make "
                f"it ({error}); make it there, or mend store.bucket"
            ) from error
        log.info("made InfluxDB database %s", self._bucket)

    def _fields(self, measurement: str = READINGS) -> list[str]:
        """Numeric fields of a measurement, the marker of empty rows among them."""
        rows = parse_rows(self._ask(f"SHOW FIELD KEYS FROM {identifier(measurement)}"), ("fieldKey", "fieldType"))
        return sorted({name for name, kind in rows if kind in _NUMERIC})

    def _ends(
        self, order: str, start_us: int = _ALL_TIME[0], end_us: int = _ALL_TIME[1], assets: Sequence[str] | None = None
    ) -> dict[str, int]:
        """Time of the first (ASC) or last (DESC) row of every asset."""
        found: dict[str, int] = {}
        for some in self._parts(assets):
            ask = self._question(
                f"SELECT * FROM {identifier(READINGS)}",
                f'{among(some)} GROUP BY "asset" ORDER BY time {order} LIMIT 1',
            )
            for body in self._in_pieces(start_us, end_us, ask):
                piece = parse_times(body)
                found = {**piece, **found} if order == "ASC" else {**found, **piece}
        return found

    def _answers(
        self, fields: Sequence[str], start: datetime, end: datetime, assets: Sequence[str] | None
    ) -> Iterator[Answer]:
        selected = ", ".join(identifier(field) for field in fields)
        for some in self._parts(assets):
            position, last = max(to_us(start), _ALL_TIME[0]), min(to_us(end), _ALL_TIME[1])
            seek = last - position > _LONGEST_READ_US
            ask = self._question(f"SELECT {selected} FROM {identifier(READINGS)}", f'{among(some)} GROUP BY "asset"')
            while position < last:
                if seek:
                    position = self._next(position, last, some)
                    if position >= last:
                        break
                stop = min(position + self._longest_read_us, last)
                rows = 0
                for body in self._in_pieces(position, stop, ask):
                    answer = parse_readings(body, len(fields))
                    rows += len(answer.times)
                    yield answer
                position, seek = stop, not rows

    def _next(self, start: int, end: int, assets: Sequence[str] | None) -> int:
        """Just before the next row, so that a long read passes over years without any; `end` where none is left."""
        ask = self._question(f"SELECT * FROM {identifier(READINGS)}", f"{among(assets)} ORDER BY time LIMIT 1")
        for body in self._in_pieces(start, end, ask):
            if rows := parse_rows(body, ("time",)):
                return int(rows[0][0]) - 1
        return end

    def _parts(self, assets: Sequence[str] | None) -> Iterator[Sequence[str] | None]:
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

    def _question(self, select: str, rest: str, unit: Unit = "us") -> Callable[[int, int], bytes]:
        """A question that is put for a time, start < time <= end in microseconds; `unit` is that of its answers.

        In nanoseconds every one of a microsecond belongs to it.
        """

        def ask(start: int, end: int) -> bytes:
            time = between(start, end) if unit == "us" else between_ns(start * 1000 + 999, end * 1000 + 999)
            return self._ask(f"{select} WHERE {time}{rest}", epoch="u" if unit == "us" else "ns")

        return ask

    def _in_pieces(
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
            yield from self._in_pieces(start_us, middle, ask, whole_us)
            yield from self._in_pieces(middle, end_us, ask, whole_us)

    def _ask(self, query: str, epoch: str = "u") -> bytes:
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
