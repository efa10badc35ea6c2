"""Fixtures of the records tests: each test runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from pm.domain import Asset, FailureMode, History, Point, Recording
from pm.records import Records
from tests.servers.postgres import PASSWORD, Postgres, postgres

T0 = datetime(2026, 3, 1, 6, tzinfo=UTC)
HOUR = timedelta(hours=1)
Open = Callable[[], Records]
"""Opens the test's database once more, as another process would."""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    opened: list[Records] = []
    if request.param == "sqlite":
        url, password = f"sqlite:///{tmp_path / 'records.db'}", None
    else:
        url, password = request.getfixturevalue("server").fresh(), PASSWORD

    def open_() -> Records:
        opened.append(Records.open(url, password))
        return opened[-1]

    yield open_
    for records in opened:
        records.close()


@pytest.fixture
def records(another: Open) -> Records:
    return another()


def described(name: str = "plant-a", assets: tuple[str, ...] = ("pump-2", "pump-1")) -> Recording:
    empty = pd.DataFrame()
    history = History(
        interval=HOUR,
        points=(Point("vibration", "mm/s", 0.0, 25.5, "drive end"), Point("flow")),
        failure_modes=(FailureMode("seal", "leaks"), FailureMode("bearing")),
        assets=tuple(Asset(asset, "P-100", {"zone": "north", "age": 7, "kw": 2.0}) for asset in assets),
        readings=empty,
        events=empty,
    )
    return Recording(name, "1h", "a test", "made up; ümläut", "CC0", history)
