"""Numbers for the forecaster from a grid: the one function that training, replay and the live service share.

Everything here works row by row or by counting events in whole steps and looking the result up in a table, so that
the same row has the same bits in a grid of any length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from forecasting.conditions import NormalBehaviour, fit_behaviour
from forecasting.labels import labels_of
from forecasting.life import Layout, life_so_far
from forecasting.recency import (
    PLAN_COLUMNS,
    EventClock,
    coarse_table,
    count_table,
    gap_table,
    gaps,
    plan_table,
    recency_table,
    steps_in,
)
from forecasting.regimes import Regimes, find_regimes
from forecasting.windows import FeatureSchema, Grid
from pm.domain import EventKind

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

CLIP = np.float32(8.0)
"""Normalised values end here: a broken sensor is no stronger than eight deviations."""
ENOUGH_ROWS = 500
"""An asset model with at least so many values of a point has its own centre and scale for it."""
SAMPLE_ROWS = 200_000


SUMMARY_ROWS = 20_000
"""Rows that the scale of the summaries is taken from."""

_ARRAYS = ("centre", "scale", "static_centre", "static_scale", "summary_centre", "summary_scale")


@dataclass(frozen=True)
class Normaliser:
    """Robust centre and scale of every point, by asset model and operating condition, and of every numeric static
    column; what each point should read given the others."""

    centre: npt.NDArray[np.float64]
    """[G + 1, C + 1, P] by asset model of the schema, the last for any other, and condition, the last for any other.

    Folds (`forecasting.crossfit`) follow, of as many groups each; a stored normaliser has none."""
    scale: npt.NDArray[np.float64]
    static_centre: npt.NDArray[np.float64]
    static_scale: npt.NDArray[np.float64]
    summary_centre: npt.NDArray[np.float64]
    """[M] mean of every summary column, and their deviation."""
    summary_scale: npt.NDArray[np.float64]
    regimes: Regimes
    behaviour: NormalBehaviour
    fold_of: Mapping[str, int] = field(default_factory=dict)
    """Assets of training that stand in a fold (`forecasting.crossfit`): each fold adds G + 1 to the groups."""

    def group_of(self, grid: Grid) -> Ints:
        """[A] place of each asset's scales and expectations in `centre`, `scale` and `behaviour`."""
        fold = np.array([self.fold_of.get(asset.name, 0) for asset in grid.assets], dtype=np.int64)
        return model_index(grid) + fold * (len(grid.schema.asset_models) + 1)

    def place(self, grid: Grid, rows: Ints) -> tuple[Ints, Ints]:
        """[R] group and operating condition of these rows, as `centre` and `scale` number them."""
        return self.group_of(grid)[grid.asset_of[rows]], self.regimes.of(grid.values[rows])

    def as_json(self) -> dict[str, Any]:
        if self.fold_of:
            raise ValueError("folds are for training alone: store the normaliser that they were made of")
        return {name: getattr(self, name).tolist() for name in _ARRAYS} | {
            "regimes": self.regimes.as_json(),
            "behaviour": self.behaviour.as_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], schema: FeatureSchema) -> Normaliser:
        groups, points = len(schema.asset_models) + 1, len(schema.points)
        read = {name: np.asarray(values[name], dtype=np.float64) for name in _ARRAYS}
        regimes, width = Regimes.from_json(values["regimes"]), layout_of(schema).width
        return cls(
            read["centre"].reshape(groups, regimes.count + 1, points),
            read["scale"].reshape(groups, regimes.count + 1, points),
            read["static_centre"].reshape(len(schema.static_numeric)),
            read["static_scale"].reshape(len(schema.static_numeric)),
            read["summary_centre"].reshape(width),
            read["summary_scale"].reshape(width),
            regimes,
            NormalBehaviour.from_json(values["behaviour"], groups, points),
        )


@dataclass(frozen=True)
class Features:
    """What the model reads, by row of the grid and by asset."""

    steps: Floats
    """[N, 3P + E] values of the points, what they read beyond their expectation given the others, their presence, and
    how many errors of each code the step brought."""
    slow: Floats
    """[N, L] in [0, 1]: time since and counts of every event channel, time since the last reading of gappy points."""
    static: Floats
    """[A, S] asset model and static columns."""
    observed: npt.NDArray[np.bool_]
    """[N] whether anything was read in the step."""
    lost: Floats
    """[M] what `summary` reads of a point that was never read; nothing in the columns that are of no point."""
    summary: Floats
    """[R, M] what each point's life so far looks like, and the asset's age, at the rows of `summarised`."""
    group: Ints
    """[A] place of each asset's expectations in `needs`."""
    needs: Floats
    """[G, P, P] `NormalBehaviour.needs`: which points go unexpected where another is lost."""
    summarised: Ints | None = None
    """[R] rows that have a summary; None for all of them."""


@dataclass(frozen=True)
class Columns:
    """Where one input stands in the arrays of `Features`, and what it looks like when it is absent."""

    name: str
    steps: tuple[int, ...] = ()
    slow: tuple[int, ...] = ()
    slow_absent: tuple[float, ...] = ()
    static: tuple[int, ...] = ()
    summary: tuple[int, ...] = ()


def layout_of(schema: FeatureSchema) -> Layout:
    """How the summaries of this schema are laid out."""
    return Layout(len(schema.points), schema.life, {"off": 0, "coarse": 1, "exact": 2}[schema.schedule_features])


def columns_of(schema: FeatureSchema) -> tuple[Columns, ...]:
    """Every input by its own name: points, event codes, static columns. Together they cover every column."""
    points, errors, layout = len(schema.points), len(schema.error_codes), layout_of(schema)
    gap = gap_columns(schema)
    found = [
        Columns(
            point,
            steps=(i, points + i, 2 * points + i),
            slow=(gap[i],) if i in gap else (),
            slow_absent=(1.0,) if i in gap else (),
            summary=layout.of_point(i),
        )
        for i, point in enumerate(schema.points)
    ]
    found += [
        Columns(f"error {code}", (3 * points + i,), (3 * i, 3 * i + 1, 3 * i + 2), (1.0, 0.0, 0.0))
        for i, code in enumerate(schema.error_codes)
    ]
    if schema.schedule_features != "off":
        width = _since_width(schema)
        for i, (kind, code) in enumerate(schema.event_channels[errors:]):
            first = 3 * errors + i * width
            found.append(Columns(f"{kind} {code}", (), tuple(range(first, first + width)), (1.0,) * width))
        found.append(Columns("age", summary=layout.of_age))
    place = len(schema.asset_models)
    found.append(Columns("asset model", static=tuple(range(place))))
    for name in schema.static_numeric:
        found.append(Columns(name, static=(place, place + 1)))
        place += 2
    for name, levels in schema.static_levels:
        found.append(Columns(name, static=tuple(range(place, place + len(levels)))))
        place += len(levels)
    return tuple(found)


def fit_normaliser(grid: Grid) -> Normaliser:
    """Median and quartile range of every point, over the rows of `grid` (the training assets)."""
    schema = grid.schema
    asset_of = grid.asset_of
    group = model_index(grid)[asset_of]
    named = [schema.points.index(name) for name in schema.condition_points]
    regimes = find_regimes(grid.values, asset_of, named)
    condition = regimes.of(grid.values)
    centre, scale = _fleet_scale(grid.values, group, condition, len(schema.asset_models), regimes.count)
    normal, present = normalised(grid.values, centre, scale, group, condition)
    sound = sound_rows(grid)
    behaviour = fit_behaviour(normal[sound], present[sound], group[sound], len(schema.asset_models))
    layout = layout_of(schema)
    rows = np.flatnonzero(grid.observed)
    rows = rows[:: max(1, len(rows) // SUMMARY_ROWS)]
    summary, age = life_so_far(layout, normal, present, grid.offsets, rows)
    summary = np.concatenate([summary, _age(schema, age)], axis=1).astype(np.float64)
    known = ~np.isnan(summary)
    count = np.maximum(known.sum(axis=0), 1)
    middle = np.where(known, summary, 0.0).sum(axis=0) / count
    spread = np.sqrt(np.where(known, (summary - middle) ** 2, 0.0).sum(axis=0) / count)
    spread = np.where(spread > 1e-6, spread, 1.0)
    return Normaliser(centre, scale, *_robust(_static_numbers(grid)), middle, spread, regimes, behaviour)


def sound_rows(grid: Grid) -> npt.NDArray[np.bool_]:
    """[N] rows far from any failure, where wear does not show yet: there is learned what is normal. All if few are."""
    far = labels_of(grid).rul >= grid.schema.rul_cap
    return far if far.sum() >= 0.1 * len(far) else np.ones(len(far), dtype=bool)


def _fleet_scale(
    values: Floats, group: Ints, condition: Ints, groups: int, conditions: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """[groups + 1, conditions + 1, P] centre and scale: of a model in a condition where it has been read enough, else
    of all models in the condition, else of everything."""
    everything = _robust(values[:: max(1, len(values) // SAMPLE_ROWS)])
    centre = np.tile(everything[0], (groups + 1, conditions + 1, 1))
    scale = np.tile(everything[1], (groups + 1, conditions + 1, 1))
    for c in range(conditions + 1):
        for g in (groups, *range(groups)):
            if conditions and c == conditions:
                continue
            inside = (condition == c) | (conditions == 0)
            rows = np.flatnonzero(inside if g == groups else inside & (group == g))
            centre[g, c], scale[g, c] = scale_of(values, rows, centre[groups, c], scale[groups, c])
    return centre, scale


def scale_of(
    values: Floats, rows: Ints, centre: npt.NDArray[np.float64], scale: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """[P] centre and scale of these rows; what is given for points that they hold too few readings of."""
    rows = rows[:: max(1, len(rows) // SAMPLE_ROWS)]
    enough = (~np.isnan(values[rows])).sum(axis=0) >= ENOUGH_ROWS
    own = _robust(values[rows])
    return np.where(enough, own[0], centre), np.where(enough, own[1], scale)


def features_of(grid: Grid, normaliser: Normaliser, summarised: Ints | None = None) -> Features:
    """The features of every row of `grid`, with summaries at the rows `summarised` (all of them by default)."""
    schema, group = grid.schema, normaliser.group_of(grid)[grid.asset_of]
    points, errors = len(schema.points), len(schema.error_codes)
    steps = np.zeros((len(grid), 3 * points + errors), dtype=np.float32)
    condition = normaliser.regimes.of(grid.values)
    normal, present = normalised(grid.values, normaliser.centre, normaliser.scale, group, condition)
    steps[:, :points] = normal
    steps[:, points : 2 * points] = normaliser.behaviour.residuals(normal, present, group)
    steps[:, 2 * points : 3 * points] = present
    rows = np.arange(len(grid), dtype=np.int64) if summarised is None else summarised
    summary = _summary(grid, normaliser, normal, present, rows)
    slow = np.zeros((len(grid), slow_width(schema)), dtype=np.float32)
    clock = EventClock(grid)
    recency, counts = recency_table(schema), count_table()
    day, week = steps_in(schema, 24), steps_in(schema, 168)
    for channel, (kind, _) in enumerate(schema.event_channels):
        if kind is EventKind.ERROR:
            last, counted = clock.elapsed(channel), clock.counts(channel, (1, day, week))
            steps[:, 3 * points + channel] = counts[counted[0]]
            slow[:, 3 * channel] = recency[last]
            slow[:, 3 * channel + 1] = counts[counted[1]]
            slow[:, 3 * channel + 2] = counts[counted[2]]
        elif schema.schedule_features != "off":
            since, width = clock.elapsed(channel), _since_width(schema)
            first = 3 * errors + (channel - errors) * width
            if schema.schedule_features == "coarse":
                slow[:, first] = coarse_table(schema)[since]
            else:
                slow[:, first] = recency[since]
                slow[:, first + 1 : first + width] = plan_table(schema)[since]
    for point, column in gap_columns(schema).items():
        slow[:, column] = gap_table()[gaps(present[:, point], grid.offsets)]
    return Features(
        steps,
        slow,
        _static(grid, normaliser),
        grid.observed,
        lost_summary(schema, normaliser),
        summary,
        normaliser.group_of(grid),
        normaliser.behaviour.needs,
        summarised,
    )


def _summary(grid: Grid, normaliser: Normaliser, normal: Floats, present: npt.NDArray[np.bool_], rows: Ints) -> Floats:
    """[R, M] standardised summaries, zero where there was nothing to go by."""
    summary, age = life_so_far(layout_of(grid.schema), normal, present, grid.offsets, rows)
    return _standardised(np.concatenate([summary, _age(grid.schema, age)], axis=1), normaliser)


def _standardised(summary: Floats, normaliser: Normaliser) -> Floats:
    """[R, M] in place: less their mean over their deviation, clipped; zero where there was nothing to go by."""
    summary -= normaliser.summary_centre.astype(np.float32)
    summary /= normaliser.summary_scale.astype(np.float32)
    return np.clip(np.nan_to_num(summary, copy=False, nan=0.0), -CLIP, CLIP, out=summary)


def lost_summary(schema: FeatureSchema, normaliser: Normaliser) -> Floats:
    """[M] standardised summaries of points that were not read in all of a life: no readings, and nothing else known."""
    layout = layout_of(schema)
    summary = np.full((1, layout.width), np.nan, dtype=np.float32)
    summary[:, layout.of_shares] = 0.0
    lost: Floats = _standardised(summary, normaliser)[0]
    return lost


def _age(schema: FeatureSchema, steps: Ints) -> Floats:
    """[R, 0 to 2] steps since the first known reading, as finely as the schema lets time since maintenance be seen."""
    tables: tuple[npt.NDArray[Any], ...] = ()
    if schema.schedule_features == "coarse":
        tables = (coarse_table(schema)[: schema.life],)
    elif schema.schedule_features == "exact":
        whole = np.arange(schema.life)
        tables = np.log1p(whole) / np.log1p(max(schema.life - 1, 1)), whole / max(schema.life - 1, 1)
    columns = [np.asarray(table, dtype=np.float32)[steps] for table in tables]
    return np.stack(columns, axis=1) if columns else np.zeros((len(steps), 0), dtype=np.float32)


def normalised(
    values: Floats, centre: npt.NDArray[np.float64], scale: npt.NDArray[np.float64], group: Ints, condition: Ints
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """[N, P] normalised and clipped values, zero where missing; and where they are not missing.

    group, condition: [N] places in `centre` and `scale`.
    """
    present = ~np.isnan(values)
    normal = values - centre.astype(np.float32)[group, condition]
    normal /= scale.astype(np.float32)[group, condition]
    return np.where(present, np.clip(normal, -CLIP, CLIP), np.float32(0.0)), present


def standardised(grid: Grid, normaliser: Normaliser, rows: Ints) -> tuple[Floats, Floats, Ints]:
    """[R, P] values and residuals of these rows as far as they go, not clipped, NaN where they are not told; [R]
    condition."""
    group, condition = normaliser.place(grid, rows)
    present = ~np.isnan(grid.values[rows])
    value = grid.values[rows] - normaliser.centre.astype(np.float32)[group, condition]
    value /= normaliser.scale.astype(np.float32)[group, condition]
    normal = np.where(present, np.clip(value, -CLIP, CLIP), np.float32(0.0))
    residual = normaliser.behaviour.residuals(normal, present, group, np.float32(np.inf))
    told = normaliser.behaviour.told(present, group)
    return value, np.where(told, residual, np.float32(np.nan)), condition


def slow_width(schema: FeatureSchema) -> int:
    """Columns of `Features.slow`."""
    return _event_width(schema) + len(schema.gappy)


def gap_columns(schema: FeatureSchema) -> dict[int, int]:
    """By place of each gappy point among the points, the column of `Features.slow` that tells its time unread."""
    return {schema.points.index(name): _event_width(schema) + place for place, name in enumerate(schema.gappy)}


def _event_width(schema: FeatureSchema) -> int:
    errors = len(schema.error_codes)
    others = len(schema.event_channels) - errors
    return 3 * errors + others * _since_width(schema)


def _since_width(schema: FeatureSchema) -> int:
    """Columns that tell how long ago one kind of maintenance or failure was."""
    return {"off": 0, "coarse": 1, "exact": 1 + PLAN_COLUMNS}[schema.schedule_features]


def model_index(grid: Grid) -> Ints:
    """[A] index of each asset's model in the schema; the last index for a model not seen in training."""
    known = {model: i for i, model in enumerate(grid.schema.asset_models)}
    return np.array([known.get(asset.model, len(known)) for asset in grid.assets], dtype=np.int64)


def _static_numbers(grid: Grid) -> npt.NDArray[np.float64]:
    """[A, numeric columns]; NaN where an asset lacks the column."""
    values = np.full((len(grid.assets), len(grid.schema.static_numeric)), np.nan)
    for a, asset in enumerate(grid.assets):
        for column, name in enumerate(grid.schema.static_numeric):
            value = asset.static.get(name)
            if isinstance(value, int | float):
                values[a, column] = value
    return values


def _static(grid: Grid, normaliser: Normaliser) -> Floats:
    """[A, S]: asset model as one of many, numeric columns as value and presence, text columns as one of many."""
    schema = grid.schema
    models = np.eye(len(schema.asset_models) + 1, dtype=np.float32)[model_index(grid)][:, :-1]
    numbers = _static_numbers(grid)
    present = ~np.isnan(numbers)
    normal = np.clip((numbers - normaliser.static_centre) / normaliser.static_scale, -CLIP, CLIP)
    columns = [models]
    for i in range(numbers.shape[1]):
        columns += [np.where(present[:, i], normal[:, i], 0.0)[:, None], present[:, i : i + 1]]
    for name, levels in schema.static_levels:
        values = [str(asset.static.get(name)) for asset in grid.assets]
        columns.append(np.array([[value == level for level in levels] for value in values]).reshape(-1, len(levels)))
    return np.concatenate(columns, axis=1).astype(np.float32)


def _robust(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Centre and scale by column: median and quartile range; the deviation, then 1, where the range is nothing."""
    centre, scale = np.zeros(values.shape[1]), np.ones(values.shape[1])
    for column in range(values.shape[1]):
        known = values[:, column].astype(np.float64)
        known = known[~np.isnan(known)]
        if len(known):
            low, centre[column], high = np.quantile(known, [0.25, 0.5, 0.75])
            spread = (high - low) / 1.349
            deviation = float(known.std())
            tiny = 1e-6 * abs(float(centre[column])) + 1e-30
            # A point that rests at one value most of the time has quartiles that say nothing of its moves.
            scale[column] = spread if spread > max(tiny, 0.05 * deviation) else deviation if deviation > tiny else 1.0
    return centre, scale
