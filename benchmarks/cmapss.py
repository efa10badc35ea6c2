"""C-MAPSS: the forecaster beside gradient boosting on whole-life features, cross-validated by engine.

    python -m benchmarks.cmapss --recordings recordings --set fd001 [--folds 5] [--out docs/results/cmapss/fd001.csv]

The engines of `cmapss-<set>-train` are dealt into folds. For each fold both forecasters learn from the other engines,
of which every fifth is kept back to stop them by (and to calibrate the transformer), and answer for the fold's own,
each cycle from what came before it. Every fold begins from its own seed, so that several seeds enter.

Remaining life is judged as on the test engines: capped at 125, at the last cycle of an engine cut off before its
failure. An engine is cut at random, between 6 cycles before its failure and twice as many as the test engines have
left on average (their lengths tell), but not before its 20th cycle. The figure is the expectation over that cut, every
engine weighing the same. The hazard over 72 cycles is judged at every cycle. The transformer abstains from nothing
here. Intervals come from a bootstrap over engines; the difference is taken in pairs.

--out: remaining life of the cut-off test engines at their last cycle, the mean of the folds' models, as
`asset,rul_hours`; gradient boosting's goes beside it, with `-boosting` in its name.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.__main__ import hardware
from connectors.recordings import read
from forecasting.baseline import GradientBoosting
from forecasting.labels import Labels, labels_of
from forecasting.metrics import (
    Estimate,
    Ranking,
    estimate,
    mean_over_assets,
    multiplicities,
    reliability,
)
from forecasting.predict import TransformerForecaster
from forecasting.train import fit
from forecasting.windows import FeatureSchema, grid_of, schema_of
from pm.config import TrainSection
from pm.domain import HORIZON_HOURS, History, to_us

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SETS: Final = ("fd001", "fd002", "fd003", "fd004")
SETTINGS: Final = TrainSection(
    life=600,
    life_weight=300.0,
    life_dropout=0.0,
    schedule_features="exact",
    life_pieces=8,
    layers=3,
    dropout=0.1,
    learning_rate=1e-3,
    members=3,
    epochs=20,
    patience=20,
    max_minutes=30.0,
    onnx=False,
)
"""How the transformer is trained, the same for all four sets."""
TRANSFORMER, BOOSTING = "transformer", "gradient boosting"
STOPPING_SHARE = 5
"""One engine in so many of those that are learned from stops and calibrates."""
DEALING_SEED = 7
NEAREST_CUT, EARLIEST_CUT = 6, 20
REPLICATES = 1000


@dataclass(frozen=True)
class Answers:
    """What one fold's models say of its engines, at N cycles."""

    engine: Ints
    """[N] number of the engine in the set."""
    cycle: Ints
    """[N] cycles that the engine has run."""
    left: Floats
    """[N] cycles until the failure."""
    life: Mapping[str, Floats]
    """[N] remaining cycles by forecaster."""
    failing: Mapping[str, Floats]
    """[N] probability of failing within 72 cycles by forecaster."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--recordings", type=Path, default=Path("recordings"), help="folder of the recordings")
    parser.add_argument("--set", choices=SETS, default="fd001", dest="name")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--judged", type=int, help="only so many of the folds are trained and judged")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first fold")
    parser.add_argument("--threads", type=int, default=1, help="of gradient boosting")
    parser.add_argument("--out", type=Path, help="CSV for the test engines")
    given = parser.parse_args()
    source = given.recordings / f"cmapss-{given.name}-train"
    if not source.is_dir():
        print(f"{source} is not there: name the folder of the recordings with --recordings")
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    history = read(source).history
    test = read(given.recordings / f"cmapss-{given.name}-test").history
    print(f"{given.name} on {hardware()}", flush=True)
    told: dict[str, list[Floats]] = {TRANSFORMER: [], BOOSTING: []}
    answers: list[Answers] = []
    gap, names = remaining(history, test), [asset.name for asset in test.assets]
    folds = dealt([asset.name for asset in history.assets], given.folds)
    for number, held in enumerate(folds[: given.judged]):
        began = time.monotonic()
        judged, lives = one_fold(history, test, held, given.seed + 10 * number, given.threads)
        answers.append(judged)
        for who, life in lives.items():
            told[who].append(life)
        print(f"\nAfter fold {number + 1} of {len(folds)}, {time.monotonic() - began:.0f} s:", flush=True)
        print_table(scores(answers, gap, given.seed))
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            write(given.out, names, np.mean(told[TRANSFORMER], axis=0))
            write(given.out.with_stem(f"{given.out.stem}-boosting"), names, np.mean(told[BOOSTING], axis=0))


def dealt(names: Sequence[str], folds: int) -> list[list[str]]:
    """The engines of each fold."""
    order = np.random.default_rng(DEALING_SEED).permutation(len(names))
    return [[names[i] for i in order[number::folds]] for number in range(folds)]


def remaining(history: History, test: History) -> float:
    """Cycles that the test engines have left on average, as the lengths of the records tell."""
    return float(_lengths(history).mean() - _lengths(test).mean())


def _lengths(history: History) -> Ints:
    return history.readings.groupby("asset").size().to_numpy(np.int64)


def one_fold(
    history: History, test: History, held: Sequence[str], seed: int, threads: int
) -> tuple[Answers, dict[str, Floats]]:
    """Both forecasters' answers for the engines `held`, and remaining life of each test engine at its last cycle."""
    others = [asset.name for asset in history.assets if asset.name not in set(held)]
    order = np.random.default_rng([DEALING_SEED, seed]).permutation(len(others))
    stopping = [others[i] for i in order[::STOPPING_SHARE]]
    learned = [name for name in others if name not in set(stopping)]
    schema = schema_of(history, SETTINGS)
    settings = SETTINGS.model_copy(update={"seed": seed})
    trained = fit(history, learned, stopping, schema, settings, held_out=held, name="cmapss")
    forecaster = TransformerForecaster(replace(trained.artefact, reference=None))
    boosting = GradientBoosting.fit(
        history,
        schema=schema,
        train_assets=learned,
        validation_assets=stopping,
        seed=seed,
        threads=threads,
        hours=(HORIZON_HOURS,),
    )
    lives = {}
    ends = test.readings.groupby("asset")["time"].max()
    names = [asset.name for asset in test.assets]
    said = [forecaster.forecast(test.only([name]), ends[name].to_pydatetime())[0].rul_hours for name in names]
    lives[TRANSFORMER] = np.array(said, dtype=np.float64)
    times = np.array([to_us(ends[name]) for name in names], dtype=np.int64)
    lives[BOOSTING] = boosting.forecast(test, names, times).rul_hours
    return _answers(history, held, schema, forecaster, boosting), lives


def _answers(
    history: History,
    held: Sequence[str],
    schema: FeatureSchema,
    forecaster: TransformerForecaster,
    boosting: GradientBoosting,
) -> Answers:
    table = forecaster.forecast_grid(history, held)
    asked = [table.assets[i] for i in table.asset_index]
    theirs = boosting.forecast(history, asked, table.time_us)
    grid = grid_of(history.only(table.assets), schema)
    row = grid.offsets[table.asset_index] + (table.time_us - grid.phase_us) // schema.step_us
    row -= grid.first_step[table.asset_index]
    labels: Labels = labels_of(grid)
    place = {asset.name: number for number, asset in enumerate(history.assets)}
    # Every record ends at its failure, so that what is left is the distance to its end.
    left = grid.offsets[table.asset_index + 1] - 1 - row
    assert np.array_equal(np.minimum(left, schema.rul_cap), labels.rul[row])
    return Answers(
        engine=np.array([place[name] for name in asked], dtype=np.int64),
        cycle=row - grid.offsets[table.asset_index] + 1,
        left=left.astype(np.float64),
        life={TRANSFORMER: table.rul_hours, BOOSTING: theirs.rul_hours},
        failing={TRANSFORMER: table.probability(), BOOSTING: theirs.probability[HORIZON_HOURS]},
    )


def scores(answers: Sequence[Answers], gap: float, seed: int) -> list[tuple[str, Estimate, Estimate]]:
    """Each score of the transformer and of gradient boosting, with replicates that pair."""
    engine = np.concatenate([part.engine for part in answers])
    cycle = np.concatenate([part.cycle for part in answers])
    left = np.concatenate([part.left for part in answers])
    present = np.unique(engine)
    engine = np.searchsorted(present, engine)
    draws = multiplicities(len(present), REPLICATES, np.random.default_rng(seed))
    cut = (left >= NEAREST_CUT) & (left <= 2.0 * gap) & (cycle >= EARLIEST_CUT)
    weight = 1.0 / np.bincount(engine[cut], minlength=len(present)).clip(1)[engine[cut]]
    ahead = left > 0  # at its last cycle an engine has failed: there is nothing to forecast
    due = (left <= HORIZON_HOURS)[ahead]
    found: dict[str, list[Estimate]] = {}
    for who in (TRANSFORMER, BOOSTING):
        life = np.concatenate([part.life[who] for part in answers])
        failing = np.concatenate([part.failing[who] for part in answers])
        missed = (life - np.minimum(left, SETTINGS.rul_cap))[cut]
        square = mean_over_assets(missed**2, engine[cut], draws, weight)
        failing, runs = failing[ahead], engine[ahead]
        ranking = Ranking(due, failing, runs)
        found[who] = [
            estimate(float(np.sqrt(square.value or 0.0)), np.sqrt(square.replicates)),
            estimate(ranking.average_precision(), np.array([ranking.average_precision(draw) for draw in draws])),
            reliability(due, failing, runs, draws).error,
        ]
    labels = ("remaining life, RMSE", "PR-AUC at 72", "calibration error at 72")
    return list(zip(labels, found[TRANSFORMER], found[BOOSTING], strict=True))


def print_table(rows: Sequence[tuple[str, Estimate, Estimate]]) -> None:
    print(f"\n| | {TRANSFORMER} | {BOOSTING} | difference |\n|---|---|---|---|")
    for label, ours, theirs in rows:
        digits = 2 if "RMSE" in label else 4
        cells = [_text(one, digits) for one in (ours, theirs, ours.minus(theirs))]
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def _text(value: Estimate, digits: int) -> str:
    if value.value is None:
        return "–"
    text = f"{value.value:.{digits}f}"
    return text if value.low is None else f"{text} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def write(path: Path, names: Sequence[str], life: Floats) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["asset", "rul_hours"])
        writer.writerows((name, f"{hours:.2f}") for name, hours in zip(names, life.tolist(), strict=True))


if __name__ == "__main__":
    main()
