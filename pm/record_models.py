"""Forecasters on record: which were trained, which is champion, and how that came about."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from pm.domain import from_us, to_us
from pm.errors import RecordsError
from pm.record_database import Database, insert_new, lock
from pm.record_tables import model, model_journal

log = logging.getLogger(__name__)


class Stage(StrEnum):
    """Where a model stands. One is champion at most."""

    CHALLENGER = "challenger"
    CHAMPION = "champion"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A trained forecaster on record."""

    version: str
    """Version and hash, as its forecasts carry it."""
    path: str
    """Folder of the artefact."""
    created_at: datetime
    trained_until: datetime
    """It has seen nothing dated later."""
    recording: str = ""
    """What it was trained on, where that was a recording."""
    fingerprint: str = ""
    """SHA-256 of the history it was trained on."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = ""
    """What became of it, in words: why it was promoted or kept out."""
    stage: Stage = Stage.CHALLENGER


@dataclass(frozen=True, slots=True)
class StageChange:
    """One step in a model's life."""

    version: str
    at: datetime
    from_stage: Stage | None
    to_stage: Stage
    why: str


class ModelRecords:
    """The models and their stages."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_model(self, row: ModelRow) -> None:
        """Register a model as challenger. Raises RecordsError when its version is on record with another path."""
        with self._database.write() as connection:
            values = {
                "version": row.version,
                "path": row.path,
                "created_us": to_us(row.created_at),
                "trained_until_us": to_us(row.trained_until),
                "recording": row.recording,
                "fingerprint": row.fingerprint,
                "metrics": json.dumps(dict(row.metrics)),
                "verdict": row.verdict,
                "stage": Stage.CHALLENGER.value,
            }
            if not insert_new(connection, model, values):
                present = _by_version(connection, row.version)
                if present.path != row.path:
                    raise RecordsError(f"model {row.version} is on record already, at {present.path}; train it anew")
                return
            _note(connection, row.version, row.created_at, None, Stage.CHALLENGER, row.verdict or "trained")

    def models(self) -> list[ModelRow]:
        """Every model on record, newest first."""
        with self._database.read() as connection:
            return [_model(row) for row in connection.execute(sa.select(model).order_by(model.c.number.desc()))]

    def model(self, name: str) -> ModelRow:
        """A model by its version, or by the part before the @ (the newest of that name). Raises RecordsError."""
        for row in self.models():
            if name in (row.version, row.version.partition("@")[0]):
                return row
        raise RecordsError(f"no model {name!r} is on record; 'pm models list' names them all")

    def champion(self) -> ModelRow | None:
        """The model that forecasts, or None before the first is promoted."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(model).where(model.c.stage == Stage.CHAMPION.value)).one_or_none()
            return None if row is None else _model(row)

    def set_verdict(self, version: str, verdict: str) -> None:
        """Say what became of a model that was kept out. Raises RecordsError when it is not on record."""
        with self._database.write() as connection:
            _by_version(connection, version)
            connection.execute(sa.update(model).where(model.c.version == version).values(verdict=verdict))

    def promote(self, version: str, *, at: datetime, why: str) -> None:
        """Make a model the champion; the one before retires. Promoting the champion changes nothing.

        Raises RecordsError when the version is not on record.
        """
        with self._database.write() as connection:
            lock(connection, model)
            row = _by_version(connection, version)
            if row.stage == Stage.CHAMPION:
                return
            present = connection.execute(
                sa.select(model.c.version).where(model.c.stage == Stage.CHAMPION.value)
            ).scalar_one_or_none()
            if present is not None:
                _move(connection, present, at, Stage.CHAMPION, Stage.RETIRED, f"{version} took its place")
            _move(connection, version, at, Stage(row.stage), Stage.CHAMPION, why)
            connection.execute(sa.update(model).where(model.c.version == version).values(verdict=why))
        log.info("model %s promoted to champion: %s", version, why)

    def rollback(self, *, at: datetime) -> ModelRow:
        """Make the champion before this one champion again, and retire this one.

        A second rollback goes one further back, not forth again: a model rolled back from is passed over.
        Raises RecordsError when there was none before.
        """
        with self._database.write() as connection:
            lock(connection, model)
            steps = connection.execute(
                sa.select(model_journal)
                .where(model_journal.c.to_stage == Stage.CHAMPION.value)
                .order_by(model_journal.c.number)
            ).all()
            reigns: list[str] = []
            for step in steps:
                if step.why.startswith(_ROLLED_BACK):
                    reigns.pop()
                else:
                    reigns.append(step.version)
            if len(reigns) < 2:
                raise RecordsError("no champion before this one is on record; promote a model with 'pm models promote'")
            present, former = reigns[-1], reigns[-2]
            _move(connection, present, at, Stage.CHAMPION, Stage.RETIRED, f"rolled back to {former}")
            _move(connection, former, at, Stage.RETIRED, Stage.CHAMPION, f"{_ROLLED_BACK} {present}")
            restored = _model(_by_version(connection, former))
        log.info("model %s rolled back to champion %s", present, former)
        return restored

    def model_journal(self, version: str | None = None) -> list[StageChange]:
        """Every change of stage, of one model or of all, oldest first."""
        query = sa.select(model_journal).order_by(model_journal.c.number)
        if version is not None:
            query = query.where(model_journal.c.version == version)
        with self._database.read() as connection:
            return [
                StageChange(
                    version=row.version,
                    at=from_us(row.at_us),
                    from_stage=Stage(row.from_stage) if row.from_stage else None,
                    to_stage=Stage(row.to_stage),
                    why=row.why,
                )
                for row in connection.execute(query)
            ]


_ROLLED_BACK = "rolled back from"


def _by_version(connection: Connection, version: str) -> Row[Any]:
    row = connection.execute(sa.select(model).where(model.c.version == version)).one_or_none()
    if row is None:
        raise RecordsError(f"no model {version!r} is on record; 'pm models list' shows those that are")
    return row


def _move(connection: Connection, version: str, at: datetime, before: Stage, after: Stage, why: str) -> None:
    connection.execute(sa.update(model).where(model.c.version == version).values(stage=after.value))
    _note(connection, version, at, before, after, why)


def _note(connection: Connection, version: str, at: datetime, before: Stage | None, after: Stage, why: str) -> None:
    entry = {
        "version": version,
        "at_us": to_us(at),
        "from_stage": before and before.value,
        "to_stage": after.value,
        "why": why,
    }
    connection.execute(sa.insert(model_journal), entry)


def _model(row: Row[Any]) -> ModelRow:
    return ModelRow(
        version=row.version,
        path=row.path,
        created_at=from_us(row.created_us),
        trained_until=from_us(row.trained_until_us),
        recording=row.recording,
        fingerprint=row.fingerprint,
        metrics=json.loads(row.metrics),
        verdict=row.verdict,
        stage=Stage(row.stage),
    )
