"""The reasons of one forecast: what each input adds, since when, and which failures looked like this before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from forecasting import survival
from forecasting.batches import Resident, Windows
from forecasting.calibrate import Calibration
from forecasting.checkpoint import Artefact
from forecasting.explain import Mixtures, shapley
from forecasting.features import features_of
from forecasting.onset import EARLY, onset
from forecasting.runtimes import Runtime
from forecasting.windows import Grid, Ints
from pm.domain import Explanation, Reason, from_us

Doubles = npt.NDArray[np.float64]

POSITIONS = 48
"""Past times that are forecast again, to see when the change began."""
SMALLEST = 1e-3
"""Contributions under this share of a unit of log-hazard are not worth a person's time."""


def explained(grid: Grid, artefact: Artefact, runtime: Runtime, device: torch.device, limit: int) -> Explanation:
    """Why the forecast at the end of this grid of one asset is what it is; empty where there is nothing to go by.

    limit: inputs that are named, the strongest; the others are told in one sum. Empty, too, for a model that has no
    reference.
    """
    reference, schema = artefact.reference, artefact.schema
    if reference is None or grid.hung[-1] or not grid.observed[-schema.context :].any():
        return Explanation()
    rows = _positions(grid)
    resident = Resident(grid, features_of(grid, artefact.normaliser, rows), device=device)

    def log_hazard(windows: Callable[[Ints], Windows], count: int) -> tuple[Doubles, Doubles]:
        return _log_hazard(runtime, artefact.calibration, windows, count)

    past, embedding = log_hazard(resident.windows_by_number(rows), len(rows))
    mixtures = Mixtures(resident.windows(rows[-1:], last=True), reference.average, schema)
    shares = shapley(
        lambda taken: log_hazard(lambda chosen: mixtures.of(taken[chosen]), len(taken))[0], len(mixtures.names)
    )
    told = sorted(
        (Reason(name, float(added)) for name, added in zip(mixtures.names, shares.contributions, strict=True)),
        key=lambda reason: (-abs(reason.contribution), reason.feature),
    )
    named = tuple(reason for reason in told[:limit] if abs(reason.contribution) >= SMALLEST)
    place, times = onset(past), grid.times_us[rows]
    return Explanation(
        reasons=named,
        rest=float(sum(reason.contribution for reason in told[len(named) :])),
        change=shares.full - shares.base,
        average=float(-np.expm1(-np.exp(shares.base))),
        began=None if place is None else from_us(int(times[place])),
        earlier=place is not None and place <= EARLY,
        precedents=reference.precedents.nearest(embedding[-1], reference.familiar.centre),
    )


def _log_hazard(
    runtime: Runtime, calibration: Calibration, windows: Callable[[Ints], Windows], count: int
) -> tuple[Doubles, Doubles]:
    """[count] log of the cumulative hazard over the horizon, and [count, E] embeddings."""
    said = runtime.answer(windows, count)
    hazard = calibration.hazard_by_mode(said.logits).sum(axis=-1)
    return np.log(survival.cumulative_hazard(hazard)), said.embedding


def _positions(grid: Grid) -> Ints:
    """Rows from the first at which a quarter of the window is known up to the last, at even distances."""
    schema, last = grid.schema, len(grid) - 1
    first = max(last - schema.context + 1, int(np.argmax(grid.observed)))
    first = min(last, first + max(2 * schema.patch, schema.context // 4))
    return np.arange(last, first - 1, -max(1, schema.context // POSITIONS), dtype=np.int64)[::-1].copy()
