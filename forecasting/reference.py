"""What a trained model compares a forecast with: inputs that are familiar to it, their average, and past failures.

It is kept with the model as arrays and names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from forecasting.batches import Resident, Windows
from forecasting.explain import Average, average_of
from forecasting.familiar import CHUNK, Familiar, fit_familiar, levels_of
from forecasting.features import Normaliser
from forecasting.inference import outlooks
from forecasting.labels import Labels
from forecasting.model import Network
from forecasting.precedents import Precedents, moments_before
from forecasting.windows import Grid, Ints

SAMPLED = 1024
"""Windows that embeddings are compared with, and as many of those before failures."""
AVERAGED = 512
"""Windows that make the fleet's average."""
HIDING = 4
"""In every so-manieth of them one point is hidden: a lost sensor is no stranger to the network."""


@dataclass(frozen=True)
class Slice:
    """Rows of a grid with their features and what followed them."""

    grid: Grid
    resident: Resident
    labels: Labels
    rows: Ints
    """Those that count, each the end of a window that holds a reading."""

    @property
    def failing(self) -> npt.NDArray[np.bool_]:
        """[rows] whether a failure follows within the horizon."""
        return np.asarray(self.labels.event_bin[self.rows] >= 0)

    def sampled(self, count: int) -> Slice:
        """Rows spread evenly over all of them, and over those before failures."""
        chosen = np.concatenate([_thinned(self.rows, count), _thinned(self.rows[self.failing], count)])
        return replace(self, rows=np.unique(chosen))


@dataclass(frozen=True)
class Reference:
    """What a forecast is compared with."""

    familiar: Familiar
    average: Average
    precedents: Precedents

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        average = {f"average_{field.name}": getattr(self.average, field.name) for field in fields(Average)}
        return {**self.familiar.arrays(), **average, **self.precedents.arrays()}

    def as_json(self) -> dict[str, Any]:
        return {"familiar": self.familiar.as_json(), "precedents": self.precedents.as_json()}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]], values: Mapping[str, Any]) -> Reference:
        """Back from `arrays` and `as_json`. Raises KeyError for what is missing."""
        average = Average(**{field.name: arrays[f"average_{field.name}"] for field in fields(Average)})
        precedents = Precedents.of(arrays, values["precedents"])
        return cls(Familiar.of(arrays, values["familiar"]), average, precedents)


def fit_reference(
    network: Network, normaliser: Normaliser, training: Slice, judged: Slice, before: Reference | None = None
) -> tuple[Reference, dict[str, float]]:
    """What `network` is to compare forecasts with, and how many judged windows would be strange to it.

    training: every row that was learned from; judged: rows of the validation slice. before: of the model that
    training went on from.
    """
    learned, shown = training.sampled(SAMPLED), judged.sampled(SAMPLED)
    embedding = _embeddings(network, learned)
    seen = _embeddings(network, shown)
    patches = training.rows[:: max(1, training.grid.schema.patch // 2)]
    familiar = fit_familiar(
        [
            levels_of(training.grid, normaliser, patches[begin : begin + CHUNK])
            for begin in range(0, len(patches), CHUNK)
        ],
        embedding,
        learned.failing,
        judged=levels_of(judged.grid, normaliser, judged.rows),
        judged_failing=judged.failing,
        seen=seen,
        seen_failing=shown.failing,
        before=None if before is None else before.familiar,
    )
    strange = familiar.strange(levels_of(shown.grid, normaliser, shown.rows), seen)
    facts = {"validation_unfamiliar": float(strange.mean())}
    if shown.failing.any():
        facts["validation_unfamiliar_before_failure"] = float(strange[shown.failing].mean())
    usual = training.resident.windows(_thinned(training.rows, AVERAGED), last=True)
    moments = moments_before(training.grid)
    before_failures = _embeddings(network, replace(training, rows=moments.rows), hiding=False)
    precedents = Precedents.seen(moments, before_failures, familiar.centre)
    return Reference(familiar, average_of(usual), precedents), facts


def _embeddings(network: Network, part: Slice, *, hiding: bool = True) -> npt.NDArray[np.float64]:
    points = len(part.grid.schema.points)

    def windows(chosen: Ints) -> Windows:
        ends = part.rows[chosen]
        whole = part.resident.windows(ends, last=True)
        if not hiding:
            return whole
        kept = torch.from_numpy(_kept(chosen, points)).to(whole.steps.device)
        return part.resident.without(whole, ends, kept)

    return outlooks(network, windows, len(part.rows))[2]


def _kept(numbers: Ints, points: int) -> npt.NDArray[np.bool_]:
    """[n, P] false for one point in every `HIDING`th of these windows, each point in its turn."""
    kept = np.ones((len(numbers), points), dtype=bool)
    hidden = np.flatnonzero(numbers % HIDING == 0)
    if points:
        kept[hidden, numbers[hidden] // HIDING % points] = False
    return kept


def _thinned(rows: Ints, count: int) -> Ints:
    return rows[:: max(1, -(-len(rows) // count))]
