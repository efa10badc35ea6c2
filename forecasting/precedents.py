"""Failures of training, as they looked some hours before: what a forecast that looks alike is likely to see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from forecasting.windows import HOUR_US, Grid, Ints
from pm.domain import Precedent, from_us

Doubles = npt.NDArray[np.float64]

HOURS_BEFORE = (6, 24, 48)
"""How long before a failure it is looked at; at most what the model's step resolves."""
MOST = 1000
"""Failures kept, the latest."""
TOLD = 3
"""Precedents of one forecast."""


@dataclass(frozen=True)
class Moments:
    """Times before failures, with what came of them."""

    assets: tuple[str, ...]
    modes: tuple[str, ...]
    failed_us: Ints
    left_us: Ints
    """From the moment to the failure."""
    rows: Ints
    """The grid's rows."""


def moments_before(grid: Grid) -> Moments:
    """The moments before every failure of the grid at which its asset was read."""
    asset, time_us, mode = grid.failures
    found: dict[tuple[int, int], list[str]] = {}
    for a, t, m in zip(asset.tolist(), time_us.tolist(), mode.tolist(), strict=True):
        found.setdefault((a, t), []).append(grid.schema.failure_modes[m])
    kept = sorted(found, key=lambda key: key[1])[-MOST:]
    observed, chosen = grid.observed, {}
    for a, t in kept:
        for hours in HOURS_BEFORE:
            row = int((t - hours * HOUR_US - grid.phase_us) // grid.schema.step_us - grid.first_step[a])
            row += int(grid.offsets[a])
            if grid.offsets[a] <= row < grid.offsets[a + 1] and observed[row]:
                chosen[row, t] = (grid.assets[a].name, ", ".join(sorted(found[a, t])))
    rows = np.array([row for row, _ in chosen], dtype=np.int64)
    failed = np.array([t for _, t in chosen], dtype=np.int64)
    return Moments(
        tuple(name for name, _ in chosen.values()),
        tuple(what for _, what in chosen.values()),
        failed,
        failed - grid.times_us[rows],
        rows,
    )


@dataclass(frozen=True)
class Precedents:
    """Moments before failures by what the network made of them."""

    assets: tuple[str, ...]
    modes: tuple[str, ...]
    failed_us: Ints
    left_us: Ints
    embedding: npt.NDArray[np.float32]
    """[F, E] of length one, less the training windows' mean."""

    @classmethod
    def seen(cls, moments: Moments, embedding: Doubles, centre: Doubles) -> Precedents:
        """embedding: [F, E] at the moments; centre: [E] what similarity is measured from."""
        aligned = _aligned(embedding, centre).astype(np.float32)
        return cls(moments.assets, moments.modes, moments.failed_us, moments.left_us, aligned)

    def nearest(self, embedding: Doubles, centre: Doubles) -> tuple[Precedent, ...]:
        """The failures before which things looked most like this [E], by cosine, each once, the most alike first."""
        likeness = np.einsum("fe,e->f", self.embedding.astype(np.float64), _aligned(embedding[None], centre)[0])
        found: dict[tuple[str, int], Precedent] = {}
        for place in np.argsort(-likeness, kind="stable"):
            key = self.assets[place], int(self.failed_us[place])
            if key not in found:
                found[key] = Precedent(
                    asset=key[0],
                    failed_at=from_us(key[1]),
                    failure_mode=self.modes[place],
                    hours_left=float(self.left_us[place] / HOUR_US),
                    likeness=float(likeness[place]),
                )
            if len(found) == TOLD:
                break
        return tuple(found.values())

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "failed_us": self.failed_us,
            "failure_left_us": self.left_us,
            "failure_embedding": self.embedding,
        }

    def as_json(self) -> dict[str, Any]:
        return {"assets": list(self.assets), "modes": list(self.modes)}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]], values: Mapping[str, Any]) -> Precedents:
        """Back from `arrays` and `as_json`. Raises KeyError for what is missing."""
        return cls(
            tuple(values["assets"]),
            tuple(values["modes"]),
            arrays["failed_us"],
            arrays["failure_left_us"],
            arrays["failure_embedding"],
        )


def _aligned(embedding: Doubles, centre: Doubles) -> Doubles:
    moved = embedding - centre
    return np.asarray(moved / np.maximum(np.sqrt(np.square(moved).sum(axis=-1, keepdims=True)), 1e-12))
