"""The assessment on a real store, with the records of a plant and with the log of a replay: both must do the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest

from connectors.embedded import EmbeddedStore
from pm.assess import Assessment, Assessor, cause_text, threshold_for
from pm.config import AlertsSection, AssessSection, PlantSection
from pm.domain import Abstention, Alert, AlertState, Cause, EventKind, Forecast, History, Reason, Silence, to_us
from pm.errors import ModelError, StoreUnavailable
from pm.ports import AssessmentLog
from pm.records import Records
from pm.replay import RecordedRegister
from pm.replay_log import MemoryLog
from tests.replay_cases import HeatForecaster, event, hot, hour, plant_of

RULES = AlertsSection(on_delay=2, off_delay=3, suppress_after_maintenance=timedelta(hours=24))


@pytest.fixture(params=["records", "memory"])
def kept(request: pytest.FixtureRequest) -> Iterator[AssessmentLog]:
    if request.param == "memory":
        yield MemoryLog()
        return
    with Records.open("sqlite://") as records:
        yield records


class Told:
    """A notifier that remembers."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.issued: list[Forecast] = []

    def alert(self, alert: Alert) -> None:
        self.alerts.append(alert)

    def forecasts(self, forecasts: Sequence[Forecast]) -> None:
        self.issued.extend(forecasts)


def assessor_of(
    history: History, kept: AssessmentLog, forecaster: HeatForecaster | None = None, told: Told | None = None
) -> Assessor:
    store = EmbeddedStore(None)
    store.write_history(history.readings, history.events)
    return Assessor(
        store=store,
        log=kept,
        register=RecordedRegister(history),
        forecaster=forecaster or HeatForecaster(),
        plant=PlantSection(interval=history.interval),
        assess=AssessSection(),
        alerts=RULES,
        notifiers=[told] if told is not None else [],
    )


def run(assessor: Assessor, first: int, last: int) -> dict[int, Assessment]:
    return {h: assessor.assess(hour(h)) for h in range(first, last + 1)}


def open_alert(kept: AssessmentLog, asset: str = "a") -> Alert:
    return kept.standing_alerts()[asset]


def test_an_alert_rises_after_the_on_delay_and_returns_to_normal_after_the_off_delay(kept: AssessmentLog) -> None:
    told = Told()
    history = plant_of({"a": hot(30, 40), "b": {}}, [], 60)
    found = run(assessor_of(history, kept, told=told), 24, 44)

    assert [h for h, done in found.items() if done.raised] == [31]
    (alert,) = found[31].raised
    assert (alert.asset, alert.failure_mode, alert.raised_at) == ("a", "bearing", hour(31))
    assert alert.state is AlertState.UNACKNOWLEDGED
    assert alert.probability_at_raise == pytest.approx(0.8)
    assert alert.model == "heat@1"
    # The strongest first, whatever the order they were told in.
    assert alert.cause == "heat +1.9, age +0.5, noise -0.2"
    assert [reason.feature for reason in alert.reasons][:2] == ["noise", "heat"]
    assert [h for h, done in found.items() if done.cleared] == [43]
    assert open_alert(kept).state is AlertState.RETURNED_UNACKNOWLEDGED
    assert [a.state for a in told.alerts] == [AlertState.UNACKNOWLEDGED, AlertState.RETURNED_UNACKNOWLEDGED]
    assert len(told.issued) == 2 * 21


def test_an_asset_whose_source_said_that_it_is_silent_abstains_at_the_next_assessment(kept: AssessmentLog) -> None:
    history = plant_of({"a": {}, "b": {}}, [], 60)

    class Register(RecordedRegister):
        def silences(self) -> dict[str, Silence]:
            return {"a": Silence("a", to_us(hour(30)), "its device death was published")}

    assessor = assessor_of(history, kept)
    assessor._register = Register(history)
    found = run(assessor, 29, 32)
    silent = {h: {f.asset for f in done.forecasts if f.abstained is Abstention.STALE} for h, done in found.items()}
    assert silent == {29: set(), 30: set(), 31: {"a"}, 32: {"a"}}


def test_the_same_past_gives_the_same_alert(kept: AssessmentLog) -> None:
    history = plant_of({"a": hot(30, 40)}, [], 60)
    once = run(assessor_of(history, kept), 24, 32)[31].raised
    again = run(assessor_of(history, MemoryLog()), 24, 32)[31].raised
    assert once == again
    assert len(once[0].id) == 36


def test_a_failure_closes_the_alert_and_keeps_the_asset_silent(kept: AssessmentLog) -> None:
    failed = [event("a", 40, EventKind.FAILURE, "bearing"), event("a", 40, EventKind.MAINTENANCE, "bearing")]
    history = plant_of({"a": hot(30, 70)}, failed, 80)
    found = run(assessor_of(history, kept), 24, 70)
    # What is dated 40 is known to forecasts after 40.
    assert [h for h, done in found.items() if done.closed] == [41]
    (closed,) = found[41].closed
    assert (closed.state, closed.closed_at, closed.closed_because) == (AlertState.CLOSED, hour(41), "failed (bearing)")
    # Silent for 24 h from the failure on, then the on-delay counts anew.
    assert [h for h, done in found.items() if done.raised] == [31, 65]


def test_maintenance_between_two_assessments_closes_the_alert_and_names_the_work(kept: AssessmentLog) -> None:
    history = plant_of({"a": hot(30, 40)}, [event("a", 35.5, EventKind.MAINTENANCE, "seal")], 60)
    found = run(assessor_of(history, kept), 24, 44)
    assert {h: done.closed[0].closed_because for h, done in found.items() if done.closed} == {36: "maintained (seal)"}
    assert not any(done.cleared for done in found.values())


def test_an_event_of_another_kind_or_asset_closes_nothing(kept: AssessmentLog) -> None:
    events = [event("a", 33, EventKind.ERROR, "hot"), event("b", 33, EventKind.FAILURE, "seal")]
    found = run(assessor_of(plant_of({"a": hot(30, 40), "b": {}}, events, 60), kept), 24, 40)
    assert not any(done.closed for done in found.values())


def test_a_second_excursion_is_an_alert_of_its_own_and_closes_the_first(kept: AssessmentLog) -> None:
    history = plant_of({"a": hot(30, 35) | hot(45, 60)}, [], 60)
    found = run(assessor_of(history, kept), 24, 50)
    assert [h for h, done in found.items() if done.raised] == [31, 46]
    first, second = found[31].raised[0], found[46].raised[0]
    assert first.id != second.id
    (closed,) = found[46].closed
    assert (closed.id, closed.closed_because) == (first.id, f"raised again as {second.id}")
    assert closed.cleared_at == hour(38)
    assert open_alert(kept).id == second.id


def test_a_shelved_alert_stays_shelved_through_a_new_excursion_and_comes_back_when_due() -> None:
    history = plant_of({"a": hot(30, 35) | hot(45, 60)}, [], 80)
    with Records.open("sqlite://") as kept:
        assessor = assessor_of(history, kept)
        run(assessor, 24, 32)
        first = open_alert(kept)
        kept.change_alert(first.id, Cause.SHELVE, at=hour(32), by="ann", until=hour(50))
        found = run(assessor, 33, 49)
        assert open_alert(kept).id == first.id
        assert open_alert(kept).state is AlertState.SHELVED
        assert [h for h, done in found.items() if done.raised] == [46]
        back = assessor.assess(hour(50))
        assert [a.id for a in back.unshelved] == [first.id]
        assert open_alert(kept).state is AlertState.UNACKNOWLEDGED


def test_an_alert_acknowledged_and_returned_under_the_shelf_leaves_room_for_a_new_one() -> None:
    history = plant_of({"a": hot(30, 35) | hot(49, 60)}, [], 80)
    with Records.open("sqlite://") as kept:
        assessor = assessor_of(history, kept)
        run(assessor, 24, 32)
        first = open_alert(kept)
        kept.change_alert(first.id, Cause.ACKNOWLEDGE, at=hour(32), by="ann")
        kept.change_alert(first.id, Cause.SHELVE, at=hour(32), by="ann", until=hour(50))
        found = run(assessor, 33, 50)
        # At 50 the shelf ends, which settles the old alert, and the new excursion has lasted for the on-delay.
        assert kept.alert(first.id).state is AlertState.CLOSED
        assert [h for h, done in found.items() if done.raised] == [50]
        assert open_alert(kept).id != first.id


def test_an_alert_closed_by_hand_is_not_raised_again_while_the_forecast_stays_high() -> None:
    with Records.open("sqlite://") as kept:
        assessor = assessor_of(plant_of({"a": hot(30, 60)}, [], 80), kept)
        run(assessor, 24, 32)
        kept.change_alert(open_alert(kept).id, Cause.CLOSE, at=hour(32), by="ann", because="inspected, all is well")
        found = run(assessor, 33, 60)
        assert not any(done.raised for done in found.values())


def test_what_cannot_be_forecast_abstains_with_its_reason_and_no_number(kept: AssessmentLog) -> None:
    gone = {h: float("nan") for h in range(31, 61)}
    young = {h: float("nan") for h in range(35)}
    forecaster = HeatForecaster()
    history = plant_of({"a": gone, "b": {}, "c": young}, [], 60)
    by_asset = {f.asset: f for f in assessor_of(history, kept, forecaster).assess(hour(40)).forecasts}
    assert by_asset["a"].abstained is Abstention.STALE
    assert by_asset["c"].abstained is Abstention.TOO_LITTLE_HISTORY
    assert by_asset["b"].abstained is None
    for name in ("a", "c"):
        assert by_asset[name].probability() is None
        assert by_asset[name].hazard == ()
        assert by_asset[name].model == "heat@1"
    assert forecaster.asked == [("b",)]


def test_a_reading_just_as_old_as_allowed_is_not_stale(kept: AssessmentLog) -> None:
    gone = {h: float("nan") for h in range(31, 61)}
    assessor = assessor_of(plant_of({"a": gone}, [], 60), kept)
    assert [assessor.assess(hour(h)).forecasts[0].abstained for h in (36, 37)] == [None, Abstention.STALE]


def test_an_abstention_neither_raises_nor_clears(kept: AssessmentLog) -> None:
    gone = {h: float("nan") for h in range(34, 50)}
    found = run(assessor_of(plant_of({"a": hot(30, 33) | gone | hot(50, 55)}, [], 60), kept), 24, 55)
    assert [h for h, done in found.items() if done.raised] == [31]
    assert not any(done.cleared for done in found.values())


def test_nothing_dated_later_is_looked_at(kept: AssessmentLog) -> None:
    late = [event("a", 36, EventKind.FAILURE, "seal"), event("a", 40, EventKind.MAINTENANCE, "seal")]
    with_future = plant_of({"a": hot(30, 60), "b": {}}, late, 60)
    found = assessor_of(with_future, kept).assess(hour(36))
    without = plant_of({"a": hot(30, 36), "b": {}}, [], 36)
    assert found == assessor_of(without, MemoryLog()).assess(hour(36))


def test_a_time_assessed_already_counts_once(kept: AssessmentLog) -> None:
    assessor = assessor_of(plant_of({"a": hot(30, 60)}, [], 60), kept)
    assert assessor.assess(hour(30)).forecasts
    before = kept.policy_state()["a"]
    assert assessor.assess(hour(30)) == Assessment(hour(30))
    assert assessor.assess(hour(28)) == Assessment(hour(28))
    assert kept.policy_state()["a"] == before
    assert kept.last_assessment() == hour(30)


def test_a_store_that_is_away_leaves_nothing_half_done(kept: AssessmentLog, monkeypatch: pytest.MonkeyPatch) -> None:
    forecaster = HeatForecaster()
    assessor = assessor_of(plant_of({"a": hot(30, 60)}, [], 60), kept, forecaster)
    assessor.assess(hour(30))
    with monkeypatch.context() as patched, pytest.raises(StoreUnavailable):

        def away(*_: object) -> list[Forecast]:
            raise StoreUnavailable("store: refused; start it")

        patched.setattr(forecaster, "forecast", away)
        assessor.assess(hour(31))
    assert kept.last_assessment() == hour(30)
    assert [alert.asset for alert in assessor.assess(hour(31)).raised] == ["a"]


def test_another_forecaster_takes_over_between_two_assessments(kept: AssessmentLog) -> None:
    assessor = assessor_of(plant_of({"a": {}}, [], 60), kept)
    assert {f.model for f in assessor.assess(hour(30)).forecasts} == {"heat@1"}
    assessor.forecaster = HeatForecaster("heat@2")
    assert {f.model for f in assessor.assess(hour(31)).forecasts} == {"heat@2"}


def test_a_plant_without_assets_is_assessed_in_peace(kept: AssessmentLog) -> None:
    history = plant_of({"a": {}}, [], 30)
    empty = History(history.interval, history.points, history.failure_modes, (), history.readings, history.events)
    assert assessor_of(empty, kept).assess(hour(30)).forecasts == ()


def test_daily_readings_are_not_stale_after_six_hours(kept: AssessmentLog) -> None:
    history = plant_of({"a": {}}, [], 10, step=timedelta(days=1))
    assessor = assessor_of(history, kept, HeatForecaster(steps=3))
    (found,) = assessor.assess(hour(24 * 5 + 23)).forecasts
    assert found.abstained is None
    assert len(found.hazard) == 3


@pytest.mark.parametrize(("budget", "threshold"), [(0.2, 0.5), (0.5, 0.5), (1.0, 0.3), (7.0, 0.3), (0.05, 0.8)])
def test_the_threshold_is_that_of_the_largest_budget_within_the_configured(budget: float, threshold: float) -> None:
    assert threshold_for(HeatForecaster(), budget) == threshold


def test_a_budget_smaller_than_every_one_known_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no threshold for alerts.budget = 0.01 .*0.05, 0.2, 1.*train again"):
        threshold_for(HeatForecaster(), 0.01)


def test_cause_text_without_reasons_says_so() -> None:
    assert cause_text([]) == "no single reason"
    assert cause_text([Reason("vibration", 1.94), Reason("error1", 0.66)]) == "vibration +1.9, error1 +0.7"


def test_each_assessment_is_one_line_in_the_log(kept: AssessmentLog, caplog: pytest.LogCaptureFixture) -> None:
    assessor = assessor_of(plant_of({"a": hot(30, 60), "b": {}}, [], 60), kept)
    assessor.assess(hour(30))
    with caplog.at_level(logging.INFO, logger="pm.assess"):
        assessor.assess(hour(31))
    assert [record.getMessage() for record in caplog.records if record.name == "pm.assess"] == [
        "assessed 2025-01-02T07:00:00Z: 2 forecasts, 0 abstained, 1 alerts raised, 0 cleared, 0 closed"
    ]
