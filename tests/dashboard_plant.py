"""A small plant for the dashboard's tests: real records and a real store, filled as a week of service fills them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from flask import Flask

from connectors.embedded import EmbeddedStore
from dashboards.app import create_app
from pm.alerts import raised
from pm.config import AlertsSection, Config, DashboardSection, PlantSection
from pm.domain import (
    Abstention,
    Alert,
    Asset,
    Cause,
    FailureMode,
    Forecast,
    History,
    Point,
    Reason,
    Recording,
    to_us,
)  # fmt: skip
from pm.edges import retry_dead_letters
from pm.lateness import Late, Revision
from pm.ports import AlertChange, Reject
from pm.records import ModelRow, Records

NOW = datetime(2026, 3, 20, 14, tzinfo=UTC)
DAYS = 8
MODEL = "transformer 7 (4f2a91c0)"
THRESHOLD = 0.3
PASSWORD = "correct horse battery"
MODES = (FailureMode("bearing", "worn rolling bearing"), FailureMode("seal", "leaking seal"), FailureMode("winding"))
POINTS = (
    Point("vibration", "mm/s", low=0.0, high=11.0, description="velocity, RMS"),
    Point("temperature", "°C", low=-20.0, high=110.0),
    Point("flow", "m³/h"),
    Point("current", "A"),
)
ASSETS = (
    Asset("pump-01", "centrifugal pump", {"age_years": 6, "site": "north"}),
    Asset("motor-02", "induction motor", {"age_years": 11, "site": "north"}),
    Asset("gearbox-03", "helical gearbox", {"age_years": 2, "site": "south"}),
    Asset("compressor-04", "screw compressor", {"age_years": 4, "site": "south"}),
    Asset("conveyor-05", "belt conveyor", {"age_years": 1, "site": "yard"}),
    Asset("pump-06", "centrifugal pump", {"age_years": 9, "site": "north"}),
    Asset("fan-07", "axial fan", {}),
)
REASONS = (Reason("vibration mean 24 h", 1.92), Reason("error E21", 0.71), Reason("age", 0.28), Reason("flow", -0.34))


_RECEIVED = to_us(NOW)
_HOSTILE = b"<img src=x onerror=alert(1)>\xff\x00 \xe2\x80\xaetxt" + b"x" * 5000
LETTERS = (
    Reject("plant/pump-01/readings", b'{"time": 1773900000, "values": {"flow": "n/a"}}',
           "flow: 'n/a' is not a number", _RECEIVED - 7_200_000_000, "broker.example:1883"),
    Reject("plant/pump-01/readings", b'{"time": 1773903600, "values": {"flow": "n/a"}}',
           "flow: 'n/a' is not a number", _RECEIVED - 3_600_000_000, "broker.example:1883"),
    Reject("plant/<script>alert(1)</script>/readings", _HOSTILE,
           "not JSON and not line protocol", _RECEIVED - 1_800_000_000, "broker.example:1883"),
    Reject("plant/fan-07/readings", b'{"time": "2026-03-20T13:00:00Z", "values": {"flow": 12.5}}',
           "no rule for this yesterday", _RECEIVED - 900_000_000, "broker.example:1883"),
    Reject("spBv1.0/north/DDATA/press/p7", b"\x08\xc0\x84\x3d", "no birth came before it", _RECEIVED, "Sparkplug B"),
)  # fmt: skip
"""Of everything that a stranger may send; the fourth can be read by now."""


@dataclass(frozen=True)
class DashboardPlant:
    records: Records
    store: EmbeddedStore
    app: Flask

    def alert_of(self, asset: str) -> Alert:
        return self.records.alerts(asset=asset)[0]


@contextmanager
def dashboard_plant(folder: Path, *, timezone: str = "Europe/Berlin", filled: bool = True) -> Iterator[DashboardPlant]:
    """Records and store in `folder`, a dashboard over both; users ann (operator) and vic (viewer)."""
    store = EmbeddedStore(folder / "readings.db")
    with Records.open(f"sqlite:///{folder / 'records.db'}") as records:
        try:
            records.add_user("ann", PASSWORD, role="operator")
            records.add_user("vic", PASSWORD, role="viewer")
            if filled:
                _fill(records, store)

            def retry(numbers: Sequence[int]) -> tuple[int, int]:
                """As pm.edges does it: what the default templates can read is stored, the rest kept anew."""
                told = retry_dead_letters(Config(), records, store, numbers)
                return told.messages - told.rejects, told.rejects

            app = create_app(
                records=records,
                store=store,
                plant=PlantSection(name="Waterworks North", timezone=timezone),
                dashboard=DashboardSection(),
                alerts=AlertsSection(),
                now=lambda: NOW if filled else None,
                retry=retry,
                status=lambda: (
                    {"champion": MODEL, "threshold": THRESHOLD, "readings": 1344, "dead_letters": 0} if filled else {}
                ),
            )
            yield DashboardPlant(records, store, app)
        finally:
            store.close()


def forecast(asset: str, at: datetime, p72: float, bearing: float = 0.7) -> Forecast:
    """A forecast whose hazard rises over the horizon to this probability."""
    shape = np.linspace(0.5, 1.5, 72)
    hazard = 1.0 - (1.0 - p72) ** (shape / shape.sum())
    modes = {"bearing": bearing * p72, "seal": (0.9 - bearing) * p72, "winding": 0.1 * p72}
    return Forecast(asset, at, MODEL, None, 1.0, tuple(hazard), modes, float(125 * (1 - p72)))


def risk(asset: str, hours_ago: float) -> float | None:
    """The 72 h probability of an asset so many hours before now; None where it abstains."""
    days = hours_ago / 24
    wave = 0.008 * np.sin(hours_ago / 7 + len(asset))
    match asset:
        case "pump-01":
            return float(0.02 + 0.72 / (1 + np.exp(2.2 * (days - 1.6))) + wave)
        case "motor-02":
            return float(0.015 + 0.36 / (1 + np.exp(1.8 * (days - 2.5))) + wave)
        case "gearbox-03":
            return float(0.11 + wave * 2)
        case "compressor-04":
            return None if hours_ago < 30 else float(0.05 + wave)
        case "conveyor-05":
            return float(0.0007 + abs(wave) / 40)
        case _:
            return float(0.62 / (1 + np.exp(-3 * (days - 3.2))) + 0.02) if 3.0 < days < 4.5 else 0.02


def _fill(records: Records, store: EmbeddedStore) -> None:
    readings, events = _readings(), _events()
    history = History(timedelta(hours=1), POINTS, MODES, ASSETS, readings, events)
    records.put_recording(Recording("waterworks", "1h", "a test plant", "made up", "CC0", history))
    store.write_history(readings, events)
    at = NOW - timedelta(days=7)
    alerts: dict[str, Alert] = {}
    while at <= NOW:
        issued, new, changes = [], [], []
        for asset in ASSETS[:-1]:
            share = risk(asset.name, (NOW - at) / timedelta(hours=1))
            if share is None:
                issued.append(Forecast(asset.name, at, MODEL, Abstention.STALE))
                continue
            made = forecast(asset.name, at, share)
            issued.append(made)
            if share >= THRESHOLD and asset.name not in alerts:
                alerts[asset.name] = raised(made, cause="vibration +1.9, error E21 +0.7", reasons=REASONS)
                new.append(alerts[asset.name])
        if at == NOW - timedelta(days=3):
            changes.append(AlertChange(alerts["pump-06"].id, Cause.CLOSE, "failed (bearing)"))
        records.record(at, forecasts=issued, raised=new, changes=changes, policy={})
        at += timedelta(hours=3)
    _bring_late(records)
    records.add_dead_letters(LETTERS)
    records.change_alert(alerts["motor-02"].id, Cause.ACKNOWLEDGE, at=NOW - timedelta(hours=20), by="ann")
    records.add_model(
        ModelRow(
            version=MODEL,
            path="models/7",
            created_at=NOW - timedelta(days=7),
            trained_until=NOW - timedelta(days=8),
            recording="waterworks",
        )
    )
    records.promote(MODEL, at=NOW - timedelta(days=7), why="the first")


def _bring_late(records: Records) -> None:
    """Two forecasts of motor-02 that readings of ten hours ago would have changed."""
    last = NOW - timedelta(hours=10)
    late = Late("motor-02", last - timedelta(hours=2), last, NOW - timedelta(hours=7, minutes=55))
    revised = [
        Revision(forecast("motor-02", NOW - timedelta(hours=h), p), late, NOW) for h, p in ((12, 0.21), (9, 0.41))
    ]
    records.record_revisions([], revised, [])


def _readings() -> pd.DataFrame:
    rng = np.random.default_rng(7)
    times = pd.date_range(end=NOW, periods=24 * DAYS, freq="1h", tz="UTC").as_unit("us")
    hours = np.arange(len(times))
    frames = []
    for number, asset in enumerate(ASSETS[:-1]):
        wear = np.array([risk(asset.name, h) or 0.05 for h in hours[::-1]])
        day = np.sin(2 * np.pi * hours / 24)
        frame = pd.DataFrame(
            {
                "time": times,
                "asset": asset.name,
                "vibration": 2.1 + 0.3 * number + 6.0 * wear + 0.2 * day + rng.normal(0, 0.15, len(times)),
                "temperature": 58 + 3 * day + 25 * wear + rng.normal(0, 0.6, len(times)),
                "flow": np.nan if "pump" not in asset.name else 120 + 6 * day + rng.normal(0, 2, len(times)),
                "current": 41 + 2 * day + rng.normal(0, 0.5, len(times)),
            }
        )
        if asset.name == "compressor-04":
            frame = frame[:-30]
        if asset.name == "gearbox-03":
            frame = frame.drop(index=range(100, 118))
        frames.append(frame)
    return pd.concat(frames).sort_values(["asset", "time"], ignore_index=True)


def _events() -> pd.DataFrame:
    rows = [
        (NOW - timedelta(hours=52), "pump-01", "error", "E21"),
        (NOW - timedelta(hours=31), "pump-01", "error", "E21"),
        (NOW - timedelta(days=5), "pump-01", "maintenance", "seal"),
        (NOW - timedelta(days=3), "pump-06", "failure", "bearing"),
        (NOW - timedelta(days=3), "pump-06", "maintenance", "bearing"),
        (NOW - timedelta(hours=70), "motor-02", "error", "E07"),
    ]
    frame = pd.DataFrame(rows, columns=["time", "asset", "kind", "code"])
    frame["time"] = pd.to_datetime(frame["time"], utc=True).dt.as_unit("us")
    return frame.sort_values(["time", "asset", "kind", "code"], ignore_index=True)
