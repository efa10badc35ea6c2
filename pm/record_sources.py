"""What sources say of assets and points beside their readings: who is silent, and in which units points are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from pm.domain import Point, Silence
from pm.record_database import Database, insert_missing, replace_rows
from pm.record_tables import point, silence

_FEED = ""
"""In place of a recording's name, as in `pm.record_register`."""


class SourceRecords:
    """A `pm.ports.SourceRegister`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note_source(self, silences: Sequence[Silence], points: Sequence[Point]) -> None:
        """Keep who is silent since when (or heard again), and the units of points that nobody described.

        The latest word on an asset stands; the first unit of a point that only the feed knows does.
        """
        latest = {said.asset: said for said in silences}
        rows = [
            {"asset": said.asset, "since_us": said.since_us, "because": said.because}
            for said in latest.values()
            if said.since_us is not None
        ]
        heard = [name for name, said in latest.items() if said.since_us is None]
        with self._database.write() as connection:
            replace_rows(connection, silence, rows)
            for start in range(0, len(heard), 500):
                connection.execute(sa.delete(silence).where(silence.c.asset.in_(heard[start : start + 500])))
            if not points:
                return
            known = set(connection.execute(sa.select(point.c.name)).scalars())
            units = {p.name: p.unit for p in reversed(points)}
            new = [name for name in units if name not in known]
            empty = {"low": None, "high": None, "description": ""}
            insert_missing(
                connection,
                point,
                [
                    {"recording": _FEED, "name": name, "position": len(known) + n, "unit": units[name], **empty}
                    for n, name in enumerate(new)
                ],
            )
            for name in units.keys() & known:
                connection.execute(
                    sa.update(point)
                    .where(point.c.recording == _FEED, point.c.name == name, point.c.unit == "")
                    .values(unit=units[name])
                )

    def silences(self) -> Mapping[str, Silence]:
        """Assets whose source has said that it is silent, by name."""
        with self._database.read() as connection:
            return {
                row.asset: Silence(row.asset, row.since_us, row.because)
                for row in connection.execute(sa.select(silence))
            }
