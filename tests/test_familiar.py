"""A forecast is given for what training knew, worn or not, and withheld, with the reason, from what it did not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from sklearn.covariance import ledoit_wolf

from forecasting import checkpoint
from forecasting.familiar import Familiar, Levels, _whitening, fit_familiar
from forecasting.predict import TransformerForecaster, load
from pm.domain import HORIZON, Abstention, Forecast, History, from_us
from pm.notices import forecast_json
from tests.forecasting_cases import HOUR, START, TINY, history_of, tiny_forecaster, worn_plant

SETTINGS = TINY.model_copy(update={"epochs": 3, "learning_rate": 3e-3})
NAMES = tuple(f"pump-{n}" for n in range(6))
AT = START + 25 * 24 * HOUR


def plant_with_settings(seed: int = 0) -> History:
    """The worn plant at one of three loads in each hour, which move both points."""
    plant = worn_plant(seed=seed)
    readings = plant.readings
    load = 20.0 * np.random.default_rng(seed + 100).integers(0, 3, len(readings))
    readings = readings.assign(heat=readings["heat"] + load, noise=readings["noise"] + load, load=load)
    made = history_of(readings, [], plant.assets)
    return replace(made, events=plant.events, failure_modes=plant.failure_modes)


@pytest.fixture(scope="module")
def plant() -> History:
    return plant_with_settings()


@pytest.fixture(scope="module")
def forecaster(plant) -> TransformerForecaster:
    return tiny_forecaster(plant, NAMES[:4], NAMES[4:], SETTINGS)


def lately(history: History, change: Callable[[pd.DataFrame], dict[str, object]], at: datetime = AT) -> History:
    """The history with what pump-1 read in the last six hours changed."""
    readings = history.readings.copy()
    rows = (readings["asset"] == "pump-1") & (readings["time"] > at - 6 * HOUR) & (readings["time"] <= at)
    for name, values in change(readings[rows]).items():
        readings.loc[rows, name] = values
    return replace(history, readings=readings)


def forecast_of(forecaster: TransformerForecaster, history: History, at: datetime = AT) -> Forecast:
    return forecaster.forecast(history, at)[1]


def fahrenheit(rows: pd.DataFrame) -> dict[str, object]:
    return {"heat": rows["heat"] * 1.8 + 32}


def swapped(rows: pd.DataFrame) -> dict[str, object]:
    return {"heat": rows["noise"].to_numpy(), "noise": rows["heat"].to_numpy()}


def between_loads(rows: pd.DataFrame) -> dict[str, object]:
    return {"load": 30.0, "heat": rows["heat"] - rows["load"] + 30, "noise": rows["noise"] - rows["load"] + 30}


def out_of_step(rows: pd.DataFrame) -> dict[str, object]:
    """Every value is an everyday one; heat and load contradict each other."""
    return {"load": 0.0, "noise": rows["noise"] - rows["load"], "heat": rows["heat"] - rows["load"] + 40}


def test_what_was_learned_from_has_conditions(forecaster):
    assert forecaster.artefact.normaliser.regimes.count == 3


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (fahrenheit, ["heat reads", "in training"]),
        (swapped, ["heat reads", "noise reads"]),
        (between_loads, ["no operating condition of training has load 30"]),
        (out_of_step, ["heat reads"]),
    ],
)
def test_strange_inputs_give_a_reason_and_no_number(plant, forecaster, change, names):
    strange = lately(plant, change)
    found = forecast_of(forecaster, strange)
    assert found.abstained is Abstention.UNSEEN_CONDITION
    assert found.probability() is None and found.hazard == () and found.rul_hours is None
    for name in names:
        assert name in found.because
    told = forecast_json(found)
    assert (told["abstained"], told["because"]) == ("unseen condition", found.because)
    usual = forecast_of(forecaster, plant)
    assert usual.abstained is None and usual.because == "" and forecast_json(usual)["because"] is None
    others = [f for f in forecaster.forecast(strange, AT) if f.asset != "pump-1"]
    assert others == [f for f in forecaster.forecast(plant, AT) if f.asset != "pump-1"]


def test_the_range_that_is_told_is_in_the_points_unit(plant, forecaster):
    words = forecast_of(forecaster, lately(plant, fahrenheit)).because
    low, high = (float(text) for text in words.split("in training ")[1].split(";")[0].split(" to "))
    load = lately(plant, lambda rows: {}).readings.query("asset == 'pump-1'").set_index("time")["load"]
    now = float(load[load.index <= AT].iloc[-1])
    assert 50 + now < low < 62 + now
    assert 66 + now < high < 80 + now


def test_assets_that_wear_are_forecast(forecaster):
    """On a plant that training did not see, all its failures included."""
    fresh = plant_with_settings(seed=7)
    table = forecaster.forecast_grid(fresh)
    quiet = np.isnan(table.rul_hours)
    before = np.zeros(len(table), dtype=bool)
    failures = fresh.events[fresh.events["kind"] == "failure"]
    for asset, time in zip(failures["asset"], failures["time"], strict=True):
        ahead = time.value // 1000 - table.time_us
        mine = table.asset_index == table.assets.index(asset)
        before |= mine & (ahead > 0) & (ahead <= HORIZON.total_seconds() * 1e6)
    assert before.sum() > 500
    assert quiet[before].mean() <= 0.01
    assert quiet[~before].mean() <= 0.01
    metrics = forecaster.artefact.metrics
    assert metrics["validation_unfamiliar"] <= 0.001
    assert metrics["validation_unfamiliar_before_failure"] <= 0.01


@pytest.mark.parametrize("point", ["heat", "noise", "load"])
def test_a_lost_sensor_takes_no_forecast_away(plant, forecaster, point):
    assert forecast_of(forecaster, lately(plant, lambda rows: {point: np.nan})).abstained is None


def test_a_single_wild_reading_takes_no_forecast_away(plant, forecaster):
    at = plant.readings.query("asset == 'pump-1'")["time"].max().to_pydatetime() - 3 * HOUR
    spiked = plant.readings.copy()
    spiked.loc[(spiked["asset"] == "pump-1") & (spiked["time"] == at), "noise"] = 4000.0
    assert forecast_of(forecaster, replace(plant, readings=spiked), at).abstained is None


def test_a_grid_abstains_where_a_moment_does(plant, forecaster):
    strange = lately(plant, fahrenheit)
    table = forecaster.forecast_grid(strange, ["pump-1"], start=AT - 12 * HOUR, end=AT + 12 * HOUR)
    quiet = np.isnan(table.hazard).all(axis=1)
    assert 0 < quiet.sum() < len(quiet)
    for time_us, missing in zip(table.time_us, quiet, strict=True):
        found = forecast_of(forecaster, strange, from_us(int(time_us)))
        assert (found.abstained is Abstention.UNSEEN_CONDITION) == missing


def test_what_is_familiar_travels_with_the_model(plant, forecaster, tmp_path):
    version = checkpoint.save(forecaster.artefact, tmp_path / "model")
    again = load(tmp_path / "model")
    strange = lately(plant, swapped)
    assert again.version == version
    assert again.forecast(strange, AT) == forecaster.forecast(strange, AT)
    widened = replace(forecaster.artefact.reference.familiar, distance=1e9)
    artefact = replace(forecaster.artefact, reference=replace(forecaster.artefact.reference, familiar=widened))
    assert TransformerForecaster(artefact).version != version


def test_the_covariance_is_that_of_ledoit_and_wolf():
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8))
    centre, whiten = _whitening(drawn, np.zeros(60, dtype=bool))
    np.testing.assert_allclose(centre, drawn.mean(axis=0))
    np.testing.assert_allclose(np.linalg.inv(whiten.T @ whiten), ledoit_wolf(drawn)[0], rtol=1e-6)


def test_limits_keep_the_share_they_promise():
    """Windows like those that were judged pass the limits no more often than the quantiles say; far ones do."""
    rng = np.random.default_rng(1)

    def levels(count: int, move: float = 0.0) -> Levels:
        drawn = rng.normal(size=(count, 2, 3))
        drawn[:, 0, 0] += move
        return Levels(drawn, drawn[:, 0], np.zeros(count, dtype=bool))

    def rare(count: int) -> np.ndarray:
        return rng.random(count) < 0.1

    learned, seen = rng.normal(size=(500, 5)), rng.normal(size=(4000, 5))
    judged = levels(4000)
    familiar = fit_familiar(
        [levels(300), levels(300)], learned, rare(500), judged=judged, judged_failing=rare(4000), seen=seen,
        seen_failing=rare(4000),
    )  # fmt: skip
    assert familiar.strange(levels(20_000), rng.normal(size=(20_000, 5))).mean() <= 0.001
    assert familiar.strange(levels(100, move=30.0), rng.normal(size=(100, 5))).all()
    assert familiar.strange(levels(100), rng.normal(size=(100, 5)) + 10.0).all()
    again = Familiar.of(familiar.arrays(), familiar.as_json())
    assert (again.reach == familiar.reach).all() and (again.whiten == familiar.whiten).all()
