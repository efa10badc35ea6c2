"""Forecast quality alone, with intervals, beside the baselines: before any threshold, delay or suppression.

The forecaster and the baselines are judged on the same assets at the same times. The baselines learn from the assets
that the forecaster learned from and see no later time than it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from forecasting.baseline import hours_of
from forecasting.censoring import Followed, dynamic_auc, followed, integrated_brier
from forecasting.floor import calibration_floor
from forecasting.metrics import (
    REPLICATES,
    UNKNOWN,
    Floats,
    HorizonScore,
    Outcomes,
    conditional,
    mean_over_assets,
    multiplicities,
    outcomes,
    phm08_penalty,
    rul_rmse_over_assets,
)
from forecasting.windows import FeatureSchema
from pm.alert_judge import AlertJudge
from pm.baselines import Answers, baseline_note, baselines, setting_forecasts
from pm.config import AlertsSection, AssessSection
from pm.domain import HORIZON_HOURS, REPORTED_HOURS, EventKind, History, Recording, to_us
from pm.errors import ModelError
from pm.outcomes import LATER, horizon_label, microseconds, score_horizons

if TYPE_CHECKING:
    import pandas as pd

    from forecasting.predict import ForecastTable, TransformerForecaster
    from forecasting.split import Split

FORECASTER: Final = "transformer"


def evaluate(
    recording: Recording,
    forecaster: TransformerForecaster,
    *,
    rng: np.random.Generator,
    assets: Sequence[str] | None = None,
    every: timedelta | None = None,
    start: datetime | None = None,
    baseline: bool = True,
    alerts: AlertsSection | None = None,
    assess: AssessSection | None = None,
    threads: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Judge a forecaster on a recording; the result is plain JSON (docs/evaluation.md says what each number means).

    assets: judged; by default the recording's assets that the forecaster held out of training, or all of them when it
        knows none of them. every: time between forecasts, by default the model's step. start: judge later forecasts
        only. baseline: judge the baselines too, where the recording holds the forecaster's training assets.
    alerts, assess: the policy whose alerts are scored. Each forecaster gets the thresholds that its own forecasts of
        the validation assets, as far apart, would give it; the forecaster's own stand where the recording lacks those.
    rng: draws the bootstrap over assets. threads: of gradient boosting. progress: called with what is being done and
        the share done.
    Raises ModelError for assets that the recording does not hold.
    """
    history, artefact = recording.history, forecaster.artefact
    judged = _judged(history, assets, artefact.split)
    say = progress or (lambda what, share: None)
    table = forecaster.forecast_grid(
        history, judged, every, start=start, progress=lambda share: say("forecasting", share)
    )
    if not len(table):
        raise ModelError(f"{recording.name}: no forecast to judge; name an earlier start or other assets")
    found = _outcomes(history, table)
    setting = setting_forecasts(
        forecaster, history, table, every, lambda share: say("forecasting for thresholds", share)
    )
    answers = {
        FORECASTER: Answers(
            {h: table.probability(h) for h in REPORTED_HOURS},
            table.rul_hours,
            None if setting is None else setting.probability(),
        )
    }
    note = "not asked for"
    if baseline:
        note = baseline_note(history, artefact.split.train, judged)
        if not note:
            answers |= baselines(forecaster, history, table, setting, threads=threads, say=say)
    say("scoring", 0.0)
    draws = multiplicities(found.assets, REPLICATES, rng)
    share = followed(found)
    scores = {name: score_horizons(found, answer.probability, draws) for name, answer in answers.items()}
    judge_alerts = AlertJudge(history, table, setting, forecaster.thresholds, alerts, assess)
    later = artefact.validation_from if start is None else None
    return {
        "recording": recording.name,
        "model": forecaster.version,
        "schedule_features": artefact.schema.schedule_features,
        "assets": list(table.assets),
        "seen_in_training": sorted({*table.assets} & {*artefact.split.train, *artefact.split.validation}),
        "forecasts": len(table),
        "failures": _failures_ahead(history, table),
        "every_hours": (every or timedelta(hours=artefact.schema.step_hours)) / timedelta(hours=1),
        "start": None if start is None else start.isoformat(),
        "baselines_left_out": note or None,
        "thresholds_from": "the model" if setting is None else "validation assets",
        "scores": {
            name: {
                "horizons": {
                    label: _horizon(score) | {"calibration_floor": _floor(label, answer, found, table, rng)}
                    for label, score in scores[name].items()
                },
                "integrated_brier": _integrated(found, answer, draws, share),
                "dynamic_auc": {
                    horizon_label(h): dynamic_auc(found, h, answer.probability[h], draws, share).to_json()
                    for h in REPORTED_HOURS
                },
                "remaining_life": _remaining(found, answer, artefact.schema, draws),
                "alerts": judge_alerts.by_budget(
                    answer.probability[HORIZON_HOURS], answer.validation, rng, own=name == FORECASTER
                ),
            }
            for name, answer in answers.items()
        },
        "later": None if later is None else _later(later, found, table, answers, draws),
        "pr_auc_above": _above(scores),
        "curves": {name: {label: _curves(score) for label, score in by.items()} for name, by in scores.items()},
    }


def _judged(history: History, assets: Sequence[str] | None, split: Split) -> list[str]:
    there = [asset.name for asset in history.assets]
    if assets is not None:
        missing = sorted(set(assets) - set(there))
        if missing:
            raise ModelError(f"asset {missing[0]!r} is not in the recording; name assets of its assets.csv")
        return list(assets)
    judging = split.judging(there)
    if judging:
        return judging
    raise ModelError(
        "the model learned from every asset of this recording, so that none can judge it; name assets with --assets, "
        "or train with train.hold_out above 0"
    )


def _later(
    start: datetime, found: Outcomes, table: ForecastTable, answers: Mapping[str, Answers], draws: Floats
) -> dict[str, Any]:
    """The scores of forecasts later than all that training saw, too."""
    rows = table.time_us > to_us(start)
    part = Outcomes(found.asset[rows], found.assets, found.failure_hours[rows], found.observed_hours[rows])
    scores = {
        name: score_horizons(part, {h: told[rows] for h, told in answer.probability.items()}, draws)
        for name, answer in answers.items()
    }
    return {
        "start": start.isoformat(),
        "scores": {name: {label: _horizon(score) for label, score in by.items()} for name, by in scores.items()},
        "pr_auc_above": _above(scores),
    }


def _above(scores: Mapping[str, Mapping[str, HorizonScore]]) -> dict[str, dict[str, Any]]:
    """By baseline and horizon, how far the forecaster's PR-AUC is above, with its paired interval."""
    return {
        name: {label: score.pr_auc.minus(theirs[label].pr_auc).to_json() for label, score in scores[FORECASTER].items()}
        for name, theirs in scores.items()
        if name != FORECASTER
    }


def _floor(
    label: str, answer: Answers, found: Outcomes, table: ForecastTable, rng: np.random.Generator
) -> dict[str, float | None]:
    """What a perfect forecaster's calibration error would be, over the forecasts that the error is taken of."""
    hours = REPORTED_HOURS[-1] if label == LATER else int(label.removesuffix("h"))
    told = answer.probability[hours]
    after = 0
    if label == LATER:
        after = REPORTED_HOURS[0]
        told = conditional(answer.probability[after], told)
    known = found.within(hours, after=after) != UNKNOWN
    return calibration_floor(told[known], found.asset[known], table.time_us[known], hours, rng).to_json()


def _outcomes(history: History, table: ForecastTable) -> Outcomes:
    """What followed each row of the table; assets are numbered as in the table."""
    code = {name: index for index, name in enumerate(table.assets)}
    failed = _failures(history, table.assets)
    last = history.readings.groupby("asset", observed=True)["time"].max()
    return outcomes(
        table.asset_index,
        table.time_us,
        [code[name] for name in failed["asset"]],
        microseconds(failed["time"]),
        microseconds(last.reindex(list(table.assets))),
    )


def _failures(history: History, assets: Sequence[str]) -> pd.DataFrame:
    """Asset and time of failures; modes that fail at one time are one failure."""
    events = history.events
    failed = events[(events["kind"] == EventKind.FAILURE.value) & events["asset"].isin(list(assets))]
    return failed.drop_duplicates(["asset", "time"])


def _failures_ahead(history: History, table: ForecastTable) -> int:
    """Failures after the first forecast of their asset."""
    failed = _failures(history, table.assets)
    first = {table.assets[i]: int(table.time_us[table.asset_index == i].min()) for i in np.unique(table.asset_index)}
    times = microseconds(failed["time"])
    return sum(int(time) > first[name] for name, time in zip(failed["asset"], times, strict=True) if name in first)


def _horizon(score: HorizonScore) -> dict[str, Any]:
    return {
        "forecasts": score.known,
        "failing": score.positives,
        "left_out": score.unknown,
        "base_rate": score.base_rate,
        "pr_auc": score.pr_auc.to_json(),
        "roc_auc": score.roc_auc.to_json(),
        "brier": score.brier.to_json(),
        "calibration_error": score.reliability.error.to_json(),
    }


def _integrated(found: Outcomes, answer: Answers, draws: Floats, share: Followed) -> dict[str, Any]:
    """Over 0, 24, 48 and 72 h, the times at which every forecaster speaks."""
    hours = np.array(REPORTED_HOURS, np.float64)
    cumulative = np.stack([answer.probability[h] for h in REPORTED_HOURS], axis=1)
    return integrated_brier(found, hours, cumulative, draws, share).to_json()


def _remaining(found: Outcomes, answer: Answers, schema: FeatureSchema, draws: Floats) -> dict[str, Any]:
    """Errors in steps, so that they compare with the literature on run-to-failure sets."""
    truth, known = hours_of(found, schema)
    known &= ~np.isnan(answer.rul_hours)
    true, told = truth[known] / schema.step_hours, answer.rul_hours[known] / schema.step_hours
    asset = found.asset[known]
    return {
        "forecasts": int(known.sum()),
        "cap_steps": schema.rul_cap,
        "step_hours": schema.step_hours,
        "rmse_steps": rul_rmse_over_assets(true, told, asset, draws).to_json(),
        "nasa_score_per_forecast": mean_over_assets(phm08_penalty(true, told), asset, draws).to_json(),
    }


def _curves(score: HorizonScore) -> dict[str, Any]:
    return {
        "reliability": score.reliability.to_json(),
        "recall": score.recall.tolist(),
        "precision": score.precision.tolist(),
    }
