from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from forecasting.features import columns_of, features_of, fit_normaliser
from forecasting.labels import labels_of
from forecasting.windows import FeatureSchema, grid_before, grid_of, schema_of
from pm.domain import Asset, Event, EventKind, to_us
from pm.errors import ModelError
from tests.forecasting_cases import HOUR, START, TINY, hanging, history_of, reading_frame, worn_plant

PUMP = (Asset("pump", "small"),)


def hours(*numbers: float) -> list[object]:
    return [START + HOUR * number for number in numbers]


def readings(values: dict[float, float], asset: str = "pump") -> pd.DataFrame:
    return reading_frame([(asset, hours(*values), {"heat": np.array(list(values.values()))})])


def event(hour: float, kind: EventKind, code: str, asset: str = "pump") -> Event:
    return Event(asset, to_us(START + HOUR * hour), kind, code)


def test_rows_stand_on_regular_steps_and_gaps_are_missing():
    grid = grid_of(h := history_of(readings({0: 1.0, 1: 2.0, 4: 3.0}), [], PUMP), schema_of(h, TINY))
    np.testing.assert_array_equal(grid.values[:, 0], [1.0, 2.0, np.nan, np.nan, 3.0])
    assert grid.times_us.tolist() == [to_us(START + HOUR * n) for n in range(5)]
    assert grid.observed.tolist() == [True, True, False, False, True]


def test_finer_readings_are_averaged_over_the_step_that_ends_after_them():
    history = history_of(readings({0.25: 1.0, 0.5: np.nan, 1.0: 3.0, 1.25: 10.0}), [], PUMP, timedelta(minutes=15))
    grid = grid_of(history, schema_of(history, TINY))
    np.testing.assert_array_equal(grid.values[:, 0], [2.0, 10.0])
    assert grid.times_us.tolist() == [to_us(START + HOUR), to_us(START + 2 * HOUR)]


def test_daily_readings_keep_their_hour():
    history = history_of(readings({1: 1.0, 25: 2.0, 73: 3.0}), [], PUMP, timedelta(days=1))
    schema = schema_of(history, TINY)
    grid = grid_of(history, schema)
    assert (schema.step_seconds, schema.horizon_steps, schema.phase_us) == (86400, 3, 3_600_000_000)
    assert grid.times_us.tolist() == [to_us(START + HOUR * n) for n in (1, 25, 49, 73)]


@pytest.mark.parametrize(
    ("hours", "step"), [(1 / 60, 1), (1, 1), (1.5, 2), (5, 6), (7, 8), (10, 12), (24, 24), (48, 24)]
)
def test_any_interval_is_resampled_to_a_step_that_cuts_a_day(hours, step):
    schema = schema_of(history_of(readings({0: 1.0}), [], PUMP, timedelta(hours=hours)), TINY)
    assert (schema.step_hours, schema.horizon_steps) == (step, 72 // step)


def test_a_grid_before_a_moment_has_that_many_steps_and_nothing_later():
    history = history_of(readings({0: 1.0, 1: 2.0, 2: 3.0}), [], PUMP)
    grid = grid_before(history, schema_of(history, TINY), START + HOUR, 4)
    np.testing.assert_array_equal(grid.values[:, 0], [np.nan, np.nan, 1.0, 2.0])


def test_a_moment_between_steps_takes_the_hour_before_it():
    history = history_of(readings({0: 1.0, 1: 2.0, 2: 3.0}), [], PUMP)
    grid = grid_before(history, schema_of(history, TINY), START + timedelta(minutes=80), 2)
    np.testing.assert_array_equal(grid.values[:, 0], [1.0, 2.0])
    assert grid.times_us[-1] == to_us(START + timedelta(minutes=80))


@pytest.mark.parametrize(("kind", "seen_at"), [("error", 2), ("maintenance", 3), ("failure", 3)])
def test_an_error_shows_at_its_own_time_and_records_only_after_it(kind, seen_at):
    history = history_of(readings(dict.fromkeys(range(6), 1.0)), [event(2, EventKind(kind), "seal")], PUMP)
    schema = schema_of(history, TINY.model_copy(update={"schedule_features": "exact"}))
    grid = grid_of(history, schema)
    features = features_of(grid, fit_normaliser(grid))
    channel = [EventKind(kind) is k for k, _ in schema.event_channels].index(True)
    column = 0 if kind == "error" else channel
    absent = features.slow[:, column] == 1.0
    assert np.flatnonzero(~absent)[0] == seen_at
    assert not absent[seen_at:].any()


def test_error_counts_look_back_a_day_and_a_week():
    events = [event(h, EventKind.ERROR, "hot") for h in (0, 1, 1, 30)]
    history = history_of(readings(dict.fromkeys(range(200), 1.0)), events, PUMP)
    schema = schema_of(history, TINY)
    grid = grid_of(history, schema)
    features = features_of(grid, fit_normaliser(grid))
    unit = np.log1p(1) / np.log1p(32)
    counted = np.expm1(features.slow[:, 1:3].astype(float) * np.log1p(32)).round(3)
    assert counted[1].tolist() == [3.0, 3.0]
    assert counted[24].tolist() == [2.0, 3.0]
    assert counted[25].tolist() == [0.0, 3.0]
    assert counted[30].tolist() == [1.0, 4.0]
    assert counted[168].tolist() == [0.0, 3.0]
    np.testing.assert_allclose(features.steps[[0, 2, 30], 3], [unit, 0.0, unit], rtol=1e-6)


def test_coarse_time_since_maintenance_has_few_classes_and_off_has_none():
    events = [event(0, EventKind.MAINTENANCE, "seal")]
    history = history_of(readings(dict.fromkeys(range(600), 1.0)), events, PUMP)

    def width(switch):
        schema = schema_of(history, TINY.model_copy(update={"schedule_features": switch}))
        grid = grid_of(history, schema)
        return features_of(grid, fit_normaliser(grid)).slow

    assert width("off").shape[1] == 0
    assert len(np.unique(width("coarse")[:, 0])) == 7
    exact = width("exact")
    assert len(np.unique(exact[:, 0])) == 600
    # The network cuts every column into eighths, so that 12 h are a step of it in the seventh week as in the first.
    moved = np.abs(np.diff(exact[1::12, 1:], axis=0)).sum(axis=1)
    np.testing.assert_allclose(moved, 12 / 96, atol=1e-6)
    np.testing.assert_allclose(exact[1 + 96 * 2 + 24, 1:5], [1.0, 1.0, 0.25, 0.0], atol=0.02)


def test_points_are_normalised_by_asset_model_and_a_lost_one_reads_as_missing():
    rng = np.random.default_rng(0)
    cold, hot = rng.normal(10, 2, 600), rng.normal(1000, 50, 600)
    cold[5] = np.nan
    frame = reading_frame([("a", hours(*range(600)), {"heat": cold}), ("b", hours(*range(600)), {"heat": hot})])
    history = history_of(frame, [], (Asset("a", "small"), Asset("b", "large")))
    grid = grid_of(history, schema_of(history, TINY))
    features = features_of(grid, fit_normaliser(grid))
    for rows in (slice(0, 600), slice(600, 1200)):
        assert abs(np.median(features.steps[rows, 0])) < 0.05
        assert 0.8 < features.steps[rows, 0].std() < 1.2
    assert features.steps[5].tolist() == [0.0, 0.0, 0.0]
    assert np.abs(features.steps[:, 0]).max() <= 8.0


def test_features_have_the_same_bits_in_a_whole_life_and_in_a_window():
    history = worn_plant()
    history = hanging(history, "pump-0", ["heat"], 150, 80)
    history = hanging(history, "pump-1", ["heat", "noise"], 300, 80)
    schema = schema_of(history, TINY)
    assert schema.gappy == ("heat",)
    assert 6 <= min(schema.stuck.after) <= max(schema.stuck.after) <= 8
    whole = grid_of(history, schema)
    assert 60 < whole.hung.sum() < 100
    normaliser = fit_normaliser(whole)
    life = features_of(whole, normaliser)
    rng = np.random.default_rng(1)
    steps, context = schema.lookback_steps, schema.context
    for hour in [*rng.integers(100, 940, 12), *range(150, 420, 7)]:
        at = START + HOUR * int(hour)
        part = grid_before(history, schema, at, steps)
        window = features_of(part, normaliser)
        for a in range(len(history.assets)):
            end = int(whole.offsets[a] + to_us(at) // schema.step_us - whole.first_step[a])
            if not whole.offsets[a] + steps <= end < whole.offsets[a + 1]:
                continue
            mine, theirs = slice(end - context + 1, end + 1), slice((a + 1) * steps - context, (a + 1) * steps)
            np.testing.assert_array_equal(whole.hung[mine], part.hung[theirs])
            np.testing.assert_array_equal(life.summary[end], window.summary[(a + 1) * steps - 1])
            np.testing.assert_array_equal(life.steps[mine], window.steps[theirs])
            np.testing.assert_array_equal(life.slow[mine], window.slow[theirs])
        np.testing.assert_array_equal(life.static, window.static)


def test_the_time_since_a_reading_is_told_of_points_that_are_missing_at_times():
    heat, noise = np.arange(300.0), np.arange(300.0)
    heat[[10, 11, 12]] = np.nan
    heat[200:260] = np.nan
    frame = reading_frame([("pump", hours(*range(300)), {"heat": heat, "noise": noise})])
    history = history_of(frame, [], PUMP)
    schema = schema_of(history, TINY)
    assert schema.gappy == ("heat",)
    grid = grid_of(history, schema)
    slow = features_of(grid, fit_normaliser(grid)).slow[:, -1]
    since = np.expm1(slow.astype(float) * np.log1p(48)).round(3)
    assert since[8:15].tolist() == [0, 0, 1, 2, 3, 0, 0]
    assert since[199:260].tolist() == [*range(49), *[48] * 12]
    whole = history_of(frame[["time", "asset", "noise"]], [], PUMP)
    assert schema_of(whole, TINY).gappy == ()


def test_every_column_belongs_to_one_input():
    history = worn_plant()
    for switch in ("off", "coarse", "exact"):
        schema = schema_of(history, TINY.model_copy(update={"schedule_features": switch}))
        grid = grid_of(history, schema)
        features = features_of(grid, fit_normaliser(grid))
        for name in ("steps", "slow", "static"):
            owned = sorted(c for columns in columns_of(schema) for c in getattr(columns, name))
            assert owned == list(range(getattr(features, name).shape[1]))


def test_labels_tell_the_bin_the_mode_and_the_remaining_life():
    events = [event(5, EventKind.FAILURE, "seal"), event(5, EventKind.FAILURE, "bearing")]
    history = history_of(readings(dict.fromkeys(range(100), 1.0)), events, PUMP)
    grid = grid_of(history, schema_of(history, TINY))
    labels = labels_of(grid)
    assert labels.event_bin[:7].tolist() == [4, 3, 2, 1, 0, -1, -1]
    assert labels.modes[4].tolist() == [0.5, 0.5]
    assert labels.modes[5].tolist() == [0.0, 0.0]
    assert labels.rul[:5].tolist() == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert labels.known_bins[[5, 27, 28, 98, 99]].tolist() == [72, 72, 71, 1, 0]
    assert labels.rul_known.tolist() == [True] * 5 + [False] * 95


def test_the_end_of_a_record_is_censoring_and_not_health():
    history = history_of(readings(dict.fromkeys(range(200), 1.0)), [], PUMP)
    labels = labels_of(grid_of(history, schema_of(history, TINY)))
    assert (labels.event_bin == -1).all()
    assert labels.known_bins[[0, 126, 128, 199]].tolist() == [72, 72, 71, 0]
    assert labels.rul[[0, 74, 75]].tolist() == [125.0, 125.0, 124.0]
    assert labels.rul_known[[0, 74, 75]].tolist() == [True, True, False]


def test_a_failure_after_the_last_reading_is_known():
    history = history_of(readings({0: 1.0, 1: 1.0}), [event(3, EventKind.FAILURE, "seal")], PUMP)
    labels = labels_of(grid_of(history, schema_of(history, TINY)))
    assert labels.event_bin.tolist() == [2, 1]
    cut = labels_of(grid_of(history, schema_of(history, TINY), until=START + 2 * HOUR))
    assert cut.event_bin.tolist() == [-1, -1]
    assert cut.known_bins.tolist() == [1, 0]


def test_a_schema_survives_json_and_a_foreign_one_is_refused():
    schema = schema_of(worn_plant(), TINY)
    assert schema.stuck.after
    values = json.loads(json.dumps(schema.as_json()))
    assert FeatureSchema.from_json(values) == schema
    with pytest.raises(ModelError, match="schema"):
        FeatureSchema.from_json({key: value for key, value in values.items() if key != "points"})
    with pytest.raises(ModelError, match="schema"):
        FeatureSchema.from_json(values | {"colour": "red"})


def test_assets_and_events_of_others_are_left_out():
    history = worn_plant()
    alone = replace(history, assets=history.assets[2:3])
    schema = schema_of(history, TINY)
    whole, part = grid_of(history, schema), grid_of(alone, schema)
    rows = slice(int(whole.offsets[2]), int(whole.offsets[3]))
    np.testing.assert_array_equal(part.values, whole.values[rows])
    normaliser = fit_normaliser(whole)
    np.testing.assert_array_equal(features_of(part, normaliser).slow, features_of(whole, normaliser).slow[rows])
