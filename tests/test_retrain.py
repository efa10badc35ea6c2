"""Training as a whole, judging, and a retraining run on a real store and real records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.testing import assert_frame_equal

from connectors.embedded import EmbeddedStore
from forecasting.metrics import outcomes
from forecasting.predict import load
from forecasting.split import Split, validation_start
from pm.alert_judge import BUDGETS
from pm.archive import import_recording
from pm.config import AlertsSection, AssessSection, Config, ModelsSection, RetrainSection
from pm.domain import History
from pm.errors import ModelError, TrainingError
from pm.judging import _followed, _losses, _score, judge
from pm.records import Records, Stage
from pm.retrain import retrain_once
from pm.training import (
    TrainedModel,
    budget_thresholds,
    facts,
    train,
    with_shuffled_failures,
)
from tests.forecasting_cases import TINY, worn_plant
from tests.replay_cases import cut, hour, recording_of

DAYS = 60
LEARN_UNTIL = hour(24 * 40)
END = hour(24 * DAYS - 1)
LEARNING = TINY.model_copy(update={"epochs": 12, "learning_rate": 5e-3, "patience": 12})
ASSETS = tuple(f"pump-{n}" for n in range(10))
SPLIT = Split(ASSETS[:7], ASSETS[7:], ())
RULES = RetrainSection(judge=timedelta(days=20), min_failures=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other more than they help."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plant() -> History:
    return worn_plant(assets=10, days=DAYS, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def good(plant: History, folder: Path) -> TrainedModel:
    alerts = AlertsSection(budget=0.4)
    return train(
        plant, out=folder / "good", settings=LEARNING, alerts=alerts, split=SPLIT, until=LEARN_UNTIL, name="good"
    )


@pytest.fixture(scope="module")
def poor(plant: History, folder: Path) -> TrainedModel:
    """Trained for an epoch on the first days."""
    hasty = LEARNING.model_copy(update={"epochs": 1, "learning_rate": 1e-3})
    return train(plant, out=folder / "poor", settings=hasty, split=SPLIT, until=hour(24 * 25), name="poor")


@pytest.fixture(scope="module")
def shuffled(plant: History, folder: Path) -> TrainedModel:
    return train(
        plant, out=folder / "shuffled", settings=LEARNING, split=SPLIT, until=LEARN_UNTIL, name="s", shuffle_labels=True
    )


def failures_of(history: History) -> pd.DataFrame:
    return history.events[history.events["kind"] == "failure"]


# --- training


def test_a_trained_model_stands_on_disk_with_its_thresholds_and_where_they_come_from(good: TrainedModel) -> None:
    loaded = load(good.folder)
    assert loaded.version == good.version
    assert loaded.version.startswith("good@")
    assert set(loaded.thresholds) == {*BUDGETS, 0.4}
    assert loaded.thresholds == {budget: found.value for budget, found in good.thresholds.items()}
    assert loaded.artefact.trained_until == good.trained_until == LEARN_UNTIL
    assert len(good.fingerprint) == 64
    assert facts(good.forecaster.artefact)["thresholds"]["0.4"] == loaded.thresholds[0.4]
    assert facts(good.forecaster.artefact)["assets"] == {"train": 7, "validation": 3, "held_out": 0}
    told = facts(loaded.artefact)
    assert told["thresholds"]["0.4"] == loaded.thresholds[0.4]
    assert told["assets"] == {"train": 7, "validation": 3, "held_out": 0}
    # It has learned something: twice what a coin weighted with the base rate would reach.
    assert told["validation_pr_auc_72h"] > 2 * told["validation_base_rate_72h"]
    for score in ("pr_auc", "brier", "calibration_error"):
        value, low, high = (told[f"validation_{score}_72h{end}"] for end in ("", "_low", "_high"))
        assert 0 <= low <= high <= 1
        assert low < high
        assert score == "calibration_error" or low <= value <= high


def test_nothing_after_until_reaches_the_model(plant: History, good: TrainedModel, folder: Path) -> None:
    again = train(
        cut(plant, LEARN_UNTIL),
        out=folder / "again",
        settings=LEARNING,
        alerts=AlertsSection(budget=0.4),
        split=SPLIT,
        until=LEARN_UNTIL,
        name="good",
    )
    assert again.version == good.version


def test_held_out_assets_leave_no_trace_but_their_names(plant: History, folder: Path) -> None:
    hasty = LEARNING.model_copy(update={"epochs": 1})
    split = Split(ASSETS[:6], ASSETS[6:8], ASSETS[8:])
    shown = train(plant, out=folder / "shown", settings=hasty, split=split, until=LEARN_UNTIL)
    readings = plant.readings.copy()
    readings.loc[readings["asset"].isin(ASSETS[8:]), ["heat", "noise"]] = 99.0
    events = plant.events[~plant.events["asset"].isin(ASSETS[8:])].reset_index(drop=True)
    bent = replace(plant, readings=readings, events=events)
    hidden = train(bent, out=folder / "hidden", settings=hasty, split=split, until=LEARN_UNTIL)
    assert shown.forecaster.artefact.split.held_out == ASSETS[8:]
    weights, others = shown.forecaster.artefact.weights, hidden.forecaster.artefact.weights
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert shown.thresholds == hidden.thresholds
    assert shown.forecaster.artefact.normaliser.as_json() == hidden.forecaster.artefact.normaliser.as_json()


def test_a_model_goes_on_from_a_week_of_news(folder: Path) -> None:
    """The last quarter of the record would validate a model that is trained anew, and leave this one nothing."""
    plant = worn_plant(assets=30, days=DAYS, seed=3)
    names = tuple(asset.name for asset in plant.assets)
    split, once = Split(names[:8], names[8:], ()), LEARNING.model_copy(update={"epochs": 1})
    assert validation_start(plant, split.validation) is not None
    before = train(plant, out=folder / "before", settings=once, split=split, until=hour(24 * 53))
    after = train(plant, out=folder / "after", settings=once, start_from=before.forecaster.artefact)
    assert after.trained_until > before.trained_until
    assert after.split == before.split


def test_a_history_that_teaches_nothing_is_refused(plant: History, tmp_path: Path) -> None:
    healthy = replace(plant, events=plant.events[plant.events["kind"] == "error"].reset_index(drop=True))
    with pytest.raises(TrainingError, match=r"nothing to learn from: 10 assets, .* 0 failures; import a recording"):
        train(healthy, out=tmp_path / "none", settings=LEARNING)
    with pytest.raises(TrainingError, match=r"0 readings, 0 failures"):
        train(plant, out=tmp_path / "none", settings=LEARNING, until=hour(-1))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_model_is_not_overwritten(plant: History, good: TrainedModel) -> None:
    before = sorted((p.name, p.stat().st_mtime_ns) for p in good.folder.iterdir())
    with pytest.raises(ModelError, match="exists"):
        train(plant, out=good.folder, settings=LEARNING.model_copy(update={"epochs": 1}), split=SPLIT)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in good.folder.iterdir()) == before


def test_thresholds_do_not_count_what_the_service_would_not_forecast(plant: History, good: TrainedModel) -> None:
    part = cut(plant, LEARN_UNTIL).only(SPLIT.validation)
    table = good.forecaster.forecast_grid(part)
    hours = {
        days: budget_thresholds(table, part, [0.2], AlertsSection(), AssessSection(min_history=timedelta(days=days)))[
            0.2
        ].asset_months
        for days in (1, 11)
    }
    # Three assets, ten days later to begin with, in months of 30.44 days.
    assert hours[1] - hours[11] == pytest.approx(3 * 10 / 30.44, rel=0.02)


def test_shuffled_failures_are_as_many_and_elsewhere(plant: History) -> None:
    mixed = with_shuffled_failures(plant, np.random.default_rng(0))
    assert len(failures_of(mixed)) == len(failures_of(plant))
    assert sorted(failures_of(mixed)["code"]) == sorted(failures_of(plant)["code"])
    moved = failures_of(mixed).merge(failures_of(plant), on=["time", "asset"], how="inner")
    assert len(moved) <= 2
    assert failures_of(mixed)["time"].between(plant.readings["time"].min(), plant.readings["time"].max()).all()
    assert_frame_equal(mixed.readings, plant.readings)
    rest, kept = mixed.events[mixed.events["kind"] != "failure"], plant.events[plant.events["kind"] != "failure"]
    assert_frame_equal(rest.reset_index(drop=True), kept.reset_index(drop=True))
    again = with_shuffled_failures(plant, np.random.default_rng(0))
    assert_frame_equal(mixed.events, again.events)
    assert mixed.events["time"].is_monotonic_increasing


# --- judging


def test_a_better_challenger_is_promoted_and_the_verdict_says_by_how_much(
    plant: History, good: TrainedModel, poor: TrainedModel
) -> None:
    verdict = judge(poor.forecaster, good.forecaster, plant, start=LEARN_UNTIL, end=END, settings=RULES)
    assert verdict.promote
    assert verdict.challenger_score is not None
    assert verdict.champion_score is not None
    assert verdict.challenger_score < verdict.champion_score
    assert verdict.confidence is not None
    assert verdict.confidence >= 0.9
    inside = failures_of(plant)[failures_of(plant)["time"].between(LEARN_UNTIL, END, inclusive="right")]
    assert verdict.failures == len(inside)
    assert (verdict.champion, verdict.challenger) == (poor.version, good.version)
    assert verdict.text.startswith(f"promoted: log score {verdict.challenger_score:.4f} against")
    assert poor.version in verdict.text


def test_a_worse_challenger_is_kept_out(plant: History, good: TrainedModel, poor: TrainedModel) -> None:
    verdict = judge(good.forecaster, poor.forecaster, plant, start=LEARN_UNTIL, end=END, settings=RULES)
    assert not verdict.promote
    assert verdict.text.startswith("kept out: log score")


def test_a_challenger_trained_on_shuffled_labels_is_refused_with_and_without_a_champion(
    plant: History, good: TrainedModel, shuffled: TrainedModel
) -> None:
    for champion in (good.forecaster, None):
        verdict = judge(champion, shuffled.forecaster, plant, start=LEARN_UNTIL, end=END, settings=RULES)
        assert not verdict.promote, verdict.text


def test_without_a_champion_a_model_must_beat_a_constant_rate(plant: History, good: TrainedModel) -> None:
    verdict = judge(None, good.forecaster, plant, start=LEARN_UNTIL, end=END, settings=RULES)
    assert verdict.promote
    assert verdict.champion is None
    assert "a constant failure rate" in verdict.text


def test_a_model_is_never_better_than_itself(plant: History, good: TrainedModel) -> None:
    verdict = judge(good.forecaster, good.forecaster, plant, start=LEARN_UNTIL, end=END, settings=RULES)
    assert not verdict.promote
    assert verdict.confidence == 0.0


def test_too_few_failures_keep_the_champion(plant: History, good: TrainedModel, poor: TrainedModel) -> None:
    strict = RULES.model_copy(update={"min_failures": 1000})
    verdict = judge(poor.forecaster, good.forecaster, plant, start=LEARN_UNTIL, end=END, settings=strict)
    assert not verdict.promote
    assert "retrain.min_failures asks for 1000" in verdict.text
    assert verdict.challenger_score is None


def test_nobody_is_judged_on_what_it_has_seen(plant: History, good: TrainedModel, poor: TrainedModel) -> None:
    early = LEARN_UNTIL - timedelta(days=1)
    for champion, challenger in ((good, poor), (poor, good)):
        with pytest.raises(ModelError, match=f"model {good.version} was trained on data up to"):
            judge(champion.forecaster, challenger.forecaster, plant, start=early, end=END, settings=RULES)


def test_what_happens_after_the_window_does_not_matter(plant: History, good: TrainedModel, poor: TrainedModel) -> None:
    end = hour(24 * 55)
    whole = judge(poor.forecaster, good.forecaster, plant, start=LEARN_UNTIL, end=end, settings=RULES)
    assert whole == judge(
        poor.forecaster, good.forecaster, plant.known_at(end), start=LEARN_UNTIL, end=end, settings=RULES
    )


def test_log_scores_by_hand() -> None:
    """Two assets; a fails 30 h after the forecast, b lives, seen for 50 h: its outcome at 72 h is not known."""
    followed = outcomes([0, 1], [0, 0], [0], [30 * 3_600_000_000], [100 * 3_600_000_000, 50 * 3_600_000_000])
    losses = _losses(followed, np.array([[0.1, 0.5, 0.8], [0.1, 0.2, 0.3]]))
    expected = [[-np.log(0.9), -np.log(0.5), -np.log(0.8)], [-np.log(0.9), -np.log(0.8), np.nan]]
    np.testing.assert_allclose(losses, expected)
    score, resampled = _score(losses, followed, np.array([[1.0, 1.0], [2.0, 0.0]]))
    columns = [-np.log(0.9), (-np.log(0.5) - np.log(0.8)) / 2, -np.log(0.8)]
    assert score == pytest.approx(np.mean(columns))
    np.testing.assert_allclose(resampled, [np.mean(columns), np.mean(expected[0])])


def test_outcomes_beyond_the_window_are_not_known(plant: History, good: TrainedModel) -> None:
    table = good.forecaster.forecast_grid(cut(plant, END), start=END - timedelta(hours=10), end=END)
    followed = _followed(table, np.arange(len(table)), plant, failures_of(plant).iloc[:0], END)
    assert (followed.within(24) == -1).all()


# --- the whole run


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(models=ModelsSection(dir=tmp_path / "models"), train=LEARNING, retrain=RULES)


def test_a_run_promotes_a_first_model_then_refuses_one_trained_on_shuffled_labels(
    plant: History, config: Config
) -> None:
    store = EmbeddedStore(None)
    with Records.open("sqlite://") as records:
        import_recording(recording_of(plant), store, records)
        first = retrain_once(END, store=store, records=records, config=config)
        champion = records.champion()
        assert first.promote
        assert champion is not None
        assert champion.version == first.challenger
        assert champion.verdict == first.text
        assert champion.trained_until == END - RULES.judge
        assert load(Path(champion.path)).version == champion.version

        second = retrain_once(END, store=store, records=records, config=config, shuffle_labels=True)
        assert not second.promote
        assert second.champion == champion.version
        now = records.champion()
        assert now is not None
        assert now.version == champion.version
        refused = next(row for row in records.models() if row.version == second.challenger)
        assert (refused.stage, refused.verdict) == (Stage.CHALLENGER, second.text)
        assert Path(refused.path) != Path(champion.path)
    store.close()


def test_an_empty_store_says_what_is_missing(config: Config) -> None:
    with Records.open("sqlite://") as records, pytest.raises(TrainingError, match="nothing to learn from: 0 assets"):
        retrain_once(END, store=EmbeddedStore(None), records=records, config=config)
    assert not config.models.dir.exists()
