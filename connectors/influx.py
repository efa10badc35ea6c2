"""InfluxDB as a store of readings, through influxdb-client: line protocol in, InfluxQL out, for 1.8, 2.x and 3.

Writes go through the client's synchronous write service: its batching mode loses data when the server is down. Reads go
through the same client's ApiClient to `/query`, because Flux is gone in version 3.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import pandas as pd

from connectors.batches import EMPTY_MARKER, checked_events, events_from_frame, from_frame, from_readings
from connectors.frames import Summary, downsampled_frame, events_frame, step_us, timed_frame
from connectors.influx_frames import answers_frame, row_count
from connectors.influx_http import Connection
from connectors.influx_reader import ALL_TIME, InfluxReader
from connectors.influx_versions import Dialect, detect
from connectors.influx_writer import InfluxWriter
from connectors.influxql import among, identifier, parse_rows, parse_summaries
from connectors.line_protocol import CONFLICTS, EVENTS, READINGS
from pm.domain import EARLIEST, LATEST, Event, Reading, from_us, to_us

log = logging.getLogger(__name__)


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
        self._meeting = threading.Lock()
        self._dialect: Dialect | None = None
        self._reader = InfluxReader(self._connection, bucket, self._server)
        self._writer = InfluxWriter(self._connection, bucket, self._server, self._reader, only_writer)

    def write(self, readings: Sequence[Reading], events: Sequence[Event] = ()) -> None:
        """Store a batch; durable when it returns, and where it raises RowsRefused all but the rows named. Lines may be
        stored where it raises anything else: write the same again."""
        self._writer.store(from_readings(readings), checked_events(events))

    def write_history(self, readings: pd.DataFrame, events: pd.DataFrame) -> None:
        """Store columnar history. InfluxDB has no transactions: `delete_assets` takes back what came half-way."""
        self._writer.store(from_frame(readings), events_from_frame(events))

    def readings(
        self, start: datetime, end: datetime, assets: Sequence[str] | None = None, points: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Readings with start < time <= end as `History.readings` lays out; every known point when none is named.

        Named points come in the order named, all NaN where unknown; rows in which none of them was read are left out.
        """
        fields = self._reader.fields()
        wanted = tuple(f for f in fields if f != EMPTY_MARKER) if points is None else tuple(dict.fromkeys(points))
        asked = fields if points is None else [name for name in wanted if name in set(fields)]
        answers = list(self._reader.answers(asked, start, end, assets)) if asked else []
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
        first, last = max(to_us(start), ALL_TIME[0]), min(to_us(end), ALL_TIME[1])
        if not wanted or first >= last:
            return downsampled_frame([])
        cells = ", ".join(f"min({x}), mean({x}), max({x}), count({x})" for x in map(identifier, wanted))
        rows: list[Summary] = []
        for some in self._reader.parts(assets):
            # The server's stretches have their start inside; a microsecond later, they have their end inside.
            ask = self._reader.question(
                f"SELECT {cells} FROM {identifier(READINGS)}",
                f'{among(some)} GROUP BY "asset", time({size // 1000}ms, 1u) fill(none)',
            )
            for body in self._reader.in_pieces(first, last, ask, size):
                rows += parse_summaries(body, wanted, size)
        return downsampled_frame(rows)

    def events(self, start: datetime, end: datetime, assets: Sequence[str] | None = None) -> pd.DataFrame:
        """Events with start < time <= end as `History.events` lays out."""
        rows = []
        for some in self._reader.parts(assets):
            ask = self._reader.question(f'SELECT "asset", "kind", "code" FROM {identifier(EVENTS)}', among(some))
            for body in self._reader.in_pieces(to_us(start), to_us(end), ask):
                rows += parse_rows(body, ("time", "asset", "kind", "code"))
        return events_frame(sorted((int(time), asset, kind, code) for time, asset, kind, code in rows))

    def points(self) -> tuple[str, ...]:
        """Names of every point stored, in alphabetical order: InfluxDB does not know which came first."""
        return tuple(name for name in self._reader.fields() if name != EMPTY_MARKER)

    def span(self) -> Mapping[str, tuple[datetime, datetime]]:
        """First and last reading time of every asset, by name."""
        first, last = self._reader.ends("ASC"), self._reader.ends("DESC")
        return {asset: (from_us(first[asset]), from_us(last[asset])) for asset in sorted(first) if asset in last}

    def counts(self) -> Mapping[str, int]:
        """`{"readings": rows, "events": rows}`. InfluxDB counts values, not rows: this reads every row once."""
        fields = self._reader.fields()
        rows = sum(map(row_count, self._reader.answers(fields, EARLIEST, LATEST, None))) if fields else 0
        ask = self._reader.question(f'SELECT count("code") FROM {identifier(EVENTS)}', "")
        counted = [parse_rows(body, ("count",)) for body in self._reader.in_pieces(*ALL_TIME, ask)]
        return {"readings": rows, "events": sum(int(cell) for found in counted for (cell,) in found)}

    def conflicts(self) -> pd.DataFrame:
        """Values that came beside a greater one of their asset, point and time: `time`, `asset`, `point`, `value`."""
        kept = self._reader.kept(*ALL_TIME, None)
        rows = [(time, *key, value) for (*key, time), values in kept.items() for value in values.values()]
        return timed_frame(sorted(rows), {"asset": "str", "point": "str", "value": "float64"})

    def delete_assets(self, assets: Sequence[str]) -> None:
        """Remove these assets' readings, events and conflicts. Version 3 cannot: raises StoreError."""
        self._writer.delete(assets)

    def lately(self, start: datetime, end: datetime) -> Mapping[str, int]:
        """`{"values": values of readings, "conflicts": values}` with start < time <= end: a quick question."""
        return {
            "values": self._reader.counted(READINGS, start, end),
            "conflicts": self._reader.counted(CONFLICTS, start, end),
        }

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
