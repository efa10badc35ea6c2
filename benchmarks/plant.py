"""The simulated plant: the product's model beside LightGBM, and beside what the hidden truth lets anyone see.

    python -m benchmarks.plant [--assets 60] [--days 240] [--plant-seeds 1,2,3] [--seeds 1,2,3] [--life 168]

For every plant, a training with a seed of its own and held-out assets, judged on those beside LightGBM and the hazard
by age, and a replay at the delivered alert budget. The ceiling is that of the failures that were judged: the share
whose signature has begun, and the share whose clearest point has left its own noise, so long before. A forecaster may
warn before a signature is visible, by an error that came early or by luck, and cannot warn of what has not begun but by
luck alone. By failure mode, the ceiling is what is visible at the least lead that counts as a warning.
Long: some ten minutes for each training on two quiet cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.__main__ import hardware
from benchmarks._trial import BUDGET, Trial, arguments, plan_of, seeds_of, settings_of, table
from pm.baselines import BOOSTING
from pm.config import TrainSection
from pm.evaluate import FORECASTER
from pm.simulate import PlantSettings, ceiling, simulate

LEADS = (1, 6, 24, 48)


def visible_ceiling(truth: pd.DataFrame, leads: Sequence[int] = LEADS) -> dict[str, float]:
    """Share of failures that had left the noise of their clearest point at least so many hours before."""
    lead = (truth["failure"] - truth["visible"]) / pd.Timedelta(hours=1)
    return {f"{hours}h": float((lead >= hours).mean()) if len(truth) else 0.0 for hours in leads}


@dataclass(frozen=True)
class Judged:
    """A trial, and what its held-out assets went through."""

    trial: Trial
    truth: pd.DataFrame

    def alerts(self, forecaster: str) -> dict[str, Any]:
        """What the forecaster's alerts were worth within the budget."""
        found: dict[str, Any] = self.trial.evaluation["scores"][forecaster]["alerts"][BUDGET]
        return found


def against_the_ceiling(judged: Sequence[Judged]) -> None:
    """Recall at each lead beside its ceilings, the mean over the trials."""
    print(f"\n| alert budget {BUDGET} | recall | visible | begun | recall below visible |\n|---|---|---|---|---|")
    for lead in LEADS:
        label = f"{lead}h"
        rows = [
            (
                one.alerts(FORECASTER)["recall_at_lead"][label]["value"],
                visible_ceiling(one.truth)[label],
                ceiling(one.truth, LEADS)[label],
            )
            for one in judged
        ]
        recall, visible, begun = np.mean(rows, axis=0)
        print(f"| {lead} h ahead | {recall:.3f} | {visible:.3f} | {begun:.3f} | {visible - recall:+.3f} |")


def by_mode(judged: Sequence[Judged]) -> None:
    """Recall of each failure mode beside its ceiling, over the held-out assets of every trial together."""
    print(f"\n| alert budget {BUDGET} | failures | visible | {FORECASTER} | {BOOSTING} |\n|---|---|---|---|---|")
    for mode, failed in pd.concat([one.truth for one in judged]).groupby("failure_mode"):
        recalls = []
        for name in (FORECASTER, BOOSTING):
            found = [one.alerts(name)["by_mode"].get(mode, {"failures": 0, "warned": 0}) for one in judged]
            failures = sum(counted["failures"] for counted in found)
            recalls.append(f"{sum(c['warned'] for c in found) / failures:.3f}" if failures else "–")
        visible = visible_ceiling(failed)[f"{LEADS[0]}h"]
        print(f"| {mode} | {len(failed)} | {visible:.3f} | " + " | ".join(recalls) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, default=60)
    parser.add_argument("--days", type=float, default=240)
    parser.add_argument("--plant-seeds", default="1,2,3", help="of the plants, one for each of --seeds")
    parser.add_argument("--life", type=int, default=TrainSection().life, help="train.life, in steps")
    given = arguments(parser).parse_args()
    plants, seeds = seeds_of(given.plant_seeds), seeds_of(given.seeds)
    if len(plants) != len(seeds):
        parser.error(f"--plant-seeds names {len(plants)} plants and --seeds {len(seeds)} trainings: as many of each")
    plan, judged = plan_of(given), list[Judged]()
    for plant_seed, seed in zip(plants, seeds, strict=True):
        plant = simulate(PlantSettings(assets=given.assets, days=given.days, seed=plant_seed))
        print(f"{plant.recording.about}: {len(plant.truth)} failures; {hardware()}")
        trial = plan.run(plant.recording, f"plant-{plant_seed}", settings_of(given, seed, life=given.life))
        held_out = plant.truth["asset"].isin(list(trial.model.split.held_out))
        judged.append(Judged(trial, plant.truth[held_out]))
    table([one.trial for one in judged], "plant")
    against_the_ceiling(judged)
    by_mode(judged)


if __name__ == "__main__":
    main()
