"""What reasons are made of: shares that add up, the beginning of a change, moments before failures."""

from __future__ import annotations

import numpy as np
import pytest

from forecasting.explain import shapley
from forecasting.onset import EARLY, onset
from forecasting.precedents import HOURS_BEFORE, Moments, Precedents, moments_before
from forecasting.windows import HOUR_US, grid_of, schema_of
from pm.domain import EventKind, from_us
from tests.forecasting_cases import TINY, worn_plant


def test_what_adds_is_told_exactly():
    weights = np.array([0.5, -1.25, 2.0, 0.0, 3.5])
    found = shapley(lambda taken: 7.0 + taken @ weights, 5)
    np.testing.assert_allclose(found.contributions, weights, atol=1e-12)
    assert (found.base, found.full) == (7.0, 7.0 + weights.sum())


def test_what_works_only_together_is_shared_evenly():
    found = shapley(lambda taken: 2.0 * (taken[:, 0] & taken[:, 2]), 4)
    np.testing.assert_allclose(found.contributions, [1.0, 0.0, 1.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("inputs", [0, 1, 3, 40])
def test_shares_add_up_whatever_the_function(inputs):
    rng = np.random.default_rng(inputs)
    matrix, asked = rng.normal(size=(inputs, 6)), []

    def value(taken: np.ndarray) -> np.ndarray:
        assert len(np.unique(taken, axis=0)) == len(taken)
        asked.append(len(taken))
        return np.sin(taken @ matrix).prod(axis=1) + np.exp(0.1 * (taken @ matrix).sum(axis=1))

    found = shapley(value, inputs)
    assert found.contributions.sum() == pytest.approx(found.full - found.base, abs=1e-12)
    assert len(asked) == 1 and asked[0] <= 256 + 40
    again = shapley(value, inputs)
    assert (again.contributions == found.contributions).all()


@pytest.mark.parametrize("place", [4, 20, 40])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_step_is_found_where_it_is(place, sign):
    rng = np.random.default_rng(place)
    series = -4.0 + rng.normal(0, 0.1, 48) + sign * 1.5 * (np.arange(48) >= place)
    assert onset(series) == place


def test_a_slope_is_found_where_it_begins():
    clock = np.arange(48)
    series = -4.0 + np.random.default_rng(0).normal(0, 0.05, 48) + 0.1 * np.maximum(clock - 25, 0)
    assert abs(onset(series) - 25) <= 3


def test_a_slope_all_the_way_is_told_from_the_first():
    assert onset(np.linspace(-4.0, -1.0, 30)) == EARLY


@pytest.mark.parametrize(
    "series",
    [
        np.random.default_rng(3).normal(-4, 0.3, 48),
        np.full(48, -4.0),
        -4.0 + 0.3 * (np.arange(48) > 20),
        np.array([-4.0, -1.0]),
    ],
    ids=["noise", "nothing", "too small", "too short"],
)
def test_no_change_has_no_beginning(series):
    assert onset(series) is None


def test_moments_before_failures_are_rows_that_were_read():
    plant = worn_plant()
    grid = grid_of(plant, schema_of(plant, TINY))
    found = moments_before(grid)
    failures = plant.events[plant.events["kind"] == EventKind.FAILURE.value]
    columns = zip(failures["asset"], failures["time"], failures["code"], strict=True)
    real = {(asset, time.to_pydatetime(), code) for asset, time, code in columns}
    told = {
        (asset, from_us(int(us)), mode)
        for asset, us, mode in zip(found.assets, found.failed_us, found.modes, strict=True)
    }
    assert told == real
    assert set((found.left_us // HOUR_US).tolist()) == set(HOURS_BEFORE)
    assert grid.observed[found.rows].all()
    np.testing.assert_array_equal(grid.times_us[found.rows], found.failed_us - found.left_us)
    assert [grid.assets[a].name for a in grid.asset_of[found.rows]] == list(found.assets)


def test_the_nearest_failures_are_told_once_each():
    us = np.array([1, 1, 2, 3, 4], np.int64) * 1000 * HOUR_US
    left = np.array([6, 24, 6, 24, 48], np.int64) * HOUR_US
    moments = Moments(("a", "a", "b", "a", "c"), ("seal",) * 5, us, left, np.arange(5))
    centre = np.array([5.0, 5.0])
    embedding = centre + np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 2.0], [1.0, 1.0], [-1.0, 0.0]])
    seen = Precedents.seen(moments, embedding, centre)
    found = seen.nearest(centre + np.array([3.0, 0.0]), centre)
    assert [(one.asset, one.hours_left) for one in found] == [("a", 6.0), ("a", 24.0), ("b", 6.0)]
    assert [one.likeness for one in found] == pytest.approx([1.0, 0.5**0.5, 0.0], abs=1e-6)
    again = Precedents.of(seen.arrays(), seen.as_json())
    assert again.nearest(embedding[3], centre) == seen.nearest(embedding[3], centre)
