"""What followed each step, as far as it was observed: the labels of training and of forecast quality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from forecasting.windows import Grid


@dataclass(frozen=True)
class Labels:
    """The next failure strictly after each row's time, censored where the asset's record ends.

    Bin `b` covers the times in (t + b steps, t + (b + 1) steps]; H bins make the horizon.
    """

    event_bin: npt.NDArray[np.int64]
    """[N] bin of the next failure, -1 when none falls into the horizon."""
    modes: npt.NDArray[np.float32]
    """[N, K] share of each failure mode in that failure; simultaneous failures share it; zeros when there is none."""
    known_bins: npt.NDArray[np.int64]
    """[N] whole bins after t that were observed without a failure, at most H; the failure's own is not one."""
    rul: npt.NDArray[np.float32]
    """[N] steps until the next failure, at most the schema's cap."""
    rul_known: npt.NDArray[np.bool_]
    """[N] whether `rul` was observed: a failure follows, or the record goes on beyond the cap without one."""


def labels_of(grid: Grid) -> Labels:
    """Labels of every row of `grid`, from the failures it was built with."""
    schema, step_us, horizon = grid.schema, grid.schema.step_us, grid.schema.horizon_steps
    times, count = grid.times_us, len(grid)
    ahead = np.full(count, -1, dtype=np.int64)
    modes = np.zeros((count, len(schema.failure_modes)), dtype=np.float32)
    assets, failure_us, failure_mode = grid.failures
    bounds = np.searchsorted(assets, np.arange(len(grid.assets) + 1))
    for a in range(len(grid.assets)):
        rows = slice(int(grid.offsets[a]), int(grid.offsets[a + 1]))
        dated, which = failure_us[bounds[a] : bounds[a + 1]], failure_mode[bounds[a] : bounds[a + 1]]
        if not len(dated) or rows.start == rows.stop:
            continue
        moments, group = np.unique(dated, return_inverse=True)
        mix = np.zeros((len(moments), modes.shape[1]), dtype=np.float32)
        np.add.at(mix, (group, which), 1.0)
        mix /= mix.sum(axis=1, keepdims=True)
        following = np.searchsorted(moments, times[rows], side="right")
        found = following < len(moments)
        at = np.minimum(following, len(moments) - 1)
        ahead[rows] = np.where(found, moments[at] - times[rows], -1)
        modes[rows] = np.where(found[:, None], mix[at], 0.0)

    failing = ahead > 0
    bins = np.where(failing, (ahead - 1) // step_us, -1)
    inside = failing & (bins < horizon)
    seen = np.clip((np.repeat(grid.end_us, np.diff(grid.offsets)) - times) // step_us, 0, None)
    rul = np.where(failing, ahead / step_us, seen)
    return Labels(
        event_bin=np.where(inside, bins, -1),
        modes=np.where(inside[:, None], modes, np.float32(0.0)),
        known_bins=np.where(inside, bins, np.minimum(np.where(failing, horizon, seen), horizon)),
        rul=np.minimum(rul, schema.rul_cap).astype(np.float32),
        rul_known=failing | (seen >= schema.rul_cap),
    )
