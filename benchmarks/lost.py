"""Lost sensors: what a trained model is still worth when one point of every asset is never read, each point in turn.

    python -m benchmarks.lost MODEL RECORDING [--points load,vibration] [--every 6h]

MODEL was trained on RECORDING with `--hold-out`, with every point. Told of its held-out assets, for each point: PR-AUC
at 72 h and from 24 to 72 h without it, and which share of the forecasts abstained. Trained without the point a model
may do better; this is what is left until the mechanic comes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np

from benchmarks.__main__ import hardware
from connectors.recordings import read
from forecasting.predict import TransformerForecaster, load
from pm.domain import REPORTED_HOURS, History, parse_interval
from pm.outcomes import LATER, score_horizons
from pm.training import followed


def scores(forecaster: TransformerForecaster, history: History, every: timedelta, lost: Sequence[str]) -> list[float]:
    """PR-AUC at 72 h and from 24 to 72 h, and the share that abstained, with these points never read."""
    table = forecaster.forecast_grid(
        replace(history, readings=history.readings.assign(**dict.fromkeys(lost, np.nan))), every=every
    )
    probability = {hours: table.probability(hours) for hours in REPORTED_HOURS}
    found = score_horizons(followed(table, history), probability, np.empty((0, len(table.assets))))
    areas = (found[label].pr_auc.value for label in ("72h", LATER))
    return [*(np.nan if area is None else area for area in areas), float(np.isnan(table.rul_hours).mean())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--points", help="these alone, with commas between them; every point of the model by default")
    parser.add_argument("--every", default="6h", help="time between forecasts")
    given = parser.parse_args()
    forecaster, recording = load(given.model), read(given.recording)
    held_out = forecaster.artefact.split.held_out
    if not held_out:
        parser.error(f"{given.model} holds no asset out; train with --hold-out 0.3")
    points = given.points.split(",") if given.points else list(forecaster.artefact.schema.points)
    unknown = sorted(set(points) - set(forecaster.artefact.schema.points))
    if unknown:
        parser.error(f"the model does not read {', '.join(unknown)}")
    print(f"{forecaster.version}, {len(held_out)} held-out assets of {recording.name}; {hardware()}\n")
    print("| lost | PR-AUC at 72 h | from 24 to 72 h | abstained |\n|---|---|---|---|")
    for lost in ([], *([point] for point in points)):
        area, later, abstained = scores(forecaster, recording.history.only(held_out), parse_interval(given.every), lost)
        print(f"| {', '.join(lost) or 'nothing'} | {area:.3f} | {later:.3f} | {abstained:.1%} |", flush=True)


if __name__ == "__main__":
    main()
