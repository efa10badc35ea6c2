"""The service's own records in SQL: SQLite by default, PostgreSQL where a plant wants it.

One object for every thread of a process; several processes may open the same database. Each method is one
transaction. Errors are RecordsError with the mend, RecordsUnavailable where trying again can help.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from pm.domain import from_us, to_us
from pm.record_alerts import AlertRecords, JournalEntry
from pm.record_data_alerts import DataAlertRecords
from pm.record_database import Database, insert_new, replace_rows
from pm.record_late import LateRecords
from pm.record_letters import DeadLetter, LetterRecords
from pm.record_models import ModelRecords, ModelRow, Stage, StageChange
from pm.record_register import RegisterRecords
from pm.record_sources import SourceRecords
from pm.record_tables import secret, tick
from pm.record_totals import TotalsRecords
from pm.record_users import Role, User, UserRecords

__all__ = ["DeadLetter", "JournalEntry", "ModelRow", "Records", "Role", "Stage", "StageChange", "User"]


class Records(
    RegisterRecords,
    SourceRecords,
    AlertRecords,
    DataAlertRecords,
    LateRecords,
    LetterRecords,
    ModelRecords,
    UserRecords,
    TotalsRecords,
):
    """Everything that the service remembers apart from readings; it is the assessment log of a plant."""

    @classmethod
    def open(cls, url: str, password: str | None = None) -> Self:
        """Open and, where needed, migrate. `sqlite://` alone is a database in memory, gone when closed."""
        return cls(Database.open(url, password))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def secret(self, name: str) -> str:
        """A random secret of 256 bits, made the first time it is asked for and kept; every process gets the same."""
        query = sa.select(secret.c.value).where(secret.c.name == name)
        with self._database.read() as connection:
            found = connection.execute(query).scalar_one_or_none()
        if found is not None:
            return str(found)
        with self._database.write() as connection:
            insert_new(connection, secret, {"name": name, "value": secrets.token_urlsafe(32)})
            return str(connection.execute(query).scalar_one())

    def last_tick(self, job: str) -> datetime | None:
        """When a scheduled job last ran, in plant time."""
        with self._database.read() as connection:
            found = connection.execute(sa.select(tick.c.at_us).where(tick.c.job == job)).scalar_one_or_none()
            return None if found is None else from_us(found)

    def set_tick(self, job: str, at: datetime) -> None:
        with self._database.write() as connection:
            replace_rows(connection, tick, [{"job": job, "at_us": to_us(at)}])
