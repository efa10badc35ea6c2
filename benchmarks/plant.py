"""The simulated plant: the product's model beside LightGBM, and beside what the hidden truth lets anyone see.

    python -m benchmarks.plant [--assets 60] [--days 240] [--plant-seed 1] [--seeds 1,2,3] [--life 168]

For every seed: a training with held-out assets, judged on those beside LightGBM and the hazard by age, and a replay at
the delivered alert budget. The ceiling is that of the failures that were judged: the share whose signature has begun,
and the share whose clearest point has left its own noise, so long before. A forecaster may warn before a signature is
visible, by an error that came early or by luck, and cannot warn of what has not begun but by luck alone.
Long: some ten minutes for each seed on two quiet cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd

from benchmarks.__main__ import hardware
from benchmarks._trial import BUDGET, Trial, arguments, plan_of, seeds_of, settings_of, table
from pm.config import TrainSection
from pm.evaluate import FORECASTER
from pm.simulate import PlantSettings, ceiling, simulate

LEADS = (1, 6, 24, 48)


def visible_ceiling(truth: pd.DataFrame, leads: Sequence[int] = LEADS) -> dict[str, float]:
    """Share of failures that had left the noise of their clearest point at least so many hours before."""
    lead = (truth["failure"] - truth["visible"]) / pd.Timedelta(hours=1)
    return {f"{hours}h": float((lead >= hours).mean()) if len(truth) else 0.0 for hours in leads}


def against_the_ceiling(trials: Sequence[Trial], truth: pd.DataFrame) -> None:
    """Recall at each lead beside its ceilings, over the held-out assets of every seed."""
    print(f"\n| alert budget {BUDGET} | recall | visible | begun | recall below visible |\n|---|---|---|---|---|")
    for lead in LEADS:
        rows = []
        for trial in trials:
            alerts = trial.evaluation["scores"][FORECASTER]["alerts"][BUDGET]
            judged = truth[truth["asset"].isin(list(trial.model.split.held_out))]
            label = f"{lead}h"
            rows.append(
                (
                    alerts["recall_at_lead"][label]["value"],
                    visible_ceiling(judged)[label],
                    ceiling(judged, LEADS)[label],
                )
            )
        recall, visible, begun = np.mean(rows, axis=0)
        print(f"| {lead} h ahead | {recall:.3f} | {visible:.3f} | {begun:.3f} | {visible - recall:+.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, default=60)
    parser.add_argument("--days", type=float, default=240)
    parser.add_argument("--plant-seed", type=int, default=1, help="of the plant, the same for every training")
    parser.add_argument("--life", type=int, default=TrainSection().life, help="train.life, in steps")
    given = arguments(parser).parse_args()
    plant = simulate(PlantSettings(assets=given.assets, days=given.days, seed=given.plant_seed))
    print(f"{plant.recording.about}: {len(plant.truth)} failures; {hardware()}")
    plan = plan_of(given)
    trials = [plan.run(plant.recording, "plant", settings_of(given, seed, life=given.life)) for seed in seeds_of(given)]
    table(trials)
    against_the_ceiling(trials, plant.truth)


if __name__ == "__main__":
    main()
