"""Assessment: a large fleet forecast from the embedded store by the service's own scheduled path, stage by stage.

    python -m benchmarks.assess [--assets 10000] [--hours 168] [--profile]

A simulated fleet is written to an embedded store in a temporary folder, its assets into records on SQLite. Then
`pm.assess.Assessor` does what the service does at a full hour: register, readings and events out of the store,
abstentions, features, network, alert policy, forecasts and alerts into the records, each with its reasons. The model
has been trained for one pass over a plant of such readings. The first assessment looks at the store's first readings
as well, as after a start of the service; in the second the threshold stands where some twenty assets raise alerts.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import resource
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from benchmarks.training import POINTS, START, Case
from connectors.embedded import EmbeddedStore
from forecasting.export import onnx_of_artefact
from forecasting.predict import TransformerForecaster
from forecasting.train import fit
from pm.assess import Assessor
from pm.config import AlertsSection, AssessSection, PlantSection, TrainSection
from pm.domain import Asset, History, Recording
from pm.records import Records

ALERTS = 20
AT_ONCE = 500
"""Assets written to the store at a time."""


Spent = dict[str, npt.NDArray[np.float64]]
"""Seconds on the clock and of the processor by stage."""


def now() -> npt.NDArray[np.float64]:
    return np.array([time.perf_counter(), time.process_time()])


class Timed:
    """Something whose calls are timed by name."""

    def __init__(self, of: object, spent: Spent) -> None:
        self._of, self._spent = of, spent

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            began = now()
            try:
                return found(*args, **kwargs)
            finally:
                self._spent[f"{type(self._of).__name__}.{name}"] += now() - began

        return call


def forecaster_of(case: Case) -> TransformerForecaster:
    """A model of the sizes of `pm train`, trained for one pass over the case's plant."""
    names = [asset.name for asset in case.history.assets]
    cut = len(names) * 3 // 4
    schema = case.grid.schema
    settings = case.settings.model_copy(update={"epochs": 1})
    artefact = fit(case.history, names[:cut], names[cut:], schema, settings, name="benchmark").artefact
    return TransformerForecaster(replace(artefact, thresholds={0.2: 1.0}, onnx=onnx_of_artefact(artefact)))


def fill(store: EmbeddedStore, case: Case, names: list[str], hours: int) -> None:
    """Hourly readings of every asset until `hours` after the start, and one failure each."""
    rng = np.random.default_rng(1)
    times = pd.date_range(START + timedelta(hours=1), periods=hours, freq="h").as_unit("us")
    for begin in range(0, len(names), AT_ONCE):
        part = np.array(names[begin : begin + AT_ONCE], dtype=object)
        values = rng.normal(size=(len(part) * hours, POINTS))
        readings = pd.DataFrame(values, columns=[point.name for point in case.history.points])
        readings.insert(0, "time", times.take(np.tile(np.arange(hours), len(part))))
        readings.insert(1, "asset", np.repeat(part, hours))
        failed = times.take(np.sort(rng.integers(0, hours // 2, len(part))))
        events = pd.DataFrame({"time": failed, "asset": part, "kind": "failure", "code": "mode-0"})
        store.write_history(readings.astype({"asset": "str"}), events.astype({"asset": "str"}))


def assess(assessor: Assessor, at: datetime, spent: Spent, profiled: bool) -> list[float]:
    """One assessment, told stage by stage; the probabilities it found."""
    spent.clear()
    profile = cProfile.Profile()
    began = now()
    if profiled:
        profile.enable()
    done = assessor.assess(at)
    profile.disable()
    whole, assets = now() - began, len(done.forecasts)
    quiet = sum(forecast.abstained is not None for forecast in done.forecasts)
    print(f"\n{at:%H:%M}: {assets:,} assets, {quiet} abstained, {len(done.raised)} alerts raised\n")
    print("| stage | seconds | of processor time |\n|---|---|---|")
    stages = [(name, took) for name, took in sorted(spent.items(), key=lambda stage: -stage[1][0]) if took[0] >= 0.01]
    rest = whole - sum((took for _, took in stages), np.zeros(2))
    for name, took in [*stages, ("everything else", rest), ("**all**", whole)]:
        print(f"| {name} | {took[0]:.2f} | {took[1]:.2f} |")
    print(f"\n{assets / whole[0]:,.0f} assets/s", flush=True)
    if profiled:
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(25)
    return [p for p in (forecast.probability() for forecast in done.forecasts) if p is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, default=10_000)
    parser.add_argument("--hours", type=int, default=168, help="of readings in the store before the first assessment")
    parser.add_argument("--profile", action="store_true", help="print where the time goes, which takes longer")
    arguments = parser.parse_args()
    case = Case(TrainSection(), torch.device("cpu"))
    forecaster = forecaster_of(case)
    names = [f"asset-{number:05d}" for number in range(arguments.assets)]
    assets = tuple(Asset(name, "pump", {}) for name in names)
    nothing = case.history.only([])
    fleet = History(nothing.interval, nothing.points, nothing.failure_modes, assets, nothing.readings, nothing.events)
    spent: Spent = defaultdict(lambda: np.zeros(2))
    with tempfile.TemporaryDirectory() as folder:
        store = EmbeddedStore(Path(folder) / "readings.db")
        with Records.open(f"sqlite:///{folder}/records.db") as records:
            records.put_recording(Recording("fleet", "1h", "", "", "", fleet))
            began = time.perf_counter()
            fill(store, case, names, arguments.hours + 1)
            size = sum(file.stat().st_size for file in Path(folder).glob("readings.db*")) / 1e6
            print(
                f"{len(names):,} assets x {arguments.hours + 1} h x {POINTS} points in {size:,.0f} MB, written in "
                f"{time.perf_counter() - began:.1f} s; {case.sizes.patch} h a token, {forecaster.runtime.name}, "
                f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
            )
            assessor = Assessor(
                store=cast(EmbeddedStore, Timed(store, spent)),
                log=cast(Records, Timed(records, spent)),
                register=cast(Records, Timed(records, spent)),
                forecaster=cast(TransformerForecaster, Timed(forecaster, spent)),
                plant=PlantSection(),
                assess=AssessSection(),
                alerts=AlertsSection(on_delay=1),
            )
            at = START + timedelta(hours=arguments.hours)
            found = assess(assessor, at, spent, profiled=False)
            forecaster = forecaster.with_thresholds({0.2: float(np.sort(found)[-min(ALERTS, len(found))])})
            assessor.forecaster = cast(TransformerForecaster, Timed(forecaster, spent))
            assess(assessor, at + timedelta(hours=1), spent, profiled=arguments.profile)
        store.close()
    print(f"\npeak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
