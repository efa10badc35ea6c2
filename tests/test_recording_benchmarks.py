"""What the benchmarks of whole recordings say of a recording and of a simulated plant, by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from benchmarks import _trial, lost
from benchmarks.azure import signals
from benchmarks.plant import visible_ceiling
from connectors import recordings
from forecasting import checkpoint
from forecasting.train import fit
from forecasting.windows import schema_of
from pm.baselines import BOOSTING
from pm.domain import Asset, Event, EventKind, Recording, to_us
from pm.evaluate import FORECASTER
from tests.forecasting_cases import HOUR, START, TINY, history_of, reading_frame, worn_plant


def test_signals_before_failures_by_hand() -> None:
    """Two failures of comp1: one with its error 24 h ahead and a step 40 h long, one with an error of another mode."""
    hours = 2000
    volt = np.random.default_rng(0).normal(170.0, 1.0, hours)
    volt[960:1000] += 5.0
    readings = reading_frame([("m", [START + HOUR * hour for hour in range(hours)], {"volt": volt})])

    def event(hour: int, kind: EventKind, code: str) -> Event:
        return Event("m", to_us(START + HOUR * hour), kind, code)

    events = [
        event(1000, EventKind.FAILURE, "comp1"),
        event(976, EventKind.ERROR, "error1"),
        event(1700, EventKind.FAILURE, "comp1"),
        event(1650, EventKind.ERROR, "error3"),
    ]
    found = signals(history_of(readings, events, (Asset("m", "model1", {}),)), np.random.default_rng(1))
    assert [shares[0] for shares in found.values()] == [0.0, 0.0, 0.5]
    assert [shares[1] for shares in found.values()] == [0.0, 0.5, 0.5]


def test_the_ceiling_is_of_what_left_the_noise_in_time() -> None:
    failure = pd.Timestamp("2026-01-10", tz="UTC")
    visible = [failure - timedelta(hours=50), failure - timedelta(hours=24), failure - timedelta(hours=2), pd.NaT]
    truth = pd.DataFrame({"failure": failure, "visible": pd.to_datetime(visible, utc=True)})
    assert visible_ceiling(truth) == {"1h": 0.75, "6h": 0.5, "24h": 0.5, "48h": 0.25}
    assert visible_ceiling(truth.iloc[:0])["24h"] == pytest.approx(0.0)


def test_a_lost_point_is_one_that_nothing_reads(tmp_path, monkeypatch, capsys) -> None:
    """Without the point that shows wear little is left, without the other as much as with it."""
    plant = worn_plant()
    names = [asset.name for asset in plant.assets]
    settings = TINY.model_copy(update={"epochs": 16, "learning_rate": 3e-3})
    schema = schema_of(plant, settings)
    trained = fit(plant, names[:3], names[3:4], schema, settings, held_out=names[4:], name="tiny")
    checkpoint.save(trained.artefact, tmp_path / "model")
    whole = replace(plant, events=plant.events.drop_duplicates(ignore_index=True))
    recordings.write(Recording("worn", "1h", "a test's plant", "made", "CC0", whole), tmp_path / "worn")
    monkeypatch.setattr("sys.argv", ["lost", str(tmp_path / "model"), str(tmp_path / "worn"), "--every", "3h"])
    lost.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    area = {row[0].strip(): float(row[1]) for row in rows}
    assert list(area) == ["nothing", "heat", "noise"]
    assert area["heat"] < 0.8 * area["nothing"]
    assert area["noise"] > 0.8 * area["nothing"]


def test_trainings_of_which_some_have_later_figures_share_a_table(monkeypatch, capsys) -> None:
    """The figures of later time are of those that have them, and the table says how many."""
    rows = {FORECASTER: 0.5, BOOSTING: 0.4, "hazard by age": 0.1}

    def trial(later: dict[str, float] | None) -> SimpleNamespace:
        return SimpleNamespace(evaluation={"later": later}, train_seconds=1.0, memory_mib=1.0, replay=None)

    monkeypatch.setattr(
        _trial, "figures", lambda one: {"all": rows} | ({"later": rows} if one.evaluation["later"] else {})
    )
    _trial.table([trial(None), trial({"72h": 1.0})], "mine")
    told = capsys.readouterr().out
    assert "1 of 2 trainings were validated on later time" in told
    assert "| later | 0.5000 | 0.4000 | 0.1000 | +0.1000 |" in told
    assert "| all | 0.5000 (0.5000 to 0.5000) |" in told
