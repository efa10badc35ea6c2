from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch

from forecasting.baseline import GradientBoosting
from forecasting.crossfit import FOLDS, cross_fitted
from forecasting.features import Normaliser, features_of, fit_normaliser
from forecasting.train import fit
from forecasting.windows import Grid, grid_of, schema_of
from pm.domain import Asset, History, to_us
from tests.forecasting_cases import START, TINY, history_of, reading_frame, worn_plant

HOURS = 2500
OWN_LEVEL = 3.0
"""Units of a model differ by so many times their own scatter."""


def fleet(names: tuple[str, ...], seed: int) -> History:
    """Pumps whose heat follows the load, each from a level of its own."""
    rng = np.random.default_rng(seed)
    times = [START + timedelta(hours=hour) for hour in range(HOURS)]
    parts = []
    for name in names:
        load = rng.normal(0, 1, HOURS)
        heat = 2 * load + OWN_LEVEL * rng.normal() + rng.normal(0, 1, HOURS)
        parts.append((name, times, {"load": load, "heat": heat}))
    return history_of(reading_frame(parts), [], tuple(Asset(name, "P-50") for name in names))


def levels(grid: Grid, normaliser: Normaliser) -> np.ndarray:
    """[A] mean residual of the heat."""
    residual = features_of(grid, normaliser).steps[:, 3]
    return np.array([residual[a:b].mean() for a, b in zip(grid.offsets[:-1], grid.offsets[1:], strict=True)])


def test_training_assets_stand_as_far_from_their_level_as_assets_that_come_later() -> None:
    """Three units teach the level of thirty that follow: what the network saw in training must be as wide."""
    inside, crossed, later = [], [], []
    for seed in range(20):
        known = grid_of(fleet(("a", "b", "c"), seed), schema_of(fleet(("a", "b", "c"), seed), TINY))
        normaliser = fit_normaliser(known)
        inside.append(levels(known, normaliser))
        crossed.append(levels(known, cross_fitted(known, normaliser)))
        others = fleet(tuple(f"later-{i}" for i in range(30)), 1000 + seed)
        later.append(levels(grid_of(others, known.schema), normaliser))
    wide, seen, fitted = (np.concatenate(part).std() for part in (later, crossed, inside))
    assert seen == pytest.approx(wide, rel=0.35)
    assert fitted < 0.7 * wide


def test_nothing_of_an_asset_enters_its_own_level_and_expectations() -> None:
    history = fleet(("a", "b", "c"), 5)
    schema = schema_of(history, TINY)
    whole = grid_of(history, schema)
    normaliser = fit_normaliser(whole)
    crossed = cross_fitted(whole, normaliser)
    changed = history.readings.copy()
    own = (changed["asset"] == "b").to_numpy()
    changed.loc[own, ["load", "heat"]] = 7.0 * changed.loc[own, ["load", "heat"]] + 100.0
    again = cross_fitted(grid_of(replace(history, readings=changed), schema), normaliser)
    first, second, _ = crossed.group_of(whole)
    for one, two, fitted in (
        (crossed.centre, again.centre, normaliser.centre),
        (crossed.behaviour.weights, again.behaviour.weights, normaliser.behaviour.weights),
    ):
        np.testing.assert_array_equal(one[second], two[second])
        assert not np.array_equal(one[second], fitted[0])  # fitted anew, not kept
        assert not np.array_equal(one[first], two[first])  # the others learn from it


def test_whoever_is_not_trained_on_has_the_bits_of_service() -> None:
    history = worn_plant()
    schema = schema_of(history, TINY)
    known, others = (
        grid_of(history.only(["pump-0", "pump-2", "pump-4"]), schema),
        grid_of(history.only(["pump-1", "pump-3", "pump-5"]), schema),
    )
    normaliser = fit_normaliser(known)
    crossed = cross_fitted(known, normaliser)
    served, trained = features_of(others, normaliser), features_of(others, crossed)
    np.testing.assert_array_equal(served.steps, trained.steps)
    np.testing.assert_array_equal(served.summary, trained.summary)
    assert not np.array_equal(features_of(known, normaliser).steps, features_of(known, crossed).steps)


def test_what_the_other_assets_cannot_teach_stays_as_service_has_it() -> None:
    """A sensor on one asset of its model alone, an asset without readings, and another that began yesterday."""
    history = fleet(("a", "b", "c"), 1)
    frame = history.readings
    rng = np.random.default_rng(2)
    own = (frame["asset"] == "a").to_numpy()
    frame = frame.assign(own=np.where(own, rng.normal(1500, 50, len(frame)), np.nan))
    frame = frame[(frame["asset"] != "c") | (frame["time"] > frame["time"].max() - timedelta(hours=100))]
    silent = (*history.assets, Asset("d", "P-50"))
    history = history_of(frame.reset_index(drop=True), [], silent)
    grid = grid_of(history, schema_of(history, TINY))
    normaliser = fit_normaliser(grid)
    crossed = cross_fitted(grid, normaliser)
    assert "d" not in crossed.fold_of
    steps = {name: features_of(grid, one).steps for name, one in (("served", normaliser), ("trained", crossed))}
    points, first = len(grid.schema.points), grid.asset_of == 0
    alone = grid.schema.points.index("own")
    for column in (alone, points + alone):
        np.testing.assert_allclose(steps["trained"][first, column], steps["served"][first, column], atol=0.3)
        assert 0.5 < steps["trained"][first, column].std() < 1.5
    # For b only the hundred hours of c and the whole of a are left, for a only those of b and c: enough for both.
    heat = grid.schema.points.index("heat")
    assert not np.array_equal(steps["trained"][first, heat], steps["served"][first, heat])


def test_a_model_that_is_gone_on_from_keeps_its_scales_for_assets_new_to_it() -> None:
    history = fleet(("a", "b", "new"), 3)
    schema = schema_of(history, TINY)
    before = fit_normaliser(grid_of(history.only(["a", "b"]), schema))
    grid = grid_of(history, schema)
    crossed = cross_fitted(grid, before, ("a", "b"))
    assert set(crossed.fold_of) == {"a", "b"}
    rows = grid.asset_of == 2
    np.testing.assert_array_equal(features_of(grid, crossed).steps[rows], features_of(grid, before).steps[rows])
    # And "new" teaches nothing of the others' level.
    alone = cross_fitted(grid_of(history.only(["a", "b"]), schema), before)
    for asset in (0, 1):
        np.testing.assert_array_equal(
            crossed.centre[crossed.group_of(grid)[asset]], alone.centre[alone.group_of(grid)[asset]]
        )


def test_both_forecasters_learn_from_cross_fitted_assets(monkeypatch: pytest.MonkeyPatch) -> None:
    history = worn_plant()
    schema = schema_of(history, TINY)
    train, rest = [f"pump-{n}" for n in range(4)], ["pump-4", "pump-5"]
    settings = TINY.model_copy(update={"epochs": 1})

    def learned() -> tuple[dict[str, torch.Tensor], np.ndarray]:
        network = fit(history, train, rest, schema, settings, name="x").artefact.weights
        boosting = GradientBoosting.fit(
            history, schema=schema, train_assets=train, validation_assets=rest, seed=0, most_trees=5, threads=1
        )
        at = np.full(2, to_us(START + timedelta(days=20)))
        return dict(network), boosting.forecast(history, rest, at).probability[72]

    weights, probability = learned()
    for module in ("train", "baseline"):
        monkeypatch.setattr(f"forecasting.{module}.cross_fitted", lambda grid, normaliser, *given: normaliser)
    plain, plain_probability = learned()
    assert any(not torch.equal(weights[name], plain[name]) for name in weights)
    assert not np.array_equal(probability, plain_probability)


def test_the_only_asset_of_its_model_keeps_the_scales_that_service_uses() -> None:
    history = worn_plant(assets=3)  # small, large, small
    grid = grid_of(history, schema_of(history, TINY))
    normaliser = fit_normaliser(grid)
    crossed = cross_fitted(grid, normaliser)
    assert crossed.fold_of == {"pump-0": 1, "pump-2": 2}
    assert crossed.group_of(grid)[1] == normaliser.group_of(grid)[1]


def test_many_assets_of_a_model_share_the_folds() -> None:
    history = fleet(tuple(f"unit-{i}" for i in range(11)), 0)
    grid = grid_of(history, schema_of(history, TINY))
    folds = cross_fitted(grid, fit_normaliser(grid)).fold_of
    assert sorted(set(folds.values())) == list(range(1, FOLDS + 1))
    assert len(folds) == 11


def test_a_model_is_stored_with_the_scales_of_all_its_training_assets() -> None:
    history = worn_plant()
    schema = schema_of(history, TINY)
    train, rest = [f"pump-{n}" for n in range(4)], ["pump-4", "pump-5"]
    trained = fit(history, train, rest, schema, TINY.model_copy(update={"epochs": 1}), name="x")
    grid = grid_of(history.only(train), schema)
    fitted = fit_normaliser(grid)
    assert trained.artefact.normaliser.fold_of == {}
    np.testing.assert_array_equal(trained.artefact.normaliser.centre, fitted.centre)
    with pytest.raises(ValueError, match="training alone"):
        cross_fitted(grid, fitted).as_json()
