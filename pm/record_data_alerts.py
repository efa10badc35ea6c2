"""Data alerts in the records, so that every process shows them and a restart forgets none."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Row

from pm.data_alerts import LASTING, DataAlert, Fault, Sign
from pm.domain import from_us, to_us
from pm.record_database import Database, insert_new
from pm.record_tables import data_alert

_ABOUT = 500
"""Letters of `about` that are kept."""


class DataAlertRecords:
    def __init__(self, database: Database) -> None:
        self._database = database

    def note_data(self, signs: Sequence[Sign], at: datetime) -> list[DataAlert]:
        """Raise a data alert for each sign, or add it to the one that is open; those raised anew."""
        new: list[DataAlert] = []
        at_us = to_us(at)
        with self._database.write() as connection:
            for sign in signs:
                about = sign.about.encode("utf-8", "replace").decode().replace("\0", "")[:_ABOUT]
                row = {"source": sign.source, "fault": sign.fault.value, "closed_us": None}
                first = insert_new(
                    connection, data_alert, {**row, "raised_us": at_us, "last_us": at_us, "count": 0, "about": about}
                )
                present = (
                    data_alert.c.source == sign.source,
                    data_alert.c.fault == sign.fault.value,
                    data_alert.c.closed_us.is_(None),
                )
                count = sign.count if sign.fault in LASTING else data_alert.c.count + sign.count
                connection.execute(
                    sa.update(data_alert).where(*present).values(count=count, last_us=at_us, about=about)
                )
                if first:
                    new.append(_alert(connection.execute(sa.select(data_alert).where(*present)).one()))
        return new

    def close_data(self, open_alerts: Sequence[DataAlert], at: datetime) -> None:
        """These are over."""
        numbers = [alert.number for alert in open_alerts]
        if numbers:
            with self._database.write() as connection:
                connection.execute(
                    sa.update(data_alert)
                    .where(data_alert.c.number.in_(numbers), data_alert.c.closed_us.is_(None))
                    .values(closed_us=to_us(at))
                )

    def data_alerts(self, *, closed: int = 0) -> list[DataAlert]:
        """Those that are open, newest first, and then the newest `closed` ones of the others."""
        newest = sa.select(data_alert).order_by(data_alert.c.number.desc())
        with self._database.read() as connection:
            found = list(connection.execute(newest.where(data_alert.c.closed_us.is_(None))))
            if closed:
                found += connection.execute(newest.where(data_alert.c.closed_us.is_not(None)).limit(closed))
            return [_alert(row) for row in found]

    def prune_data_alerts(self, before: datetime) -> None:
        """Delete those closed before a time."""
        with self._database.write() as connection:
            connection.execute(sa.delete(data_alert).where(data_alert.c.closed_us < to_us(before)))


def _alert(row: Row[tuple[object, ...]]) -> DataAlert:
    return DataAlert(
        number=row.number,
        source=row.source,
        fault=Fault(row.fault),
        raised_at=from_us(row.raised_us),
        last_at=from_us(row.last_us),
        count=row._mapping["count"],  # Row has a method of this name
        about=row.about,
        closed_at=None if row.closed_us is None else from_us(row.closed_us),
    )
