"""Mixed precision beside fp32: scores on held-out assets of the simulated plant, seed by seed.

    python -m benchmarks.precision [--seeds 3] [--assets 24] [--days 120] [--epochs 6]

Each row trains one seed in each arithmetic on the same split. Mixed precision is harmless where the arithmetics differ
by no more than the seeds do.
"""

from __future__ import annotations

import argparse
import statistics

from forecasting.metrics import average_precision
from forecasting.predict import TransformerForecaster
from forecasting.split import split_assets, validation_start
from forecasting.train import fit
from forecasting.windows import schema_of
from pm.config import TrainSection
from pm.domain import History
from pm.simulate import PlantSettings, simulate
from pm.training import followed

ARITHMETICS = ("fp32", "bf16", "fp16")


def score(history: History, settings: TrainSection) -> tuple[float, float]:
    """Validation log-likelihood in nats, and PR-AUC at 72 h on the held-out assets, forecast every 3 h."""
    split = split_assets(history, settings.hold_out, settings.validation, 0)
    trained = fit(
        history,
        split.train,
        split.validation,
        schema_of(history.only([*split.train, *split.validation]), settings),
        settings,
        validation_from=validation_start(history, split.validation),
    )
    judged = history.only(split.held_out)
    table = TransformerForecaster(trained.artefact).forecast_grid(judged, every=3 * history.interval)
    truth, probability = followed(table, judged).within(72), table.probability(72)
    told = (truth >= 0) & (probability == probability)
    return trained.artefact.metrics["validation_nll"], average_precision(truth[told], probability[told])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--assets", type=int, default=24)
    parser.add_argument("--days", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    history = simulate(PlantSettings(assets=arguments.assets, days=arguments.days, seed=1)).recording.history
    print("| seed | " + " | ".join(f"{name}: nats, PR-AUC 72 h" for name in ARITHMETICS) + " |")
    print("|---|" + "---|" * len(ARITHMETICS))
    by_seed: list[list[float]] = []
    for seed in range(arguments.seeds):
        cells, row = [], []
        for name in ARITHMETICS:
            settings = TrainSection(seed=seed, precision=name, epochs=arguments.epochs)
            nats, area = score(history, settings)
            cells.append(f"{nats:.4f}, {area:.4f}")
            row.append(area)
        by_seed.append(row)
        print(f"| {seed} | " + " | ".join(cells) + " |", flush=True)
    between_seeds = statistics.stdev(row[0] for row in by_seed) if len(by_seed) > 1 else float("nan")
    between = [max(abs(value - row[0]) for row in by_seed for value in [row[place]]) for place in (1, 2)]
    print(f"\nStandard deviation of fp32 between seeds: {between_seeds:.4f}; ", end="")
    print(f"greatest difference from fp32 at one seed: bf16 {between[0]:.4f}, fp16 {between[1]:.4f}")


if __name__ == "__main__":
    main()
