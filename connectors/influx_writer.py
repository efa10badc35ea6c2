"""Readings into InfluxDB: in bodies that every server takes, held against what is stored, what is refused named."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import numpy as np
from influxdb_client.rest import ApiException

from connectors.batches import Batch
from connectors.influx_conflicts import Frontier, Lesser, merged, slots, windows
from connectors.influx_http import Connection, Refusal, Unit
from connectors.influx_reader import ALL_TIME, InfluxReader
from connectors.influx_refusals import first_reason, settle
from connectors.influx_versions import Dialect
from connectors.influxql import Answer
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
from pm.domain import Event, from_us
from pm.errors import RowsRefused, StoreError

log = logging.getLogger(__name__)

_ROWS_PER_BODY = 10_000
_BYTES_PER_BODY = 4_000_000
"""Servers, and proxies before them, take 10 MB and more."""


class InfluxWriter:
    """What is written to one database, one call at a time. Safe to use from several threads."""

    def __init__(
        self,
        connection: Connection,
        bucket: str,
        server: Callable[[], Dialect],
        reader: InfluxReader,
        only_writer: bool,
    ) -> None:
        """server: who answers, found at the first call. only_writer: as `Frontier` has it."""
        self._connection = connection
        self._bucket = bucket
        self._server = server
        self._reader = reader
        self._frontier = Frontier(only_writer=only_writer)
        self._writing = threading.Lock()

    def store(self, batches: Sequence[Batch], events: Sequence[Event]) -> None:
        """Store these; where it raises RowsRefused all but the rows named."""
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
            newest = self._reader.ends("DESC", int(batch.times.min()) - 1, ALL_TIME[1], unknown)
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
        known = set(self._reader.fields())
        points = [point for point in late.points if point in known]
        answers: list[Answer] = []
        if points:
            for start, end, assets in windows(late):
                answers += self._reader.answers(points, from_us(start), from_us(end), assets)
        news, lesser = merged(late, answers, points)
        if lesser:
            self._keep(server, lesser)
            log.warning("%d readings differ from what was stored; see measurement %s", len(lesser), CONFLICTS)
        return news

    def _keep(self, server: Dialect, lesser: Sequence[Lesser]) -> None:
        times = [value.time_us for value in lesser]
        kept = self._reader.kept(min(times) - 1, max(times), list(dict.fromkeys(value.asset for value in lesser)))
        try:
            placed = slots(lesser, kept)
        except OverflowError as error:
            raise StoreError(f"InfluxDB at {self._connection.url}: {error}; mend its source") from error
        lines = (conflict_line(one.asset, one.time_us * 1000 + slot, one.point, one.value) for one, slot in placed)
        for body in bodies(lines):
            self._post(server, body, "ns")

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

    def delete(self, assets: Sequence[str]) -> None:
        """Remove everything of these assets. Raises StoreError where the server cannot."""
        server = self._server()
        with self._writing:
            for asset in dict.fromkeys(assets):
                for measurement in (READINGS, EVENTS, CONFLICTS):
                    server.delete(measurement, asset)
            self._frontier.forget(assets)
