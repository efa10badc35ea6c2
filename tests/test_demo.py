"""The demo as a user runs it: `pm demo` in a process of its own, its first alert true, acknowledged in a browser."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pm import config, edges
from pm.demo import USER, Made
from pm.domain import AlertState
from tests.servers.chromium import chromium, watched
from tests.servers.programs import free_port, wait_until

ASSETS, SEED = 40, 0


def demo(folder: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    """Ten epochs however fast the machine is, so that every machine trains the same model."""
    environment = os.environ | {"PM_TRAIN__EPOCHS": "10", "PM_TRAIN__MAX_MINUTES": "10"}
    arguments = ["demo", "--dir", str(folder), "--assets", str(ASSETS), "--seed", str(SEED), "--port", str(port)]
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "pm.cli", *arguments], stdout=output, stderr=output, env=environment
        )


def end(running: subprocess.Popen[bytes]) -> int:
    running.send_signal(signal.SIGINT)
    return running.wait(60)


@pytest.mark.timeout(600)
def test_the_demo_warns_of_a_degrading_asset_and_goes_on_from_where_it_was(tmp_path: Path) -> None:
    folder, port, log = tmp_path / "demo", free_port(), tmp_path / "log"
    running = demo(folder, port, log)
    try:
        wait_until(lambda: b"Login" in log.read_bytes() or running.poll() is not None, "the dashboard", 400)
        assert running.poll() is None, log.read_text()
        configuration = config.load(folder / "pm.toml", {})
        with edges.open_records(configuration) as records:
            wait_until(lambda: bool(records.alerts()), "the first alert", 120)
            first = min(records.alerts(), key=lambda alert: alert.raised_at)
            truth = Made(ASSETS, SEED).simulate(260)
            assert first.asset in truth.degrading(first.raised_at), log.read_text()

            password = (folder / "login.txt").read_text().split()[1]
            with chromium() as browser, watched(browser, f"http://127.0.0.1:{port}", width=1440, height=900) as seen:
                page = seen.page
                page.goto("/login")
                page.fill("#name", USER)
                page.fill("#password", password)
                page.click("button.strong")
                page.goto(f"/alerts/{first.id}")
                page.get_by_role("button", name=re.compile("acknowledge", re.IGNORECASE)).first.click()
                page.locator(".flash.done", has_text="now acknowledged").wait_for()
                assert not seen.complaints
            decided = records.alert(first.id)
            assert decided.acknowledged_by == USER
            assert decided.state in {AlertState.ACKNOWLEDGED, AlertState.CLOSED}
        assert end(running) == 0, log.read_text()
    finally:
        running.kill()
    with edges.open_records(configuration) as records:
        stopped_at, champion = records.last_assessment(), records.champion()
    assert stopped_at is not None

    again = demo(folder, port, log)
    try:
        with edges.open_records(configuration) as records:
            wait_until(lambda: (records.last_assessment() or stopped_at) > stopped_at, "plant time to go on", 120)
            assert records.champion() == champion
        assert end(again) == 0, log.read_text()
    finally:
        again.kill()
    assert "Traceback" not in log.read_text(), log.read_text()
