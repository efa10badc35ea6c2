"""The alert policy over the forecasts of a whole record: thresholds for budgets, and what alerts were worth there.

What a replay finds by running the service, found from a table of forecasts alone, for any forecaster: the same
policy, the same scorecard. What only the service knows (stale readings, assets switched off) does not enter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pm.budget import Threshold, thresholds
from pm.config import AlertsSection, AssessSection
from pm.domain import EventKind, History
from pm.errors import TrainingError
from pm.policy import NEVER, FleetState, advance
from pm.quality import Limits
from pm.scorecard import LEAD_HOURS, AlertSpan, FailureTime, Scorecard, score

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Watch:
    """A fleet as one forecaster saw it at every assessment, and what happened to it."""

    assets: tuple[str, ...]
    times_us: Ints
    """[T] assessments, ascending, microseconds since the epoch."""
    probability: Floats
    """[A, T] P(failure within the horizon), NaN where none was issued."""
    failures: tuple[FailureTime, ...]
    renewals_us: tuple[Ints, ...]
    """Of each asset, ascending: its maintenance and failures."""
    observed: Mapping[str, tuple[int, int]]
    """First and last reading of every asset that was read."""

    @classmethod
    def of(
        cls,
        history: History,
        assets: Sequence[str],
        asset_index: Ints,
        time_us: Ints,
        probability: Floats,
        assess: AssessSection,
    ) -> Watch:
        """asset_index (into `assets`), time_us, probability: [N] forecasts, each asset and time at most once.

        The service abstains on assets with too little history, so those forecasts do not count here either.
        """
        spans = history.readings.groupby("asset")["time"].agg(["min", "max"])
        first, last = (_us(spans[column]) for column in ("min", "max"))
        observed = {str(a): (int(b), int(e)) for a, b, e in zip(spans.index, first, last, strict=True)}
        observed = {asset: observed[asset] for asset in assets if asset in observed}
        least_us = Limits.of(assess, history.interval).min_history // timedelta(microseconds=1)
        begun = np.array([observed.get(asset, (0, 0))[0] for asset in assets], np.int64)
        told = np.where(time_us - begun[asset_index] < least_us, np.nan, probability)
        times, column = np.unique(time_us, return_inverse=True)
        dense = np.full((len(assets), len(times)), np.nan)
        dense[asset_index, column] = told
        events = history.events
        failed = (events["kind"] == EventKind.FAILURE.value).to_numpy()
        renewed = events[failed | (events["kind"] == EventKind.MAINTENANCE.value).to_numpy()]
        failures = events[failed & events["asset"].isin(list(assets)).to_numpy()]
        return cls(
            assets=tuple(assets),
            times_us=times,
            probability=dense,
            failures=tuple(map(FailureTime, failures["asset"], failures["code"], _us(failures["time"]).tolist())),
            renewals_us=tuple(np.sort(_us(renewed["time"][renewed["asset"] == asset])) for asset in assets),
            observed=observed,
        )

    def thresholds(self, budgets: Sequence[float], rules: AlertsSection) -> dict[float, Threshold]:
        """The threshold of each budget (`pm.budget`). Raises TrainingError where too little was forecast."""
        if len(self.times_us) < 2 or np.isnan(self.probability).all():
            raise TrainingError(
                f"the {len(self.assets)} validation assets have too little history for an alert threshold; "
                "train on more time, or raise train.validation"
            )
        return thresholds(
            self.probability,
            self.times_us,
            [np.array([f.time_us for f in self.failures if f.asset == asset], np.int64) for asset in self.assets],
            sorted(set(budgets)),
            rules,
            renewals_us=self.renewals_us,
            observed_to_us=np.array([self.observed.get(asset, (0, 0))[1] for asset in self.assets], np.int64),
        )

    def alerts(self, threshold: float, rules: AlertsSection) -> list[AlertSpan]:
        """The alerts that the policy raises, without a failure mode."""
        past = np.stack(
            [
                np.concatenate(([NEVER], renewed))[np.searchsorted(renewed, self.times_us, side="left")]
                for renewed in self.renewals_us
            ]
        )
        state, open_, found = FleetState.fresh(len(self.assets)), dict[int, int](), list[AlertSpan]()
        for i, at_us in enumerate(self.times_us.tolist()):
            step = advance(
                state,
                at_us=at_us,
                probability=self.probability[:, i],
                threshold=threshold,
                renewed_us=past[:, i],
                rules=rules,
            )
            state = step.state
            for asset in np.flatnonzero(step.cleared | step.ended).tolist():
                found.append(AlertSpan(self.assets[asset], "", open_.pop(asset), at_us))
            open_.update(dict.fromkeys(np.flatnonzero(step.raised).tolist(), at_us))
        return found + [AlertSpan(self.assets[asset], "", at_us) for asset, at_us in open_.items()]

    def scorecard(self, threshold: float, rules: AlertsSection, rng: np.random.Generator) -> Scorecard:
        """These alerts against the failures, over the time between the first assessment and the last reading."""
        begin = int(self.times_us[0])
        observed = {asset: (max(first, begin), max(last, begin)) for asset, (first, last) in self.observed.items()}
        return score(self.alerts(threshold, rules), self.failures, observed, minimum_lead=rules.minimum_lead, rng=rng)


def report(card: Scorecard, threshold: float) -> dict[str, Any]:
    """A scorecard as plain JSON, with the interval of every share."""
    return {
        "threshold": threshold,
        "asset_months": card.asset_months,
        "failures": len(card.failures),
        "by_mode": {
            mode: {"failures": found.total, "warned": found.warned} for mode, found in sorted(card.by_mode.items())
        },
        "recall": card.recall.report(),
        "recall_at_lead": {f"{hours}h": card.recall_at_lead[hours].report() for hours in LEAD_HOURS},
        "precision": card.precision.report(),
        "false_alerts_per_asset_month": card.false_alerts_per_asset_month.report(),
        "lead_hours": {name: card.lead_quantile(q) for name, q in (("p10", 0.1), ("median", 0.5), ("p90", 0.9))},
    }


def _us(times: pd.Series[Any]) -> Ints:
    us: Ints = pd.DatetimeIndex(times).as_unit("us").asi8
    return us
