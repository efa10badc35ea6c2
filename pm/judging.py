"""Champion and challenger on a window that neither saw: which of them told better what happened."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from forecasting.metrics import Outcomes, mean_over_assets, multiplicities, outcomes
from forecasting.predict import ForecastTable, TransformerForecaster
from pm.config import RetrainSection
from pm.domain import REPORTED_HOURS, EventKind, History, to_us
from pm.errors import ModelError

Losses = NDArray[np.float64]

REPLICATES = 2000
EVERY = timedelta(hours=3)
"""Time between the forecasts that are judged, where the model's step is shorter: neighbours say nearly the same."""
_SMALLEST = 1e-9
"""Probabilities are kept so far from 0 and 1, so that one forecast cannot outweigh all others."""
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What judging found. Scores are log scores in nats per forecast; less is better."""

    promote: bool
    text: str
    """The numbers and the reason, as the records keep them."""
    challenger: str
    champion: str | None
    """None where there was no champion; then the rival is a constant failure rate."""
    start: datetime
    end: datetime
    failures: int
    assets: int = 0
    challenger_score: float | None = None
    champion_score: float | None = None
    confidence: float | None = None
    """Share of bootstrap resamples of the assets in which the challenger's score is the better one."""


def judge(
    champion: TransformerForecaster | None,
    challenger: TransformerForecaster,
    history: History,
    *,
    start: datetime,
    end: datetime,
    settings: RetrainSection,
    seed: int = 0,
) -> Verdict:
    """Both forecast every asset in (start, end]; the challenger is promoted if the data are sure that it is better.

    The score is the mean over the horizons 24, 48 and 72 h of -log P(what happened), each over the forecasts whose
    outcome at that horizon is known by `end`. It is strictly proper (Gneiting & Raftery, JASA 102, 2007): neither
    boldness nor caution can buy it. Both are scored on the same forecasts, and confidence is the share of paired
    bootstrap resamples of whole assets in which the challenger scores better. Without a champion the rival is the
    constant failure rate of the time before `start`, so that a first model has to know something too. One that training
    found no better than the fleet's failure rates on its validation assets is kept out unjudged.
    Raises ModelError when either has seen data of the window.
    """
    for model in (challenger, *([champion] if champion is not None else [])):
        if model.artefact.trained_until > start:
            raise ModelError(
                f"model {model.version} was trained on data up to {_text(model.artefact.trained_until)} and cannot be "
                f"judged from {_text(start)} on; judge it on later time"
            )
    named = None if champion is None else champion.version
    failed = history.events[(history.events["kind"] == EventKind.FAILURE.value).to_numpy()]
    ahead = failed[((failed["time"] > start) & (failed["time"] <= end)).to_numpy()]
    count = len(ahead[["time", "asset"]].drop_duplicates())

    def kept_out(why: str) -> Verdict:
        text = f"kept out: {why}, from {_text(start)} to {_text(end)}"
        return Verdict(False, text, challenger.version, named, start, end, count)

    if count < settings.min_failures:
        return kept_out(f"{count} failures to judge by and retrain.min_failures asks for {settings.min_failures}")
    learned = challenger.artefact.metrics
    # Chance alone lets some of those that know nothing beat a constant rate on the few failures of a window.
    if learned.get("validation_nll", -np.inf) >= learned.get("base_nll", np.inf):
        return kept_out("it is no better on its validation assets than the fleet's failure rates")
    theirs = _forecasts(challenger, history, start, end)
    if champion is None:
        rows = np.flatnonzero(~np.isnan(theirs.probability()))
        rival = _constant(_failure_rate(history, failed, start), len(rows))
    else:
        ours = _forecasts(champion, history, start, end)
        rows, places = _shared(theirs, ours)
        rival = _probabilities(ours, places)
    if not len(rows):
        return kept_out("no asset could be forecast")
    followed = _followed(theirs, rows, history, ahead, end)
    draws = multiplicities(followed.assets, REPLICATES, np.random.default_rng(seed))
    score, resampled = _score(_losses(followed, _probabilities(theirs, rows)), followed, draws)
    rival_score, rival_resampled = _score(_losses(followed, rival), followed, draws)
    if np.isnan(score):
        return kept_out("no outcome is known yet")

    confidence = float(np.nanmean(resampled < rival_resampled))
    promote = score < rival_score and confidence >= settings.confidence
    assets = len(np.unique(followed.asset))
    text = (
        f"{'promoted' if promote else 'kept out'}: log score {score:.4f} against {rival_score:.4f} of "
        f"{'a constant failure rate' if named is None else f'champion {named}'} (less is better), better in "
        f"{confidence:.1%} of resamples where {settings.confidence:.0%} are needed; {assets} assets, {count} failures "
        f"from {_text(start)} to {_text(end)}"
    )
    return Verdict(promote, text, challenger.version, named, start, end, count, assets, score, rival_score, confidence)


def _forecasts(model: TransformerForecaster, history: History, start: datetime, end: datetime) -> ForecastTable:
    """The model's forecasts in (start, end], from no more of the past than it looks at."""
    readings = history.readings
    recent = (readings["time"] > start - model.lookback - history.interval) & (readings["time"] <= end)
    cut = History(
        interval=history.interval,
        points=history.points,
        failure_modes=history.failure_modes,
        assets=history.assets,
        readings=readings[recent.to_numpy()].reset_index(drop=True),
        events=history.events,
    )
    step = timedelta(hours=model.artefact.schema.step_hours)
    every = EVERY if step < EVERY and EVERY % step == timedelta(0) else step
    return model.forecast_grid(cut, every=every, start=start + _MICROSECOND, end=end)


def _shared(one: ForecastTable, other: ForecastTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of both tables that hold a forecast of the same asset at the same time."""

    def keys(table: ForecastTable) -> pd.MultiIndex:
        return pd.MultiIndex.from_arrays([np.array(table.assets, object)[table.asset_index], table.time_us])

    places = keys(other).get_indexer(keys(one))
    known = (places >= 0) & ~np.isnan(one.probability())
    known[known] &= ~np.isnan(other.probability()[places[known]])
    rows = np.flatnonzero(known)
    return rows, places[rows].astype(np.int64)


def _probabilities(table: ForecastTable, rows: NDArray[np.int64]) -> Losses:
    """[n, horizons]"""
    return np.stack([table.probability(hours)[rows] for hours in REPORTED_HOURS], axis=1)


def _constant(rate: float, count: int) -> Losses:
    """[count, horizons] of a failure rate per hour."""
    return np.tile(1.0 - np.exp(-rate * np.array(REPORTED_HOURS, np.float64)), (count, 1))


def _failure_rate(history: History, failed: pd.DataFrame, start: datetime) -> float:
    """Failures per asset-hour observed up to `start`, with half a failure added so that none is not never."""
    known = history.readings[(history.readings["time"] <= start).to_numpy()]
    spans = known.groupby("asset")["time"].agg(["min", "max"])
    hours = float((spans["max"] - spans["min"]).dt.total_seconds().sum()) / 3600.0
    return (np.count_nonzero(failed["time"] <= start) + 0.5) / max(hours, 1.0)


def _followed(
    table: ForecastTable, rows: NDArray[np.int64], history: History, ahead: pd.DataFrame, end: datetime
) -> Outcomes:
    """What followed these forecasts, as far as it is known by `end`."""
    last = history.readings[(history.readings["time"] <= end).to_numpy()].groupby("asset")["time"].max()
    index = {name: row for row, name in enumerate(table.assets)}
    failures = ahead[ahead["asset"].isin(list(index)).to_numpy()]
    return outcomes(
        table.asset_index[rows],
        table.time_us[rows],
        [index[name] for name in failures["asset"]],
        pd.DatetimeIndex(failures["time"]).as_unit("us").asi8,
        [to_us(last[name].to_pydatetime()) if name in last else 0 for name in table.assets],
    )


def _losses(followed: Outcomes, probability: Losses) -> Losses:
    """[n, horizons] -log P(what happened), NaN where that is not known."""
    p = np.clip(probability, _SMALLEST, 1.0 - _SMALLEST)
    happened = np.stack([followed.within(hours) for hours in REPORTED_HOURS], axis=1)
    return np.where(happened < 0, np.nan, np.where(happened == 1, -np.log(p), -np.log1p(-p)))


def _score(losses: Losses, followed: Outcomes, draws: Losses) -> tuple[float, Losses]:
    """Mean over horizons of the mean over known outcomes, and the same in every resample of the assets."""
    values, resampled = [], []
    for column in losses.T:
        known = ~np.isnan(column)
        found = mean_over_assets(column[known], followed.asset[known], draws)
        values.append(np.nan if found.value is None else found.value)
        resampled.append(found.replicates if found.replicates.size else np.full(len(draws), np.nan))
    return float(np.mean(values)), np.mean(resampled, axis=0)


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%MZ}"
