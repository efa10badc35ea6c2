"""Forecasts from a trained model: one moment for many assets, or many moments for evaluation, with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from forecasting import checkpoint, survival
from forecasting.batches import Resident, Windows
from forecasting.checkpoint import Artefact
from forecasting.familiar import levels_of
from forecasting.features import features_of
from forecasting.model import network_of
from forecasting.reasons import explained
from forecasting.runtimes import BATCH, Choice, Runtime, choose
from forecasting.windows import Grid, Ints, grid_before, grid_of
from pm.domain import HORIZON_HOURS, Abstention, Explanation, Forecast, History, from_us, to_us
from pm.errors import ModelError

Doubles = npt.NDArray[np.float64]

ASSETS = 512
"""Assets whose features are held at a time."""
GROUP_ROWS = 1_000_000
"""Rows of a record's grid, in whole assets, whose features are held at a time."""
ALL_STUCK = "every point that is read repeats one value: its sensors or its gateway hang"
SAMPLES = 32
"""Windows kept with a model."""


@dataclass(frozen=True)
class ForecastTable:
    """Forecasts of several assets at many times, columnar, sorted by asset and time.

    Rows for which there was nothing to go by (no reading in the window, or inputs of another kind than those of
    training) hold NaN.
    """

    assets: tuple[str, ...]
    failure_modes: tuple[str, ...]
    step_hours: float
    model: str
    asset_index: npt.NDArray[np.int64]
    """[N] index into `assets`."""
    time_us: npt.NDArray[np.int64]
    """[N] microseconds since the epoch."""
    hazard: Doubles
    """[N, H] probability of failing in each step given survival until it."""
    mode_probability: Doubles
    """[N, K] probability of failing by each mode within the horizon."""
    rul_hours: Doubles
    """[N]"""

    def __len__(self) -> int:
        return len(self.time_us)

    def probability(self, hours: float = HORIZON_HOURS) -> Doubles:
        """[N] probability of failing within `hours`, rounded down to whole steps."""
        return survival.probability_within(self.hazard, hours, self.step_hours)


class TransformerForecaster:
    """A trained model, ready to forecast. Fulfils `pm.ports.Forecaster`; safe to share between threads."""

    def __init__(self, artefact: Artefact, *, device: str = "cpu", runtime: Choice = "auto") -> None:
        """runtime: what runs the network (`forecasting.runtimes.choose`).

        Raises ModelError when the weights do not fit the architecture, or the runtime cannot be had.
        """
        self.artefact = artefact
        self._version = artefact.version
        self._device = torch.device(device)
        self._network = network_of(artefact.architecture)
        try:
            self._network.load_state_dict(dict(artefact.weights))
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise ModelError(f"model {artefact.name}: weights do not fit ({first}); train it anew") from None
        self._network.to(self._device).eval().requires_grad_(False)
        self._choice: Choice = runtime
        self.runtime: Runtime = choose(runtime, self._network, artefact.onnx)

    @property
    def version(self) -> str:
        return self._version

    @property
    def lookback(self) -> timedelta:
        schema = self.artefact.schema
        return timedelta(seconds=schema.lookback_steps * schema.step_seconds)

    @property
    def thresholds(self) -> Mapping[float, float]:
        return self.artefact.thresholds

    def with_thresholds(self, thresholds: Mapping[float, float]) -> TransformerForecaster:
        """The same model with these alert thresholds by budget; its version changes with them."""
        artefact = replace(self.artefact, thresholds=dict(thresholds))
        return TransformerForecaster(artefact, device=str(self._device), runtime=self._choice)

    def forecast(self, history: History, at: datetime) -> list[Forecast]:
        """One forecast per asset of `history.assets`, as known at `at`; whatever is dated later is not looked at.

        An asset without any reading in the window abstains, and so does one whose inputs are of another kind than those
        of training (`forecasting.familiar`).
        """
        schema = self.artefact.schema
        grid = grid_before(history, schema, at, schema.lookback_steps)
        parts = (grid.part(first, first + ASSETS) for first in range(0, len(history.assets), ASSETS))
        return [forecast for part in parts for forecast in self._forecast(part, history, at)]

    def _forecast(self, grid: Grid, history: History, at: datetime) -> list[Forecast]:
        """`forecast` of the assets of a grid that ends at `at`."""
        schema = self.artefact.schema
        ends = grid.offsets[1:] - 1
        window = grid.observed.reshape(-1, schema.lookback_steps)[:, -schema.context :]
        seen = np.asarray(window.any(axis=1)) & ~grid.hung[ends]
        rows = iter(range(len(ends)))
        resident = self._resident(grid, ends)
        hazard, by_mode, rul, strange = self._numbers(grid, ends[seen], resident)
        because = self._why_strange(grid, ends[seen], resident, np.flatnonzero(strange))
        modes = schema.failure_modes
        forecasts = []
        for asset, known, hung in zip(grid.assets, seen, grid.hung[ends], strict=True):
            if not known:
                why = Abstention.STALE if hung else _why_unseen(history, asset.name, at)
                forecasts.append(
                    Forecast(
                        asset.name,
                        at,
                        self._version,
                        abstained=why,
                        because=ALL_STUCK if hung else "",
                        step_hours=schema.step_hours,
                    )
                )
                continue
            row = next(rows)
            if strange[row]:
                forecasts.append(
                    Forecast(
                        asset.name,
                        at,
                        self._version,
                        abstained=Abstention.UNSEEN_CONDITION,
                        because=because[row],
                        step_hours=schema.step_hours,
                    )
                )
                continue
            forecasts.append(
                Forecast(
                    asset=asset.name,
                    time=at,
                    model=self._version,
                    step_hours=schema.step_hours,
                    hazard=tuple(hazard[row].tolist()),
                    mode_probability=dict(zip(modes, by_mode[row].tolist(), strict=True)),
                    rul_hours=float(rul[row]),
                )
            )
        return forecasts

    def explain(self, history: History, at: datetime, asset: str, limit: int = 5) -> Explanation:
        """Why this asset's forecast at `at` is what it is (`forecasting.reasons`); empty when there was nothing to go
        by.

        Raises ModelError when the history does not hold the asset.
        """
        chosen = tuple(a for a in history.assets if a.name == asset)
        if not chosen:
            raise ModelError(f"asset {asset!r} is not in the history; name one of its {len(history.assets)} assets")
        schema = self.artefact.schema
        grid = grid_before(replace(history, assets=chosen), schema, at, schema.lookback_steps)
        return explained(grid, self.artefact, self.runtime, self._device, limit)

    def forecast_grid(
        self,
        history: History,
        assets: Sequence[str] | None = None,
        every: timedelta | None = None,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> ForecastTable:
        """The forecasts that `forecast` would issue at regular times, from each asset's first reading to its last.

        every: distance between forecasts, a multiple of the model's step (the default) or a whole part of it; times
        stand at whole multiples of it from the schema's phase. start, end: only times with start <= time <= end.
        progress: called with the share done. Raises ModelError for a distance that does not fit.
        """
        schema = self.artefact.schema
        wanted = set(assets) if assets is not None else None
        chosen = tuple(a for a in history.assets if wanted is None or a.name in wanted)
        step_us = schema.step_us
        every_us = step_us if every is None else every // timedelta(microseconds=1)
        if every_us <= 0 or (every_us % step_us and step_us % every_us):
            raise ModelError(
                f"every {every}: must be a multiple or a whole part of the model's step of {schema.step_hours} h"
            )
        low = -(1 << 62) if start is None else to_us(start)
        high = 1 << 62 if end is None else to_us(end)
        phases = [(schema.phase_us + shift) % step_us for shift in range(0, step_us, min(every_us, step_us))]
        parts = []
        for number, phase in enumerate(phases):
            whole = grid_of(replace(history, assets=chosen), replace(schema, phase_us=phase))
            groups = whole.groups(GROUP_ROWS) or [(0, 0)]
            for group, (first, after) in enumerate(groups):
                grid = whole.part(first, after)
                rows = np.flatnonzero(
                    (grid.step_of % max(1, every_us // step_us) == 0) & (grid.times_us >= low) & (grid.times_us <= high)
                )
                report = None
                if progress is not None:
                    report = _share_of(_share_of(progress, number, len(phases)), group, len(groups))
                *numbers, strange = self._numbers(grid, rows, self._resident(grid, rows), report)
                unseen = ~_seen_within(grid, rows) | grid.hung[rows] | strange
                for values in numbers:
                    values[unseen] = np.nan
                parts.append((first + grid.asset_of[rows], grid.times_us[rows], *numbers))
        asset, time, hazard, by_mode, rul = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.lexsort((time, asset))
        return ForecastTable(
            assets=tuple(a.name for a in chosen),
            failure_modes=schema.failure_modes,
            step_hours=schema.step_hours,
            model=self._version,
            asset_index=asset[order],
            time_us=time[order],
            hazard=hazard[order],
            mode_probability=by_mode[order],
            rul_hours=rul[order],
        )

    def sample(self, history: History, count: int = SAMPLES) -> dict[str, npt.NDArray[Any]]:
        """Some windows of these assets by tensor, spread over assets and time: what the model is given in service.

        For whoever needs to see its inputs: ranges of an int8 form, measurements. Empty for a history without readings.
        """
        schema = self.artefact.schema
        times = history.readings["time"]
        moments: Sequence[float] | npt.NDArray[np.float64] = (
            [] if times.empty else np.linspace(to_us(times.min()), to_us(times.max()), 10)[2:]
        )
        parts: list[Windows] = []
        each = max(1, count // 8)
        for number, moment in enumerate(moments):
            chosen = [history.assets[(number * each + n) % len(history.assets)].name for n in range(each)]
            grid = grid_before(history.only(chosen), schema, from_us(int(moment)), schema.lookback_steps)
            ends = grid.offsets[1:] - 1
            parts.append(self._resident(grid, ends).windows(ends, last=True))
        names = [field.name for field in fields(Windows)]
        gathered = {name: torch.cat([getattr(part, name) for part in parts]) for name in names if parts}
        return {name: tensor.numpy(force=True) for name, tensor in gathered.items()}

    def numbers(self, windows: Callable[[Ints], Windows], count: int) -> tuple[Doubles, Doubles, Doubles, Doubles]:
        """From inputs to numbers: calibrated hazard [n, H], probability by mode within the horizon [n, K], remaining
        hours [n] and embedding [n, E] of `count` windows.

        windows: gives those of these numbers; called from threads.
        """
        said, schema = self.runtime.answer(windows, count), self.artefact.schema
        hazards = self.artefact.calibration.hazard_by_mode(said.logits)
        rul = np.minimum(np.maximum(said.life, 0.0), 1.0) * schema.rul_cap * schema.step_hours
        return hazards.sum(axis=-1), survival.cumulative_incidence(hazards), rul, said.embedding

    def _resident(self, grid: Grid, ends: Ints) -> Resident:
        return Resident(grid, features_of(grid, self.artefact.normaliser, ends), device=self._device)

    def _numbers(
        self, grid: Grid, ends: Ints, resident: Resident, progress: Callable[[float], None] | None = None
    ) -> tuple[Doubles, Doubles, Doubles, npt.NDArray[np.bool_]]:
        """Hazard [n, H], probability by mode [n, K] and remaining hours [n] of the windows that end with these rows,
        and [n] whether their inputs are strange, which makes the numbers worthless."""
        sizes = self.artefact.architecture
        hazard = np.empty((len(ends), sizes.horizon))
        by_mode = np.empty((len(ends), sizes.modes))
        rul, strange = np.empty(len(ends)), np.zeros(len(ends), dtype=bool)
        chunk = 64 * BATCH
        for begin in range(0, len(ends), chunk):
            part = ends[begin : begin + chunk]
            place = slice(begin, begin + len(part))
            hazard[place], by_mode[place], rul[place], embedding = self.numbers(
                resident.windows_by_number(part), len(part)
            )
            if self.artefact.reference is not None:
                levels = levels_of(grid, self.artefact.normaliser, part)
                strange[place] = self.artefact.reference.familiar.strange(levels, embedding)
            if progress is not None:
                progress((begin + len(part)) / len(ends))
        return hazard, by_mode, rul, strange

    def _why_strange(self, grid: Grid, ends: Ints, resident: Resident, strange: Ints) -> dict[int, str]:
        """In words, by their place among `ends`, what is strange about those that are."""
        reference = self.artefact.reference
        if reference is None or not len(strange):
            return {}
        rows = ends[strange]
        embedding = self.runtime.answer(resident.windows_by_number(rows), len(rows)).embedding
        words = reference.familiar.why(grid, self.artefact.normaliser, rows, embedding)
        return dict(zip(strange.tolist(), words, strict=True))


def load(folder: Path, *, device: str = "cpu", runtime: Choice = "auto") -> TransformerForecaster:
    """The forecaster of a folder that `forecasting.checkpoint.save` wrote. Raises ModelError when it is damaged."""
    return TransformerForecaster(checkpoint.load(folder), device=device, runtime=runtime)


def _seen_within(grid: Grid, rows: Ints) -> npt.NDArray[np.bool_]:
    """Whether each row's window holds any reading of its asset."""
    read = np.concatenate([[0], np.cumsum(grid.observed)])
    begin = np.maximum(rows - grid.schema.context + 1, grid.offsets[grid.asset_of[rows]])
    return np.asarray(read[rows + 1] > read[begin])


def _why_unseen(history: History, asset: str, at: datetime) -> Abstention:
    readings = history.readings
    times = readings["time"][readings["asset"] == asset]
    return Abstention.STALE if bool((times <= at).any()) else Abstention.TOO_LITTLE_HISTORY


def _share_of(progress: Callable[[float], None], number: int, parts: int) -> Callable[[float], None]:
    return lambda share: progress((number + share) / parts)
