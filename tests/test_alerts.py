"""The whole state table of an alert: every state, every cause."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pm.alerts import ALLOWED, HIDDEN, Cause, raised, transition
from pm.domain import Abstention, Alert, AlertState, Forecast, Reason
from pm.errors import TransitionError

T0 = datetime(2026, 3, 1, 6, tzinfo=UTC)
AT = T0 + timedelta(hours=5)
UNTIL = AT + timedelta(hours=8)

UNACK = AlertState.UNACKNOWLEDGED
ACKED = AlertState.ACKNOWLEDGED
RETURNED = AlertState.RETURNED_UNACKNOWLEDGED
SHELVED = AlertState.SHELVED
SUPPRESSED = AlertState.SUPPRESSED
OUT = AlertState.OUT_OF_SERVICE
CLOSED = AlertState.CLOSED


def alert(state: AlertState, *, acknowledged: bool = False, cleared: bool = False) -> Alert:
    return Alert(
        id="a1",
        asset="pump-1",
        failure_mode="bearing",
        raised_at=T0,
        state=state,
        cause="vibration +1.9",
        probability_at_raise=0.7,
        model="m",
        acknowledged_at=T0 + timedelta(hours=1) if acknowledged else None,
        acknowledged_by="ann" if acknowledged else None,
        cleared_at=T0 + timedelta(hours=2) if cleared else None,
        closed_at=T0 + timedelta(hours=3) if state is CLOSED else None,
        shelved_until=T0 + timedelta(hours=9) if state is SHELVED else None,
    )


def take(before: Alert, cause: Cause) -> Alert:
    return transition(before, cause, AT, by="bob", until=UNTIL, because="bearing replaced")


EVERY_FORM = {
    "unacknowledged": alert(UNACK),
    "acknowledged": alert(ACKED, acknowledged=True),
    "returned": alert(RETURNED, cleared=True),
    "closed": alert(CLOSED),
} | {
    f"{state.value}{', acknowledged' * acknowledged}{', cleared' * cleared}": alert(
        state, acknowledged=acknowledged, cleared=cleared
    )
    for state in HIDDEN
    for acknowledged in (False, True)
    for cleared in (False, True)
}

TABLE: dict[tuple[str, Cause], AlertState] = {
    ("unacknowledged", Cause.ACKNOWLEDGE): ACKED,
    ("unacknowledged", Cause.CLEAR): RETURNED,
    ("unacknowledged", Cause.SHELVE): SHELVED,
    ("unacknowledged", Cause.SUPPRESS): SUPPRESSED,
    ("unacknowledged", Cause.OUT_OF_SERVICE): OUT,
    ("unacknowledged", Cause.CLOSE): CLOSED,
    ("acknowledged", Cause.CLEAR): CLOSED,
    ("acknowledged", Cause.SHELVE): SHELVED,
    ("acknowledged", Cause.SUPPRESS): SUPPRESSED,
    ("acknowledged", Cause.OUT_OF_SERVICE): OUT,
    ("acknowledged", Cause.CLOSE): CLOSED,
    ("returned", Cause.ACKNOWLEDGE): CLOSED,
    ("returned", Cause.RAISE_AGAIN): UNACK,
    ("returned", Cause.SHELVE): SHELVED,
    ("returned", Cause.SUPPRESS): SUPPRESSED,
    ("returned", Cause.OUT_OF_SERVICE): OUT,
    ("returned", Cause.CLOSE): CLOSED,
}
for _hidden, _back in ((SHELVED, Cause.UNSHELVE), (SUPPRESSED, Cause.UNSUPPRESS), (OUT, Cause.IN_SERVICE)):
    for _marks, _shown in (
        ("", UNACK),
        (", acknowledged", ACKED),
        (", cleared", RETURNED),
        (", acknowledged, cleared", CLOSED),
    ):
        _form = f"{_hidden.value}{_marks}"
        TABLE[_form, _back] = _shown
        TABLE[_form, Cause.CLOSE] = CLOSED
        TABLE[_form, Cause.RAISE_AGAIN if "cleared" in _marks else Cause.CLEAR] = _hidden
        if _hidden is SHELVED:
            TABLE[_form, Cause.SHELVE] = SHELVED
            TABLE[_form, Cause.OUT_OF_SERVICE] = OUT
        if _hidden is SUPPRESSED:
            TABLE[_form, Cause.OUT_OF_SERVICE] = OUT


@pytest.mark.parametrize("form", EVERY_FORM)
@pytest.mark.parametrize("cause", Cause)
def test_every_state_and_cause(form: str, cause: Cause) -> None:
    before = EVERY_FORM[form]
    if (form, cause) in TABLE:
        after = take(before, cause)
        assert after.state is TABLE[form, cause]
        assert (after.id, after.asset, after.raised_at) == (before.id, before.asset, before.raised_at)
        assert (after.closed_at is not None) == (after.state is CLOSED)
        assert (after.shelved_until is not None) == (after.state is SHELVED)
    else:
        with pytest.raises(TransitionError, match="alert a1 of pump-1"):
            take(before, cause)


def test_the_table_of_what_is_allowed_is_the_table_of_what_happens() -> None:
    assert {(EVERY_FORM[form].state, cause) for form, cause in TABLE} == {
        (state, cause) for cause, states in ALLOWED.items() for state in states
    }


def test_acknowledging_names_who_and_when() -> None:
    after = take(alert(UNACK), Cause.ACKNOWLEDGE)
    assert (after.acknowledged_at, after.acknowledged_by) == (AT, "bob")


def test_a_returned_alert_closes_when_it_is_acknowledged() -> None:
    after = take(alert(RETURNED, cleared=True), Cause.ACKNOWLEDGE)
    assert after.acknowledged_by == "bob"
    assert (after.closed_at, after.closed_because) == (AT, "returned to normal and acknowledged")


def test_a_new_excursion_wants_to_be_seen_anew() -> None:
    after = take(alert(SHELVED, acknowledged=True, cleared=True), Cause.RAISE_AGAIN)
    assert (after.state, after.cleared_at, after.acknowledged_at, after.acknowledged_by) == (SHELVED, None, None, None)


def test_shelving_again_moves_the_end() -> None:
    later = UNTIL + timedelta(days=1)
    assert transition(alert(SHELVED), Cause.SHELVE, AT, until=later).shelved_until == later


@pytest.mark.parametrize("until", [None, AT, AT - timedelta(hours=1)])
def test_shelving_needs_a_time_to_come(until: datetime | None) -> None:
    with pytest.raises(TransitionError, match="name a time to come"):
        transition(alert(UNACK), Cause.SHELVE, AT, until=until)


@pytest.mark.parametrize("because", [None, "", "  "])
def test_closing_needs_a_reason(because: str | None) -> None:
    with pytest.raises(TransitionError, match="say why"):
        transition(alert(UNACK), Cause.CLOSE, AT, because=because)


def test_refusals_read_as_english() -> None:
    with pytest.raises(TransitionError, match=r"alert a1 of pump-1 is closed; a closed alert cannot be acknowledged"):
        take(alert(CLOSED), Cause.ACKNOWLEDGE)
    with pytest.raises(TransitionError, match=r"is acknowledged; an acknowledged alert cannot be unshelved"):
        take(alert(ACKED), Cause.UNSHELVE)


FORECAST = Forecast(
    asset="pump-1",
    time=T0,
    model="v1@abc",
    hazard=(0.5, 0.5),
    step_hours=36.0,
    mode_probability={"seal": 0.25, "bearing": 0.5},
)


def test_an_alert_carries_what_raised_it() -> None:
    reasons = [Reason("vibration", 1.9)]
    made = raised(FORECAST, cause="vibration +1.9", reasons=reasons)
    assert (made.failure_mode, made.probability_at_raise, made.state) == ("bearing", 0.75, UNACK)
    assert (made.raised_at, made.model, made.reasons) == (T0, "v1@abc", (reasons[0],))


def test_the_id_follows_from_asset_and_time_alone() -> None:
    first = raised(FORECAST, cause="one")
    assert first.id == raised(replace(FORECAST, model="other"), cause="another").id
    assert first.id != raised(replace(FORECAST, asset="pump-2"), cause="one").id
    assert first.id != raised(replace(FORECAST, time=AT), cause="one").id
    assert first.id == "c0da914f-0472-5f32-9e7a-0d9564b9429b"


def test_an_unknown_raises_nothing() -> None:
    with pytest.raises(ValueError, match="abstained"):
        raised(Forecast(asset="pump-1", time=T0, model="m", abstained=Abstention.STALE), cause="x")
