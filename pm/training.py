"""Training as a whole: split, fit, thresholds for the alert budgets, and the model on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from connectors.recordings import fingerprint
from forecasting import checkpoint
from forecasting.checkpoint import Artefact
from forecasting.metrics import (
    REPLICATES,
    Outcomes,
    Ranking,
    estimate,
    mean_over_assets,
    multiplicities,
    outcomes,
    reliability,
)
from forecasting.precision import choose_device
from forecasting.predict import ForecastTable, TransformerForecaster
from forecasting.split import Split, split_assets, validation_start, with_new_assets
from forecasting.train import PLAIN, Execution, fit
from forecasting.windows import schema_of
from pm.alert_judge import BUDGETS
from pm.alert_scores import Watch
from pm.budget import Threshold
from pm.config import AlertsSection, AssessSection, TrainSection
from pm.domain import REPORTED_HOURS, EventKind, History, from_us, to_us
from pm.errors import ModelError, TrainingError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """A model that stands on disk, ready to forecast."""

    forecaster: TransformerForecaster
    folder: Path
    split: Split
    thresholds: Mapping[float, Threshold]
    trained_until: datetime
    fingerprint: str
    seconds: float
    """Time that fitting took."""

    @property
    def version(self) -> str:
        return self.forecaster.version


def facts(artefact: Artefact) -> dict[str, Any]:
    """What is told of a model: scores on the validation slice, thresholds by budget, how many assets it saw."""
    split = artefact.split
    return {
        **artefact.metrics,
        "thresholds": {str(float(budget)): value for budget, value in artefact.thresholds.items()},
        "assets": {"train": len(split.train), "validation": len(split.validation), "held_out": len(split.held_out)},
    }


def train(
    history: History,
    *,
    out: Path,
    settings: TrainSection | None = None,
    alerts: AlertsSection | None = None,
    assess: AssessSection | None = None,
    split: Split | None = None,
    until: datetime | None = None,
    budgets: Sequence[float] = BUDGETS,
    name: str = "model",
    shuffle_labels: bool = False,
    start_from: Artefact | None = None,
    execution: Execution = PLAIN,
) -> TrainedModel:
    """Train a forecaster on `history` and save it as the folder `out`, which must not exist yet.

    split: assets to train, validate and hold out; dealt by `settings` when None. until: nothing dated later is seen.
    budgets: alert budgets to find thresholds for, beside the one of `alerts`. name: first part of the version.
    shuffle_labels: give the failures to other assets at other times first. Such a model has nothing to learn from;
    it is the control that shows that judging refuses it. start_from: go on from this model with what came since.
    execution: processes that train together, and the like; those that do not lead find no thresholds and save nothing.
    Raises TrainingError when there is nothing to learn from, ModelError when `out` exists.
    """
    settings, alerts, assess = settings or TrainSection(), alerts or AlertsSection(), assess or AssessSection()
    if out.exists():
        raise ModelError(f"{out}: exists already; name another folder with --out, or remove it")
    if until is not None:
        history = history.known_at(until)
    failures = int((history.events["kind"] == EventKind.FAILURE.value).sum())
    if history.readings.empty or not failures:
        raise TrainingError(
            f"nothing to learn from: {len(history.assets)} assets, {len(history.readings)} readings, {failures} "
            "failures; import a recording with failures ('pm import'), or wait until the feed has brought some"
        )
    if shuffle_labels:
        history = with_shuffled_failures(history, np.random.default_rng(settings.seed))
    if start_from is not None:
        split = split or with_new_assets(start_from.split, history)
    split = split or split_assets(history, settings.hold_out, settings.validation, settings.seed)
    learned_from = history.only([*split.train, *split.validation])
    # A model that is gone on from learns from what came since: there, assets alone tell validation apart.
    validation_from = validation_start(history, split.validation) if start_from is None else None
    log.info(
        "training on %d assets, validating on %d from %s, holding out %d; %d failures in all",
        len(split.train),
        len(split.validation),
        validation_from or "their beginning",
        len(split.held_out),
        failures,
    )
    fitted = fit(
        history,
        split.train,
        split.validation,
        schema_of(learned_from, settings) if start_from is None else start_from.schema,
        settings,
        until=until,
        validation_from=validation_from,
        held_out=split.held_out,
        name=name,
        fingerprint=fingerprint(history),
        start_from=start_from,
        execution=execution,
    )
    device = str(execution.workers.device or choose_device(settings.device))
    artefact = with_onnx(fitted.artefact) if settings.onnx and execution.workers.leads else fitted.artefact
    found: dict[float, Threshold] = {}
    if execution.workers.leads:
        # Alerts are rare: thresholds take the validation assets' whole record, the scores its later part alone.
        forecaster, validating = TransformerForecaster(artefact, device=device), history.only(split.validation)
        table = forecaster.forecast_grid(validating)
        found = budget_thresholds(table, validating, [*budgets, alerts.budget], alerts, assess)
        scores = _scores(_later(table, validation_from), validating)
        artefact = replace(
            artefact,
            samples=forecaster.sample(validating),
            thresholds={budget: threshold.value for budget, threshold in found.items()},
            metrics={**artefact.metrics, **scores, **_threshold_facts(found)},
        )
        log.info("saved %s in %s", checkpoint.save(artefact, out), out)
    return TrainedModel(
        forecaster=TransformerForecaster(artefact, device=device),
        folder=out,
        split=split,
        thresholds=found,
        trained_until=artefact.trained_until,
        fingerprint=artefact.fingerprint,
        seconds=fitted.seconds,
    )


def with_onnx(artefact: Artefact) -> Artefact:
    """The artefact with its network as ONNX, or as it is, with a warning, where that cannot be had."""
    from forecasting.export import onnx_of_artefact

    began = time.monotonic()
    try:
        onnx = onnx_of_artefact(artefact)
    except ImportError as error:
        log.warning("the model goes without an ONNX form, and runs in torch: %s; install onnx and onnxscript", error)
        return artefact
    log.info("exported to ONNX in %.0f s, %.1f MB", time.monotonic() - began, len(onnx) / 1e6)
    return replace(artefact, onnx=onnx)


def budget_thresholds(
    table: ForecastTable,
    history: History,
    budgets: Sequence[float],
    alerts: AlertsSection,
    assess: AssessSection,
) -> dict[float, Threshold]:
    """The threshold of each budget, from forecasts of assets whose failures are known."""
    watch = Watch.of(history, table.assets, table.asset_index, table.time_us, table.probability(), assess)
    found = watch.thresholds(budgets, alerts)
    for budget, threshold in found.items():
        log.info(
            "alert budget %g: threshold %.3f, %.3f false alerts per asset-month measured over %.1f, bound %.3f, "
            "crossed %s%s",
            budget,
            threshold.value,
            threshold.rate,
            threshold.asset_months,
            threshold.bound,
            "unknown" if threshold.crossed is None else f"{threshold.crossed:.3f}",
            "" if threshold.guaranteed else " (too few asset-months for the bound; the measured rate decides)",
        )
    return found


def with_shuffled_failures(history: History, rng: np.random.Generator) -> History:
    """The same readings, with every failure given to a random asset at a random time at which it was observed."""
    events = history.events.copy()
    failed = np.flatnonzero(events["kind"] == EventKind.FAILURE.value)
    spans = history.readings.groupby("asset")["time"].agg(["min", "max"])
    chosen = spans.iloc[rng.integers(len(spans), size=len(failed))]
    begin, end = _microseconds(chosen["min"]), _microseconds(chosen["max"])
    step = history.interval // timedelta(microseconds=1)
    times = _microseconds(events["time"]).copy()
    times[failed] = begin + (rng.random(len(failed)) * (end - begin)).astype(np.int64) // step * step
    events["time"] = pd.DatetimeIndex(times.view("datetime64[us]"), tz="UTC")
    assets = events["asset"].to_numpy(object).copy()
    assets[failed] = chosen.index.to_numpy(object)
    events["asset"] = pd.array(assets, dtype="str")
    events = events.sort_values(["time", "asset", "kind", "code"], kind="stable", ignore_index=True)
    return replace(history, events=events.drop_duplicates(ignore_index=True))


def followed(table: ForecastTable, history: History) -> Outcomes:
    """What followed each forecast of the table, as far as `history` tells."""
    failed = history.events[history.events["kind"] == EventKind.FAILURE.value]
    index = {name: row for row, name in enumerate(table.assets)}
    return outcomes(
        table.asset_index,
        table.time_us,
        [index[name] for name in failed["asset"]],
        _microseconds(failed["time"]),
        _last_readings(history, table.assets),
    )


def _later(table: ForecastTable, start: datetime | None) -> ForecastTable:
    """The forecasts from `start` on."""
    if start is None:
        return table
    chosen = table.time_us >= to_us(start)
    return replace(
        table,
        asset_index=table.asset_index[chosen],
        time_us=table.time_us[chosen],
        hazard=table.hazard[chosen],
        mode_probability=table.mode_probability[chosen],
        rul_hours=table.rul_hours[chosen],
    )


def _scores(table: ForecastTable, history: History) -> dict[str, float]:
    """PR-AUC, Brier score and calibration error on the validation slice at each reported horizon, where both outcomes
    occur in it; each with the ends of its 95 % interval over assets (`_low`, `_high`), where they can be told."""
    what_followed = followed(table, history)
    draws = multiplicities(what_followed.assets, REPLICATES, np.random.default_rng(0))
    scores: dict[str, float] = {}
    for hours in REPORTED_HOURS:
        outcome, probability = what_followed.within(hours), table.probability(hours)
        known = (outcome >= 0) & ~np.isnan(probability)
        truth, probability, asset = outcome[known] == 1, probability[known], what_followed.asset[known]
        if not 0 < truth.sum() < len(truth):
            continue
        ranking = Ranking(truth, probability, asset)
        estimates = {
            "pr_auc": estimate(
                ranking.average_precision(), np.array([ranking.average_precision(draw) for draw in draws])
            ),
            "brier": mean_over_assets((probability - truth) ** 2, asset, draws),
            "calibration_error": reliability(truth, probability, asset, draws).error,
        }
        told = {
            f"{score}_{hours}h{end}": value
            for score, estimated in estimates.items()
            for end, value in (("", estimated.value), ("_low", estimated.low), ("_high", estimated.high))
        }
        told[f"base_rate_{hours}h"] = float(truth.mean())
        scores |= {f"validation_{name}": value for name, value in told.items() if value is not None}
    return scores


def _threshold_facts(found: Mapping[float, Threshold]) -> dict[str, float]:
    facts = {}
    for budget, threshold in found.items():
        facts[f"validation_false_alerts_at_{budget:g}"] = threshold.rate
        facts[f"validation_false_alerts_bound_at_{budget:g}"] = threshold.bound
        if threshold.crossed is not None:
            facts[f"validation_false_alerts_crossed_at_{budget:g}"] = threshold.crossed
        if threshold.recall is not None:
            facts[f"validation_recall_at_{budget:g}"] = threshold.recall
    return facts


def _last_readings(history: History, assets: Sequence[str]) -> NDArray[np.int64]:
    """[assets] microseconds of each asset's last reading; of one never read, the beginning of time."""
    last = history.readings.groupby("asset")["time"].max()
    never = from_us(0)
    return np.array([to_us(last[a].to_pydatetime() if a in last else never) for a in assets], np.int64)


def _microseconds(times: Any) -> NDArray[np.int64]:
    return pd.DatetimeIndex(times).as_unit("us").asi8
