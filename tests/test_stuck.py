from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecasting.stuck import LEAST_READINGS, Stuck, fit_stuck


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def one(length: int) -> np.ndarray:
    return np.array([0, length], dtype=np.int64)


def rows_of(stuck: Stuck, values: np.ndarray, *offsets: int) -> list[int]:
    return np.flatnonzero(stuck.rows(values, np.array([0, *offsets, len(values)]))[:, 0]).tolist()


def noise(rows: int = 2000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(10, 1, (rows, 1)).astype(np.float32)


def test_a_value_that_is_repeated_for_too_long_is_stuck_from_then_on():
    stuck = Stuck((3,), ((),))
    assert rows_of(stuck, column(1, 2, 2, 2, 2, 3, 3, 4)) == [3, 4]
    assert rows_of(stuck, column(2, 2, np.nan, 2, 2)) == [3, 4]
    assert rows_of(stuck, column(2, 2, *[np.nan] * 4, 2, 2, 2)) == [8]
    assert rows_of(stuck, column(2, 2, 2, 2, 2), 2) == [4]
    assert rows_of(stuck, column(2, 2)) == []


def test_a_point_may_rest_at_its_own_value():
    values = column(0, 0, 0, 0, 5, 5, 5, 5, 7, 7, 7, 7)
    assert rows_of(Stuck((3,), ((0.0, 7.0),)), values) == [6, 7]
    assert rows_of(Stuck((0,), ((),)), values) == []


def test_what_seldom_repeats_can_be_stuck_and_one_spell_does_not_change_that():
    values = noise()
    values[700:760] = values[700]
    found = fit_stuck(values, one(2000))
    assert found == Stuck((LEAST_READINGS,), ((),))
    assert found.rows(values, one(2000))[:, 0].nonzero()[0].tolist() == list(range(700 + LEAST_READINGS - 1, 760))


@pytest.mark.parametrize("decimals", [0, -1])
def test_a_coarse_sensor_is_never_stuck(decimals):
    assert fit_stuck(np.round(noise(), decimals), one(2000)).after == (0,)


def test_the_finer_a_sensor_reads_the_sooner_it_is_stuck():
    after = [fit_stuck(np.round(noise(20_000), decimals), one(20_000)).after[0] for decimals in (1, 2, 3)]
    assert after[0] > after[1] >= after[2] == LEAST_READINGS


def test_a_machine_that_stands_at_night_is_not_stuck():
    values = noise()
    night = np.arange(2000) % 24 < 9
    values[night] = 0.0
    found = fit_stuck(values, one(2000))
    assert found == Stuck((LEAST_READINGS,), ((0.0,),))
    assert not found.rows(values, one(2000)).any()


def test_a_valve_rests_at_both_ends():
    values = noise()
    values[np.arange(2000) % 50 < 9], values[np.arange(2000) % 50 > 40] = 0.0, 100.0
    found = fit_stuck(values, one(2000))
    assert found == Stuck((LEAST_READINGS,), ((0.0, 100.0),))
    assert not found.rows(values, one(2000)).any()


def test_what_a_machine_does_every_week_is_not_stuck():
    """A level that stands still over each night shift, another one each time."""
    values = noise(8760)
    for night in range(100, 8700, 168):
        values[night : night + 8] = values[night]
    found = fit_stuck(values, one(8760))
    assert found.after == (9,)
    assert not found.rows(values, one(8760)).any()
    for night in range(100, 8700, 168):
        values[night : night + 40] = values[night]
    assert fit_stuck(values, one(8760)).after == (0,)


def test_one_asset_that_holds_its_values_speaks_for_the_point():
    values = noise(20_000)
    values[6000:7000] = 42.0
    assert fit_stuck(values, np.arange(0, 20_001, 1000)).after == (0,)


def test_an_asset_hangs_when_all_that_was_read_of_it_lately_did():
    nan, stuck = np.nan, Stuck((2, 2), ((), ()))
    values = np.array([[1, nan], [1, 3], [1, nan], [1, nan], [1, nan], [1, 4], [nan, 4], [nan, nan]], np.float32)
    found = stuck.rows(values, one(8))
    assert found[:, 0].nonzero()[0].tolist() == [1, 2, 3, 4, 5]
    assert found[:, 1].nonzero()[0].tolist() == [6]
    # The second point was read within the span of four steps up to the fifth row, and moved.
    assert stuck.hung(values, found, one(8)).nonzero()[0].tolist() == [6, 7]
    assert stuck.hung(values, found, np.array([0, 7, 8])).nonzero()[0].tolist() == [6]


def test_assets_too_short_to_speak_for_themselves_say_nothing():
    values = np.repeat(noise(1000), 2, axis=0)
    assert fit_stuck(values, np.arange(0, 2001, 10)).after == (0,)


def test_too_little_to_go_by_says_nothing():
    assert fit_stuck(noise(300), one(300)).after == (0,)
    assert fit_stuck(np.full((2000, 1), np.nan, np.float32), one(2000)) == Stuck((0,), ((),))
    assert fit_stuck(np.full((2000, 1), 7, np.float32), one(2000)).after == (0,)
    assert fit_stuck(np.zeros((0, 2), np.float32), np.array([0])) == Stuck((0, 0), ((), ()))


@given(st.lists(st.sampled_from([1.0, 2.0, float("nan")]), max_size=40), st.integers(0, 40), st.integers(2, 5))
def test_a_row_is_judged_alike_wherever_the_record_begins(values, begin, after):
    stuck, whole = Stuck((after,), ((),)), np.array(values, np.float32).reshape(-1, 1)
    part = whole[begin:]
    inside = slice(stuck.lookback, None)
    expected = stuck.rows(whole, one(len(whole)))[begin:][inside]
    np.testing.assert_array_equal(stuck.rows(part, one(len(part)))[inside], expected)
