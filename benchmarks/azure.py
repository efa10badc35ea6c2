"""azure-pdm: the product's model as delivered, beside LightGBM, over seeds and settings of `schedule_features`.

    python -m benchmarks.azure --recordings recordings [--seeds 1,2,3] [--schedule-features coarse,off,exact]
        [--split-seed 2]

For every setting and seed: a training with held-out assets (the seed deals them, too, unless one for all is named),
judged on those over the whole year and on its last quarter alone, which no network has learned from, beside
LightGBM on the same inputs and rows and the hazard by age; then a replay at the delivered alert budget. At the end a
table for each setting, with the wall time of training and the most memory it took beyond the data.

Before that, what the recording itself says: the share of failures that anything tells of so long before. Long: some
ten minutes for each training on two quiet cores. `--replay-every none` leaves the replays out.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.__main__ import hardware
from benchmarks._trial import arguments, plan_of, seeds_of, settings_of, table
from connectors.recordings import read
from forecasting.metrics import HOUR_US, Floats, Ints
from pm.domain import History
from pm.outcomes import microseconds

SIGNS = {
    "comp1": ("volt", ("error1",)),
    "comp2": ("rotate", ("error2", "error3")),
    "comp3": ("pressure", ("error4",)),
    "comp4": ("vibration", ("error5",)),
}
"""Of each failure mode: the point that steps before it, and the errors that come before it."""
DAYS = (("72 to 48 h before", 72, 48), ("48 to 24 h before", 48, 24), ("24 to 0 h before", 24, 0))


@dataclass(frozen=True)
class Life:
    """One asset's readings of a point, by hour."""

    hours: Ints
    values: Floats

    def off(self, begin: int, end: int) -> bool:
        """Whether the mean over [begin, end) is more than three standard errors from that of the whole life."""
        inside = self.values[(self.hours >= begin) & (self.hours < end)]
        inside = inside[~np.isnan(inside)]
        if not inside.size:
            return False
        return bool(abs(inside.mean() - np.nanmean(self.values)) > 3 * np.nanstd(self.values) / np.sqrt(inside.size))


def signals(history: History, rng: np.random.Generator) -> dict[str, tuple[float, ...]]:
    """By stretch of time before failures: the share of them with an error of their own in it, the share whose own point
    is off in it, and that share at times drawn at random."""
    events, readings = history.events, history.readings
    found: dict[str, list[tuple[bool, bool, bool]]] = {label: [] for label, _, _ in DAYS}
    for asset, own in readings.groupby("asset"):
        about = events[events["asset"] == asset]
        failed, errors = about[about["kind"] == "failure"], about[about["kind"] == "error"]
        raised_at = microseconds(errors["time"]) // HOUR_US
        hours = microseconds(own["time"]) // HOUR_US
        for at, mode in zip((microseconds(failed["time"]) // HOUR_US).tolist(), failed["code"], strict=True):
            point, codes = SIGNS[mode]
            life = Life(hours, own[point].to_numpy(np.float64))
            raised = raised_at[errors["code"].isin(list(codes)).to_numpy()]
            other = int(rng.integers(hours[0] + 72, hours[-1]))
            for label, early, late in DAYS:
                told = bool(((raised >= at - early) & (raised < at - late)).any())
                found[label].append((told, life.off(at - early, at - late), life.off(other - early, other - late)))
    return {label: tuple(np.mean(rows, axis=0).tolist()) for label, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, help="the folder that holds azure-pdm")
    parser.add_argument("--schedule-features", default="coarse,off,exact")
    given = arguments(parser).parse_args()
    if given.recordings is None:
        print("Left out: name the folder of the recordings, python -m benchmarks.azure --recordings recordings")
        return
    recording = read(given.recordings / "azure-pdm")
    history = recording.history
    failures = int((history.events["kind"] == "failure").sum())
    print(f"{recording.name}: {len(history.assets)} assets, {failures} failures; {hardware()}\n")
    print("| of all failures, | an own error in it | own point off by 3 standard errors | the same at any time |")
    print("|---|---|---|---|")
    for label, shares in signals(history, np.random.default_rng(0)).items():
        print(f"| {label} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")
    plan = plan_of(given)
    for setting in given.schedule_features.split(","):
        trials = [
            plan.run(recording, setting, settings_of(given, seed, schedule_features=setting))
            for seed in seeds_of(given.seeds)
        ]
        table(trials, setting)


if __name__ == "__main__":
    main()
