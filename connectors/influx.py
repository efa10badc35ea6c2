"""InfluxDB as a store of readings, through influxdb-client: line protocol in, InfluxQL out, for 1.8, 2.x and 3.

Writes go through the client's synchronous write API: its batching mode loses data when the server is down. Reads go
through the same client's ApiClient to `/query`, because Flux is gone in version 3.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

import numpy as np
import orjson
import pandas as pd
from influxdb_client.client.influxdb_client import InfluxDBClient
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.domain.write_precision import WritePrecision
from influxdb_client.rest import ApiException
from urllib3.exceptions import HTTPError

from connectors.batches import EMPTY_MARKER, checked_events, events_from_frame, from_frame, from_readings
from connectors.frames import Summary, downsampled_frame, events_frame, readings_frame, step_us
from connectors.influxql import (
    Answer,
    among,
    between,
    identifier,
    literal,
    parse_readings,
    parse_rows,
    parse_summaries,
    parse_times,
)
from connectors.line_protocol import EVENTS, READINGS, bodies, event_lines, reading_lines
from pm.domain import EARLIEST, LATEST, Event, Reading, from_us, to_us
from pm.errors import StoreError, StoreUnavailable

log = logging.getLogger(__name__)

_LONGEST_READ_US = 28 * 86_400_000_000
"""Four weeks. Longer reads are asked in pieces, so that neither server nor client holds a year of a fleet at once."""
_ASSETS_PER_QUERY = 200
_NUMERIC = {"float", "integer", "unsigned"}
_ALL_TIME = (to_us(EARLIEST), to_us(LATEST))


class InfluxStore:
    """`pm.ports.ReadingStore` on InfluxDB: measurement `readings`, tag `asset`, a float field per point; measurement
    `events`, tags `asset`, `kind` and `event` (the code), field `code`.

    Where two different values arrive for one asset, point and time, InfluxDB keeps the later and tells nobody.
    `token` is "user:password" for 1.8. The database is made at the first write where the server allows it.
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
    ) -> None:
        self._url = url
        self._bucket = bucket
        self._org = org
        self._client: Any = InfluxDBClient(
            url=url,
            token=token,
            org=org,
            timeout=int(timeout.total_seconds() * 1000),
            verify_ssl=verify_tls,
            ssl_ca_cert=ca_file or None,
        )
        self._writer: Any = self._client.write_api(write_options=SYNCHRONOUS)

    def write(self, readings: Sequence[Reading], events: Sequence[Event] = ()) -> None:
        """Store a batch; durable when it returns. Lines may be stored where it raises: write the same again."""
        batches, checked = from_readings(readings), checked_events(events)
        self._write(chain(*(reading_lines(batch) for batch in batches), event_lines(checked)))

    def write_history(self, readings: pd.DataFrame, events: pd.DataFrame) -> None:
        """Store columnar history. InfluxDB has no transactions: `delete_assets` takes back what came half-way."""
        batches, checked = from_frame(readings), events_from_frame(events)
        self._write(chain(*(reading_lines(batch) for batch in batches), event_lines(checked)))

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
        return _frame(answers, asked, wanted)

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
        for some in _parts(assets):
            # The server's stretches have their start inside; a microsecond later, they have their end inside.
            body = self._ask(
                f"SELECT {cells} FROM {identifier(READINGS)} WHERE {between(first, last)}{among(some)} "
                f'GROUP BY "asset", time({size // 1000}ms, 1u) fill(none)'
            )
            rows += parse_summaries(body, wanted, size)
        return downsampled_frame(rows)

    def events(self, start: datetime, end: datetime, assets: Sequence[str] | None = None) -> pd.DataFrame:
        """Events with start < time <= end as `History.events` lays out."""
        rows = []
        for some in _parts(assets):
            body = self._ask(
                f'SELECT "asset", "kind", "code" FROM {identifier(EVENTS)} '
                f"WHERE {between(to_us(start), to_us(end))}{among(some)}"
            )
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
        answers = self._answers(fields, EARLIEST, LATEST, None) if fields else ()
        events = parse_rows(self._ask(f'SELECT count("code") FROM {identifier(EVENTS)}'), ("count",))
        return {"readings": sum(len(answer.times) for answer in answers), "events": int(events[0][0]) if events else 0}

    def delete_assets(self, assets: Sequence[str]) -> None:
        """Remove these assets' readings and events. Version 3 cannot: raises StoreError."""
        for asset in dict.fromkeys(assets):
            for measurement in (READINGS, EVENTS):
                self._ask(f'DELETE FROM {identifier(measurement)} WHERE "asset" = {literal(asset)}')

    def close(self) -> None:
        """Close the connections. Twice is once."""
        self._writer.close()
        self._client.close()

    def _write(self, lines: Iterable[str]) -> None:
        with self._telling():
            for body in bodies(lines):
                try:
                    self._post(body)
                except ApiException as error:
                    if error.status != 404:
                        raise
                    self._make_database()
                    self._post(body)

    def _post(self, body: bytes) -> None:
        self._writer.write(self._bucket, self._org, body, write_precision=WritePrecision.US)

    def _make_database(self) -> None:
        try:
            self._fetch(f"CREATE DATABASE {identifier(self._bucket)}", "application/json")
        except (ApiException, StoreError) as error:
            raise StoreError(
                f"InfluxDB at {self._url} has no bucket {self._bucket!r} and does not let this token make it; "
                "make it there, or mend store.bucket"
            ) from error
        log.info("made InfluxDB database %s", self._bucket)

    def _fields(self) -> list[str]:
        """Numeric fields of `readings`, the marker of empty rows among them."""
        rows = parse_rows(self._ask(f"SHOW FIELD KEYS FROM {identifier(READINGS)}"), ("fieldKey", "fieldType"))
        return sorted({name for name, kind in rows if kind in _NUMERIC})

    def _ends(self, order: str) -> dict[str, int]:
        """Time of the first (ASC) or last (DESC) row of every asset."""
        query = f'SELECT * FROM {identifier(READINGS)} GROUP BY "asset" ORDER BY time {order} LIMIT 1'
        return parse_times(self._ask(query))

    def _answers(
        self, fields: Sequence[str], start: datetime, end: datetime, assets: Sequence[str] | None
    ) -> Iterator[Answer]:
        selected = ", ".join(identifier(field) for field in fields)
        for some in _parts(assets):
            position, last = max(to_us(start), _ALL_TIME[0]), min(to_us(end), _ALL_TIME[1])
            seek = last - position > _LONGEST_READ_US
            while position < last:
                if seek:
                    position = self._next(position, last, some)
                    if position >= last:
                        break
                stop = min(position + _LONGEST_READ_US, last)
                body = self._ask(
                    f"SELECT {selected} FROM {identifier(READINGS)} "
                    f'WHERE {between(position, stop)}{among(some)} GROUP BY "asset"'
                )
                answer = parse_readings(body, len(fields))
                yield answer
                position, seek = stop, not len(answer.times)

    def _next(self, start: int, end: int, assets: Sequence[str] | None) -> int:
        """Just before the next row, so that a long read passes over years without any; `end` where none is left."""
        query = f"SELECT * FROM {identifier(READINGS)} WHERE {between(start, end)}{among(assets)} ORDER BY time LIMIT 1"
        rows = parse_rows(self._ask(query), ("time",))
        return int(rows[0][0]) - 1 if rows else end

    def _ask(self, query: str) -> bytes:
        """The CSV answer to a query. An empty answer may hide an error, so it is asked for again as JSON."""
        with self._telling():
            body = self._fetch(query, "application/csv")
            if not body.strip():
                self._fetch(query, "application/json")
        return body

    def _fetch(self, query: str, accept: str) -> bytes:
        response = self._client.api_client.call_api(
            "/query",
            "POST",
            query_params=[("db", self._bucket), ("epoch", "u"), ("chunked", "true")],
            header_params={"Accept": accept, "Content-Type": "application/x-www-form-urlencoded"},
            post_params=[("q", query)],
            _preload_content=False,
            _return_http_data_only=True,
        )
        try:
            body: bytes = response.read()
        finally:
            response.release_conn()
        if accept == "application/json":
            self._look_for_errors(body)
        return body

    def _look_for_errors(self, body: bytes) -> None:
        for line in body.splitlines():
            answer = orjson.loads(line)
            for part in (answer, *answer.get("results", ())):
                message = part.get("error", "")
                if message and not message.startswith("database not found"):  # nothing written yet is no error
                    raise StoreError(f"InfluxDB at {self._url}: {message}")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """The client's errors as ours."""
        try:
            yield
        except ApiException as error:
            raise self._told(error) from error
        except HTTPError as error:
            raise StoreUnavailable(
                f"InfluxDB at {self._url} cannot be reached ({type(error).__name__}); start it or mend store.url"
            ) from error

    def _told(self, error: ApiException) -> StoreError:
        """The StoreError that says what a refusal means, and whether trying again can help. Never shows the token."""
        message = _message(error)
        where = f"InfluxDB at {self._url}"
        match error.status:
            case 0:
                return StoreError(f"{where}: TLS failed ({message}); mend store.ca_file, or the server's certificate")
            case 401 | 403:
                return StoreError(
                    f"{where} refuses the token ({message}); mend store.token and its rights on the bucket"
                )
            case 404:
                return StoreError(f"{where}: {message}; mend store.url and store.bucket {self._bucket!r}")
            case 429:
                return StoreUnavailable(f"{where} asks to slow down ({message})")
            case int(status) if status >= 500:
                return StoreUnavailable(f"{where} fails with status {status} ({message})")
        return StoreError(f"{where} refuses with status {error.status}: {message}")


def _parts(assets: Sequence[str] | None) -> Iterator[Sequence[str] | None]:
    """The assets in groups that fit into one query."""
    if assets is None:
        yield None
        return
    for start in range(0, len(assets), _ASSETS_PER_QUERY):
        yield assets[start : start + _ASSETS_PER_QUERY]


def _message(error: ApiException) -> str:
    """The server's own words, short and on one line."""
    body = error.body if isinstance(error.body, str | bytes) else b""
    try:
        answer = orjson.loads(body)
        text = str(answer.get("error") or answer.get("message") or "")
    except (orjson.JSONDecodeError, AttributeError):
        text = body.decode(errors="replace") if isinstance(body, bytes) else body
    return " ".join((text or str(error.reason or "no reason given")).split())[:300]


def _frame(answers: Sequence[Answer], asked: Sequence[str], wanted: Sequence[str]) -> pd.DataFrame:
    """Answers joined in canonical order, with the columns wanted of the fields asked for."""
    names = sorted({name for answer in answers for name in answer.assets})
    if not names:
        return readings_frame((), (), (), wanted)
    rank = {name: place for place, name in enumerate(names)}
    codes = np.concatenate([np.array([rank[a] for a in x.assets], dtype=np.intp)[x.asset_of] for x in answers])
    times = np.concatenate([answer.times for answer in answers])
    order = np.lexsort((times, codes))
    place = {name: column for column, name in enumerate(asked)}
    values = np.full((len(order), len(wanted)), np.nan)
    for column, name in enumerate(wanted):
        if name in place:
            values[:, column] = np.concatenate([answer.values[:, place[name]] for answer in answers])[order]
    bounds = np.flatnonzero(np.diff(codes[order])) + 1
    return readings_frame(names, np.split(times[order], bounds), np.split(values, bounds), wanted)
