"""Late readings: noted before they are acknowledged, looked at by the next assessment; what was issued stays issued."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.embedded import EmbeddedStore
from connectors.influx import InfluxStore
from connectors.payloads import encode_readings
from pm import config, edges
from pm.assess import Assessor
from pm.config import AlertsSection, AssessSection, IngestSection, PlantSection
from pm.domain import EARLIEST, LATEST, Abstention, Event, EventKind, Forecast, History, Reading, to_us
from pm.errors import RecordsUnavailable
from pm.ingest import Ingest
from pm.lateness import Late, Revision, differs, late_among
from pm.ports import Delivery, ReadingStore, Reject
from pm.reassess import LateWatch, begin, reassess
from pm.records import Records
from pm.replay import RecordedRegister
from tests.forecasting_cases import START
from tests.record_databases import another, records, server
from tests.replay_cases import HeatForecaster, event, hour, plant_of
from tests.servers.influxdb import influxdb

__all__ = ["another", "records", "server"]

PLANT = plant_of({"a": {}, "b": {}}, [], 100)


@pytest.fixture(scope="module", params=["embedded", "influxdb"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadingStore]:
    if request.param == "embedded":
        yield EmbeddedStore(None)
        return
    with influxdb(tmp_path_factory.mktemp("influxdb")) as running:
        opened = InfluxStore(url=running.url, bucket="late")
        yield opened
        opened.close()


class ListFeed:
    """Deliveries from memory; remembers which were acknowledged."""

    name = "list"
    connected = True
    dropped = 0

    def __init__(self) -> None:
        self.to_come: list[Delivery] = []
        self.acknowledged: list[Delivery] = []

    @property
    def waiting(self) -> int:
        return len(self.to_come)

    def open(self) -> None: ...

    def close(self) -> None: ...

    def take(self, limit: int, timeout: float) -> list[Delivery]:
        taken, self.to_come = self.to_come[:limit], self.to_come[limit:]
        return taken

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.acknowledged += deliveries


class Plant:
    """Ingest, assessment and reassessment over one store, at a plant time that the test sets."""

    def __init__(self, store: ReadingStore, history: History = PLANT, records: Records | None = None) -> None:
        self.store = store
        store.delete_assets([asset.name for asset in history.assets])
        self.records = records or Records.open("sqlite://")
        self.time = hour(0)
        self.feed = ListFeed()
        self.ingest = Ingest(
            self.feed,
            store,
            self.records,
            section=IngestSection(),
            now_us=lambda: 0,
            late=LateWatch(self.records, self, lambda: self.time),
        )
        self.assessor = Assessor(
            store=store,
            log=self.records,
            register=RecordedRegister(history),
            forecaster=HeatForecaster(),
            plant=PlantSection(interval=history.interval),
            assess=AssessSection(),
            alerts=AlertsSection(),
        )

    def now(self) -> datetime:
        return self.time

    def bring(self, *what: Reading | Event) -> None:
        for one in what:
            reading = isinstance(one, Reading)
            self.feed.to_come.append(
                Delivery(one, (one,) if reading else (), () if reading else (one,))  # type: ignore[arg-type]
            )
        while self.feed.waiting:
            assert self.ingest.step()

    def assess(self, at: float) -> list[Revision]:
        self.time = hour(at)
        begin(self.records, self.time)
        self.assessor.assess(self.time)
        return reassess(self.assessor, self.records, self.time)

    def issued(self, asset: str = "a") -> list[Forecast]:
        return self.records.forecast_history(asset, EARLIEST, LATEST)

    def revisions(self, asset: str = "a") -> list[Revision]:
        return self.records.revisions(asset, EARLIEST, LATEST)

    def waiting(self) -> list[Late]:
        return [mark for mark, _ in self.records.late()]


def reading(at: float, heat: float = 60.0, asset: str = "a") -> Reading:
    return Reading(asset, to_us(hour(at)), {"heat": heat})


def history(last: int, *, without: Sequence[int] = (), assets: str = "ab") -> list[Reading]:
    """Readings of every hour up to `last`; `without` names hours in which a was not heard."""
    return [reading(h, asset=name) for h in range(last + 1) for name in assets if name == "b" or h not in without]


def test_the_next_assessment_says_what_the_forecasts_would_have_been(store: ReadingStore) -> None:
    plant = Plant(store)
    plant.bring(*history(30, without=(29, 30)))
    for h in (28, 29, 30):
        assert plant.assess(h) == []
    before, alerts = plant.issued(), plant.records.alerts()

    plant.time = hour(30.5)
    plant.bring(reading(29, 64.0), reading(30, 66.0), reading(30.3))
    assert plant.waiting() == [Late("a", hour(29), hour(30), hour(30.5))], "30.3 is no later than it should be"
    assert plant.revisions() == [], "nothing is revised before the next assessment"

    found = plant.assess(31)
    assert [(r.forecast.time, r.at) for r in found] == [(hour(29), hour(31)), (hour(30), hour(31))]
    assert [r.forecast.probability() for r in found] == pytest.approx([0.4, 0.6])
    assert plant.revisions() == found
    assert plant.issued()[:3] == before, "what was issued stays as it was, to the bit"
    assert plant.records.alerts() == alerts
    assert plant.records.latest_forecasts()[0].time == hour(31), "the latest never moves back"
    assert plant.waiting() == [] and plant.revisions("b") == []
    assert plant.assess(32) == []


def test_what_comes_later_still_takes_the_place_of_the_revision_before(store: ReadingStore) -> None:
    plant = Plant(store)
    plant.bring(*history(30, without=(29, 30)))
    plant.assess(29)
    plant.assess(30)
    plant.bring(reading(29, 64.0))
    plant.assess(31)
    assert [r.forecast.probability() for r in plant.revisions()] == pytest.approx([0.4, 0.4])
    plant.time = hour(31.5)
    plant.bring(reading(30, 66.0), reading(29.5, 60.0))
    plant.assess(32)
    first, second, third = plant.revisions()
    assert first.forecast.time == hour(29) and first.forecast.probability() == pytest.approx(0.4)
    assert second.forecast.probability() == pytest.approx(0.6)
    assert second.late == Late("a", hour(29), hour(30), hour(30)), "of when all of it is that made the difference"
    assert third.forecast.time == hour(31) and third.forecast.probability() == pytest.approx(0.6)


def test_a_revision_that_ends_where_it_began_is_none() -> None:
    plant = Plant(EmbeddedStore(None))
    plant.bring(*history(30, without=(29, 30)))
    plant.assess(29)
    plant.bring(reading(28.5, 64.0))
    plant.assess(30)
    assert [r.forecast.time for r in plant.revisions()] == [hour(29)]
    plant.bring(reading(28.8, 60.0))
    plant.assess(31)
    assert [r.forecast.time for r in plant.revisions()] == [hour(30)], "29 said the same; 30 had heard of 28.5 alone"


def test_a_gap_that_is_filled_gives_a_forecast_where_there_was_none() -> None:
    plant = Plant(EmbeddedStore(None))
    plant.bring(*history(40, without=range(31, 41)))
    plant.assess(40)
    assert plant.issued()[-1].abstained is Abstention.STALE
    plant.bring(*(reading(h, 63.0) for h in range(31, 41)))
    (found,) = plant.assess(41)
    assert (found.forecast.time, found.forecast.abstained) == (hour(40), None)
    assert plant.issued()[0].abstained is Abstention.STALE


def test_a_late_event_touches_every_forecast_since() -> None:
    plant = Plant(EmbeddedStore(None))
    plant.bring(*history(60))
    for h in range(50, 60):
        plant.assess(h)
    plant.bring(event("a", 10, EventKind.MAINTENANCE, "bearing"))
    assert plant.waiting() == [Late("a", hour(10), hour(10), hour(59), lasting=True)]
    asked = plant.assessor.forecaster.asked  # type: ignore[attr-defined]
    asked.clear()
    plant.assess(60)
    assert asked == [("a", "b"), *[("a",)] * 11], "the assessment itself, and each that was issued after the event"


def test_forecasts_of_an_earlier_model_and_those_whose_horizon_is_over_stay_alone() -> None:
    plant = Plant(EmbeddedStore(None), plant_of({"a": {}, "b": {}}, [], 200))
    plant.bring(*history(28))
    plant.assess(28)
    plant.bring(reading(101), reading(101, asset="b"))
    for h in (101, 102):
        plant.assess(h)
    plant.assessor.forecaster = HeatForecaster("heat@2")
    plant.assess(103)
    plant.bring(reading(28, 65.0, "b"), reading(27.9, 66.0), reading(102, 64.0))
    assert [r.forecast.time for r in plant.assess(104)] == [hour(103)]


# Nothing of it is lost


class Dying(Records):
    """Records that cannot be written as often as told."""

    refusals = 0

    def note_late(self, marks: Sequence[Late]) -> None:
        if marks and self.refusals:
            self.refusals -= 1
            raise RecordsUnavailable("the records are away")
        super().note_late(marks)


def test_what_cannot_be_noted_is_not_acknowledged_and_comes_to_the_same_in_the_end() -> None:
    records = Dying.open("sqlite://")
    plant = Plant(EmbeddedStore(None), records=records)
    plant.bring(*history(30, without=(29,)))
    plant.assess(29)
    records.refusals = 2
    plant.feed.acknowledged.clear()
    plant.feed.to_come = [Delivery(1, (reading(29, 64.0),))]
    assert not plant.ingest.step() and not plant.ingest.step()
    assert plant.feed.acknowledged == [] and plant.waiting() == []
    assert plant.ingest.step()
    assert len(plant.feed.acknowledged) == 1 and len(plant.waiting()) == 1
    plant.bring(reading(29, 64.0))  # an acknowledgement that was lost brings it again
    assert plant.waiting() == [Late("a", hour(29), hour(29), hour(29))]
    assert len(plant.assess(31)) == 1
    plant.bring(reading(29, 64.0))  # and again, when it is settled already
    assert len(plant.assess(32)) == 1 and len(plant.revisions()) == 1


def test_a_reading_stored_while_an_assessment_reads_is_noted_although_none_is_recorded_yet() -> None:
    plant = Plant(EmbeddedStore(None))
    plant.bring(*history(30, without=(30,)))
    plant.assess(29)
    plant.time = hour(30)
    begin(plant.records, hour(30))
    # The assessment has read the store by now, and has recorded nothing.
    plant.bring(reading(30, 64.0))
    assert len(plant.waiting()) == 1
    plant.assessor.assess(hour(30))
    assert reassess(plant.assessor, plant.records, hour(30)) == [], "it had seen it after all"
    assert plant.waiting() == []


def test_nothing_is_noted_before_the_first_assessment() -> None:
    plant = Plant(EmbeddedStore(None))
    plant.time = hour(50)
    plant.bring(*history(40))
    assert plant.waiting() == []


def test_a_dead_letter_read_again_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configuration = config.load(None)
    store = edges.open_store(configuration)
    with edges.open_records(configuration) as records:
        begin(records, hour(30))
        payload = encode_readings([reading(29, 64.0)])
        records.add_dead_letters([Reject("plant/a/readings", payload, "a rule of yesterday", to_us(hour(29)))])
        edges.retry_dead_letters(configuration, records, store)
        ((mark, _),) = records.late()
    assert (mark.asset, mark.first, mark.last) == ("a", hour(29), hour(29))
    store.close()


def test_no_more_than_so_many_forecasts_are_looked_at_after_one_assessment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pm.reassess.MOST", 3)
    plant = Plant(EmbeddedStore(None))
    plant.bring(*history(30, without=(29, 30)))
    for h in (28, 29, 30):
        plant.assess(h)
    plant.bring(reading(28, 61.0, "b"), reading(28, 62.0), reading(29, 64.0))
    plant.assess(31)
    assert [mark.asset for mark in plant.waiting()] == ["b"]
    plant.assess(32)
    assert plant.waiting() == [] and plant.revisions("b")


# The records, on SQLite and on PostgreSQL


def test_marks_join_and_are_forgotten_only_as_they_were_read(records: Records) -> None:
    records.note_late([Late("a", hour(5), hour(6), hour(9)), Late("b", hour(1), hour(1), hour(9))])
    records.note_late([])
    read = records.late()
    assert [mark.asset for mark, _ in read] == ["a", "b"]
    records.note_late([Late("a", hour(5), hour(6), hour(9))])
    records.record_revisions(read, [], [])
    assert [mark.asset for mark, _ in records.late()] == ["a"], "more of it has come since, of the same times"
    records.note_late([Late("a", hour(4), hour(4), hour(10), lasting=True)])
    assert [mark for mark, _ in records.late()] == [Late("a", hour(4), hour(6), hour(9), lasting=True)]
    records.record_revisions(records.late(), [], [])
    assert records.late() == []


def test_a_revision_comes_back_as_it_was_kept_and_goes_with_its_forecast(records: Records) -> None:
    forecast = Forecast("a", hour(30), "m@1", None, 1.0, (0.1, 0.2), {"bearing": 0.3}, 12.5)
    silent = Forecast("a", hour(31), "m@1", Abstention.STALE)
    mark = Late("a", hour(5), hour(6), hour(9))
    revised = [Revision(forecast, mark, hour(40)), Revision(silent, mark, hour(40))]
    records.record_revisions([], revised, [])
    assert records.revisions("a", hour(29), hour(31)) == revised
    assert records.revisions("a", hour(30), hour(31)) == revised[1:]
    records.record_revisions([], [], [("a", hour(31))])
    assert records.prune_revisions(hour(30)) == 0
    assert records.revisions("a", EARLIEST, LATEST) == revised[:1]
    assert records.prune_revisions(hour(30.1)) == 1


# Order of arrival


SPAN = range(26, 31)
LATE_READINGS = [(h, asset) for h in SPAN for asset in "ab"]


def last_word(delays: Sequence[int], shuffle: Callable[[list[Reading]], object]) -> tuple[object, ...]:
    """What is stored in the end, and of each forecast its revision, or itself where there is none."""
    plant = Plant(EmbeddedStore(None))
    plant.bring(*history(SPAN[0] - 1))
    coming = [(h + delay, h, asset) for (h, asset), delay in zip(LATE_READINGS, delays, strict=True)]
    for now in range(SPAN[0], SPAN[-1] + 4):
        due = [reading(h, 60.0 + (7 * h) % 9, asset) for at, h, asset in coming if at == now]
        late = [one for one in due if one.time_us < to_us(hour(now))]
        plant.bring(*(one for one in due if one not in late))
        plant.assess(now)
        shuffle(late)
        plant.bring(*late)
    plant.assess(SPAN[-1] + 4)
    words = {(f.asset, f.time): f for name in "ab" for f in plant.issued(name)}
    words |= {(r.forecast.asset, r.forecast.time): r.forecast for name in "ab" for r in plant.revisions(name)}
    assert plant.waiting() == []
    return plant.store.readings(EARLIEST, LATEST).to_dict("list"), words


@pytest.fixture(scope="module")
def punctual() -> tuple[object, ...]:
    return last_word([0] * len(LATE_READINGS), lambda late: None)


@settings(max_examples=5, deadline=None)
@given(delays=st.lists(st.integers(0, 3), min_size=len(LATE_READINGS), max_size=len(LATE_READINGS)), order=st.randoms())
def test_the_order_of_arrival_changes_nothing_in_the_end(
    punctual: tuple[object, ...], delays: list[int], order: random.Random
) -> None:
    """Readings up to three hours late, in any order, end in the same store and the same last word on each forecast."""
    assert last_word(delays, order.shuffle) == punctual


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.booleans()), max_size=12),
    st.randoms(),
)
def test_marks_do_not_depend_on_how_the_messages_are_divided(
    what: list[tuple[str, int, bool]], order: random.Random
) -> None:
    def marks(parts: Sequence[Sequence[tuple[str, int, bool]]]) -> dict[str, Late]:
        kept: dict[str, Late] = {}
        for part in parts:
            readings = [Reading(asset, to_us(hour(h)), {}) for asset, h, is_event in part if not is_event]
            events = [event(asset, h, EventKind.ERROR, "x") for asset, h, is_event in part if is_event]
            for asset, mark in late_among(readings, events, assessed_us=to_us(hour(30)), came=START).items():
                kept[asset] = kept[asset] | mark if asset in kept else mark
        return kept

    whole = marks([what])
    order.shuffle(what)
    assert marks([[one] for one in what]) == whole
    assert set(whole) == {asset for asset, h, _ in what if h <= 30}


def test_what_counts_as_different() -> None:
    issued = Forecast("a", hour(1), "m", None, 1.0, (0.1,) * 72)
    assert not differs(issued, Forecast("a", hour(1), "m", None, 1.0, (0.1 + 1e-9,) * 72))
    assert differs(issued, Forecast("a", hour(1), "m", None, 1.0, (0.1 - 1e-3,) * 72))
    assert differs(issued, Forecast("a", hour(1), "m", Abstention.OFF))
    assert not differs(Forecast("a", hour(1), "m", Abstention.OFF), Forecast("a", hour(1), "n", Abstention.OFF))
