"""What came late, until the forecasts that it touches are looked at again; and what these would have been."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from pm.domain import from_us, to_us
from pm.lateness import Late, Revision
from pm.record_alerts import forecast_of, forecast_row
from pm.record_database import Database, lock, replace_rows
from pm.record_tables import late, revision

Stamped = tuple[Late, int]
"""What came late of an asset, and the count by which it is known whether more has come since."""


class LateRecords:
    """Marks of late readings, and the forecasts revised for them. Issued forecasts are never written here."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note_late(self, marks: Sequence[Late]) -> None:
        """Keep that these came late, with what is kept already; durable when it returns. Repeating changes no span."""
        if not marks:
            return
        with self._database.write() as connection:
            lock(connection, late)
            known = {row.asset: row for row in connection.execute(_of([mark.asset for mark in marks]))}
            rows = []
            for mark in marks:
                before = known.get(mark.asset)
                whole = mark if before is None else mark | _late(before)
                rows.append(_late_row(whole) | {"stamp": 1 if before is None else before.stamp + 1})
            replace_rows(connection, late, rows)

    def late(self) -> list[Stamped]:
        """What waits for the next assessment, by the time at which it came."""
        query = sa.select(late).order_by(late.c.came_us, late.c.asset)
        with self._database.read() as connection:
            return [(_late(row), row.stamp) for row in connection.execute(query)]

    def record_revisions(
        self, settled: Sequence[Stamped], revised: Sequence[Revision], alike: Sequence[tuple[str, datetime]]
    ) -> None:
        """Keep revised forecasts and forget what they settle, all of it or nothing.

        settled: as `late` gave it; where more has come of an asset since, it stays for the next time. revised: take the
        place of what was revised before for the same asset and time, with the spans of both. alike: assets and times
        whose forecast is as it was issued, so that none stands beside it.
        """
        with self._database.write() as connection:
            lock(connection, late)
            rows = []
            for one in revised:
                key = (one.forecast.asset, to_us(one.forecast.time))
                before = connection.execute(
                    sa.select(revision).where(revision.c.asset == key[0], revision.c.at_us == key[1])
                ).one_or_none()
                span = one.late if before is None else one.late | _late(before)
                rows.append(forecast_row(one.forecast) | _late_row(span) | {"revised_us": to_us(one.at)})
            replace_rows(connection, revision, rows)
            for asset, at in alike:
                connection.execute(sa.delete(revision).where(revision.c.asset == asset, revision.c.at_us == to_us(at)))
            for mark, stamp in settled:
                connection.execute(sa.delete(late).where(late.c.asset == mark.asset, late.c.stamp == stamp))

    def revisions(self, asset: str, start: datetime, end: datetime) -> list[Revision]:
        """Revised forecasts of one asset issued at start < time <= end, oldest first."""
        query = (
            sa.select(revision)
            .where(revision.c.asset == asset, revision.c.at_us > to_us(start), revision.c.at_us <= to_us(end))
            .order_by(revision.c.at_us)
        )
        with self._database.read() as connection:
            return [
                Revision(forecast_of(row), _late(row), from_us(row.revised_us)) for row in connection.execute(query)
            ]

    def prune_revisions(self, before: datetime) -> int:
        """Delete revisions of forecasts issued before a time; returns how many."""
        with self._database.write() as connection:
            return connection.execute(sa.delete(revision).where(revision.c.at_us < to_us(before))).rowcount


def _of(assets: Sequence[str]) -> sa.Select[Any]:
    # A message may name more assets than a statement takes parameters; then all are read, which are no more.
    query = sa.select(late)
    return query.where(late.c.asset.in_(assets)) if len(assets) <= 500 else query


def _late(row: Row[Any]) -> Late:
    return Late(row.asset, from_us(row.first_us), from_us(row.last_us), from_us(row.came_us), row.lasting)


def _late_row(mark: Late) -> dict[str, Any]:
    return {
        "asset": mark.asset,
        "first_us": to_us(mark.first),
        "last_us": to_us(mark.last),
        "came_us": to_us(mark.came),
        "lasting": mark.lasting,
    }
