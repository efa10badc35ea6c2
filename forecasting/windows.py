"""The grid: sensor data and events of many assets on regular steps, causal and the same for training and serving.

Steps are numbered from the epoch: step `k` ends at `phase + k * step`, and its row averages the readings dated in the
interval that ends there. Every value of a row depends on readings of that step and on events visible at it, never on
where the grid begins, so that a grid of a whole life and one of the last week hold the same bits.

The information rule: a row at *t* sees readings and error events dated <= *t*, and maintenance and failure records
dated strictly before *t* (a maintenance record dated as a failure is that failure's repair).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from forecasting.stuck import NEVER, Stuck, fit_stuck
from pm.domain import HORIZON_HOURS, Asset, EventKind, History, to_us
from pm.errors import ModelError

if TYPE_CHECKING:
    from pm.config import TrainSection

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

HOUR_US = 3_600_000_000
STEPS = (1, 2, 3, 4, 6, 8, 12, 24)
"""Hours of a model's step: whole parts of a day, so that 24, 48 and 72 h are whole numbers of steps. It is the first
that is not shorter than the interval; readings further apart than a day leave steps empty."""
GAP_STEPS = 48
"""Time since a point's last reading is told up to so many steps."""
GAPPY = 0.001
"""It is told of points that were missing in so large a share of the steps of training that others were read in."""
MAX_LEVELS = 32
"""A text column with more levels than this names assets rather than kinds of assets, and is left out."""


@dataclass(frozen=True)
class FeatureSchema:
    """What a forecaster takes: names, codes and sizes, as stored with the model."""

    step_seconds: int
    horizon_steps: int
    phase_us: int
    """Where steps end within their period: readings dated 01:00 each day have a phase of an hour."""
    context: int
    patch: int
    points: tuple[str, ...]
    error_codes: tuple[str, ...]
    maintenance_codes: tuple[str, ...]
    failure_modes: tuple[str, ...]
    asset_models: tuple[str, ...]
    static_numeric: tuple[str, ...]
    static_levels: tuple[tuple[str, tuple[str, ...]], ...]
    """Text columns with their levels."""
    schedule_features: str
    rul_cap: int
    """Remaining life is told up to so many steps."""
    life: int
    """Steps that the summaries of an asset's life reach back."""
    condition_points: tuple[str, ...]
    """Points that are said to tell of the operating condition; none: they are found."""
    stuck: Stuck = NEVER
    """When each point is taken as missing since its sensor hangs; nothing in models from before."""
    gappy: tuple[str, ...] = ()
    """Points that training saw missing: of them the time since the last reading is told."""

    @property
    def lookback_steps(self) -> int:
        """Steps of readings that a forecast looks at."""
        context = self.context + (GAP_STEPS if self.gappy else 0)
        return max(context, self.life, self.stuck.span) + self.stuck.lookback

    @property
    def step_us(self) -> int:
        return self.step_seconds * 1_000_000

    @property
    def step_hours(self) -> float:
        return self.step_seconds / 3600

    @property
    def event_channels(self) -> tuple[tuple[EventKind, str], ...]:
        """Kind and code of every event channel, in the order that `Grid.visible` numbers them."""
        return (
            *((EventKind.ERROR, code) for code in self.error_codes),
            *((EventKind.MAINTENANCE, code) for code in self.maintenance_codes),
            *((EventKind.FAILURE, code) for code in self.failure_modes),
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> FeatureSchema:
        """Back from `as_json` after a trip through JSON. Raises ModelError when keys are missing or unknown."""
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        try:
            read["static_levels"] = tuple((name, tuple(levels)) for name, levels in read["static_levels"])
            if "stuck" in read:
                after, rest = read["stuck"]["after"], read["stuck"]["rest"]
                read["stuck"] = Stuck(tuple(after), tuple(tuple(values) for values in rest))
                if not len(after) == len(rest) == len(read["points"]):
                    raise ValueError("stuck is not told of each point")
            return cls(**read)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the model's schema is not of this version of pm ({error}); train it anew") from None


def schema_of(history: History, settings: TrainSection) -> FeatureSchema:
    """What this history offers to learn from. Raises ModelError for condition points that nothing reads."""
    seconds = 3600 * next((hours for hours in STEPS if timedelta(hours=hours) >= history.interval), STEPS[-1])
    times = _microseconds(history.readings["time"])
    phases = np.unique(times % (seconds * 1_000_000))
    codes = {kind: _codes(history.events, kind) for kind in EventKind}
    named = [mode.code for mode in history.failure_modes]
    numeric, levels = _static_columns(history.assets)
    points = tuple(point.name for point in history.points if point.name in history.readings)
    unknown = [name for name in settings.condition_points if name not in points]
    if unknown:
        raise ModelError(
            f"train.condition_points names {', '.join(unknown)}, which nothing reads; name points of the feed, or none"
        )
    schema = FeatureSchema(
        step_seconds=seconds,
        horizon_steps=HORIZON_HOURS * 3600 // seconds,
        phase_us=int(phases[0]) if len(phases) == 1 else 0,
        context=settings.context,
        patch=settings.patch,
        points=points,
        error_codes=codes[EventKind.ERROR],
        maintenance_codes=codes[EventKind.MAINTENANCE],
        failure_modes=tuple(dict.fromkeys([*named, *codes[EventKind.FAILURE]])),
        asset_models=tuple(sorted({asset.model for asset in history.assets})),
        static_numeric=numeric,
        static_levels=levels,
        schedule_features=settings.schedule_features,
        rul_cap=settings.rul_cap,
        life=settings.life,
        condition_points=tuple(settings.condition_points),
    )
    return _with_usual_gaps(schema, grid_of(history, schema))


def _with_usual_gaps(schema: FeatureSchema, grid: Grid) -> FeatureSchema:
    """The schema, knowing when a point's sensor hangs and which points are missing at times."""
    stuck = fit_stuck(grid.values, grid.offsets)
    missing = np.isnan(grid.values) | stuck.rows(grid.values, grid.offsets)
    missing = missing[~missing.all(axis=1)]
    share = missing.sum(axis=0) / max(len(missing), 1)
    gappy = tuple(name for name, often in zip(schema.points, share >= GAPPY, strict=True) if often)
    return replace(schema, stuck=stuck, gappy=gappy)


@dataclass(frozen=True)
class Grid:
    """Steps of assets, ragged: asset `a` owns rows `offsets[a]` to `offsets[a + 1]` of the flat arrays."""

    schema: FeatureSchema
    assets: tuple[Asset, ...]
    phase_us: int
    offsets: Ints
    """[A + 1] first row of each asset."""
    first_step: Ints
    """[A] step number of each asset's first row."""
    values: Floats
    """[N, P] mean of the step's readings by point; NaN where nothing was read, or the point is stuck."""
    hung: npt.NDArray[np.bool_]
    """[N] whether every point that was read lately was stuck when it was last."""
    visible: tuple[tuple[Ints, Ints], ...]
    """For every event channel: asset index and the first step number at which the event is visible, sorted by both."""
    failures: tuple[Ints, Ints, Ints]
    """Asset index, time in microseconds and failure mode index of every failure, sorted by asset and time."""
    end_us: Ints
    """[A] until when each asset was observed: its last reading, or a failure recorded after it."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def asset_of(self) -> Ints:
        """[N] asset index of each row."""
        return np.repeat(np.arange(len(self.assets), dtype=np.int64), np.diff(self.offsets))

    @property
    def step_of(self) -> Ints:
        """[N] step number of each row."""
        rows = np.arange(len(self), dtype=np.int64)
        return rows + np.repeat(self.first_step - self.offsets[:-1], np.diff(self.offsets))

    @property
    def times_us(self) -> Ints:
        """[N] time at which each row's step ends."""
        return self.step_of * self.schema.step_us + self.phase_us

    @property
    def observed(self) -> npt.NDArray[np.bool_]:
        """[N] whether anything was read in the step."""
        return np.asarray(~np.isnan(self.values).all(axis=1))

    def groups(self, most: int) -> list[tuple[int, int]]:
        """Assets from .. to (exclusive) that have up to `most` rows together, at least one asset each."""
        groups, first, assets = [], 0, len(self.assets)
        for after in range(1, assets + 1):
            full = self.offsets[min(after + 1, assets)] - self.offsets[first] > most
            if full or after == assets:
                groups.append((first, after))
                first = after
        return groups

    def part(self, first: int, after: int) -> Grid:
        """The grid of the assets `first` to `after` (exclusive) alone, as far as there are so many."""
        after = min(after, len(self.assets))
        rows = slice(int(self.offsets[first]), int(self.offsets[after]))

        def own(assets: Ints, *columns: Ints) -> tuple[Ints, ...]:
            kept = slice(*np.searchsorted(assets, (first, after)).tolist())
            return assets[kept] - first, *(column[kept] for column in columns)

        return Grid(
            self.schema,
            self.assets[first:after],
            self.phase_us,
            self.offsets[first : after + 1] - self.offsets[first],
            self.first_step[first:after],
            self.values[rows],
            self.hung[rows],
            cast(tuple[tuple[Ints, Ints], ...], tuple(own(*channel) for channel in self.visible)),
            cast(tuple[Ints, Ints, Ints], own(*self.failures)),
            self.end_us[first:after],
        )


def grid_of(history: History, schema: FeatureSchema, *, until: datetime | None = None) -> Grid:
    """Every asset from its first reading to its last, with nothing dated after `until`.

    Assets without readings have no rows. Steps end at the schema's phase.
    """
    return _grid(history, schema, schema.phase_us, _bound(until), None)


def grid_before(history: History, schema: FeatureSchema, at: datetime, steps: int) -> Grid:
    """Exactly `steps` rows for every asset, the last of them ending at `at`: what a forecast issued at `at` sees."""
    at_us = to_us(at)
    phase = at_us % schema.step_us
    last = (at_us - phase) // schema.step_us
    return _grid(history, schema, phase, at_us, (last - steps + 1, last))


def _bound(until: datetime | None) -> int:
    return int(np.iinfo(np.int64).max) if until is None else to_us(until)


def _grid(history: History, schema: FeatureSchema, phase_us: int, until_us: int, span: tuple[int, int] | None) -> Grid:
    names = {asset.name: number for number, asset in enumerate(history.assets)}
    times = _microseconds(history.readings["time"])
    start_us = -(1 << 62) if span is None else (span[0] - 1) * schema.step_us + phase_us
    asset = _numbered(history.readings["asset"], names)
    kept = np.flatnonzero((times > start_us) & (times <= until_us) & (asset >= 0))
    asset, times = asset[kept], times[kept]
    step = -((phase_us - times) // schema.step_us)

    count = len(names)
    end_us = np.full(count, -(1 << 62), dtype=np.int64)
    np.maximum.at(end_us, asset, times)
    if span is None:
        first, last = np.full(count, 1 << 62, dtype=np.int64), np.full(count, -(1 << 62), dtype=np.int64)
        np.minimum.at(first, asset, step)
        np.maximum.at(last, asset, step)
        first, last = np.where(last < first, 0, first), np.where(last < first, -1, last)
    else:
        first, last = np.full(count, span[0], dtype=np.int64), np.full(count, span[1], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(last - first + 1)]).astype(np.int64)
    values = np.full((int(offsets[-1]), len(schema.points)), np.nan, dtype=np.float32)
    rows = offsets[asset] + step - first[asset]
    _average_into(values, rows, _columns(history.readings, schema.points, kept))

    hung = np.zeros(len(values), dtype=bool)
    if any(schema.stuck.after):
        stuck = schema.stuck.rows(values, offsets)
        hung = schema.stuck.hung(values, stuck, offsets)
        values[stuck] = np.nan

    visible, failures = _place_events(history, schema, names, phase_us, until_us)
    np.maximum.at(end_us, failures[0], failures[1])
    return Grid(schema, history.assets, phase_us, offsets, first, values, hung, visible, failures, end_us)


def _columns(readings: pd.DataFrame, points: tuple[str, ...], kept: Ints) -> npt.NDArray[np.float64]:
    known = [(column, point) for column, point in enumerate(points) if point in readings]
    matrix = readings[[point for _, point in known]].to_numpy(dtype=np.float64)
    if len(kept) < len(matrix):
        matrix = matrix[kept]
    if len(known) == len(points):
        return matrix
    wider = np.full((len(kept), len(points)), np.nan)
    wider[:, [column for column, _ in known]] = matrix
    return wider


def _numbered(column: pd.Series[Any], names: Mapping[Any, int]) -> Ints:
    """[n] the number of each name of a column, -1 for one that is not among `names`."""
    codes, found = pd.factorize(column.array)
    return np.array([*(names.get(name, -1) for name in found), -1], dtype=np.int64)[codes]


def _average_into(values: Floats, rows: Ints, matrix: npt.NDArray[np.float64]) -> None:
    """Mean of the rows of `matrix` that share a row of `values`, point by point, missing values left out."""
    if not len(rows):
        return
    if not (np.diff(rows) > 0).all():
        order = np.argsort(rows, kind="stable")
        rows, matrix = rows[order], matrix[order]
        starts = np.flatnonzero(np.concatenate([[True], np.diff(rows) > 0]))
        known = ~np.isnan(matrix)
        counts = np.add.reduceat(known, starts, axis=0, dtype=np.int64)
        sums = np.add.reduceat(np.where(known, matrix, 0.0), starts, axis=0)
        matrix = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
        rows = rows[starts]
    values[rows] = matrix


def _place_events(
    history: History, schema: FeatureSchema, names: Mapping[str, int], phase_us: int, until_us: int
) -> tuple[tuple[tuple[Ints, Ints], ...], tuple[Ints, Ints, Ints]]:
    """Events by channel at the first step that may know of them, and the failures at their own time."""
    channels = schema.event_channels
    kinds = {kind: number for number, kind in enumerate(EventKind)}
    codes = {code: number for number, code in enumerate(dict.fromkeys(code for _, code in channels))}
    # By number of kind and of code, the last of each for any other: its channel, or -1.
    numbers = np.full((len(kinds) + 1, len(codes) + 1), -1, dtype=np.int64)
    for number, (kind, code) in enumerate(channels):
        numbers[kinds[kind], codes[code]] = number
    events = history.events
    times = _microseconds(events["time"])
    asset = _numbered(events["asset"], names)
    channel = numbers[_numbered(events["kind"], kinds), _numbered(events["code"], codes)]
    known = (times <= until_us) & (asset >= 0) & (channel >= 0)
    asset, channel, times = asset[known], channel[known], times[known]
    strictly = channel >= len(schema.error_codes)
    seen = np.where(strictly, (times - phase_us) // schema.step_us + 1, -((phase_us - times) // schema.step_us))
    order = np.lexsort((channel, times, asset))
    asset, channel, times, seen = asset[order], channel[order], times[order], seen[order]
    visible = tuple((asset[channel == c], seen[channel == c]) for c in range(len(channels)))
    mode = channel - (len(channels) - len(schema.failure_modes))
    failed = mode >= 0
    return visible, (asset[failed], times[failed], mode[failed])


def _microseconds(times: pd.Series[Any]) -> Ints:
    return pd.DatetimeIndex(times).as_unit("us").asi8


def _codes(events: pd.DataFrame, kind: EventKind) -> tuple[str, ...]:
    return tuple(sorted(str(code) for code in events["code"][events["kind"] == kind.value].unique()))


def _static_columns(assets: tuple[Asset, ...]) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]:
    """Static columns that are numbers, and those that are text with few enough levels."""
    numeric, texts = [], []
    for name in dict.fromkeys(column for asset in assets for column in asset.static):
        values = [asset.static[name] for asset in assets if name in asset.static]
        if all(isinstance(value, int | float) for value in values):
            numeric.append(name)
            continue
        levels = tuple(sorted({str(value) for value in values}))
        if len(levels) <= min(MAX_LEVELS, len(assets) // 2):
            texts.append((name, levels))
    return tuple(numeric), tuple(texts)
