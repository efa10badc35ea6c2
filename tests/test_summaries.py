"""Trailing summaries against a plain loop, and their causality."""

from __future__ import annotations

import numpy as np
import pytest

from forecasting.summaries import LIFE, STATISTICS, names, summarise

WINDOWS = (1, 6, 24, LIFE)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def plain(values: np.ndarray, offsets: np.ndarray, row: int, window: int) -> list[float]:
    """One point's statistics at one step, written out."""
    begin = max(o for o in offsets if o <= row)
    first = begin if window == LIFE else max(begin, row - window + 1)
    time = np.arange(first, row + 1)
    seen = values[first : row + 1]
    time, seen = time[~np.isnan(seen)], seen[~np.isnan(seen)]
    if not seen.size:
        return [np.nan] * 5
    pair = seen.size > 1
    slope = np.polyfit(time - row, seen, 1)[0] if pair else np.nan
    return [seen.mean(), seen.min(), seen.max(), seen.std() if pair else np.nan, slope]


def test_summaries_equal_a_plain_loop(rng: np.random.Generator) -> None:
    offsets = np.array([0, 1, 40, 100])
    values = (50 + rng.normal(size=(100, 2)) * [1.0, 20.0]).astype(np.float32)
    values[rng.random(values.shape) < 0.3] = np.nan
    values[41:70, 1] = np.nan
    rows = np.arange(100)
    found = summarise(values, offsets, rows, WINDOWS).reshape(100, 2, len(WINDOWS), len(STATISTICS))
    for row in rows:
        for point in range(2):
            for which, window in enumerate(WINDOWS):
                expected = plain(values[:, point].astype(float), offsets, row, window)
                np.testing.assert_allclose(found[row, point, which], expected, rtol=1e-4, atol=1e-4)


def test_later_readings_change_nothing(rng: np.random.Generator) -> None:
    offsets = np.array([0, 60, 120])
    values = rng.normal(size=(120, 1)).astype(np.float32)
    rows = np.array([20, 75])
    before = summarise(values, offsets, rows, WINDOWS)
    values[21:60] = 1e6
    values[76:] = -1e6
    np.testing.assert_allclose(summarise(values, offsets, rows, WINDOWS), before, rtol=1e-3, atol=1e-3)


def test_slope_stays_exact_over_a_long_record() -> None:
    """Two years of ten-minute steps with a line at the very end: sums of squared times must not lose it."""
    values = np.zeros((105_000, 1), np.float32)
    values[-6:, 0] = np.arange(6) * 2.0
    found = summarise(values, np.array([0, 105_000]), np.array([104_999]), (6,))[0]
    assert dict(zip(STATISTICS, found, strict=True)) == pytest.approx(
        {"mean": 5.0, "min": 0.0, "max": 10.0, "std": np.std(np.arange(6) * 2.0), "slope": 2.0}
    )


def test_names_follow_the_columns() -> None:
    columns = names(["volt", "rotate"], (6, LIFE))
    assert len(columns) == 2 * 2 * 5
    assert columns[0] == "volt mean 6"
    assert columns[-1] == "rotate slope life"
