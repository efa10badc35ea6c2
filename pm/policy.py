"""From forecast to alert: one rule, for the live plant's assets and for a grid of assets and thresholds alike.

An alert is raised after `on_delay` assessments in a row at or above the threshold, and clears after `off_delay` in a
row below `threshold x (1 - deadband)`. An assessment without a probability (an abstention) holds both counts: it
neither raises nor clears. Maintenance or failure ends a standing alert, forgets the counts, and keeps the asset
silent for `suppress_after_maintenance`. What a person does with an alert does not enter: an alert closed by hand
while the forecast is high is not raised again until the forecast has cleared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pm.config import AlertsSection
from pm.ports import PolicyState

NEVER = np.iinfo(np.int64).min
"""In arrays of times in microseconds: it has not happened."""

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class FleetState:
    """`PolicyState` of many assets as arrays of one shape: [assets] in a plant, [assets, thresholds] in a search."""

    above: NDArray[np.int32]
    below: NDArray[np.int32]
    standing: NDArray[np.bool_]
    renewed_us: NDArray[np.int64]
    """Latest maintenance or failure heeded, microseconds since the epoch; NEVER where there was none."""

    @classmethod
    def fresh(cls, shape: int | tuple[int, ...]) -> FleetState:
        """Nothing seen yet."""
        counts = np.zeros(shape, np.int32)
        return cls(counts, counts.copy(), np.zeros(shape, np.bool_), np.full(shape, NEVER, np.int64))

    @classmethod
    def of(cls, assets: Sequence[str], states: Mapping[str, PolicyState]) -> FleetState:
        """The states of `assets` in their order; fresh where `states` knows none."""
        found = [states.get(asset, PolicyState()) for asset in assets]
        return cls(
            np.array([s.above for s in found], np.int32),
            np.array([s.below for s in found], np.int32),
            np.array([s.standing for s in found], np.bool_),
            np.array([NEVER if s.renewed_us is None else s.renewed_us for s in found], np.int64),
        )

    def by_asset(self, assets: Sequence[str]) -> dict[str, PolicyState]:
        """The inverse of `of`, for shape [assets]."""
        return {
            asset: PolicyState(above, below, standing, None if renewed == NEVER else renewed)
            for asset, above, below, standing, renewed in zip(
                assets,
                self.above.tolist(),
                self.below.tolist(),
                self.standing.tolist(),
                self.renewed_us.tolist(),
                strict=True,
            )
        }


@dataclass(frozen=True, slots=True)
class Step:
    """What one assessment decided, each mask of the shape of the state."""

    state: FleetState
    raised: NDArray[np.bool_]
    cleared: NDArray[np.bool_]
    """Returned to normal by the forecast."""
    ended: NDArray[np.bool_]
    """Was standing and ended by maintenance or failure. The same asset is never raised in the same step unless
    `suppress_after_maintenance` is zero and `on_delay` is one."""


def advance(
    state: FleetState,
    *,
    at_us: int,
    probability: ArrayLike,
    threshold: ArrayLike,
    renewed_us: ArrayLike,
    rules: AlertsSection,
) -> Step:
    """One assessment at `at_us` (microseconds since the epoch); every array broadcasts to the shape of `state`.

    probability: P(failure within the horizon), NaN where the forecast abstained.
    threshold: on that probability, in (0, 1].
    renewed_us: time of each asset's latest maintenance or failure known to this assessment (dated strictly before
        `at_us`, as for forecasts), NEVER where there is none. It may be passed again at every assessment; only one
        later than the state has heeded counts.
    """
    p: NDArray[Any] = np.asarray(probability, np.float64)
    limit: NDArray[Any] = np.asarray(threshold, np.float64)
    renewed: NDArray[Any] = np.asarray(renewed_us, np.int64)

    renew = renewed > state.renewed_us
    heeded = np.where(renew, renewed, state.renewed_us)
    ended = renew & state.standing
    standing = state.standing & ~renew
    # NEVER + any suppression is still far below every time, so it needs no case of its own.
    silent = at_us < heeded + rules.suppress_after_maintenance // _MICROSECOND

    # Comparisons with NaN are false: an abstention is neither over nor under, and `known` keeps its counts.
    known = ~np.isnan(p)
    above = np.where(renew, 0, state.above)
    above = np.where(known, np.where(p >= limit, np.minimum(above + 1, rules.on_delay), 0), above)
    above = np.where(silent, 0, above)
    under = p < limit * (1.0 - rules.deadband)
    below = np.where(known, np.where(under, state.below + 1, 0), state.below)
    below = np.where(standing, below, 0)

    raised = ~standing & (above >= rules.on_delay)
    cleared = standing & (below >= rules.off_delay)
    after = FleetState(
        np.where(cleared, 0, above).astype(np.int32),
        np.where(cleared, 0, below).astype(np.int32),
        (standing | raised) & ~cleared,
        heeded,
    )
    return Step(after, raised, cleared, ended)
