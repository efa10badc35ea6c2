"""A small trained model judged beside the baselines: the numbers are those of the metrics, on the right assets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from rich.console import Console

from forecasting import metrics
from forecasting.predict import TransformerForecaster
from forecasting.split import Split
from forecasting.train import fit
from forecasting.windows import schema_of
from pm.alert_scores import Watch
from pm.baselines import BOOSTING, BY_AGE
from pm.commands.judging import _chosen_assets
from pm.config import AlertsSection, AssessSection
from pm.domain import Recording
from pm.errors import ModelError
from pm.evaluate import FORECASTER, evaluate
from pm.evaluation_page import alert_table, evaluation_page, sentences, table, write_html
from pm.outcomes import LATER
from tests.forecasting_cases import START, TINY, worn_plant

TRAIN, STOP, HELD = ["pump-0", "pump-1", "pump-2", "pump-3"], ["pump-4"], ["pump-5", "pump-6", "pump-7"]


@pytest.fixture(scope="module")
def recording() -> Recording:
    return Recording("worn", "1h", "", "", "", worn_plant(assets=8, days=35))


@pytest.fixture(scope="module")
def forecaster(recording: Recording) -> TransformerForecaster:
    history = recording.history
    return TransformerForecaster(
        fit(history, TRAIN, STOP, schema_of(history, TINY), TINY, held_out=HELD, name="tiny").artefact
    )


@pytest.fixture(scope="module")
def evaluation(recording: Recording, forecaster: TransformerForecaster) -> dict[str, Any]:
    return evaluate(recording, forecaster, rng=np.random.default_rng(0))


def test_the_held_out_assets_are_judged_beside_both_baselines(evaluation: dict[str, Any]) -> None:
    assert evaluation["assets"] == HELD
    assert evaluation["seen_in_training"] == []
    assert evaluation["baselines_left_out"] is None
    assert list(evaluation["scores"]) == [FORECASTER, BOOSTING, BY_AGE]
    for scores in evaluation["scores"].values():
        assert list(scores["horizons"]) == ["24h", "48h", "72h", LATER]
        for score in scores["horizons"].values():
            assert 0 < score["pr_auc"]["value"] <= 1
            assert 0 <= score["calibration_error"]["value"] <= 1
            assert score["forecasts"] + score["left_out"] == evaluation["forecasts"]
        assert scores["integrated_brier"]["value"] > 0
        assert scores["remaining_life"]["rmse_steps"]["value"] > 0
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation


def test_all_are_judged_on_the_same_forecasts(evaluation: dict[str, Any]) -> None:
    judged = [
        [(score["forecasts"], score["failing"], score["base_rate"]) for score in scores["horizons"].values()]
        for scores in evaluation["scores"].values()
    ]
    assert judged[0] == judged[1] == judged[2]


def test_the_numbers_are_those_of_the_forecasts(
    recording: Recording, forecaster: TransformerForecaster, evaluation: dict[str, Any]
) -> None:
    """Worked out again from the table of forecasts and the events, by the plain definitions."""
    history = recording.history
    found = forecaster.forecast_grid(history, HELD)
    failures = history.events[history.events["kind"] == "failure"]
    dated = {name: [int(t.timestamp() * 1e6) for t in failures["time"][failures["asset"] == name]] for name in HELD}
    ends = {
        name: int(history.readings["time"][history.readings["asset"] == name].max().timestamp() * 1e6) for name in HELD
    }
    truth, told = [], []
    for asset, time, p in zip(found.asset_index, found.time_us, found.probability(72), strict=True):
        if np.isnan(p):  # abstained
            continue
        ahead = [us - time for us in dated[HELD[asset]] if us > time]
        if ahead or ends[HELD[asset]] - time >= 72 * 3_600_000_000:
            truth.append(min(ahead, default=1e18) <= 72 * 3_600_000_000)
            told.append(p)
    score = evaluation["scores"][FORECASTER]["horizons"]["72h"]
    assert score["forecasts"] == len(truth)
    assert score["pr_auc"]["value"] == pytest.approx(metrics.average_precision(truth, told))
    assert score["brier"]["value"] == pytest.approx(metrics.brier(truth, told))


def test_alerts_of_all_are_told_at_every_budget(evaluation: dict[str, Any]) -> None:
    assert evaluation["thresholds_from"] == "validation assets"
    for scores in evaluation["scores"].values():
        assert list(scores["alerts"]) == ["0.05", "0.2", "1"]
        for told in scores["alerts"].values():
            assert told["failures"] == evaluation["failures"]
            assert sum(mode["failures"] for mode in told["by_mode"].values()) == told["failures"]
            warned = sum(mode["warned"] for mode in told["by_mode"].values())
            assert told["recall"]["value"] == pytest.approx(warned / told["failures"])
            recalls = [share["value"] for share in told["recall_at_lead"].values()]
            assert recalls == sorted(recalls, reverse=True)
            assert told["recall"]["value"] == recalls[0]  # the least lead that counts is an hour
        thresholds = [told["threshold"] for told in scores["alerts"].values()]
        assert thresholds == sorted(thresholds, reverse=True)


def test_the_policy_is_run_on_the_forecasts_told(
    recording: Recording, forecaster: TransformerForecaster, evaluation: dict[str, Any]
) -> None:
    """An alert's threshold and false alerts, found again from a table of forecasts."""
    history = recording.history
    tables = [forecaster.forecast_grid(history, assets) for assets in (STOP, HELD)]
    stop, held = (
        Watch.of(history, t.assets, t.asset_index, t.time_us, t.probability(), AssessSection()) for t in tables
    )
    rules = AlertsSection()
    threshold = stop.thresholds([0.05, 0.2, 1.0], rules)[1.0].value
    told = evaluation["scores"][FORECASTER]["alerts"]["1"]
    assert told["threshold"] == pytest.approx(threshold)
    card = held.scorecard(threshold, rules, np.random.default_rng(0))
    assert told["false_alerts_per_asset_month"]["value"] == pytest.approx(card.false_alerts_per_asset_month.value)
    assert told["recall"]["value"] == card.recall.value


def test_a_perfect_forecaster_s_error_stands_beside_the_error(evaluation: dict[str, Any]) -> None:
    for scores in evaluation["scores"].values():
        for score in scores["horizons"].values():
            floor = score["calibration_floor"]
            assert 0 <= floor["low"] <= floor["value"] <= floor["high"] < 1
    assert any("perfect forecaster" in sentence for sentence in sentences(evaluation))


def test_the_difference_is_that_of_the_scores(evaluation: dict[str, Any]) -> None:
    ours, theirs = (evaluation["scores"][name]["horizons"]["72h"]["pr_auc"]["value"] for name in (FORECASTER, BOOSTING))
    gap = evaluation["pr_auc_above"][BOOSTING]["72h"]
    assert gap["value"] == pytest.approx(ours - theirs)
    assert gap["low"] <= gap["value"] <= gap["high"]


def test_same_seed_same_numbers(
    recording: Recording, forecaster: TransformerForecaster, evaluation: dict[str, Any]
) -> None:
    assert evaluate(recording, forecaster, rng=np.random.default_rng(0)) == evaluation


def test_a_recording_of_other_assets_is_judged_whole_without_baselines(
    recording: Recording, forecaster: TransformerForecaster
) -> None:
    history = recording.history
    names = {asset.name: f"other-{asset.name}" for asset in history.assets}
    other = replace(
        history,
        assets=tuple(replace(asset, name=names[asset.name]) for asset in history.assets),
        readings=history.readings.assign(asset=history.readings["asset"].map(names)),
        events=history.events.assign(asset=history.events["asset"].map(names)),
    )
    found = evaluate(replace(recording, history=other), forecaster, rng=np.random.default_rng(0))
    assert len(found["assets"]) == 8
    assert list(found["scores"]) == [FORECASTER]
    assert found["thresholds_from"] == "the model"
    assert found["scores"][FORECASTER]["alerts"] is None  # this one was given none
    assert found["baselines_left_out"] == "the recording does not hold the assets that the model learned from"


def test_judging_later_time_only(recording: Recording, forecaster: TransformerForecaster) -> None:
    late = evaluate(
        recording, forecaster, assets=["pump-6"], start=START + timedelta(days=20), every=timedelta(hours=6),
        baseline=False, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert late["assets"] == ["pump-6"]
    assert late["forecasts"] == pytest.approx(15 * 4, abs=2)
    assert late["baselines_left_out"] == "not asked for"
    assert late["later"] is None


def test_later_time_alone_is_told_beside_the_whole(recording: Recording, forecaster: TransformerForecaster) -> None:
    """The plant here is too small for a later quarter of its own; given one, its scores are those of that time."""
    start = START + timedelta(days=20)
    forecaster = TransformerForecaster(replace(forecaster.artefact, validation_from=start))
    options: dict[str, Any] = {"every": timedelta(hours=6), "baseline": False}
    whole = evaluate(recording, forecaster, rng=np.random.default_rng(0), **options)
    late = evaluate(recording, forecaster, start=start + timedelta(hours=1), rng=np.random.default_rng(0), **options)
    assert whole["later"]["start"] == start.isoformat()
    for label, score in late["scores"][FORECASTER]["horizons"].items():
        told = whole["later"]["scores"][FORECASTER][label]
        assert told["forecasts"] == score["forecasts"]
        assert told["pr_auc"]["value"] == pytest.approx(score["pr_auc"]["value"])
    assert not any("From 2025-01-21" in sentence for sentence in sentences(whole))
    beside = evaluate(recording, forecaster, rng=np.random.default_rng(0), every=timedelta(hours=6))
    later = beside["later"]
    for name, gaps in later["pr_auc_above"].items():
        ours, theirs = (later["scores"][who]["72h"]["pr_auc"]["value"] for who in (FORECASTER, name))
        assert gaps["72h"]["value"] == pytest.approx(ours - theirs)
        gap = f"{abs(ours - theirs):.3f} {'above' if ours >= theirs else 'below'} {name}"
        assert any(s.startswith("From 2025-01-21 on") and gap in s for s in sentences(beside))
    assert len(later["pr_auc_above"]) == 2


def test_assets_seen_in_training_are_told(recording: Recording, forecaster: TransformerForecaster) -> None:
    found = evaluate(recording, forecaster, assets=["pump-0"], baseline=False, rng=np.random.default_rng(0))
    assert found["seen_in_training"] == ["pump-0"]
    assert any("flatter" in sentence for sentence in sentences(found))


def test_wrong_wishes_are_refused(recording: Recording, forecaster: TransformerForecaster) -> None:
    with pytest.raises(ModelError, match="asset 'nobody' is not in the recording"):
        evaluate(recording, forecaster, assets=["nobody"], rng=np.random.default_rng(0))
    with pytest.raises(ModelError, match="no forecast to judge"):
        evaluate(recording, forecaster, start=START + timedelta(days=900), rng=np.random.default_rng(0))
    split = replace(forecaster.artefact.split, train=(*TRAIN, *HELD), held_out=())
    greedy = TransformerForecaster(replace(forecaster.artefact, split=split))
    with pytest.raises(ModelError, match="learned from every asset"):
        evaluate(recording, greedy, rng=np.random.default_rng(0))


def test_assets_that_a_model_never_saw_judge_it(recording: Recording) -> None:
    def judging(train: Sequence[str], held_out: Sequence[str]) -> list[str]:
        split = Split(tuple(train), (), tuple(held_out))
        forecaster = cast(TransformerForecaster, SimpleNamespace(artefact=SimpleNamespace(split=split)))
        return _chosen_assets(recording, forecaster, "held-out")

    names = [asset.name for asset in recording.history.assets]
    assert judging(names[:5], names[5:6]) == names[5:6]
    assert judging(names[:5], []) == names[5:]
    assert judging(names, []) == names


def test_console_and_page_tell_the_same(evaluation: dict[str, Any], tmp_path: Path) -> None:
    console = Console(record=True, width=160, file=(tmp_path / "console").open("w"))
    console.print(table(evaluation))
    console.print(alert_table(evaluation))
    text = console.export_text()
    value = evaluation["scores"][BOOSTING]["horizons"]["72h"]["pr_auc"]["value"]
    assert f"{value:.3f}" in text
    false = evaluation["scores"][BOOSTING]["alerts"]["1"]["false_alerts_per_asset_month"]["value"]
    assert f"{false:.3f}" in text
    write_html(evaluation, tmp_path / "evaluation.html")
    page = (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    head = page[: page.index("<script")]
    assert f"{value:.3f}" in head
    assert "Alerts for a budget" in head and f"{false:.3f}" in head
    for label in ("24h", "48h", "72h", "24h to 72h"):
        assert f'data-figure="reliability {label}"' in head
        assert f'data-figure="precision_recall {label}"' in head
    assert BY_AGE in evaluation_page(evaluation)
    by_mode = evaluation["scores"][FORECASTER]["alerts"]["1"]["by_mode"]
    assert by_mode and all(f"{mode['warned']} of {mode['failures']}" in head for mode in by_mode.values())
