"""Reasons and abstentions of a trained model on assets that it was not trained on: how long, how complete, how often.

    python -m benchmarks.reasons MODEL RECORDING [--assets 30] [--every 6h]

MODEL was trained on RECORDING with `--hold-out`. Told: milliseconds per asset for the whole explanation, the largest
residual of the contributions, for how many precedents the failure mode is that of the failure that came, and which
share of windows the forecaster abstains from as strange, those before failures apart.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from benchmarks.__main__ import hardware
from connectors.recordings import read
from forecasting.predict import load
from pm.domain import HORIZON, History, parse_interval, to_us

HOURS = 6
"""Explained are forecasts so long before a failure."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--assets", type=int, default=30, help="explanations made")
    parser.add_argument("--every", default="6h", help="time between the forecasts that are counted")
    wanted = parser.parse_args()
    forecaster, history = load(wanted.model), read(wanted.recording).history
    names = forecaster.artefact.split.held_out or forecaster.artefact.split.validation
    history = history.only(names)
    failures = history.events[history.events["kind"] == "failure"]
    print(f"{forecaster.version} with {forecaster.runtime.name} on {hardware()}; {len(names)} assets")

    spent, residuals, same = [], [], []
    for row in failures.iloc[:: max(1, len(failures) // wanted.assets)].itertuples():
        at = (row.time - parse_interval(f"{HOURS}h")).to_pydatetime()
        own = _lately(history.only([row.asset]), at, forecaster.lookback)
        began = time.perf_counter()
        found = forecaster.explain(own, at, row.asset)
        if found.change is None:
            continue
        spent.append(1000 * (time.perf_counter() - began))
        residuals.append(abs(found.residual))
        same += [bool(set(one.failure_mode.split(", ")) & {row.code}) for one in found.precedents]
    if spent:
        middle, slow = np.quantile(spent, [0.5, 0.95])
        print(f"reasons of {len(spent)} forecasts {HOURS} h before a failure: {middle:.0f} ms (p95 {slow:.0f} ms) each")
        print(f"largest residual {max(residuals):.1e}; {np.mean(same):.0%} of the precedents have the mode that came")

    table = forecaster.forecast_grid(history, every=parse_interval(wanted.every))
    quiet, before = np.isnan(table.rul_hours), np.zeros(len(table), dtype=bool)
    for row in failures.itertuples():
        ahead = to_us(row.time.to_pydatetime()) - table.time_us
        mine = table.asset_index == table.assets.index(row.asset)
        before |= mine & (ahead > 0) & (ahead <= HORIZON.total_seconds() * 1e6)
    shares = [f"{quiet[kind].mean():.3%} of {kind.sum()}" for kind in (before, ~before) if kind.any()]
    print(f"abstained: {', '.join(shares)} windows within the horizon before a failure, and others")


def _lately(history: History, at: datetime, lookback: timedelta) -> History:
    readings = history.readings
    kept = (readings["time"] <= at) & (readings["time"] > at - lookback)
    return replace(history, readings=readings[kept].reset_index(drop=True))


if __name__ == "__main__":
    main()
