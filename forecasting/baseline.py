"""What a forecaster must beat: gradient boosting on the same inputs, and a plain hazard by age. No torch.

Both learn from the assets that a forecaster learned from and answer for the same assets and times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

import lightgbm
import numpy as np
from numpy.typing import NDArray

from forecasting.crossfit import cross_fitted
from forecasting.features import Normaliser, features_of, fit_normaliser
from forecasting.metrics import UNKNOWN, Outcomes, outcomes
from forecasting.summaries import LIFE, summarise
from forecasting.windows import FeatureSchema, Grid, grid_of
from pm.domain import REPORTED_HOURS, History, to_us
from pm.errors import TrainingError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WINDOWS: Final = (6, 24, 72, 168, LIFE)
"""Trailing windows of the summaries, in steps."""
MOST_ROWS: Final = 80_000
"""Rows that boosting learns from at most, drawn evenly: rows of one asset differ little from hour to hour."""
_CHUNK: Final = 100_000


@dataclass(frozen=True)
class BaselineForecast:
    """Answers for N assets and times; NaN where the asset has no history at that time."""

    probability: Mapping[int, Floats]
    """[N] probability of failing within so many hours, rising with them."""
    rul_hours: Floats
    """[N] expected remaining life in hours, capped as the schema says."""


class Baseline(Protocol):
    """A fitted baseline."""

    def forecast(self, history: History, assets: Sequence[str], time_us: Ints) -> BaselineForecast:
        """One answer for each of N (asset, time) pairs, from nothing dated after the time."""


def training_grid(history: History, schema: FeatureSchema, assets: Sequence[str], until: datetime | None) -> Grid:
    """The grid of these assets alone. Raises TrainingError when none of them was read."""
    wanted = set(assets)
    chosen = tuple(asset for asset in history.assets if asset.name in wanted)
    part = History(history.interval, history.points, history.failure_modes, chosen, history.readings, history.events)
    grid = grid_of(part, schema, until=until)
    if not len(grid):
        raise TrainingError(f"no readings of {', '.join(sorted(wanted)) or 'any asset'} to learn a baseline from")
    return grid


def rows_at(grid: Grid, assets: Sequence[str], time_us: Ints) -> Ints:
    """[N] the row of the last step that ended by each time; -1 where the asset has no such row."""
    code = {asset.name: index for index, asset in enumerate(grid.assets)}
    index = np.array([code.get(name, -1) for name in assets], np.int64)
    step = (time_us - grid.phase_us) // grid.schema.step_us
    row = grid.offsets[index] + step - grid.first_step[index]
    inside = (index >= 0) & (step >= grid.first_step[index]) & (row < grid.offsets[index + 1])
    return np.where(inside, row, -1)


def _followed(grid: Grid, rows: Ints) -> Outcomes:
    return outcomes(grid.asset_of[rows], grid.times_us[rows], grid.failures[0], grid.failures[1], grid.end_us)


# --- gradient boosting


class GradientBoosting:
    """LightGBM: a classifier for each reported horizon and a regressor of remaining life.

    Inputs are the forecaster's own features at the time (values, event counts and recency, static columns, under the
    same `schedule_features`), and means, extremes, scatter and slope of every point over trailing windows and over
    the whole life so far.
    """

    def __init__(self, schema: FeatureSchema, normaliser: Normaliser, trees: Mapping[int, Any], life: Any) -> None:
        self._schema = schema
        self._normaliser = normaliser
        self._trees = trees
        self._life = life

    @classmethod
    def fit(
        cls,
        history: History,
        *,
        schema: FeatureSchema,
        train_assets: Sequence[str],
        validation_assets: Sequence[str],
        seed: int,
        until: datetime | None = None,
        validation_from: datetime | None = None,
        most_trees: int = 300,
        threads: int = 0,
        hours: Sequence[int] = REPORTED_HOURS,
    ) -> GradientBoosting:
        """Learn from `train_assets`, stopped by `validation_assets`, from nothing dated after `until`.

        validation_from: learning ends there and what stops it begins, as in `forecasting.train.fit`. The same arguments
        give the same trees. threads 0 takes every core. hours: the horizons that are asked for. Raises TrainingError
        where the training assets have no readings.
        """
        rng = np.random.default_rng(seed)
        train = training_grid(history, schema, train_assets, validation_from or until)
        normaliser = fit_normaliser(train)
        learn = _Sample(train, cross_fitted(train, normaliser), rng)
        stop = None
        if validation_assets:
            stop = _Sample(training_grid(history, schema, validation_assets, until), normaliser, rng, validation_from)
        settings = {
            "learning_rate": 0.08,
            "num_leaves": 31,
            "min_data_in_leaf": int(np.clip(learn.X.shape[0] // 500, 10, 100)),
            "feature_fraction": 0.4,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "lambda_l2": 1.0,
            "max_bin": 63,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": threads,
            "seed": seed,
            "verbosity": -1,
        }
        boosters = {}
        for horizon in hours:
            boosters[horizon] = _boost(
                settings | {"objective": "binary"},
                learn.failing(horizon),
                stop.failing(horizon) if stop else None,
                most_trees,
            )
        life = _boost(settings | {"objective": "l2"}, learn.life(), stop.life() if stop else None, most_trees)
        return cls(schema, normaliser, boosters, life)

    def forecast(self, history: History, assets: Sequence[str], time_us: Ints) -> BaselineForecast:
        grid = training_grid(history, self._schema, sorted(set(assets)), None)
        rows = rows_at(grid, assets, time_us)
        horizons = sorted(self._trees)
        probability = np.full((rows.size, len(horizons)), np.nan)
        rul = np.full(rows.size, np.nan)
        known = np.flatnonzero(rows >= 0)
        for part in np.array_split(known, max(1, -(-known.size // _CHUNK))):
            X = _inputs(grid, self._normaliser, rows[part])
            for column, hours in enumerate(horizons):
                probability[part, column] = _answers(self._trees[hours], X)
            rul[part] = np.clip(_answers(self._life, X), 0.0, self._schema.rul_cap)
        # Three models know nothing of each other: a longer horizon is never less likely.
        probability = np.maximum.accumulate(probability, axis=1)
        by_hours = {hours: probability[:, column] for column, hours in enumerate(horizons)}
        return BaselineForecast(by_hours, rul * self._schema.step_hours)


class _Sample:
    """Rows to learn from or to stop by, with what followed them."""

    def __init__(
        self, grid: Grid, normaliser: Normaliser, rng: np.random.Generator, start: datetime | None = None
    ) -> None:
        """start: only rows after it."""
        read = np.flatnonzero(grid.observed if start is None else grid.observed & (grid.times_us > to_us(start)))
        rows = np.sort(rng.choice(read, min(read.size, MOST_ROWS), replace=False))
        self.X = _inputs(grid, normaliser, rows)
        self._followed = _followed(grid, rows)
        self._schema = grid.schema

    def failing(self, hours: int) -> tuple[NDArray[np.float32], Floats]:
        truth = self._followed.within(hours)
        known = truth != UNKNOWN
        return self.X[known], (truth[known] == 1).astype(np.float64)

    def life(self) -> tuple[NDArray[np.float32], Floats]:
        hours, known = hours_of(self._followed, self._schema)
        return self.X[known], hours[known] / self._schema.step_hours


def _inputs(grid: Grid, normaliser: Normaliser, rows: Ints) -> NDArray[np.float32]:
    """[R, C] what boosting sees of these rows."""
    features, points = features_of(grid, normaliser, rows), grid.values.shape[1]
    normal = np.where(np.isnan(grid.values), np.nan, features.steps[:, :points])
    summaries = summarise(normal, grid.offsets, rows, WINDOWS)
    static = features.static[grid.asset_of[rows]]
    parts = (features.steps[rows], features.slow[rows], static, features.summary, grid.values[rows], summaries)
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _boost(
    settings: Mapping[str, Any],
    learn: tuple[NDArray[np.float32], Floats],
    stop: tuple[NDArray[np.float32], Floats] | None,
    most_trees: int,
) -> Any:
    """A booster, or the mean where there is nothing to tell apart."""
    X, y = learn
    if y.size == 0 or y.min() == y.max():
        return float(y.mean()) if y.size else 0.0
    train = lightgbm.Dataset(X, y)
    if stop is None or not stop[1].size or stop[1].min() == stop[1].max():
        return lightgbm.train(dict(settings), train, min(most_trees, 100))
    early = lightgbm.early_stopping(20, verbose=False)
    watched = lightgbm.Dataset(*stop, reference=train)
    return lightgbm.train(dict(settings), train, most_trees, valid_sets=[watched], callbacks=[early])


def _answers(booster: Any, X: NDArray[np.float32]) -> Floats:
    if isinstance(booster, float):
        return np.full(X.shape[0], booster)
    return np.asarray(booster.predict(X), np.float64)


# --- hazard by age


class HazardByAge:
    """The hazard by time since the asset's last failure (since its first reading, where none is recorded).

    A life table: failures over steps at risk, by day of age, each day drawn towards the overall rate by one failure's
    worth of it. It knows no reading and no event but failures.
    """

    def __init__(self, schema: FeatureSchema, hazard: Floats) -> None:
        """hazard [B]: per step, by day of age; beyond the last day the last holds."""
        self._schema = schema
        self._hazard = hazard

    @classmethod
    def fit(
        cls, history: History, *, schema: FeatureSchema, train_assets: Sequence[str], until: datetime | None = None
    ) -> HazardByAge:
        """Count over `train_assets`. Raises TrainingError where they have no readings."""
        grid = training_grid(history, schema, train_assets, until)
        rows = np.arange(len(grid))
        age = _age(grid, rows)
        truth = _followed(grid, rows).within(schema.step_hours)
        day = age // _day(schema)
        days = int(day.max()) + 2  # one day more, that nobody has reached: the overall rate
        at_risk = np.bincount(day[truth != UNKNOWN], minlength=days)
        failures = np.bincount(day[truth == 1], minlength=days)
        rate = failures.sum() / max(at_risk.sum(), 1)
        hazard = (failures + 1.0) / (at_risk + 1.0 / rate) if rate > 0 else np.zeros(days)
        return cls(schema, hazard)

    def forecast(self, history: History, assets: Sequence[str], time_us: Ints) -> BaselineForecast:
        grid = training_grid(history, self._schema, sorted(set(assets)), None)
        rows = rows_at(grid, assets, time_us)
        age = np.where(rows >= 0, _age(grid, np.maximum(rows, 0)), 0)
        cap = self._schema.rul_cap
        longest = int(age.max(initial=0)) + max(cap, self._schema.horizon_steps) + 1
        steps = self._hazard[np.minimum(np.arange(longest) // _day(self._schema), self._hazard.size - 1)]
        summed = np.concatenate(([0.0], np.cumsum(-np.log1p(-np.minimum(steps, 0.999999)))))
        unknown = rows < 0
        probability = {}
        for hours in REPORTED_HOURS:
            ahead = age + int(hours / self._schema.step_hours)
            probability[hours] = np.where(unknown, np.nan, -np.expm1(summed[age] - summed[ahead]))
        rul = np.zeros(age.size)
        for step in range(cap):
            rul += np.exp(summed[age] - summed[age + step])
        return BaselineForecast(probability, np.where(unknown, np.nan, rul * self._schema.step_hours))


def _day(schema: FeatureSchema) -> int:
    """Steps in a day, at least one."""
    return max(1, round(24 / schema.step_hours))


def _age(grid: Grid, rows: Ints) -> Ints:
    """[R] whole steps since the asset's last failure strictly before the row's time, or since its first row."""
    asset, step, times = grid.asset_of[rows], grid.step_of[rows], grid.times_us[rows]
    age = step - grid.first_step[asset]
    failed_asset, failed_us, _ = grid.failures
    bounds = np.searchsorted(failed_asset, np.arange(len(grid.assets) + 1))
    for index in range(len(grid.assets)):
        dated = failed_us[bounds[index] : bounds[index + 1]]
        own = np.flatnonzero(asset == index)
        last = np.searchsorted(dated, times[own], side="left") - 1
        had = own[last >= 0]
        age[had] = (times[had] - dated[last[last >= 0]]) // grid.schema.step_us
    return age


def hours_of(outcome: Outcomes, schema: FeatureSchema) -> tuple[Floats, NDArray[np.bool_]]:
    """[N] remaining life in hours, capped as the schema says, and whether it was observed."""
    cap = schema.rul_cap * schema.step_hours
    known = np.isfinite(outcome.failure_hours) | (outcome.observed_hours >= cap)
    return np.minimum(outcome.failure_hours, cap), known
