"""Alerts of several forecasters under one policy, each at its own thresholds for the same budgets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pm.alert_scores import Floats, Watch, report
from pm.config import AlertsSection, AssessSection
from pm.domain import History
from pm.errors import TrainingError

if TYPE_CHECKING:
    from forecasting.predict import ForecastTable

BUDGETS: Final = (0.05, 0.2, 1.0)
"""Alert budgets, in false alerts per asset-month, at which a model is judged and for which it carries thresholds."""


@dataclass(frozen=True)
class AlertJudge:
    """What is the same for every forecaster: assets, times, failures, policy."""

    history: History
    judged: ForecastTable
    setting: ForecastTable | None
    """Forecasts of the assets that set thresholds."""
    own: Mapping[float, float]
    """The model's own thresholds by budget, for where no assets can set them."""
    alerts: AlertsSection | None = None
    assess: AssessSection | None = None

    def by_budget(
        self, probability: Floats, setting: Floats | None, rng: np.random.Generator, *, own: bool
    ) -> dict[str, Any] | None:
        """A report for each budget.

        probability: [N] of `judged`, within the whole horizon; setting: [M] of `setting`. own: the forecaster is the
        model. None where no threshold can be had.
        """
        rules, budgets = self.alerts or AlertsSection(), sorted({*BUDGETS, (self.alerts or AlertsSection()).budget})
        found: Mapping[float, float] = self.own if own else {}
        if self.setting is not None and setting is not None:
            try:
                chosen = self._watch(self.setting, setting).thresholds(budgets, rules)
            except TrainingError:
                return None
            found = {budget: threshold.value for budget, threshold in chosen.items()}
        watch = self._watch(self.judged, probability)
        return {
            f"{budget:g}": report(watch.scorecard(found[budget], rules, rng), found[budget])
            for budget in budgets
            if budget in found
        } or None

    def _watch(self, table: ForecastTable, probability: Floats) -> Watch:
        return Watch.of(
            self.history, table.assets, table.asset_index, table.time_us, probability, self.assess or AssessSection()
        )
