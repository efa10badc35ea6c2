"""What assessments found: forecasts, the policy's memory, alerts and their journal."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from pm.alerts import OPEN, transition
from pm.domain import (
    Abstention,
    Alert,
    AlertState,
    Cause,
    Explanation,
    Forecast,
    Precedent,
    Reason,
    from_us,
    to_us,
)
from pm.errors import RecordsError, TransitionError
from pm.ports import AlertChange, PolicyState
from pm.record_database import Database, insert_new, insert_rows, replace_rows
from pm.record_register import ensure_assets
from pm.record_tables import alert, alert_journal, assessment, asset, forecast, policy_state

log = logging.getLogger(__name__)

RAISED = "raise"
"""Cause of the first entry in an alert's journal."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One step in an alert's life."""

    at: datetime
    cause: str
    """"raise", or a Cause."""
    by: str | None
    because: str | None
    from_state: AlertState | None
    to_state: AlertState


class AlertRecords:
    """Forecasts and alerts as the assessments left them and as people changed them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # The assessment log (pm.ports.AssessmentLog)

    def policy_state(self) -> dict[str, PolicyState]:
        """The policy's memory by asset; an asset never assessed is absent."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(policy_state))
            return {r.asset: PolicyState(r.above, r.below, r.standing, r.renewed_us) for r in rows}

    def standing_alerts(self) -> dict[str, Alert]:
        """The newest alert of each asset that is not closed."""
        return {found.asset: found for found in reversed(self.alerts(OPEN, limit=None))}

    def last_assessment(self) -> datetime | None:
        """Plant time of the latest assessment recorded."""
        with self._database.read() as connection:
            return _time(connection.execute(sa.select(sa.func.max(assessment.c.at_us))).scalar())

    def record(
        self,
        at: datetime,
        *,
        forecasts: Sequence[Forecast],
        raised: Sequence[Alert],
        changes: Sequence[AlertChange],
        policy: Mapping[str, PolicyState],
    ) -> tuple[Alert, ...]:
        """Keep one assessment, all of it or none, once: `pm.ports.AssessmentLog.record` says it in full."""
        summary = {
            "at_us": to_us(at),
            "forecasts": len(forecasts),
            "abstained": sum(f.abstained is not None for f in forecasts),
        }
        with self._database.write() as connection:
            if not insert_new(connection, assessment, summary):
                return ()
            ensure_assets(connection, [f.asset for f in forecasts])
            replace_rows(connection, forecast, [forecast_row(f) for f in forecasts])
            replace_rows(connection, policy_state, [_policy_row(name, state) for name, state in policy.items()])
            told = {}
            for change in changes:
                changed = _apply(connection, change, at)
                if changed is not None:
                    told[changed.id] = changed
            insert_rows(connection, alert, [_alert_row(new) for new in raised])
            for new in raised:
                _note(connection, new.id, new.raised_at, RAISED, None, None, None, new.state)
                told[new.id] = new
        return tuple(told.values())

    # Forecasts

    def latest_forecasts(self) -> list[Forecast]:
        """The latest forecast of every asset that has one, by the assets' order in the register."""
        issued = forecast.alias()
        latest = sa.select(sa.func.max(issued.c.at_us)).where(issued.c.asset == asset.c.name).scalar_subquery()
        query = (
            sa.select(forecast)
            .join(asset, forecast.c.asset == asset.c.name)
            .where(forecast.c.at_us == latest)
            .order_by(asset.c.number)
        )
        with self._database.read() as connection:
            return [forecast_of(row) for row in connection.execute(query)]

    def forecast_history(self, name: str, start: datetime, end: datetime) -> list[Forecast]:
        """Forecasts of one asset issued at start < time <= end, oldest first."""
        query = (
            sa.select(forecast)
            .where(forecast.c.asset == name, forecast.c.at_us > to_us(start), forecast.c.at_us <= to_us(end))
            .order_by(forecast.c.at_us)
        )
        with self._database.read() as connection:
            return [forecast_of(row) for row in connection.execute(query)]

    def prune_forecasts(self, before: datetime) -> int:
        """Delete forecasts issued before a time; returns how many. Assessments and alerts stay."""
        with self._database.write() as connection:
            return connection.execute(sa.delete(forecast).where(forecast.c.at_us < to_us(before))).rowcount

    # Alerts

    def alert(self, alert_id: str) -> Alert:
        """Raises RecordsError when there is none of this id."""
        with self._database.read() as connection:
            return _alert(_alert_by_id(connection, alert_id))

    def alerts(
        self,
        states: Sequence[AlertState] | None = None,
        asset: str | None = None,
        limit: int | None = 1000,
    ) -> list[Alert]:
        """Alerts in any of `states` (all when None) and of `asset` (all when None), newest first."""
        query = sa.select(alert).order_by(alert.c.raised_us.desc(), alert.c.asset).limit(limit)
        if states is not None:
            query = query.where(alert.c.state.in_([state.value for state in states]))
        if asset is not None:
            query = query.where(alert.c.asset == asset)
        with self._database.read() as connection:
            return [_alert(row) for row in connection.execute(query)]

    def change_alert(
        self,
        alert_id: str,
        cause: Cause,
        *,
        at: datetime,
        by: str | None = None,
        until: datetime | None = None,
        because: str | None = None,
    ) -> Alert:
        """Take one step with an alert, as `pm.alerts.transition` allows, and write it in the alert's journal.

        Of two callers who take the same step at once one succeeds; the other meets the alert as it is by then, and
        so TransitionError. Raises RecordsError when there is no such alert.
        """
        with self._database.write() as connection:
            changed = _change(connection, alert_id, cause, at, by=by, until=until, because=because)
        log.info("alert %s of %s: %s by %s, now %s", changed.id, changed.asset, cause, by or "pm", changed.state)
        return changed

    def journal(self, alert_id: str) -> list[JournalEntry]:
        """Every step of an alert, oldest first."""
        query = sa.select(alert_journal).where(alert_journal.c.alert == alert_id).order_by(alert_journal.c.number)
        with self._database.read() as connection:
            return [
                JournalEntry(
                    at=from_us(row.at_us),
                    cause=row.cause,
                    by=row.by,
                    because=row.because,
                    from_state=AlertState(row.from_state) if row.from_state else None,
                    to_state=AlertState(row.to_state),
                )
                for row in connection.execute(query)
            ]


def _apply(connection: Connection, change: AlertChange, at: datetime) -> Alert | None:
    """One step of an assessment; None where a person's step meanwhile has made it void."""
    try:
        return _change(connection, change.alert, change.cause, at, because=change.because)
    except TransitionError as error:
        log.info("assessment at %s passes over a step: %s", at.isoformat(), error)
        return None


def _change(
    connection: Connection,
    alert_id: str,
    cause: Cause,
    at: datetime,
    *,
    by: str | None = None,
    until: datetime | None = None,
    because: str | None = None,
) -> Alert:
    while True:
        row = _alert_by_id(connection, alert_id)
        before = _alert(row)
        after = transition(before, cause, at, by=by, until=until, because=because)
        # Only from the revision that was read; whoever was overtaken reads again and is judged by what is there now.
        won = connection.execute(
            sa.update(alert)
            .where(alert.c.id == alert_id, alert.c.revision == row.revision)
            .values(**_alert_row(after), revision=row.revision + 1)
        ).rowcount
        if won:
            _note(connection, alert_id, at, cause, by, because, before.state, after.state)
            return after


def _alert_by_id(connection: Connection, alert_id: str) -> Row[Any]:
    row = connection.execute(sa.select(alert).where(alert.c.id == alert_id)).one_or_none()
    if row is None:
        raise RecordsError(f"no alert {alert_id!r}; 'pm alerts list --all' shows them with their ids")
    return row


def _note(
    connection: Connection,
    alert_id: str,
    at: datetime,
    cause: str,
    by: str | None,
    because: str | None,
    from_state: AlertState | None,
    to_state: AlertState,
) -> None:
    entry = {
        "alert": alert_id,
        "at_us": to_us(at),
        "cause": str(cause),
        "by": by,
        "because": because,
        "from_state": from_state and from_state.value,
        "to_state": to_state.value,
    }
    connection.execute(sa.insert(alert_journal), entry)


def _us(time: datetime | None) -> int | None:
    return None if time is None else to_us(time)


def _time(us: int | None) -> datetime | None:
    return None if us is None else from_us(us)


def _policy_row(name: str, state: PolicyState) -> dict[str, Any]:
    return {
        "asset": name,
        "above": state.above,
        "below": state.below,
        "standing": state.standing,
        "renewed_us": state.renewed_us,
    }


def forecast_row(issued: Forecast) -> dict[str, Any]:
    """The columns of a forecast."""
    return {
        "asset": issued.asset,
        "at_us": to_us(issued.time),
        "model": issued.model,
        "abstained": issued.abstained and ": ".join(filter(None, (issued.abstained.value, issued.because))),
        "step_hours": issued.step_hours,
        "hazard": np.asarray(issued.hazard, "<f8").tobytes(),
        "modes": json.dumps(dict(issued.mode_probability)),
        "rul_hours": issued.rul_hours,
    }


def forecast_of(row: Row[Any]) -> Forecast:
    """The forecast of a row of `forecast`, or of a table with its columns."""
    why, _, because = (row.abstained or "").partition(": ")
    return Forecast(
        asset=row.asset,
        time=from_us(row.at_us),
        model=row.model,
        abstained=Abstention(why) if why else None,
        because=because,
        step_hours=row.step_hours,
        hazard=tuple(np.frombuffer(row.hazard, "<f8").tolist()),
        mode_probability=json.loads(row.modes),
        rul_hours=row.rul_hours,
    )


def _alert_row(kept: Alert) -> dict[str, Any]:
    return {
        "id": kept.id,
        "asset": kept.asset,
        "failure_mode": kept.failure_mode,
        "raised_us": to_us(kept.raised_at),
        "state": kept.state.value,
        "cause": kept.cause,
        "probability": kept.probability_at_raise,
        "model": kept.model,
        "acknowledged_us": _us(kept.acknowledged_at),
        "acknowledged_by": kept.acknowledged_by,
        "cleared_us": _us(kept.cleared_at),
        "closed_us": _us(kept.closed_at),
        "closed_because": kept.closed_because,
        "shelved_until_us": _us(kept.shelved_until),
        "reasons": json.dumps(_reasons_kept(kept)),
    }


def _reasons_kept(kept: Alert) -> Any:
    told = [[reason.feature, reason.contribution] for reason in kept.reasons]
    why = kept.explanation
    if why is None:
        return told
    return {
        "reasons": told,
        "rest": why.rest,
        "change": why.change,
        "average": why.average,
        "began_us": _us(why.began),
        "earlier": why.earlier,
        "precedents": [
            [one.asset, to_us(one.failed_at), one.failure_mode, one.hours_left, one.likeness] for one in why.precedents
        ],
    }


def _reasons_of(kept: Any) -> tuple[tuple[Reason, ...], Explanation | None]:
    """The inverse of `_reasons_kept`."""
    told = kept["reasons"] if isinstance(kept, dict) else kept
    reasons = tuple(Reason(feature, contribution) for feature, contribution in told)
    if not isinstance(kept, dict):
        return reasons, None
    alike = tuple(Precedent(asset, from_us(us), *others) for asset, us, *others in kept["precedents"])
    began = _time(kept["began_us"])
    return reasons, Explanation(reasons, kept["rest"], kept["change"], kept["average"], began, kept["earlier"], alike)


def _alert(row: Row[Any]) -> Alert:
    reasons, explanation = _reasons_of(json.loads(row.reasons))
    return Alert(
        id=row.id,
        asset=row.asset,
        failure_mode=row.failure_mode,
        raised_at=from_us(row.raised_us),
        state=AlertState(row.state),
        cause=row.cause,
        probability_at_raise=row.probability,
        model=row.model,
        acknowledged_at=_time(row.acknowledged_us),
        acknowledged_by=row.acknowledged_by,
        cleared_at=_time(row.cleared_us),
        closed_at=_time(row.closed_us),
        closed_because=row.closed_because,
        shelved_until=_time(row.shelved_until_us),
        reasons=reasons,
        explanation=explanation,
    )
