"""The baselines learn what there is to learn, keep to the past, and answer the same twice."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from forecasting import metrics
from forecasting.baseline import Baseline, GradientBoosting, HazardByAge, hours_of, rows_at, training_grid
from forecasting.metrics import UNKNOWN
from forecasting.windows import Grid, schema_of
from pm.domain import Event, EventKind, History, from_us, to_us
from pm.errors import TrainingError
from tests.forecasting_cases import HOUR, START, TINY, event_frame, history_of, reading_frame, worn_plant

TRAIN, STOP, HELD = [f"pump-{i}" for i in range(5)], ["pump-5"], ["pump-6", "pump-7"]


@pytest.fixture(scope="module")
def plant() -> History:
    return worn_plant(assets=8, days=45)


@pytest.fixture(scope="module")
def boosting(plant: History) -> GradientBoosting:
    return GradientBoosting.fit(
        plant, schema=schema_of(plant, TINY), train_assets=TRAIN, validation_assets=STOP, seed=0, most_trees=60,
        threads=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def by_age(plant: History) -> HazardByAge:
    return HazardByAge.fit(plant, schema=schema_of(plant, TINY), train_assets=[*TRAIN, *STOP])


def held_out(plant: History) -> tuple[Grid, list[str], metrics.Outcomes]:
    grid = training_grid(plant, schema_of(plant, TINY), HELD, None)
    names = [grid.assets[index].name for index in grid.asset_of]
    found = metrics.outcomes(grid.asset_of, grid.times_us, grid.failures[0], grid.failures[1], grid.end_us)
    return grid, names, found


def test_boosting_finds_the_wear_on_assets_it_never_saw(plant: History, boosting: GradientBoosting) -> None:
    grid, names, found = held_out(plant)
    answer = boosting.forecast(plant, names, grid.times_us)
    for hours in (24, 48):
        truth = found.within(hours)
        known = truth != UNKNOWN
        base = (truth[known] == 1).mean()
        assert metrics.average_precision(truth[known] == 1, answer.probability[hours][known]) > base + 0.4
    life, known = hours_of(found, schema_of(plant, TINY))
    constant = metrics.rul_rmse(life[known], np.full(known.sum(), life[known].mean()))
    assert metrics.rul_rmse(life[known], answer.rul_hours[known]) < 0.8 * constant


def test_probabilities_rise_with_the_horizon_and_stay_probabilities(
    plant: History, boosting: GradientBoosting, by_age: HazardByAge
) -> None:
    grid, names, _ = held_out(plant)
    models: list[Baseline] = [boosting, by_age]
    for model in models:
        answer = model.forecast(plant, names, grid.times_us)
        p24, p48, p72 = (answer.probability[h] for h in (24, 48, 72))
        assert np.all((p24 >= 0) & (p24 <= p48) & (p48 <= p72) & (p72 <= 1))
        cap = schema_of(plant, TINY).rul_cap
        assert np.all((answer.rul_hours >= 0) & (answer.rul_hours <= cap + 1e-9))


def test_the_same_seed_grows_the_same_trees(plant: History) -> None:
    schema, wanted = schema_of(plant, TINY), {"train_assets": TRAIN[:2], "validation_assets": STOP, "most_trees": 10}
    one, other = (GradientBoosting.fit(plant, schema=schema, seed=3, threads=1, **wanted) for _ in range(2))
    times = np.array([to_us(START + hour * HOUR) for hour in range(50, 1000, 7)])
    first, second = (model.forecast(plant, ["pump-6"] * times.size, times) for model in (one, other))
    assert np.unique(first.probability[72][~np.isnan(first.probability[72])]).size > 5
    np.testing.assert_array_equal(first.probability[72], second.probability[72])
    np.testing.assert_array_equal(first.rul_hours, second.rul_hours)


@pytest.mark.parametrize("hour", [300, 900])
def test_later_data_changes_no_answer(
    plant: History, boosting: GradientBoosting, by_age: HazardByAge, hour: int
) -> None:
    """Cutting all that is dated later, and the maintenance and failures dated at the very time, changes nothing."""
    at = START + hour * HOUR
    readings = plant.readings[plant.readings["time"] <= at]
    events = plant.events
    known = (events["time"] < at) | ((events["time"] == at) & (events["kind"] == "error"))
    cut = replace(plant, readings=readings, events=events[known])
    latest = {name: to_us(readings["time"][readings["asset"] == name].max()) for name in HELD}
    times = np.array([latest[name] for name in HELD])
    models: list[Baseline] = [boosting, by_age]
    for model in models:
        whole, before = model.forecast(plant, HELD, times), model.forecast(cut, HELD, times)
        np.testing.assert_allclose(whole.probability[72], before.probability[72], rtol=1e-6)
        np.testing.assert_allclose(whole.rul_hours, before.rul_hours, rtol=1e-6)


def test_training_sees_nothing_after_until(plant: History) -> None:
    until = START + timedelta(days=25)
    later = plant.events["time"] > until
    assert later.any()
    cut = replace(plant, events=plant.events[~later], readings=plant.readings[plant.readings["time"] <= until])
    schema = schema_of(plant, TINY)
    whole = HazardByAge.fit(plant, schema=schema, train_assets=TRAIN, until=until)
    early = HazardByAge.fit(cut, schema=schema, train_assets=TRAIN)
    grid, names, _ = held_out(plant)
    one, other = (model.forecast(plant, names, grid.times_us).probability[72] for model in (whole, early))
    assert np.array_equal(one, other)


def test_a_time_outside_an_assets_record_has_no_answer(
    plant: History, boosting: GradientBoosting, by_age: HazardByAge
) -> None:
    times = np.array([to_us(START - HOUR), to_us(START + 100 * HOUR), to_us(START + timedelta(days=100))])
    models: list[Baseline] = [boosting, by_age]
    for model in models:
        answer = model.forecast(plant, ["pump-6"] * 3, times)
        assert np.isnan(answer.probability[72]).tolist() == [True, False, True]
        assert np.isnan(answer.rul_hours).tolist() == [True, False, True]


def test_rows_at_takes_the_last_step_that_has_ended(plant: History) -> None:
    grid = training_grid(plant, schema_of(plant, TINY), HELD, None)
    first = int(grid.times_us[0])
    rows = rows_at(grid, ["pump-6"] * 4 + ["nobody"], np.array([-1, 0, 3_599_999_999, 3_600_000_000, 0]) + first)
    assert rows.tolist() == [-1, 0, 0, 1, -1]


def dying_every(hours: int, *, days: int = 200) -> History:
    """Four assets that fail after exactly so many hours, again and again."""
    count = days * 24
    parts, events = [], []
    for number in range(4):
        times = [from_us(to_us(START) + h * 3_600_000_000) for h in range(count)]
        parts.append((f"clock-{number}", times, {"level": np.zeros(count)}))
        due = [to_us(START + hour * HOUR) for hour in range(hours, count, hours)]
        events += [Event(f"clock-{number}", time, EventKind.FAILURE, "worn") for time in due]
    fleet = tuple(replace(worn_plant(assets=1, days=2).assets[0], name=f"clock-{n}", static={}) for n in range(4))
    return history_of(reading_frame(parts), events, fleet)


def test_hazard_by_age_learns_when_things_wear_out() -> None:
    """Failures come at exactly 300 h of age: next to nothing is due at 100 h, and a failure is likely at 280 h."""
    history = dying_every(300)
    model = HazardByAge.fit(history, schema=schema_of(history, TINY), train_assets=["clock-0", "clock-1", "clock-2"])
    times = np.array([to_us(START + age * HOUR) for age in (100, 280, 300, 301, 400)])
    answer = model.forecast(history, ["clock-3"] * 5, times)
    assert answer.probability[72][0] < 0.1
    assert answer.probability[24][1] > 0.5
    #  at 300 the failure is not yet known of: the age is 300; an hour later it is 1
    assert answer.probability[24][2] > 0.3
    assert answer.probability[24][3] < 0.05
    assert answer.rul_hours[1] < 0.6 * answer.rul_hours[4]


def test_hazard_by_age_equals_the_rate_where_age_does_not_matter() -> None:
    """Failures at a constant rate: every probability is near 1 - exp(-rate x 72 h)."""
    rng = np.random.default_rng(5)
    history = dying_every(10_000)
    events = [
        Event(f"clock-{n}", to_us(START + int(h) * HOUR), EventKind.FAILURE, "worn")
        for n in range(4)
        for h in np.unique(np.cumsum(rng.exponential(100.0, 48)).astype(int) + 1)
        if h < 4800
    ]
    history = replace(history, events=event_frame(events))
    model = HazardByAge.fit(history, schema=schema_of(history, TINY), train_assets=["clock-0", "clock-1", "clock-2"])
    times = np.array([to_us(START + age * HOUR) for age in range(10, 4700, 100)])
    p = model.forecast(history, ["clock-3"] * times.size, times).probability[72]
    assert p.mean() == pytest.approx(1 - np.exp(-0.72), abs=0.12)


def test_nothing_to_learn_from_is_refused(plant: History) -> None:
    with pytest.raises(TrainingError, match="no readings of nobody"):
        GradientBoosting.fit(
            plant, schema=schema_of(plant, TINY), train_assets=["nobody"], validation_assets=[], seed=0, threads=1
        )


def test_a_plant_that_never_fails_is_forecast_to_live(plant: History) -> None:
    calm = replace(plant, events=plant.events[plant.events["kind"] == "error"])
    schema = schema_of(plant, TINY)
    models: list[Baseline] = [
        GradientBoosting.fit(calm, schema=schema, train_assets=TRAIN, validation_assets=STOP, seed=0, threads=1),
        HazardByAge.fit(calm, schema=schema, train_assets=TRAIN),
    ]
    for model in models:
        assert model.forecast(calm, HELD, np.full(2, to_us(START + 100 * HOUR))).probability[72].tolist() == [0.0, 0.0]
