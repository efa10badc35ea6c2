"""A recording replayed: the files, the same again, and the same over a real broker."""

from __future__ import annotations

import csv
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pandas.testing import assert_frame_equal

from connectors.embedded import EmbeddedStore
from connectors.mqtt import MqttFeed, MqttPublisher
from forecasting.predict import TransformerForecaster
from forecasting.train import fit
from forecasting.windows import schema_of
from pm.assess import Assessor
from pm.config import AlertsSection, AssessSection, ClockSection, IngestSection, MqttSection, PlantSection
from pm.domain import EARLIEST, LATEST, AlertState, EventKind, Forecast, History, Recording
from pm.errors import ModelError, RecordingError
from pm.ingest import FeedClock, Ingest
from pm.publish import PlayTopics, publish_history
from pm.records import Records
from pm.replay import ALERTS, FORECASTS, RecordedRegister, replay, ticks
from pm.replay_files import ForecastFile, forecast_table
from pm.schedule import Job, PlantSchedule, cron
from tests.forecasting_cases import TINY, worn_plant
from tests.replay_cases import HeatForecaster, cut, event, hot, hour, plant_of, recording_of
from tests.servers.ingest import DeadLetterList, wall_us
from tests.servers.mosquitto import Mosquitto, mosquitto
from tests.servers.programs import wait_until

REPORT_KEYS = {
    "recording", "model", "asset_months", "failures", "recall", "precision", "false_alerts_per_asset_month",
    "lead_hours", "pr_auc", "brier", "calibration_error", "abstained_share", "alert_budget", "wall_seconds",
    "plant_hours_per_second",
}  # fmt: skip
RULES = AlertsSection(on_delay=2, off_delay=3)


@pytest.fixture(scope="module")
def failing() -> Recording:
    """`a` heats up from 60 to its failure at 100; `b` cries wolf at 40; `c` is first read at 20 and last at 70."""
    unread = {h: float("nan") for h in [*range(20), *range(71, 201)]}
    heats = {"a": hot(60, 100), "b": hot(40, 45), "c": unread}
    failure = [event("a", 100, EventKind.FAILURE, "bearing"), event("a", 100, EventKind.MAINTENANCE, "bearing")]
    return recording_of(plant_of(heats, failure, 200))


@pytest.fixture(scope="module")
def replayed(failing: Recording, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("replay") / "out"
    return out, replay(failing, HeatForecaster(), out=out, alerts=RULES)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_forecasts_are_laid_out_as_the_contract_says(replayed: tuple[Path, dict[str, Any]]) -> None:
    schema = pq.read_schema(replayed[0] / FORECASTS)
    assert {field.name: field.type for field in schema} == {
        "time": pa.timestamp("us", tz="UTC"),
        "asset": pa.string(),
        "p24": pa.float64(),
        "p48": pa.float64(),
        "p72": pa.float64(),
        "hazard": pa.list_(pa.float64()),
        "step_hours": pa.float64(),
        "p72_bearing": pa.float64(),
        "p72_seal": pa.float64(),
        "rul_hours": pa.float64(),
        "abstained": pa.string(),
        "because": pa.string(),
        "model": pa.string(),
    }


def test_one_forecast_for_each_asset_and_step_while_it_was_observed(replayed: tuple[Path, dict[str, Any]]) -> None:
    frame = pd.read_parquet(replayed[0] / FORECASTS)
    counts = frame.groupby("asset")["time"].agg(["min", "max", "count"])
    assert counts.loc["a"].tolist() == [pd.Timestamp(hour(1)), pd.Timestamp(hour(200)), 200]
    assert counts.loc["c"].tolist() == [pd.Timestamp(hour(20)), pd.Timestamp(hour(70)), 51]
    assert not frame.duplicated(["time", "asset"]).any()


def test_an_abstention_has_nulls_and_its_reason(replayed: tuple[Path, dict[str, Any]]) -> None:
    frame = pd.read_parquet(replayed[0] / FORECASTS)
    abstained = frame["abstained"].notna()
    # Too little history is less than 24 h of it: 23 of a's 200 forecasts, 24 of c's (its own first reading included).
    assert frame[abstained].groupby("asset").size().to_dict() == {"a": 23, "b": 23, "c": 24}
    assert set(frame["abstained"].dropna()) == {"too little history"}
    numbers = ["p24", "p48", "p72", "hazard", "p72_bearing", "p72_seal", "rul_hours"]
    assert frame.loc[abstained, numbers].isna().all().all()
    assert frame.loc[~abstained, numbers].notna().all().all()


def test_probabilities_follow_from_the_hazard(replayed: tuple[Path, dict[str, Any]]) -> None:
    frame = pd.read_parquet(replayed[0] / FORECASTS).dropna(subset=["p72"])
    hazard = np.stack(frame["hazard"].to_numpy())
    assert hazard.shape == (len(frame), 72)
    for hours in (24, 48, 72):
        np.testing.assert_allclose(frame[f"p{hours}"], 1 - np.prod(1 - hazard[:, :hours], axis=1), rtol=1e-12)
    hot_row = frame[(frame["asset"] == "a") & (frame["time"] == hour(70))].iloc[0]
    assert hot_row["p72"] == pytest.approx(0.8)
    assert hot_row["p72_bearing"] == pytest.approx(0.56)


def test_alerts_are_matched_with_their_failures(replayed: tuple[Path, dict[str, Any]]) -> None:
    rows = rows_of(replayed[0] / ALERTS)
    assert ",".join(rows[0]) == (
        "alert,asset,failure_mode,raised_at,state,acknowledged_at,cleared_at,closed_at,"
        "cause,probability_at_raise,lead_hours"
    )
    told = [(r["asset"], r["raised_at"], r["state"], r["cleared_at"], r["closed_at"], r["lead_hours"]) for r in rows]
    assert told == [
        ("b", "2025-01-02T17:00:00Z", "returned-unacknowledged", "2025-01-03T00:00:00Z", "", ""),
        ("a", "2025-01-03T13:00:00Z", "closed", "", "2025-01-05T05:00:00Z", "39"),
    ]
    assert rows[1]["cause"].startswith("heat +1.9")
    assert float(rows[1]["probability_at_raise"]) == pytest.approx(0.8)


def test_the_report_has_the_keys_of_the_contract_and_counts_right(replayed: tuple[Path, dict[str, Any]]) -> None:
    out, report = replayed
    assert set(report) == REPORT_KEYS
    assert json.loads((out / "report.json").read_text(encoding="utf-8")) == report
    failures = report["failures"]
    assert (failures["total"], failures["warned"], failures["missed"]) == (1, 1, 0)
    assert report["recall"]["at_lead"] == {"1h": 1.0, "6h": 1.0, "24h": 1.0, "48h": 0.0, "72h": 0.0}
    assert report["precision"]["value"] == 0.5
    assert report["lead_hours"]["median"] == 39.0
    assert report["asset_months"] == pytest.approx((200 + 200 + 50) / 24 / 30.44)
    assert report["false_alerts_per_asset_month"]["value"] == pytest.approx(1 / report["asset_months"])
    assert report["abstained_share"] == pytest.approx(70 / 451)
    assert report["model"] == "heat@1"
    assert (out / "report.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")


def test_the_same_again_is_the_same_to_the_bit(
    failing: Recording, replayed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    replay(failing, HeatForecaster(), out=tmp_path, alerts=RULES)
    for name in (FORECASTS, ALERTS):
        assert (tmp_path / name).read_bytes() == (replayed[0] / name).read_bytes()


def test_assets_may_be_chosen(failing: Recording, tmp_path: Path) -> None:
    report = replay(failing, HeatForecaster(), out=tmp_path, assets=["b"], alerts=RULES)
    assert report["failures"]["total"] == 0
    assert set(pd.read_parquet(tmp_path / FORECASTS)["asset"]) == {"b"}
    with pytest.raises(RecordingError, match=r"has no asset 'z'; assets.csv names those it has"):
        replay(failing, HeatForecaster(), out=tmp_path, assets=["b", "z"])


def test_assessments_may_be_further_apart(failing: Recording, tmp_path: Path) -> None:
    progress: list[float] = []
    replay(failing, HeatForecaster(), out=tmp_path, every=timedelta(hours=6), alerts=RULES, progress=progress.append)
    times = pd.read_parquet(tmp_path / FORECASTS).query("asset == 'a'")["time"]
    assert list(times) == [pd.Timestamp(hour(h)) for h in range(6, 201, 6)]
    assert progress[-1] == 1.0


def test_a_daily_recording_has_steps_of_a_day(tmp_path: Path) -> None:
    daily = recording_of(plant_of({"a": hot(10, 20), "b": {}}, [], 30, step=timedelta(days=1)))
    report = replay(daily, HeatForecaster(steps=3), out=tmp_path, alerts=RULES)
    frame = pd.read_parquet(tmp_path / FORECASTS)
    assert len(frame) == 2 * 30
    told = frame.dropna(subset=["p72"])
    assert set(told["step_hours"]) == {24.0}
    assert set(told["hazard"].map(len)) == {3}
    assert (told["p24"] < told["p48"]).all()
    assert report["abstained_share"] < 0.1
    assert len(rows_of(tmp_path / ALERTS)) == 1


def test_what_cannot_be_replayed_is_refused(failing: Recording, tmp_path: Path) -> None:
    short = replace(failing, history=cut(failing.history, hour(0)))
    with pytest.raises(RecordingError, match="nothing to replay"):
        replay(short, HeatForecaster(), out=tmp_path)
    with pytest.raises(RecordingError, match="every"):
        replay(failing, HeatForecaster(), out=tmp_path, every=timedelta(0))
    with pytest.raises(ModelError, match=r"no threshold for alerts.budget"):
        replay(failing, HeatForecaster(), out=tmp_path, alerts=AlertsSection(budget=0.001))
    assert list(tmp_path.iterdir()) == []


def test_a_replay_that_fails_leaves_no_half_file(failing: Recording, tmp_path: Path) -> None:
    class Breaks(HeatForecaster):
        def forecast(self, history: History, at: datetime) -> list[Forecast]:
            if at >= hour(50):
                raise ModelError("weights do not fit")
            return super().forecast(history, at)

    with pytest.raises(ModelError, match="do not fit"):
        replay(failing, Breaks(), out=tmp_path, alerts=RULES)
    assert list(tmp_path.iterdir()) == []


def test_forecasts_are_written_in_parts_as_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant = plant_of({"a": hot(5, 9), "b": {}}, [], 30)
    issued = [f for h in range(1, 31) for f in HeatForecaster().forecast(plant, hour(h))]
    monkeypatch.setattr("pm.replay_files._ROWS", 7)
    with ForecastFile(tmp_path / "f.parquet", ["bearing", "seal"]) as file:
        for start in range(0, len(issued), 2):
            file.add(issued[start : start + 2])
    assert pq.ParquetFile(tmp_path / "f.parquet").num_row_groups > 5
    assert pq.read_table(tmp_path / "f.parquet").equals(forecast_table(issued, ["bearing", "seal"]))


def test_an_end_of_the_record_changes_nothing_before_it(failing: Recording, tmp_path: Path) -> None:
    replay(failing, HeatForecaster(), out=tmp_path / "whole", alerts=RULES)
    replay(
        replace(failing, history=cut(failing.history, hour(90))), HeatForecaster(), out=tmp_path / "cut", alerts=RULES
    )
    whole, part = (pd.read_parquet(tmp_path / name / FORECASTS) for name in ("whole", "cut"))
    assert_frame_equal(part, whole[whole["time"] <= hour(90)].reset_index(drop=True))
    assert [r["alert"] for r in rows_of(tmp_path / "cut" / ALERTS)] == [
        r["alert"] for r in rows_of(tmp_path / "whole" / ALERTS)
    ]


def test_ticks_start_a_step_after_the_first_reading_and_end_with_the_last() -> None:
    history = plant_of({"a": {0: float("nan"), 1: float("nan")}}, [], 5)
    assert list(ticks(history, timedelta(hours=1))) == [hour(3), hour(4), hour(5)]
    assert list(ticks(history, timedelta(hours=2))) == [hour(4)]


@pytest.fixture(scope="module")
def transformer() -> TransformerForecaster:
    plant = worn_plant()
    names = [asset.name for asset in plant.assets]
    settings = TINY.model_copy(update={"epochs": 5, "learning_rate": 5e-3})
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads on a busy machine wait for each other more than they help
    trained = fit(plant, names[:4], names[4:], schema_of(plant, settings), settings, name="tiny")
    torch.set_num_threads(before)
    return TransformerForecaster(trained.artefact).with_thresholds({0.2: 0.2})


def test_a_transformer_says_the_same_in_a_replay_as_over_the_whole_table(
    transformer: TransformerForecaster, tmp_path: Path
) -> None:
    plant = cut(worn_plant(seed=1), hour(72))
    replay(recording_of(plant), transformer, out=tmp_path)
    frame = pd.read_parquet(tmp_path / FORECASTS).dropna(subset=["p72"])
    table = transformer.forecast_grid(plant)
    at = {(table.assets[a], t): row for row, (a, t) in enumerate(zip(table.asset_index, table.time_us, strict=True))}
    times = pd.DatetimeIndex(frame["time"]).as_unit("us").asi8.tolist()
    rows = [at[key] for key in zip(frame["asset"], times, strict=True)]
    assert len(rows) > 200
    assert np.stack(frame["hazard"].to_numpy()).tolist() == table.hazard[rows].tolist()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path_factory.mktemp("broker")) as running:
        yield running


def test_published_over_a_broker_it_ends_in_the_same_readings_and_alerts(
    transformer: TransformerForecaster, broker: Mosquitto, tmp_path: Path
) -> None:
    history = cut(worn_plant(seed=2), hour(24 * 11))
    replay(recording_of(history), transformer, out=tmp_path / "direct", alerts=RULES)

    mqtt, clock = MqttSection(host="127.0.0.1", port=broker.port, client_id="same-alerts"), ClockSection(source="feed")
    with Records.open(f"sqlite:///{tmp_path / 'records.db'}") as records:
        store = EmbeddedStore(tmp_path / "readings.db")
        assessor = Assessor(
            store=store,
            log=records,
            register=RecordedRegister(history),
            forecaster=transformer,
            plant=PlantSection(interval=history.interval),
            assess=AssessSection(),
            alerts=RULES,
        )
        jobs = [Job("assess", cron("0 * * * *"), assessor.assess, "all")]
        feed = MqttFeed(mqtt, clock_topic=clock.topic, max_future=None)
        watermark = FeedClock()
        schedule = PlantSchedule(clock=watermark, ticks=records, jobs=jobs)

        class Begins:
            """As the service does: the first plant time heard is where ticks count from."""

            def advance(self, to: datetime) -> None:
                schedule.begin(to)
                watermark.advance(to)

        ingest = Ingest(feed, store, DeadLetterList(), section=IngestSection(), now_us=wall_us, watermark=Begins())
        stop = threading.Event()
        feed.open()
        ingesting = threading.Thread(target=ingest.run, args=(stop,))
        ingesting.start()
        schedule.start(every=timedelta(seconds=0.05))
        try:
            publisher = MqttPublisher(mqtt, client_id="recording")
            publisher.open()
            publish_history(history, publisher, topics=PlayTopics.of(mqtt, clock), speed=None, stop=stop)
            publisher.close()
            last = list(ticks(history, history.interval))[-1]
            wait_until(lambda: records.last_tick("assess") == last, "the last assessment", 120)
        finally:
            schedule.stop()
            stop.set()
            ingesting.join(10)
            feed.close()
        stored = store.readings(EARLIEST, LATEST)[list(history.readings.columns)]
        assert_frame_equal(stored, history.readings, check_dtype=False)
        assert_frame_equal(store.events(EARLIEST, LATEST), history.events, check_dtype=False)
        published = sorted(records.alerts(limit=None), key=lambda alert: (alert.raised_at, alert.asset))
        store.close()
    direct = rows_of(tmp_path / "direct" / ALERTS)
    assert len(direct) >= 3
    assert [(a.id, a.cause, repr(a.probability_at_raise), a.state.value) for a in published] == [
        (r["alert"], r["cause"], r["probability_at_raise"], r["state"]) for r in direct
    ]
    assert AlertState.CLOSED in {a.state for a in published}
