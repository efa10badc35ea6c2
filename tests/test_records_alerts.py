"""The assessment log, forecasts and alerts on record, and people who act at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from pm import alerts as alert_life
from pm.data_alerts import Fault, Sign
from pm.domain import (
    Abstention,
    Alert,
    AlertState,
    Cause,
    Explanation,
    Forecast,
    Precedent,
    Reason,
)
from pm.errors import RecordsError, TransitionError
from pm.notices import alert_json
from pm.ports import AlertChange, AssessmentLog, PolicyState
from pm.records import Records
from tests.record_databases import HOUR, T0, Open, another, described, records, server

__all__ = ["another", "records", "server"]


def forecast(asset: str, at: datetime = T0, **changes: object) -> Forecast:
    made = Forecast(
        asset=asset,
        time=at,
        model="v1@abc",
        hazard=tuple(0.1 / 3 * (step + 1) for step in range(72)),
        mode_probability={"seal": 0.1, "bearing": 1 / 3},
        rul_hours=31.4159,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def raised(asset: str = "pump-1", at: datetime = T0) -> Alert:
    return alert_life.raised(forecast(asset, at), cause="vibration +1.9", reasons=[Reason("vibration", 1.9)])


def assess(
    records: AssessmentLog,
    at: datetime = T0,
    *,
    new: tuple[Alert, ...] = (),
    changes: tuple[AlertChange, ...] = (),
    forecasts: tuple[Forecast, ...] = (),
    policy: dict[str, PolicyState] | None = None,
) -> tuple[Alert, ...]:
    return records.record(at, forecasts=forecasts, raised=new, changes=changes, policy=policy or {})


# The assessment log


def test_the_explanation_of_an_alert_is_kept_exactly(records: Records) -> None:
    why = Explanation(
        (Reason("vibration", 1.9),),
        *(0.1, 2.0, 0.013, T0 - timedelta(hours=30), True),
        (Precedent("pump-9", T0 - timedelta(days=90), "bearing", 24.0, 0.97),),
    )
    new = alert_life.raised(forecast("pump-1"), cause="vibration +1.9", reasons=why.reasons, explanation=why)
    assess(records, new=(new,))
    assert records.alert(new.id) == new
    told = alert_json(new)["explanation"]
    assert told["precedents"][0]["failure_mode"] == "bearing" and told["earlier"] is True


def test_an_assessment_is_kept_whole_and_exactly(records: Records) -> None:
    log: AssessmentLog = records
    assert log.last_assessment() is None
    issued = (
        forecast("pump-1"),
        Forecast(asset="pump-2", time=T0, model="v1@abc", abstained=Abstention.STALE),
        Forecast("pump-3", T0, "v1@abc", Abstention.UNSEEN_CONDITION, because="heat reads 140: 57 to 70 in training"),
    )
    policy = {"pump-1": PolicyState(2, 0, True, None), "pump-2": PolicyState(0, 3, False, 1_700_000_000_000_001)}
    new = raised()
    assert assess(log, forecasts=issued, new=(new,), policy=policy) == (new,)
    assert log.last_assessment() == T0
    assert log.policy_state() == policy
    assert log.standing_alerts() == {"pump-1": new}
    assert records.latest_forecasts() == list(issued)
    assert records.alert(new.id) == new
    assert [entry.cause for entry in records.journal(new.id)] == ["raise"]


def test_an_assessment_recorded_twice_is_one(records: Records, another: Open) -> None:
    assess(records, forecasts=(forecast("pump-1"),), new=(raised(),), policy={"pump-1": PolicyState(1)})
    again = forecast("pump-1", rul_hours=1.0)
    assert assess(another(), forecasts=(again,), new=(raised("pump-2"),), policy={"pump-1": PolicyState(9)}) == ()
    assert records.latest_forecasts() == [forecast("pump-1")]
    assert records.policy_state() == {"pump-1": PolicyState(1)}
    assert list(records.standing_alerts()) == ["pump-1"]


def test_an_assessment_that_fails_leaves_nothing(records: Records) -> None:
    assess(records, new=(raised(),))
    with pytest.raises(RecordsError):
        # The same alert a second time breaks its key, after forecasts and policy were written.
        assess(
            records, T0 + HOUR, forecasts=(forecast("pump-1", T0 + HOUR),), new=(raised(),), policy={"x": PolicyState()}
        )
    assert records.last_assessment() == T0
    assert records.latest_forecasts() == []
    assert records.policy_state() == {}


def test_policy_state_is_the_latest(records: Records) -> None:
    assess(records, T0, policy={"a": PolicyState(1), "b": PolicyState(2)})
    assess(records, T0 + HOUR, policy={"b": PolicyState(0, 1, True, 5)})
    assert records.policy_state() == {"a": PolicyState(1), "b": PolicyState(0, 1, True, 5)}


def test_an_assessment_changes_and_closes_alerts(records: Records) -> None:
    first, second = raised("pump-1"), raised("pump-2")
    assess(records, new=(first, second))
    at = T0 + HOUR
    anew = raised("pump-2", at)
    told = assess(
        records,
        at,
        changes=(
            AlertChange(first.id, Cause.CLEAR),
            AlertChange(second.id, Cause.CLOSE, "failed (bearing)"),
        ),
        new=(anew,),
    )
    assert [(a.id, a.state) for a in told] == [
        (first.id, AlertState.RETURNED_UNACKNOWLEDGED),
        (second.id, AlertState.CLOSED),
        (anew.id, AlertState.UNACKNOWLEDGED),
    ]
    assert told[1].closed_because == "failed (bearing)"
    assert records.standing_alerts() == {"pump-1": told[0], "pump-2": anew}
    assert records.journal(second.id)[-1].because == "failed (bearing)"


def test_a_person_between_reading_and_recording_is_respected(records: Records, another: Open) -> None:
    """The assessment read the alert as unacknowledged; meanwhile ann acknowledged one and closed the other."""
    seen, closed = raised("pump-1"), raised("pump-2")
    assess(records, new=(seen, closed))
    colleague = another()
    colleague.change_alert(seen.id, Cause.ACKNOWLEDGE, at=T0, by="ann")
    colleague.change_alert(closed.id, Cause.CLOSE, at=T0, by="ann", because="sensor fault")
    told = assess(records, T0 + HOUR, changes=(AlertChange(seen.id, Cause.CLEAR), AlertChange(closed.id, Cause.CLEAR)))
    assert [(a.id, a.state) for a in told] == [(seen.id, AlertState.CLOSED)]
    assert records.alert(closed.id).closed_because == "sensor fault"


# Forecasts


def test_the_history_of_forecasts(records: Records) -> None:
    times = [T0 + hour * HOUR for hour in range(6)]
    for at in times:
        assess(records, at, forecasts=(forecast("pump-1", at), forecast("pump-2", at)))
    found = records.forecast_history("pump-1", T0, T0 + 4 * HOUR)
    assert found == [forecast("pump-1", at) for at in times[1:5]]
    assert records.prune_forecasts(T0 + 4 * HOUR) == 8
    assert [f.time for f in records.forecast_history("pump-2", T0 - HOUR, T0 + 9 * HOUR)] == times[4:]
    assert records.last_assessment() == times[-1]


def test_latest_forecasts_stand_in_the_registers_order(records: Records) -> None:
    records.put_recording(described())
    assess(records, T0, forecasts=(forecast("pump-1"), forecast("pump-2"), forecast("met-in-the-feed")))
    assess(records, T0 + HOUR, forecasts=(forecast("pump-1", T0 + HOUR),))
    assert [(f.asset, f.time) for f in records.latest_forecasts()] == [
        ("pump-2", T0),
        ("pump-1", T0 + HOUR),
        ("met-in-the-feed", T0),
    ]


# Alerts


def test_alerts_are_found_by_state_and_asset_newest_first(records: Records) -> None:
    made = [raised(asset, T0 + n * HOUR) for n, asset in enumerate(["a", "b", "a", "c"])]
    assess(records, new=tuple(made))
    records.change_alert(made[2].id, Cause.ACKNOWLEDGE, at=T0, by="ann")
    assert [a.id for a in records.alerts()] == [a.id for a in reversed(made)]
    assert [a.id for a in records.alerts(limit=2)] == [made[3].id, made[2].id]
    assert [a.id for a in records.alerts(asset="a")] == [made[2].id, made[0].id]
    assert [a.id for a in records.alerts([AlertState.ACKNOWLEDGED])] == [made[2].id]
    assert [a.id for a in records.alerts([AlertState.UNACKNOWLEDGED], asset="a")] == [made[0].id]
    assert records.alerts([]) == []


def test_the_journal_tells_an_alerts_life(records: Records) -> None:
    alert = raised()
    assess(records, new=(alert,))
    until = T0 + 9 * HOUR
    records.change_alert(alert.id, Cause.SHELVE, at=T0 + HOUR, by="ann", until=until)
    assert records.alert(alert.id).shelved_until == until
    records.change_alert(alert.id, Cause.UNSHELVE, at=until)
    closed = records.change_alert(alert.id, Cause.CLOSE, at=until + HOUR, by="bob", because="bearing replaced")
    assert closed == records.alert(alert.id)
    assert (closed.state, closed.closed_at, closed.shelved_until) == (AlertState.CLOSED, until + HOUR, None)
    assert [(e.at, e.cause, e.by, e.because, e.from_state, e.to_state) for e in records.journal(alert.id)] == [
        (T0, "raise", None, None, None, AlertState.UNACKNOWLEDGED),
        (T0 + HOUR, Cause.SHELVE, "ann", None, AlertState.UNACKNOWLEDGED, AlertState.SHELVED),
        (until, Cause.UNSHELVE, None, None, AlertState.SHELVED, AlertState.UNACKNOWLEDGED),
        (until + HOUR, Cause.CLOSE, "bob", "bearing replaced", AlertState.UNACKNOWLEDGED, AlertState.CLOSED),
    ]


def test_a_step_that_is_refused_changes_nothing(records: Records) -> None:
    alert = raised()
    assess(records, new=(alert,))
    with pytest.raises(TransitionError, match="cannot be unshelved"):
        records.change_alert(alert.id, Cause.UNSHELVE, at=T0)
    assert records.alert(alert.id) == alert
    assert len(records.journal(alert.id)) == 1
    with pytest.raises(RecordsError, match="no alert 'nonsense'"):
        records.change_alert("nonsense", Cause.CLEAR, at=T0)


def test_of_many_who_acknowledge_at_once_one_does(records: Records, another: Open) -> None:
    alert = raised()
    assess(records, new=(alert,))
    workers = [another() for _ in range(4)]
    start = threading.Barrier(8)

    def acknowledge(worker: int) -> str:
        start.wait()
        try:
            records_of = workers[worker % 4]
            return str(records_of.change_alert(alert.id, Cause.ACKNOWLEDGE, at=T0, by=str(worker)).acknowledged_by)
        except TransitionError:
            return "late"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(acknowledge, range(8)))
    winners = [outcome for outcome in outcomes if outcome != "late"]
    assert len(winners) == 1
    assert records.alert(alert.id).acknowledged_by == winners[0]
    assert len(records.journal(alert.id)) == 2


def test_steps_taken_at_once_are_all_kept(records: Records, another: Open) -> None:
    """The forecast clears an alert while a person shelves it: neither step undoes the other."""
    made = [raised(f"asset-{n}") for n in range(10)]
    assess(records, new=tuple(made))
    colleague = another()
    start = threading.Barrier(2)

    def shelve() -> None:
        start.wait()
        for alert in made:
            colleague.change_alert(alert.id, Cause.SHELVE, at=T0, by="ann", until=T0 + HOUR)

    person = threading.Thread(target=shelve)
    person.start()
    start.wait()
    for alert in made:
        records.change_alert(alert.id, Cause.CLEAR, at=T0)
    person.join()
    for alert in made:
        found = records.alert(alert.id)
        assert (found.state, found.cleared_at, found.shelved_until) == (AlertState.SHELVED, T0, T0 + HOUR)
        assert [entry.cause for entry in records.journal(alert.id)].count(Cause.CLEAR) == 1


# ---- data alerts


def test_signs_of_one_fault_are_one_alert_until_it_is_closed(records: Records, another: Open) -> None:
    sign = Sign("broker b", Fault.DROPPED, 5, "no room")
    (raised,) = records.note_data([sign, Sign("broker b", Fault.DROPPED, 2, "no room, again")], T0)
    assert (raised.source, raised.fault, raised.raised_at, raised.count) == ("broker b", Fault.DROPPED, T0, 5)
    assert another().note_data([sign], T0 + HOUR) == []  # another process, the same broker
    (found,) = records.data_alerts()
    assert (found.count, found.about, found.raised_at, found.last_at) == (12, "no room", T0, T0 + HOUR)
    records.close_data([found], T0 + 2 * HOUR)
    assert records.data_alerts() == []
    (closed,) = another().data_alerts(closed=5)
    assert closed.closed_at == T0 + 2 * HOUR and closed.count == 12
    (again,) = records.note_data([sign], T0 + 3 * HOUR)
    assert again.number != closed.number and again.count == 5
    assert [alert.number for alert in records.data_alerts(closed=5)] == [again.number, closed.number]
    records.prune_data_alerts(T0 + 3 * HOUR)
    assert [alert.number for alert in records.data_alerts(closed=5)] == [again.number]


def test_a_fault_that_lasts_says_how_many_wait_now_and_strange_text_is_kept(records: Records) -> None:
    records.note_data([Sign("s", Fault.WAITING, 900, "a\0b\ud800" + "c" * 1000)], T0)
    records.note_data([Sign("s", Fault.WAITING, 40, "less"), Sign("t", Fault.SILENT, 1, "")], T0)
    silent, waiting = records.data_alerts()
    assert (waiting.count, waiting.about, waiting.text) == (40, "less", "s: messages waiting: 40 (less)")
    assert silent.text == "t: no message comes"
