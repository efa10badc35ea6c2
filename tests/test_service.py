"""The service from end to end: a real broker, a real store, a real model; live as it is in a replay."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from connectors import recordings
from connectors.mqtt_publisher import MqttPublisher
from connectors.payloads import encode_clock, encode_readings
from pm import archive, config, edges, live
from pm.domain import EARLIEST, LATEST, Reading, from_us, to_us
from pm.lateness import Late
from pm.replay import replay
from pm.service import Service
from pm.simulate import PlantSettings, simulate
from pm.training import TrainedModel, train
from tests.servers.programs import free_port, program, wait_until

SETTINGS = config.TrainSection(
    context=48, patch=6, width=16, layers=1, heads=2, epochs=6, max_minutes=0.5, batch=16, hold_out=0.0, validation=0.3
)
ALERTS = config.AlertsSection(budget=1.0)


@pytest.fixture(scope="module")
def plant() -> recordings.Recording:
    return simulate(PlantSettings(assets=10, days=75, seed=3, mtbf_days=20)).recording


@pytest.fixture(scope="module")
def model(plant: recordings.Recording, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    """Small and quickly trained: what is compared below is the way of the data, not the model's skill."""
    folder = tmp_path_factory.mktemp("model") / "small"
    until = datetime(2026, 2, 25, tzinfo=UTC)
    return train(plant.history, out=folder, settings=SETTINGS, alerts=ALERTS, until=until, name="small")


@pytest.fixture(scope="module")
def later(plant: recordings.Recording) -> recordings.Recording:
    """Ten days that the model has not seen."""
    since = pd.Timestamp("2026-03-07", tz="UTC")
    history = plant.history
    cut = replace(
        history,
        readings=history.readings[history.readings["time"] > since].reset_index(drop=True),
        events=history.events[history.events["time"] > since].reset_index(drop=True),
    )
    return replace(plant, name="later", history=cut)


def settings(folder: Path, **more: str) -> config.Config:
    path = folder / "pm.toml"
    path.write_text(
        '[clock]\nsource = "feed"\n[alerts]\nbudget = 1.0\n[retrain]\nenabled = false\n[dashboard]\nport = 0\n'
        + "".join(f"[{section}]\n{text}\n" for section, text in more.items())
    )
    return config.load(path, {})


def register(configuration: config.Config, described: recordings.Recording, model: TrainedModel) -> None:
    from pm.retrain import model_row

    with edges.open_records(configuration) as records:
        store = edges.open_store(configuration)
        archive.import_recording(described, store, records, readings=False)
        store.close()
        records.add_model(model_row(model.forecaster.artefact, model.folder, created_at=model.trained_until))
        records.promote(model.version, at=model.trained_until, why="test")


@pytest.mark.parametrize("broker", ["mosquitto", "rumqttd"])
def test_a_published_recording_ends_in_the_same_readings_and_alerts_as_a_direct_replay(
    broker: str, later: recordings.Recording, model: TrainedModel, tmp_path: Path
) -> None:
    if broker == "mosquitto":
        program("mosquitto", "mosquitto")
    direct = tmp_path / "direct"
    replay(later, model.forecaster, out=direct, alerts=ALERTS)
    with (direct / "alerts.csv").open() as file:
        expected = list(csv.DictReader(file))
    assert expected, "the comparison needs alerts"

    configuration = settings(tmp_path, mqtt=f'port = 0\nembedded = "{broker}"')
    register(configuration, later, model)
    names = [asset.name for asset in later.history.assets]
    end = later.history.readings["time"].max().to_pydatetime()
    with Service(configuration, parts=("ingest", "schedule")) as service:
        broker_at = configuration.model_copy(update={"mqtt": service.mqtt})
        live.publish_recording(later, broker_at, assets=names, speed=None, stop=threading.Event())
        wait_until(lambda: service.records.last_assessment() == end, "the last assessment", 120)
        stored = service.store.readings(EARLIEST, LATEST)
        events = service.store.events(EARLIEST, LATEST)
        raised = {alert.id: alert for alert in service.records.alerts()}
        assert service.records.late() == [], "a feed whose clock follows its readings brings nothing late"
        _bring_late(service, names[0], end)
    points = [point.name for point in later.history.points]
    pd.testing.assert_frame_equal(stored[["time", "asset", *points]], later.history.readings)
    pd.testing.assert_frame_equal(events, later.history.events)
    assert set(raised) == {row["alert"] for row in expected}
    for row in expected:
        alert = raised[row["alert"]]
        assert (alert.asset, alert.failure_mode, alert.state.value) == (row["asset"], row["failure_mode"], row["state"])
        assert float(row["probability_at_raise"]) == alert.probability_at_raise  # bit for bit
        assert row["cause"] == alert.cause
        cleared = alert.cleared_at and pd.Timestamp(row["cleared_at"])
        assert cleared == alert.cleared_at


def _bring_late(service: Service, asset: str, end: datetime) -> None:
    """A reading that a running service hears of five hours late: what it touches is revised, and nothing rewritten."""
    issued = service.records.forecast_history(asset, EARLIEST, end)
    (before,) = service.store.readings(end - timedelta(hours=1), end, [asset]).to_dict("records")
    values = {point: 3.0 * value for point, value in before.items() if isinstance(value, float) and value == value}
    late = Reading(asset, to_us(end - timedelta(hours=5, minutes=-1)), values)
    publisher = MqttPublisher(service.mqtt)
    publisher.open()
    publisher.publish(f"plant/{asset}/readings", encode_readings([late]))
    publisher.publish(service.config.clock.topic, encode_clock(to_us(end + timedelta(hours=1))))
    publisher.close()
    wait_until(lambda: service.records.last_assessment() == end + timedelta(hours=1), "the assessment after it", 60)
    wait_until(lambda: bool(service.records.revisions(asset, EARLIEST, end)), "the revisions", 60)
    revised = service.records.revisions(asset, EARLIEST, end)
    assert all(end - timedelta(hours=5) < one.forecast.time for one in revised)
    assert {one.late for one in revised} == {Late(asset, from_us(late.time_us), from_us(late.time_us), end)}
    assert service.records.forecast_history(asset, EARLIEST, end) == issued


def test_pm_run_serves_publishes_and_stops_in_order(
    later: recordings.Recording, model: TrainedModel, tmp_path: Path
) -> None:
    """The commands as a user runs them: pm run in one process, pm replay --publish in another, SIGTERM at the end."""
    mqtt, web = free_port(), free_port()
    configuration = settings(tmp_path, mqtt=f"port = {mqtt}")
    path = tmp_path / "pm.toml"
    path.write_text(path.read_text().replace("[dashboard]\nport = 0", f"[dashboard]\nport = {web}"))
    register(configuration, later, model)
    recordings.write(later, tmp_path / "later")
    log_path = tmp_path / "log"

    def pm(*arguments: str) -> subprocess.Popen[str]:
        # The log goes to a file: a pipe that nobody empties would stop the service.
        with log_path.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "pm.cli", *arguments, "--config", str(path)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{web}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    running = pm("run")
    try:
        wait_until(healthy, "the dashboard", 60)
        said, _ = pm("replay", str(tmp_path / "later"), "--publish", "--assets", "all").communicate(timeout=120)
        assert "steps published" in said, log_path.read_text()
        end = later.history.readings["time"].max().to_pydatetime()
        with edges.open_records(config.load(path, {})) as records:
            wait_until(lambda: records.last_assessment() == end, "the last assessment", 120)
            assert records.alerts()
            forecasts = records.latest_forecasts()
            assert {f.asset for f in forecasts} == {asset.name for asset in later.history.assets}
    finally:
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
    log = log_path.read_text()
    assert running.returncode == 0, log
    assert "service stopped" in log
    assert "Traceback" not in log, log
    listed, _ = pm("alerts", "list", "--all", "--json").communicate(timeout=60)
    assert json.loads(listed)


def test_forecasts_on_demand_agree_with_the_service(
    later: recordings.Recording, model: TrainedModel, tmp_path: Path
) -> None:
    """`pm forecast` of a recording at each last reading: the columns that others read, from the same numbers."""
    recordings.write(later, tmp_path / "later")
    out = tmp_path / "forecasts.csv"
    arguments = ["--recording", str(tmp_path / "later"), "--model", str(model.folder), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "pm.cli", "forecast", "--at", "last", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["asset", "rul_hours", "p24", "p48", "p72"]
    last = later.history.readings.groupby("asset")["time"].max()
    for row in rows[:3]:
        at = last[row["asset"]].to_pydatetime()
        (direct,) = model.forecaster.forecast(later.history.only([row["asset"]]), at)
        assert float(row["p72"]) == pytest.approx(direct.probability(72), rel=1e-5)
        assert float(row["p24"]) <= float(row["p48"]) <= float(row["p72"])


def test_the_wall_clock_gives_late_readings_their_grace() -> None:
    clock = edges.WallClock(timedelta(minutes=2))
    now = clock.now()
    assert now is not None
    assert timedelta(minutes=2) <= edges.wall_now() - now < timedelta(minutes=3)
