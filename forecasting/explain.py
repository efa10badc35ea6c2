"""Why a forecast is what it is: take each input away and see how far the forecast moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from forecasting.batches import Resident, Windows
from forecasting.features import Columns, Normaliser, columns_of, features_of
from forecasting.windows import Grid, Ints
from pm.domain import Reason

SMALLEST = 1e-3
"""Contributions under this share of a unit of log-hazard are not worth a person's time."""


def without_each(grid: Grid, normaliser: Normaliser, device: torch.device) -> tuple[list[str], Windows]:
    """The window of one asset as it is, then once more for every input, without it.

    grid: as many rows as the window has. A point that is taken away reads as missing, in what the other points are
    expected to read as well; an event reads as never seen, a static column as unknown. Inputs that are absent already
    are left out. Returns the inputs' names, and windows in the same order after the first.
    """
    end = grid.offsets[1:] - 1
    features = features_of(grid, normaliser, end)
    window = Resident(grid, features, device=device).windows(end)
    names, windows = [], [window]
    for column, point in enumerate(grid.schema.points):
        if not np.isnan(grid.values[:, column]).all():
            values = grid.values.copy()
            values[:, column] = np.nan
            blind = replace(features_of(replace(grid, values=values), normaliser, end), observed=features.observed)
            names.append(point)
            windows.append(Resident(grid, blind, device=device).windows(end))
    for columns in columns_of(grid.schema)[len(grid.schema.points) :]:
        if _present(window, columns):
            names.append(columns.name)
            windows.append(_without(window, columns))
    parts = ([getattr(w, name) for w in windows] for name in ("steps", "slow", "static", "alive", "summary"))
    return names, Windows(*(torch.cat(part) for part in parts))


def pick(windows: Windows, rows: Ints) -> Windows:
    """These windows out of many."""
    chosen = torch.from_numpy(rows).to(windows.alive.device)
    parts = (windows.steps, windows.slow, windows.static, windows.alive, windows.summary)
    return Windows(*(part[chosen] for part in parts))


def reasons(inputs: Sequence[str], cumulative_hazard: npt.NDArray[np.float64], limit: int) -> list[Reason]:
    """The inputs whose absence moves the log cumulative hazard most, strongest first.

    cumulative_hazard: [1 + inputs] of the forecast as it is, then without each input. A positive contribution raised
    the risk.
    """
    moved = np.log(cumulative_hazard[0]) - np.log(cumulative_hazard[1:])
    found = [Reason(name, float(change)) for name, change in zip(inputs, moved, strict=True) if abs(change) >= SMALLEST]
    return sorted(found, key=lambda reason: (-abs(reason.contribution), reason.feature))[:limit]


def _present(window: Windows, columns: Columns) -> bool:
    steps = window.steps[0][:, list(columns.steps)]
    static = window.static[0][list(columns.static)]
    slow = window.slow[0][window.alive[0]][:, list(columns.slow)]
    absent = torch.tensor(columns.slow_absent, device=slow.device)
    summary = window.summary[0][:, list(columns.summary)]
    return bool((steps != 0).any() or (static != 0).any() or (slow != absent).any() or (summary != 0).any())


def _without(window: Windows, columns: Columns) -> Windows:
    steps, slow, static = window.steps.clone(), window.slow.clone(), window.static.clone()
    summary = window.summary.clone()
    summary[..., list(columns.summary)] = 0.0
    steps[..., list(columns.steps)] = 0.0
    static[..., list(columns.static)] = 0.0
    absent = torch.tensor(columns.slow_absent, device=slow.device)
    slow[..., list(columns.slow)] = torch.where(window.alive[..., None], absent, 0.0)
    return Windows(steps, slow, static, window.alive, summary)
