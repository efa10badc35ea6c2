"""Examines an installation part by part and says what to mend; looks, and changes nothing."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from pm.config import Config
from pm.edges import BACKUP_TICK, LOOPBACK, load_forecaster, open_records, open_store, wall_now
from pm.errors import PmError


@dataclass(frozen=True, slots=True)
class Finding:
    """What one part is like."""

    what: str
    well: bool
    finding: str


def examine(config: Config) -> list[Finding]:
    """One finding per part; a part that fails does not keep the others from being examined."""
    parts: list[tuple[str, Callable[[Config], str]]] = [
        ("broker", _broker),
        ("sparkplug", _sparkplug),
        ("store", _store),
        ("records", _records),
        ("data", _data),
        ("backup", _backup),
        ("model", _model),
        ("accelerator", _accelerator),
        ("clock", _clock),
        ("dashboard", _dashboard),
    ]
    findings = [Finding("configuration", True, "valid")]
    for what, look in parts:
        try:
            findings.append(Finding(what, True, look(config)))
        except PmError as error:
            findings.append(Finding(what, False, str(error)))
    return findings


@runtime_checkable
class _Served(Protocol):
    """A store that is a server of its own."""

    def describe(self) -> str:
        """What answers."""

    def lately(self, start: datetime, end: datetime) -> Mapping[str, int]:
        """How many `values` and `conflicts` are dated start < time <= end."""


def _broker(config: Config) -> str:
    section = config.mqtt
    if not section.host:
        from connectors.broker import EmbeddedBroker

        broker = EmbeddedBroker(section.embedded, section.port, config.models.dir.parent / "broker")
        return f"embedded {broker.kind} on {LOOPBACK}:{section.port or 'a free port'}, started with the service"
    from connectors.mqtt import MqttPublisher

    probe = MqttPublisher(section, client_id=f"{section.client_id}-doctor")
    probe.open()
    try:
        if not probe.connected:
            raise PmError(
                f"{section.host}:{section.port} does not answer; start the broker, or mend mqtt.host and mqtt.port"
            )
    finally:
        probe.close()
    return f"{section.host}:{section.port} answers{', TLS verified' if section.tls else ', without TLS'}"


def _sparkplug(config: Config) -> str:
    section = config.sparkplug
    if not section.enabled:
        return "off; sparkplug.enabled takes readings from Sparkplug B edge nodes too"
    groups = ", ".join(section.groups) or "all groups"
    return f"host {section.host_id} on the broker above, for {groups}; assets are {section.asset}"


def _store(config: Config) -> str:
    store = open_store(config)
    try:
        if isinstance(store, _Served):  # it may hold years of a fleet: a day is counted, and by the server
            now = wall_now()
            lately = store.lately(now - timedelta(days=1), now)
            beside = f", {lately['conflicts']:,} beside greater ones" if lately["conflicts"] else ""
            held = f"{lately['values']:,} values of the last day{beside}; {store.describe()}"
            return f"{config.store.kind} at {config.store.url}/{config.store.bucket}: {held}"
        counts, conflicts = store.counts(), len(store.conflicts())
        beside = f", {conflicts:,} values beside greater ones" if conflicts else ""
        held = f"{counts['readings']:,} readings, {counts['events']:,} events{beside}"
        return f"{config.store.kind} at {config.store.path}: {held}"
    finally:
        store.close()


def _records(config: Config) -> str:
    with open_records(config) as records:
        enabled = [user for user in records.users() if not user.disabled]
        if not enabled:
            raise PmError("nobody can log in to the dashboard; add a user with 'pm users add NAME'")
        champion = records.champion()
        return (
            f"{len(enabled)} users, {len(records.assets())} assets; champion: "
            f"{champion.version if champion else 'none yet, train one with pm train'}"
        )


def _backup(config: Config) -> str:
    with open_records(config) as records:
        last = records.last_tick(BACKUP_TICK)
    if last is None:
        return "none made yet; 'pm backup FOLDER' makes one while the service runs"
    return f"the last was made {last:%Y-%m-%d %H:%MZ}, {(wall_now() - last).days} days ago"


def _data(config: Config) -> str:
    with open_records(config) as records:
        alerts = records.data_alerts()
        if alerts:
            raise PmError("; ".join(f"{alert.text}, since {alert.raised_at:%Y-%m-%d %H:%M:%SZ}" for alert in alerts))
        letters = records.dead_letter_count()
    return f"no data alert is open{f'; {letters:,} dead letters are kept, see pm deadletters list' if letters else ''}"


def _model(config: Config) -> str:
    with open_records(config) as records:
        if records.champion() is None:
            return "no champion yet; train one with 'pm train'"
        forecaster = load_forecaster(records, None, config.assess.runtime)
    return f"{forecaster.version} runs in {forecaster.runtime.name}"


def _accelerator(config: Config) -> str:
    import torch

    from forecasting.precision import Precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    precision = Precision.choose(device, config.train.precision, config.train.width)
    return f"{name}; training in {precision.name} because {precision.why}"


def _clock(config: Config) -> str:
    now = wall_now()
    if now.year < 2025:
        raise PmError(f"the machine's clock says {now:%Y-%m-%d}; set it, and keep it with chrony or systemd-timesyncd")
    return f"{now:%Y-%m-%d %H:%M:%SZ}, plant time from the {config.clock.source}, schedules in {config.plant.timezone}"


def _dashboard(config: Config) -> str:
    section = config.dashboard
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((section.host, section.port))
        except OSError as error:
            taken = f"{section.host}:{section.port} is in use ({error.strerror})"
            return f"{taken}: by a running service, or set another dashboard.port"
    loopback = section.host in {LOOPBACK, "localhost", "::1"}
    return (
        f"http://{section.host}:{section.port}{'' if loopback else '; beyond loopback, put a proxy with TLS before it'}"
    )
