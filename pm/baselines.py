"""The baselines asked for what a forecaster was asked, and the forecasts by which each sets its thresholds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import numpy as np

from forecasting.baseline import GradientBoosting, HazardByAge
from forecasting.metrics import Floats
from pm.domain import HORIZON_HOURS, History

if TYPE_CHECKING:
    from forecasting.predict import ForecastTable, TransformerForecaster

BOOSTING: Final = "gradient boosting"
BY_AGE: Final = "hazard by age"


@dataclass(frozen=True)
class Answers:
    """What one forecaster says of N (asset, time) pairs, and of those of the assets that set its thresholds."""

    probability: Mapping[int, Floats]
    rul_hours: Floats
    validation: Floats | None = None
    """[M] within the whole horizon, of the validation assets; None where there are none."""


def setting_forecasts(
    forecaster: TransformerForecaster,
    history: History,
    table: ForecastTable,
    every: timedelta | None,
    progress: Callable[[float], None],
) -> ForecastTable | None:
    """The forecasts by which thresholds are set: of the validation assets, unless they are judged themselves."""
    there = {asset.name for asset in history.assets} - set(table.assets)
    validation = [name for name in forecaster.artefact.split.validation if name in there]
    if not validation:
        return None
    found = forecaster.forecast_grid(history, validation, every, progress=progress)
    return found if len(found) else None


def baseline_note(history: History, train: Sequence[str], judged: Sequence[str]) -> str:
    """Why the baselines cannot be fitted; empty when they can."""
    there = {asset.name for asset in history.assets} & set(train)
    if not there:
        return "the recording does not hold the assets that the model learned from"
    if there <= set(judged):
        return "every training asset is judged"
    return ""


def baselines(
    forecaster: TransformerForecaster,
    history: History,
    table: ForecastTable,
    setting: ForecastTable | None,
    *,
    threads: int,
    say: Callable[[str, float], None],
) -> dict[str, Answers]:
    artefact = forecaster.artefact
    schema, until = artefact.schema, artefact.trained_until
    apart = set(table.assets)
    train = [name for name in artefact.split.train if name not in apart]
    validation = [name for name in artefact.split.validation if name not in apart]
    say(f"training {BOOSTING}", 0.0)
    boosting = GradientBoosting.fit(
        history,
        schema=schema,
        train_assets=train,
        validation_assets=validation,
        seed=artefact.seed,
        until=until,
        validation_from=artefact.validation_from,
        threads=threads,
    )
    by_age = HazardByAge.fit(history, schema=schema, train_assets=[*train, *validation], until=until)
    asked = [table] if setting is None else [table, setting]
    names = [part.assets[index] for part in asked for index in part.asset_index]
    times = np.concatenate([part.time_us for part in asked])
    wanted = {asset for part in asked for asset in part.assets}
    known = replace(history, assets=tuple(asset for asset in history.assets if asset.name in wanted))
    # Where the forecaster abstains nobody is asked, so that all are judged on the same forecasts.
    abstained = np.concatenate([np.isnan(part.probability()) for part in asked])
    found = {}
    for name, model in ((BOOSTING, boosting), (BY_AGE, by_age)):
        say(f"asking {name}", 0.5)
        answer = model.forecast(known, names, times)
        probability = {hours: np.where(abstained, np.nan, told) for hours, told in answer.probability.items()}
        found[name] = Answers(
            {hours: told[: len(table)] for hours, told in probability.items()},
            np.where(abstained, np.nan, answer.rul_hours)[: len(table)],
            None if setting is None else probability[HORIZON_HOURS][len(table) :],
        )
    return found
