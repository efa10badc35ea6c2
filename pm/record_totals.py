"""How much there is in the records, for metrics: few and quick queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from pm.domain import from_us
from pm.record_database import Database
from pm.record_tables import alert, assessment, dead_letter, forecast


@dataclass(frozen=True, slots=True)
class Totals:
    assessments: int
    """Recorded so far; none is ever deleted, so this only grows, as the next two do."""
    forecasts: int
    abstained: int
    abstaining: Mapping[str, int]
    """Assets whose forecast abstained at the latest assessment, by reason."""
    alerts: Mapping[str, int]
    """By state."""
    dead_letters: int
    assessed_at: datetime | None
    """Plant time of the latest assessment."""


class TotalsRecords:
    def __init__(self, database: Database) -> None:
        self._database = database

    def totals(self) -> Totals:
        count = sa.func.count()
        with self._database.read() as connection:
            made = connection.execute(
                sa.select(
                    count,
                    sa.func.coalesce(sa.func.sum(assessment.c.forecasts), 0),
                    sa.func.coalesce(sa.func.sum(assessment.c.abstained), 0),
                    sa.func.max(assessment.c.at_us),
                )
            ).one()
            reasons = connection.execute(
                sa.select(forecast.c.abstained, count)
                .where(forecast.c.at_us == made[3], forecast.c.abstained.is_not(None))
                .group_by(forecast.c.abstained)
            )
            states = connection.execute(sa.select(alert.c.state, count).group_by(alert.c.state))
            return Totals(
                assessments=made[0],
                forecasts=int(made[1]),
                abstained=int(made[2]),
                abstaining={row[0]: row[1] for row in reasons},
                alerts={row[0]: row[1] for row in states},
                dead_letters=connection.execute(sa.select(count).select_from(dead_letter)).scalar_one(),
                assessed_at=None if made[3] is None else from_us(made[3]),
            )
