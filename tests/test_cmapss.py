from __future__ import annotations

import numpy as np
import pytest

from benchmarks.cmapss import BOOSTING, TRANSFORMER, Answers, dealt, scores


def answers(engine: int, cycles: int, ours: float, theirs: float) -> Answers:
    """An engine that fails after so many cycles; each forecaster is so many cycles off."""
    cycle = np.arange(1, cycles + 1)
    left = (cycles - cycle).astype(np.float64)
    life = np.minimum(left, 125.0)
    due = (left <= 72).astype(np.float64)
    return Answers(
        engine=np.full(cycles, engine),
        cycle=cycle,
        left=left,
        life={TRANSFORMER: life + ours, BOOSTING: life + theirs},
        failing={TRANSFORMER: 0.8 * due + 0.1, BOOSTING: 0.9 - 0.8 * due},
    )


def test_every_engine_weighs_the_same_and_far_or_early_cycles_do_not_count():
    short, long = answers(3, 100, 4.0, -1.0), answers(8, 300, 2.0, -1.0)
    for part, wrong in ((short, 19), (long, 100)):
        for life in part.life.values():
            life[:wrong] += 500.0  # before the 20th cycle, or farther from failure than twice the gap
            life[-6:] += 500.0  # nearer than 6 cycles
    by_name = {label: (ours, theirs) for label, ours, theirs in scores([short, long], 75.0, 0)}
    rmse = by_name["remaining life, RMSE"]
    assert rmse[0].value == pytest.approx(np.sqrt((16.0 + 4.0) / 2))
    assert rmse[1].value == pytest.approx(1.0)
    difference = rmse[0].minus(rmse[1])
    assert difference.low == pytest.approx(1.0) and difference.high == pytest.approx(3.0)
    assert by_name["PR-AUC at 72"][0].value == 1.0 > by_name["PR-AUC at 72"][1].value
    assert by_name["calibration error at 72"][0].value == pytest.approx(0.1)


def test_folds_hold_every_engine_once():
    names = [f"engine-{number}" for number in range(11)]
    folds = dealt(names, 3)
    assert sorted(name for fold in folds for name in fold) == sorted(names)
    assert {len(fold) for fold in folds} == {3, 4}
