"""Summaries of a life against a plain loop, and their bits wherever the record begins; operating conditions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from forecasting.features import features_of, fit_normaliser
from forecasting.life import EARLY, UNITS, Layout, life_so_far
from forecasting.regimes import Regimes, find_regimes
from forecasting.windows import grid_of, schema_of
from pm.errors import ModelError
from tests.forecasting_cases import TINY, worn_plant

LAYOUT = Layout(points=2, life=100, age=2)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def record(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values in units, presence with gaps, and two assets' offsets."""
    normal = (np.rint(rng.normal(size=(500, 2)) * UNITS) / UNITS).astype(np.float32)
    present = rng.random(normal.shape) < 0.7
    present[200:230] = False
    return normal, present, np.array([0, 350, 500])


def seen(normal: np.ndarray, present: np.ndarray, first: int, last: int, point: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows from first to last at which the point was read, and what it read."""
    chosen = np.arange(first, last + 1)
    chosen = chosen[present[chosen, point]]
    return chosen, normal[chosen, point].astype(float)


def test_summaries_equal_a_plain_loop(rng):
    normal, present, offsets = record(rng)
    rows = np.array([0, 3, 150, 240, 349, 350, 380, 499])
    found, age = life_so_far(LAYOUT, normal, present, offsets, rows)
    blocks = found.reshape(len(rows), LAYOUT.blocks, 2)
    for number, row in enumerate(rows):
        begin = max(offsets[offsets <= row][-1], row - LAYOUT.life + 1)
        born = next((r for r in range(begin, row + 1) if present[r].any()), row)
        assert age[number] == row - born
        for point in range(2):
            for which, span in enumerate(LAYOUT.spans):
                times, values = seen(normal, present, max(born, row - span + 1), row, point)
                mean, scatter, slope = blocks[number, 3 * which : 3 * which + 3, point]
                if not len(values):
                    assert np.isnan(mean)
                    continue
                assert mean == pytest.approx(values.mean(), abs=1e-5)
                if len(values) > 1:
                    assert scatter == pytest.approx(values.std(), abs=1e-4)
                    rise = np.polyfit(times - row, values, 1)[0] * np.sqrt(12) * times.std()
                    assert slope == pytest.approx(rise, abs=1e-3)
                    together = np.cov(times, values, ddof=0)[0, 1]
                    pace = EARLY * together / (times.var() + EARLY**2 / 12)
                    assert which + 1 < len(LAYOUT.spans) or blocks[number, -1, point] == pytest.approx(pace, abs=1e-4)
            place = 3 * len(LAYOUT.spans)
            _, early = seen(normal, present, born, min(born + EARLY - 1, row), point)
            if len(early):
                assert blocks[number, place, point] == pytest.approx(early.mean(), abs=1e-5)


def test_a_life_has_the_same_bits_wherever_the_record_begins(rng):
    normal, present, _ = record(rng)
    whole, age = life_so_far(LAYOUT, normal, present, np.array([0, 500]), np.array([499, 300]))
    for begin in (0, 150, 201):
        part, part_age = life_so_far(
            LAYOUT, normal[begin:], present[begin:], np.array([0, 500 - begin]), np.array([499, 300]) - begin
        )
        np.testing.assert_array_equal(part, whole)
        assert part_age.tolist() == age.tolist()


def cruise(rng: np.random.Generator, levels: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A telling point, a point that it moves, noise, and wear in whole numbers that looks like levels late in life."""
    asset = np.repeat(np.arange(10), 300)
    regime = rng.integers(levels, size=len(asset))
    wear = np.tile(np.arange(300) // 100, 10)
    values = np.stack(
        [10.0 * regime + rng.normal(0, 0.01, len(asset)), 5.0 * regime + rng.normal(size=len(asset)), 3.0 * wear],
        axis=1,
    ).astype(np.float32)
    return values, asset, regime


def test_conditions_are_found_where_levels_come_and_go(rng):
    values, asset, regime = cruise(rng)
    found = find_regimes(values[:, :2], asset)
    assert found.points == (0,)
    assert found.count == 3
    assert found.of(values[:, :2]).tolist() == regime.tolist()
    strange = np.array([[5.0, 0.0], [np.nan, 0.0], [40.0, 0.0]], np.float32)
    assert found.of(strange).tolist() == [3, 3, 3]
    assert Regimes.from_json(found.as_json()).of(values[:, :2]).tolist() == regime.tolist()


def test_wear_in_steps_is_no_condition(rng):
    values, asset, _ = cruise(rng)
    assert find_regimes(values[:, 2:], asset) == Regimes.none()
    assert find_regimes(rng.normal(size=(3000, 3)).astype(np.float32), asset) == Regimes.none()


def test_points_are_normalised_in_each_condition(rng):
    plant = worn_plant()
    load = rng.integers(2, size=len(plant.readings)).astype(float)
    readings = plant.readings.assign(load=100.0 * load, heat=plant.readings["heat"] + 50.0 * load)
    points = (*plant.points, replace(plant.points[0], name="load"))
    history = replace(plant, readings=readings, points=points)
    named = TINY.model_copy(update={"condition_points": ("load",)})
    for settings in (TINY, named):
        schema = schema_of(history, settings)
        grid = grid_of(history, schema)
        normaliser = fit_normaliser(grid)
        assert normaliser.regimes.count == 2
        heat = features_of(grid, normaliser).steps[:, schema.points.index("heat")]
        condition = normaliser.regimes.of(grid.values)
        assert abs(np.median(heat[condition == 0]) - np.median(heat[condition == 1])) < 0.3
    with pytest.raises(ModelError, match="condition_points names pressure"):
        schema_of(history, TINY.model_copy(update={"condition_points": ("pressure",)}))
