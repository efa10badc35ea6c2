"""The demo: a simulated plant's past to learn from and its future to be warned of, in one folder and one process.

Nothing in it is special to the demo but the plant: broker, store, ingest, schedule, training and dashboard are the
service's own, configured by the `pm.toml` that it writes into its folder.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pm import config as configuration
from pm import logs
from pm.errors import ConfigError, PmError
from pm.live import publish_plant, until_interrupted
from pm.service import Service

if TYPE_CHECKING:
    from rich.console import Console

    from pm.config import Config
    from pm.ports import ReadingStore
    from pm.records import Records
    from pm.simulate import SimulatedPlant

log = logging.getLogger(__name__)

START = datetime(2026, 1, 1, tzinfo=UTC)
PAST = timedelta(days=240)
"""What the forecaster learns from before the demo goes live."""
AHEAD_DAYS = 360
"""Simulated ahead of what has been played; at an hour a second it lasts over two hours."""
USER = "demo"

_CONFIG = """\
# The demo's configuration, made by `pm demo`. Look around with, for example: pm alerts list --config {path}
[plant]
name = "Demo plant"

[clock]
source = "feed"

[mqtt]
port = 0

[train]
width = 64
layers = 2
epochs = 40
patience = 6
max_minutes = {minutes}
learning_rate = 0.002
hold_out = 0.0
validation = 0.3

[alerts]
budget = 0.5

[retrain]
cron = "0 3 15 * *"

[dashboard]
port = {port}

[log]
level = "warning"
"""
TRAIN_MINUTES = 1.0


@dataclass(frozen=True, slots=True)
class Made:
    """What plant a demo folder holds; its simulation is made anew from this at every start."""

    assets: int
    seed: int

    def simulate(self, days: int) -> SimulatedPlant:
        from pm.simulate import PlantSettings, simulate

        return simulate(PlantSettings(assets=self.assets, days=days, start=START, seed=self.seed, name="demo-plant"))


def run(*, folder: Path, assets: int, seed: int, speed: float, port: int, fresh: bool) -> None:
    """Run the demo until Ctrl-C. What `folder` holds is gone on with, unless `fresh`."""
    from rich.console import Console

    console = Console(stderr=True)
    began = time.monotonic()
    made = _settled(folder, Made(assets, seed), fresh=fresh)
    config_path = folder / "pm.toml"
    if not config_path.exists():
        config_path.write_text(_CONFIG.format(path=config_path, port=port, minutes=TRAIN_MINUTES), encoding="utf-8")
    config = configuration.load(config_path)
    logs.configure(config.log)
    stop = threading.Event()
    with until_interrupted(stop):
        try:
            _prepare(made, config, console)
            _play(made, config, config_path, speed, stop, console, began)
        finally:
            console.print("The demo has ended; 'pm demo' goes on from here.")


def _settled(folder: Path, asked: Made, *, fresh: bool) -> Made:
    """The plant of the folder; made as asked where there is none."""
    path = folder / "plant.json"
    if fresh and folder.exists():
        if not path.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not a demo's folder and is left as it is; name another with --dir")
        shutil.rmtree(folder)
    if path.exists():
        try:
            return Made(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ConfigError(f"{path} is damaged; begin again with --fresh") from None
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text(json.dumps(asdict(asked)), encoding="utf-8")
    return asked


def _prepare(made: Made, config: Config, console: Console) -> None:
    """The plant's past in the store, and a champion trained on it. Each is done once."""
    from pm import archive
    from pm.edges import open_records, open_store

    with open_records(config) as records:
        store = open_store(config)
        try:
            if not records.recordings():
                with console.status(f"Simulating {PAST.days} days of {made.assets} assets"):
                    past = made.simulate(PAST.days).recording
                archive.import_recording(past, store, records)
                console.print(
                    f"Stored the plant's past: {len(past.history.readings):,} readings, "
                    f"{len(past.history.events):,} events"
                )
            if records.champion() is None:
                _train(config, records, store, console)
        finally:
            store.close()


def _train(config: Config, records: Records, store: ReadingStore, console: Console) -> None:
    from forecasting.train import Execution
    from pm import archive, training
    from pm.progress import epoch_lines, training_bar
    from pm.retrain import model_row

    name = "demo"
    history = archive.plant_history(store, records, config.plant.interval)
    with training_bar(console) if console.is_terminal else epoch_lines(console) as report:
        trained = training.train(
            history,
            out=config.models.dir / name,
            settings=config.train,
            alerts=config.alerts,
            assess=config.assess,
            name=name,
            execution=Execution(progress=report),
        )
    records.add_model(model_row(trained.forecaster.artefact, trained.folder, created_at=START + PAST))
    records.promote(trained.version, at=START + PAST, why="the demo's first model")
    score, base = (
        trained.forecaster.artefact.metrics.get(f"validation_{key}_72h", float("nan"))
        for key in ("pr_auc", "base_rate")
    )
    console.print(
        f"Trained {trained.version} in {trained.seconds:.0f} s; PR-AUC at 72 h on assets and time it has not learned "
        f"from: {score:.2f} (chance: {base:.2f})"
    )


def _play(
    made: Made,
    config: Config,
    config_path: Path,
    speed: float,
    stop: threading.Event,
    console: Console,
    began: float,
) -> None:
    """The service with the plant's future coming in, until `stop`."""
    with Service(config, config_path=config_path) as service:
        password = _login(service.records, config_path.parent)
        console.print(
            f"\n  Dashboard  [bold]{service.dashboard_url}[/bold]\n"
            f"  Login      [bold]{USER}[/bold] / [bold]{password}[/bold]\n"
            f"  Plant time runs {speed:,.0f} times as fast as yours. Ctrl-C ends the demo.\n"
        )
        broker = config.model_copy(update={"mqtt": service.mqtt})
        player = threading.Thread(
            target=_play_on, args=(made, broker, service, speed, stop), name="simulated plant", daemon=True
        )
        player.start()
        watcher = threading.Thread(target=_announce, args=(service, made, stop, console, began), daemon=True)
        watcher.start()
        try:
            service.wait(stop)
        finally:
            stop.set()
            player.join(10.0)
            watcher.join(10.0)


def _play_on(made: Made, config: Config, service: Service, speed: float, stop: threading.Event) -> None:
    """Publish from where plant time stands, simulating further whenever the end of what is simulated is reached."""
    while not stop.is_set():
        now = service.clock.now() or START + PAST
        days = (now - START).days + AHEAD_DAYS
        try:
            publish_plant(made.simulate(days), config, speed=speed, stop=stop, start=now)
        except PmError as error:
            if not stop.is_set():
                log.warning("the simulated plant is interrupted: %s; it goes on", error)
                stop.wait(1.0)


def _login(records: Records, folder: Path) -> str:
    """The demo's password, made once and kept beside its data, readable by its owner only."""
    path = folder / "login.txt"
    if not any(user.name == USER for user in records.users()):
        password = secrets.token_urlsafe(9)
        path.touch(mode=0o600)
        path.write_text(f"{USER}\n{password}\n", encoding="utf-8")
        records.add_user(USER, password, role="admin")
    return path.read_text(encoding="utf-8").split()[1]


def _announce(service: Service, made: Made, stop: threading.Event, console: Console, began: float) -> None:
    """Say on the console when alerts are raised, and for the first one how long it took."""
    from pm.edges import open_records

    told: set[str] = set()
    with open_records(service.config) as records:
        told.update(alert.id for alert in records.alerts())
        first = not told
        while not stop.wait(1.0):
            for alert in reversed([alert for alert in records.alerts(limit=50) if alert.id not in told]):
                told.add(alert.id)
                console.print(
                    f"{alert.raised_at:%Y-%m-%d %H:%M} plant time  [bold]{alert.asset}[/bold] is likely to fail "
                    f"within 72 h ({alert.probability_at_raise:.0%}, {alert.failure_mode}): {alert.cause}"
                )
                if first:
                    console.print(f"  The first alert came {time.monotonic() - began:.0f} s after the start.")
                    first = False
