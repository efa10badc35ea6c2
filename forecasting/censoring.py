"""Scores that use censored forecasts through weights, instead of leaving them out. Numpy only.

A row whose record ends early says nothing about later horizons; rows that could be followed stand in for it with the
inverse of the probability of being followed so long (IPCW), estimated by Kaplan-Meier over the censoring times of
all rows. This assumes that records end for reasons that have nothing to do with the asset's health.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forecasting.metrics import Estimate, Floats, Outcomes, Ranking, estimate, mean_over_assets, ratio


@dataclass(frozen=True)
class Followed:
    """G(h): the probability that a forecast is still under observation h hours after its issue."""

    hours: Floats
    """[K] rising times at which G falls."""
    share: Floats
    """[K] G from that time on."""

    def at(self, hours: Floats | float) -> Floats:
        """G(h)."""
        index = np.searchsorted(self.hours, hours, side="right")
        return np.concatenate(([1.0], self.share))[index]

    def before(self, hours: Floats | float) -> Floats:
        """G(h-), just before h."""
        index = np.searchsorted(self.hours, hours, side="left")
        return np.concatenate(([1.0], self.share))[index]


def followed(outcomes: Outcomes) -> Followed:
    """Kaplan-Meier estimate of G over the censoring times; of a failure and an end at one time the failure is first."""
    failed = np.isfinite(outcomes.failure_hours)
    hours = np.where(failed, outcomes.failure_hours, outcomes.observed_hours)
    times, index = np.unique(hours, return_inverse=True)
    ended = np.bincount(index, ~failed, times.size)
    left = np.bincount(index, minlength=times.size)
    at_risk = hours.size - np.concatenate(([0], np.cumsum(left)[:-1]))
    failures = left - ended
    # Failures at the same instant have left before the records that end there do.
    survival = np.cumprod(1.0 - ended / np.maximum(at_risk - failures, 1))
    falls = ended > 0
    return Followed(times[falls], survival[falls])


def weights(outcomes: Outcomes, hours: float, share: Followed) -> Floats:
    """[N] the weight of every row at horizon `hours`: 1/G(T-) if it failed at T <= hours, 1/G(hours) if it was seen
    alive then, 0 if its record ended before. Graf et al., Statistics in Medicine 18 (1999)."""
    failed = outcomes.failure_hours <= hours
    alive = ~failed & (np.isfinite(outcomes.failure_hours) | (outcomes.observed_hours >= hours))
    case = ratio(1.0, share.before(np.where(failed, outcomes.failure_hours, 0.0)))
    control = float(ratio(1.0, share.at(hours)))
    return np.where(failed, case, np.where(alive, control, 0.0))


def integrated_brier(
    outcomes: Outcomes, hours: Floats, cumulative: Floats, multiplicity: Floats, share: Followed
) -> Estimate:
    """Integrated Brier score from 0 to the last of `hours` [H] (rising), of P(failed by each hour) `cumulative` [N, H].

    The weighted Brier score at every hour (0 at issue, where nobody has failed), integrated by the trapezoidal rule
    and divided by the span. Graf et al. (1999). NaN rows of `cumulative` are left out.
    """
    issued = ~np.isnan(cumulative).any(1)
    previous_hour, previous_loss = 0.0, np.zeros(int(issued.sum()))
    area = np.zeros(int(issued.sum()))
    for column, hour in enumerate(hours):
        happened = outcomes.failure_hours[issued] <= hour
        loss = weights(outcomes, float(hour), share)[issued] * (cumulative[issued, column] - happened) ** 2
        area += (loss + previous_loss) / 2.0 * (hour - previous_hour)
        previous_hour, previous_loss = float(hour), loss
    return mean_over_assets(area / previous_hour, outcomes.asset[issued], multiplicity)


def dynamic_auc(
    outcomes: Outcomes, hours: float, probability: Floats, multiplicity: Floats, share: Followed
) -> Estimate:
    """Cumulative/dynamic AUC at a horizon: P(a row that fails by `hours` outranks one that lives on), IPCW-weighted.

    Uno et al., JASA 102 (2007); Hung & Chiang, Canadian Journal of Statistics 38 (2010). NaN probabilities are left
    out.
    """
    weight = weights(outcomes, hours, share)
    used = (weight > 0.0) & ~np.isnan(probability)
    ranking = Ranking(
        outcomes.failure_hours[used] <= hours, probability[used], outcomes.asset[used], weight=weight[used]
    )
    return estimate(ranking.roc_auc(), np.array([ranking.roc_auc(draw) for draw in multiplicity]))
