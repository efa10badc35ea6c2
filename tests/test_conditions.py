from __future__ import annotations

import numpy as np
import pytest

from forecasting.conditions import MOST_INPUTS, NormalBehaviour, fit_behaviour


def loaded(rows: int, seed: int) -> np.ndarray:
    """[rows, 3]: load, a temperature that follows it piece by piece, and a point of its own."""
    rng = np.random.default_rng(seed)
    load = rng.normal(0, 1, rows)
    heat = np.where(load > 0.67, 2 * load - 0.67, load) + rng.normal(0, 0.1, rows)
    return np.stack([load, heat, rng.normal(0, 1, rows)], axis=1).astype(np.float32)


def everywhere(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(values.shape, dtype=bool), np.zeros(len(values), dtype=np.int64)


def test_what_the_load_explains_is_taken_away():
    train = loaded(5000, 0)
    behaviour = fit_behaviour(train, *everywhere(train), 1)
    test = loaded(5000, 1)
    residual = behaviour.residuals(test, *everywhere(test))
    assert behaviour.scale[0, 1] == pytest.approx(0.1, rel=0.15)
    assert residual[:, 1].std() == pytest.approx(1.0, rel=0.1)
    assert abs(np.corrcoef(residual[:, 1], test[:, 0])[0, 1]) < 0.1
    assert behaviour.scale[0, 2] == pytest.approx(1.0, rel=0.1)
    test[:, 1] += 0.3
    assert behaviour.residuals(test, *everywhere(test))[:, 1].mean() == pytest.approx(3.0, rel=0.15)


def test_an_asset_model_has_weights_of_its_own_when_it_has_rows_enough():
    one, other = loaded(4000, 0), loaded(4000, 1)
    other[:, 1] = -other[:, 0]
    values, group = np.concatenate([one, other]), np.repeat([0, 1], 4000)
    behaviour = fit_behaviour(values, np.ones(values.shape, dtype=bool), group, 2)
    assert behaviour.scale[1, 1] < 0.05
    few = fit_behaviour(values[:4500], np.ones((4500, 3), dtype=bool), group[:4500], 2)
    np.testing.assert_array_equal(few.weights[1], few.weights[2])


def test_a_row_has_the_same_bits_beside_any_others():
    values = loaded(5000, 2)
    behaviour = fit_behaviour(values, *everywhere(values), 1)
    whole = behaviour.residuals(values, *everywhere(values))
    for start, stop in ((0, 1), (17, 20), (100, 141), (4999, 5000)):
        part = values[start:stop]
        np.testing.assert_array_equal(behaviour.residuals(part, *everywhere(part)), whole[start:stop])


def test_a_missing_value_has_no_residual():
    values = loaded(3000, 3)
    present, group = everywhere(values)
    values[5, 1], present[5, 1] = 0.0, False
    assert fit_behaviour(values, present, group, 1).residuals(values, present, group)[5, 1] == 0.0


def test_without_what_it_is_told_from_a_point_has_no_residual():
    """The load is lost: what the heat reads beyond it cannot be told. What a model never has is no loss to it."""
    one, other = loaded(4000, 3), loaded(4000, 4)
    other[:, 2] = 0.0
    values, group = np.concatenate([one, other]), np.repeat([0, 1], 4000)
    present = np.ones(values.shape, dtype=bool)
    present[4000:, 2] = False
    behaviour = fit_behaviour(values, present, group, 2)
    assert (behaviour.residuals(values, present, group)[:, 1] != 0.0).all()
    values[:, 0], present[:, 0] = 0.0, False
    lost = behaviour.residuals(values, present, group)
    assert (lost[:, 1] == 0.0).all()


def test_what_is_seldom_read_or_never_there_leaves_residuals_alone():
    """A model of few rows, which takes the fleet's weights, lacks a point of the fleet's; another is read by day."""
    many, few = loaded(6000, 5), loaded(800, 6)
    values, group = np.concatenate([many, few]), np.repeat([0, 1], [6000, 800])
    values = np.concatenate([values, values[:, :1] + np.float32(0.1)], axis=1)
    present = np.ones(values.shape, dtype=bool)
    present[6000:, 2] = False
    present[np.arange(6800) % 24 != 0, 3] = False
    values[~present] = 0.0
    behaviour = fit_behaviour(values, present, group, 2)
    told = behaviour.told(present, group)
    assert told[:, :2].all()
    assert (told[:, 2] == present[:, 2]).all()
    assert (behaviour.residuals(values, present, group)[:, 1] != 0.0).mean() > 0.99


@pytest.mark.parametrize("points", [1, 2, 40])
def test_any_number_of_points_serves(points):
    values = np.random.default_rng(0).normal(0, 1, (300, points)).astype(np.float32)
    values[:, 0] = 0.0
    behaviour = fit_behaviour(values, *everywhere(values), 1)
    assert behaviour.inputs.shape == (points, min(points - 1, MOST_INPUTS))
    assert all(point not in row for point, row in enumerate(behaviour.inputs))
    assert np.isfinite(behaviour.residuals(values, *everywhere(values))).all()
    again = NormalBehaviour.from_json(behaviour.as_json(), 2, points)
    np.testing.assert_array_equal(again.weights, behaviour.weights)
