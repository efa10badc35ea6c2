"""What the benchmarks of whole recordings say of a recording and of a simulated plant, by hand."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from benchmarks.azure import signals
from benchmarks.plant import visible_ceiling
from pm.domain import Asset, Event, EventKind, to_us
from tests.forecasting_cases import HOUR, START, history_of, reading_frame


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
