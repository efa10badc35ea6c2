"""When a series left its early level: one change, a step or a slope or both, by least squares.

The broken line of two-phase regression (Hinkley, Inference in two-phase regression, 1971) whose first phase is flat.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

LEAST_CHANGE = 0.5
"""A change of less is none: of a logarithm, a half is two thirds more."""
EXPLAINS = 0.5
"""The change must explain so much of the series' variance."""
EARLY = 3
"""Values that make an early level."""


def onset(series: Doubles) -> int | None:
    """Place of the first value that belongs to the change up to the last one; None where there is no such change.

    A place of `EARLY` means that the change was under way when the series began, or began there.
    """
    count = len(series)
    if count < EARLY + 2:
        return None
    clock = np.arange(count)
    flat = float(((series - series.mean()) ** 2).sum())
    best: tuple[float, int, float] | None = None
    for place in range(EARLY, count):
        after = clock >= place
        design = np.stack([np.ones(count), after, np.where(after, clock - place, 0)], axis=1)
        fitted = design @ np.linalg.lstsq(design, series, rcond=None)[0]
        left = float(((series - fitted) ** 2).sum())
        if best is None or left < best[0] - 1e-9 * flat:
            best = left, place, float(fitted[-1] - fitted[0])
    if best is None or abs(best[2]) < LEAST_CHANGE or best[0] > (1.0 - EXPLAINS) * flat:
        return None
    return best[1]
