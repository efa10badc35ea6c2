"""What calibration error a perfectly calibrated forecaster would show on so many forecasts. Numpy only.

Forecasts an hour apart are followed by nearly the same 72 hours, so that a year of them says less than their number
promises, and the calibration error of true probabilities is well above nothing.
"""

from __future__ import annotations

import numpy as np

from forecasting.metrics import BINS, HOUR_US, Estimate, Floats, Ints, bins_of


def calibration_floor(
    probability: Floats,
    asset: Ints,
    time_us: Ints,
    hours: float,
    rng: np.random.Generator,
    *,
    replicates: int = 100,
    bins: int = BINS,
) -> Estimate:
    """The calibration error of these [N] forecasts if each were true: its mean over draws of the outcomes, and the
    range that holds 95 % of the draws.

    Outcomes depend on each other as those of windows do that overlap: the record of each asset is cut, at a random
    offset, into pieces of `hours`; in each piece one number is drawn evenly from (0, 1), and the forecasts that say
    more than it come true. So each comes true as often as it says, and two of one asset share their fate with the
    share of their windows that they share. NaN (nothing issued) is left out.
    """
    issued = ~np.isnan(probability)
    p, rows, times = probability[issued], asset[issued], time_us[issued]
    if not p.size:
        return Estimate(None)
    width = max(int(hours * HOUR_US), 1)
    kinds = int(rows.max()) + 1
    errors, bin_ = np.empty(replicates), bins_of(p, bins)
    for draw in range(replicates):
        offset = rng.integers(width, size=kinds)
        piece = (times - times.min() + offset[rows]) // width
        fate = rng.random((kinds, int(piece.max()) + 1))
        errors[draw] = np.abs(np.bincount(bin_, p - (fate[rows, piece] < p))).sum() / p.size
    low, high = np.quantile(errors, (0.025, 0.975))
    return Estimate(float(errors.mean()), float(low), float(high), errors)
