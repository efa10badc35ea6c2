"""A replay's report: `report.json` for programs, and the same as a page that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forecasting.metrics import HOUR_US, REPLICATES, HorizonScore, multiplicities
from pm import page
from pm.domain import REPORTED_HOURS
from pm.outcomes import horizon_label, microseconds, outcomes_of, probabilities, score_horizons
from pm.report_page import replay_page
from pm.scorecard import Scorecard

if TYPE_CHECKING:
    import pandas as pd

Spans = Mapping[str, tuple[int, int]]
"""First and last reading by asset, in microseconds since the epoch."""


def write_replay(
    folder: Path,
    *,
    recording_name: str,
    model: str,
    forecasts: pd.DataFrame,
    observed: Spans,
    scorecard: Scorecard,
    alert_budget: float,
    minimum_lead: timedelta,
    threshold: float | None,
    wall_seconds: float,
    rng: np.random.Generator,
    zone: tzinfo = UTC,
) -> dict[str, Any]:
    """Write `report.json` and `report.html` into `folder`, and return what the first holds.

    forecasts: the frame of `forecasts.parquet`. observed: every asset that was replayed. threshold: of the alerts, on
    the 72 h probability. zone: of the times that the page shows.
    """
    quality = forecast_quality(forecasts, scorecard=scorecard, observed=observed, rng=rng)
    report = replay_report(
        recording_name=recording_name,
        model=model,
        forecasts=forecasts,
        scorecard=scorecard,
        quality=quality,
        alert_budget=alert_budget,
        wall_seconds=wall_seconds,
    )
    text = replay_page(
        report,
        forecasts=forecasts,
        observed=observed,
        scorecard=scorecard,
        quality=quality,
        minimum_lead=minimum_lead,
        threshold=threshold,
        zone=zone,
    )
    page.write(json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n", folder / "report.json")
    page.write(text, folder / "report.html")
    return report


def forecast_quality(
    forecasts: pd.DataFrame, *, scorecard: Scorecard, observed: Spans, rng: np.random.Generator
) -> dict[str, HorizonScore]:
    """Scores of the probabilities by horizon label ("24h", "48h", "72h" and `pm.outcomes.LATER`)."""
    found = outcomes_of(forecasts, scorecard.failures, observed)
    return score_horizons(found, probabilities(forecasts), multiplicities(found.assets, REPLICATES, rng))


def replay_report(
    *,
    recording_name: str,
    model: str,
    forecasts: pd.DataFrame,
    scorecard: Scorecard,
    quality: Mapping[str, HorizonScore],
    alert_budget: float,
    wall_seconds: float,
) -> dict[str, Any]:
    """The content of `report.json`; a score that the record cannot tell is None, and so null.

    plant_hours_per_second is plant time from the first forecast to the last over the wall time of the replay.
    """
    labels = [horizon_label(hours) for hours in REPORTED_HOURS]
    abstained = forecasts["abstained"].notna()
    return {
        "recording": recording_name,
        "model": model,
        **scorecard.report(),
        "pr_auc": {label: quality[label].pr_auc.value for label in labels},
        "brier": {label: quality[label].brier.value for label in labels},
        "calibration_error": {label: quality[label].reliability.error.value for label in labels},
        "abstained_share": float(abstained.mean()) if len(forecasts) else None,
        "alert_budget": alert_budget,
        "wall_seconds": wall_seconds,
        "plant_hours_per_second": _plant_hours(forecasts) / wall_seconds if wall_seconds > 0 else None,
    }


def _plant_hours(forecasts: pd.DataFrame) -> float:
    times = microseconds(forecasts["time"])
    return float(times.max() - times.min()) / HOUR_US if times.size else 0.0
