"""What the recent past of each point looked like: mean, least, most, scatter and slope over trailing windows.

Strictly causal: the summary at a step is made of that step and earlier ones of the same asset. Numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STATISTICS = ("mean", "min", "max", "std", "slope")
LIFE = 0
"""As a window: everything since the asset's first step."""


def names(points: Sequence[str], windows: Sequence[int]) -> list[str]:
    """Column names of `summarise`, like `volt mean 24`; LIFE reads `volt mean life`."""
    return [
        f"{point} {statistic} {window or 'life'}" for point in points for window in windows for statistic in STATISTICS
    ]


def summarise(values: NDArray[np.float32], offsets: Ints, rows: Ints, windows: Sequence[int]) -> NDArray[np.float32]:
    """[R, P * W * 5] statistics of the trailing windows that end at the given steps.

    values: [N, P] readings on a regular grid, NaN where nothing was read; one asset after another.
    offsets: [A + 1] where each asset's steps begin.
    rows: [R] the steps to summarise, as indices into N.
    windows: lengths in steps, LIFE for the whole life so far.
    A window reaches back to the asset's first step at most. NaN where it holds no reading (for std and slope: fewer
    than two). The slope is that of least squares, per step.
    """
    steps, points = values.shape
    # Steps since the asset's first, as integers: their squares must add up exactly over long records.
    clock = np.arange(steps) - np.repeat(offsets[:-1], np.diff(offsets))
    begin = rows - clock[rows]
    found = np.empty((rows.size, points, len(windows), len(STATISTICS)), np.float32)
    for point in range(points):
        column = values[:, point].astype(np.float64)
        read = ~np.isnan(column)
        # Sums of squares lose digits far from zero: everything is measured from one level and added back at the end.
        level = float(np.median(column[read])) if read.any() else 0.0
        filled = np.where(read, column - level, 0.0)
        sums = [_running(s) for s in (read, clock * read, clock**2 * read, filled, filled**2, clock * filled)]
        extremes = _Extremes(column, offsets)
        for which, window in enumerate(windows):
            first = begin if window == LIFE else np.maximum(begin, rows - window + 1)
            cell = found[:, point, which]
            cell[:, 0], cell[:, 3], cell[:, 4] = _moments([s[rows + 1] - s[first] for s in sums], clock[rows])
            cell[:, 0] += level
            cell[:, 1], cell[:, 2] = extremes.over(first, rows)
    return found.reshape(rows.size, -1)


def _running(series: NDArray[Any]) -> NDArray[Any]:
    """Sums of everything before each place, [N + 1]: exact for counts and times, float64 for values."""
    kind = np.float64 if series.dtype == np.float64 else np.int64
    return np.concatenate((np.zeros(1, kind), np.cumsum(series, dtype=kind)))


def _moments(sums: list[NDArray[Any]], end: Ints) -> tuple[Floats, Floats, Floats]:
    """Mean, standard deviation and slope from n, St, Stt, Sx, Sxx, Stx of every window."""
    n, t, tt, x, xx, tx = sums
    # Times are counted back from the window's end, so that the products stay small over long records.
    tx, tt, t = tx - end * x, tt - 2 * end * t + end**2 * n, t - end * n
    mean = x / np.where(n > 0, n, np.nan)
    pairs = np.where(n > 1, n, np.nan)
    spread = np.maximum(xx / pairs - (x / pairs) ** 2, 0.0)
    duration = tt / pairs - (t / pairs) ** 2
    slope = (tx / pairs - (t / pairs) * (x / pairs)) / duration
    return mean, np.sqrt(spread), slope


class _Extremes:
    """Least and most of any stretch of a column in two look-ups: a sparse table of stretches of 1, 2, 4… steps."""

    def __init__(self, column: Floats, offsets: Ints) -> None:
        longest = int(np.diff(offsets).max(initial=1))
        self._least = [np.where(np.isnan(column), np.inf, column).astype(np.float32)]
        self._most = [np.where(np.isnan(column), -np.inf, column).astype(np.float32)]
        for reach in (1 << k for k in range(longest.bit_length() - 1)):
            self._least.append(self._doubled(self._least[-1], reach, np.minimum))
            self._most.append(self._doubled(self._most[-1], reach, np.maximum))

    @staticmethod
    def _doubled(last: NDArray[np.float32], reach: int, pick: np.ufunc) -> NDArray[np.float32]:
        """From the extreme over [i - reach + 1, i] to the one over twice that; `over` never crosses assets."""
        wider = last.copy()
        pick(last[reach:], last[:-reach], out=wider[reach:])
        return wider

    def over(self, first: Ints, last: Ints) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        level = np.frexp((last - first + 1).astype(np.float64))[1] - 1
        least, most = np.empty(first.size, np.float32), np.empty(first.size, np.float32)
        for k in np.unique(level):
            these = np.flatnonzero(level == k)
            early, late = first[these] + (1 << int(k)) - 1, last[these]
            least[these] = np.minimum(self._least[k][early], self._least[k][late])
            most[these] = np.maximum(self._most[k][early], self._most[k][late])
        return np.where(np.isinf(least), np.nan, least), np.where(np.isinf(most), np.nan, most)
