"""A small replay whose report can be worked out by hand, and its page in a browser without a network."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from pm.domain import to_us
from pm.outcomes import LATER, outcomes_of
from pm.report import forecast_quality, replay_report, write_replay
from pm.report_page import headline, misses
from pm.scorecard import Scorecard, score
from tests.servers.chromium import chromium

START = datetime(2026, 1, 1, tzinfo=UTC)
HOURS = 400
ASSETS = ("fan <2>", "pump-1", "pump-3")
KEYS = {
    "recording", "model", "asset_months", "failures", "recall", "precision", "false_alerts_per_asset_month",
    "lead_hours", "pr_auc", "brier", "calibration_error", "abstained_share", "alert_budget", "wall_seconds",
    "plant_hours_per_second",
}  # fmt: skip


def at(hour: float) -> int:
    return to_us(START + timedelta(hours=hour))


@pytest.fixture
def observed() -> dict[str, tuple[int, int]]:
    return dict.fromkeys(ASSETS, (at(0), at(HOURS)))


@pytest.fixture
def forecasts() -> pd.DataFrame:
    """pump-1 fails at 200 with the truth told; pump-3 fails at 300 unforeseen; the fan abstains for its first 100 h."""
    hours = np.arange(1, HOURS + 1)
    frames = []
    for asset, failure in (("fan <2>", None), ("pump-1", 200), ("pump-3", 300)):
        chance = {h: np.full(hours.size, 0.02) for h in (24, 48, 72)}
        if asset == "pump-1":
            assert failure is not None
            for horizon, p in chance.items():
                p[(hours < failure) & (hours >= failure - horizon)] = 0.9
        frame = pd.DataFrame(
            {
                "time": pd.to_datetime([START + timedelta(hours=int(h)) for h in hours], utc=True).as_unit("us"),
                "asset": asset,
                **{f"p{h}": p for h, p in chance.items()},
                "abstained": None,
            }
        )
        if asset == "fan <2>":
            frame.loc[frame.index[:100], ["p24", "p48", "p72"]] = np.nan
            frame.loc[frame.index[:100], "abstained"] = "stale"
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def scorecard(observed: dict[str, tuple[int, int]]) -> Scorecard:
    alerts = [
        ("pump-1", "bearing", at(130), at(201)),
        ("fan <2>", "belt", at(50), at(60)),
        ("pump-3", "seal", at(390), None),
    ]
    failures = [("pump-1", "bearing", at(200)), ("pump-3", "seal", at(300))]
    return score(alerts, failures, observed, minimum_lead=timedelta(hours=1), rng=np.random.default_rng(0))


@pytest.fixture
def written(
    forecasts: pd.DataFrame, scorecard: Scorecard, observed: dict[str, tuple[int, int]], tmp_path: Path
) -> tuple[dict[str, Any], Path]:
    report = write_replay(
        tmp_path / "out",
        recording_name="three </script> assets",
        model="test@123",
        forecasts=forecasts,
        observed=observed,
        scorecard=scorecard,
        alert_budget=0.2,
        minimum_lead=timedelta(hours=1),
        threshold=0.5,
        wall_seconds=2.0,
        rng=np.random.default_rng(0),
        zone=ZoneInfo("Europe/Berlin"),
    )
    return report, tmp_path / "out"


def test_report_has_the_keys_and_the_hand_worked_numbers(written: tuple[dict[str, Any], Path]) -> None:
    report, folder = written
    assert set(report) == KEYS
    assert report["failures"]["total"] == 2
    assert report["failures"]["warned"] == 1
    assert report["recall"]["value"] == 0.5
    assert report["recall"]["at_lead"] == {"1h": 0.5, "6h": 0.5, "24h": 0.5, "48h": 0.5, "72h": 0.0}
    assert report["lead_hours"]["median"] == 70.0
    assert report["precision"]["value"] == 0.5
    assert report["asset_months"] == pytest.approx(3 * HOURS / 24 / 30.44)
    assert report["false_alerts_per_asset_month"]["value"] == pytest.approx(1 / report["asset_months"])
    assert report["abstained_share"] == pytest.approx(100 / 1200)
    assert report["plant_hours_per_second"] == pytest.approx((HOURS - 1) / 2.0)
    # 24 h: 24 of pump-1's hours come first and are right; then 24 of pump-3's among all the rest that is known
    # (1,200 less 100 abstained, less the last 23 h of three assets, of which none is known, less those 24).
    known = 1200 - 100 - 3 * 24
    assert report["pr_auc"]["24h"] == pytest.approx(0.5 * 1.0 + 0.5 * 48 / known, abs=2e-3)
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == report


def test_brier_and_calibration_by_hand(
    forecasts: pd.DataFrame, scorecard: Scorecard, observed: dict[str, tuple[int, int]]
) -> None:
    quality = forecast_quality(forecasts, scorecard=scorecard, observed=observed, rng=np.random.default_rng(0))["24h"]
    known = 1200 - 100 - 3 * 24
    assert (quality.known, quality.positives) == (known, 48)
    low = known - 24
    expected = (24 * 0.1**2 + 24 * 0.98**2 + (low - 24) * 0.02**2) / known
    assert quality.brier.value == pytest.approx(expected)
    assert quality.reliability.error.value == pytest.approx((24 * 0.1 + abs(low * 0.02 - 24)) / known)


def test_failures_more_than_a_day_ahead_are_scored_alone(
    forecasts: pd.DataFrame, scorecard: Scorecard, observed: dict[str, tuple[int, int]]
) -> None:
    quality = forecast_quality(forecasts, scorecard=scorecard, observed=observed, rng=np.random.default_rng(0))[LATER]
    assert quality.positives == 96  # 48 hours before each of two failures: 25 to 72 h ahead
    #  pump-1 from 72 to 49 h ahead: 0.9 within 72 h and 0.02 within 24 h; nearer, too
    assert quality.precision[0] == 1.0
    assert quality.recall[0] == pytest.approx(0.5)


def test_a_missed_failure_says_why(
    forecasts: pd.DataFrame, scorecard: Scorecard, observed: dict[str, tuple[int, int]]
) -> None:
    def told(frame: pd.DataFrame, threshold: float | None) -> str:
        (miss,) = misses(frame, scorecard, minimum_lead=timedelta(hours=1), threshold=threshold, zone=UTC)
        assert (miss.asset, miss.mode, miss.time) == ("pump-3", "seal", "2026-01-13 12:00")
        return miss.why

    assert told(forecasts, 0.5) == "stayed under the alert threshold of 50.0 %"
    assert told(forecasts, 0.01).startswith("over the alert threshold of 1.0 %")
    silent = forecasts.copy()
    silent.loc[silent["asset"] == "pump-3", ["p24", "p48", "p72"]] = np.nan
    silent.loc[silent["asset"] == "pump-3", "abstained"] = "off"
    assert told(silent, 0.5) == "no forecast: off"
    assert told(forecasts[forecasts["asset"] != "pump-3"], 0.5) == "no forecast was due in the 72 h before"
    half = silent.copy()
    half.loc[half["asset"].eq("pump-3") & half["time"].ge(START + timedelta(hours=290)), "p72"] = 0.1
    assert told(half, 0.5).startswith("stayed under the alert threshold of 50.0 %; 62 of 72 forecasts abstained (off)")


def test_headline_of_every_kind() -> None:
    report: dict[str, Any] = {
        "failures": {"total": 0, "warned": 0},
        "false_alerts_per_asset_month": {"value": 0.1},
        "lead_hours": {"median": None},
        "alert_budget": 0.2,
    }
    price = "0.10 false alerts per asset-month (budget 0.20)"
    assert headline(report) == f"No asset failed; {price}"
    assert headline(report | {"failures": {"total": 1, "warned": 0}}) == f"Warned of none of 1 failure; {price}"
    warned = report | {"failures": {"total": 5, "warned": 4}, "lead_hours": {"median": 46.2}}
    assert headline(warned) == f"Warned of 4 of 5 failures, typically 46 h ahead; {price}"


def test_a_replay_without_failures_or_alerts_has_a_report_too(
    forecasts: pd.DataFrame, observed: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    empty = score([], [], observed, minimum_lead=timedelta(hours=1), rng=np.random.default_rng(0))
    calm = forecasts[forecasts["asset"] != "pump-1"]
    report = write_replay(
        tmp_path, recording_name="calm", model="m", forecasts=calm, observed=observed, scorecard=empty,
        alert_budget=0.2, minimum_lead=timedelta(hours=1), threshold=None, wall_seconds=1.0,
        rng=np.random.default_rng(0),
    )  # fmt: skip
    assert report["recall"]["value"] is None
    assert report["pr_auc"] == {"24h": None, "48h": None, "72h": None}
    assert report["brier"]["24h"] == pytest.approx(0.02**2)
    assert "No asset failed" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_replay_without_any_forecast_has_a_report_too(
    forecasts: pd.DataFrame, observed: dict[str, tuple[int, int]], scorecard: Scorecard
) -> None:
    none = forecasts.iloc[:0]
    quality = forecast_quality(none, scorecard=scorecard, observed=observed, rng=np.random.default_rng(0))
    report = replay_report(
        recording_name="empty", model="m", forecasts=none, scorecard=scorecard, quality=quality, alert_budget=0.2,
        wall_seconds=1.0,
    )  # fmt: skip
    assert report["abstained_share"] is None
    assert report["brier"] == {"24h": None, "48h": None, "72h": None}
    assert report["plant_hours_per_second"] == 0.0


def test_a_forecast_of_an_asset_nobody_observed_is_refused(forecasts: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="'pump-3', which was not observed"):
        outcomes_of(forecasts, [], {"fan <2>": (0, 1), "pump-1": (0, 1)})


def test_the_page_says_what_happened_in_words(written: tuple[dict[str, Any], Path]) -> None:
    text = (written[1] / "report.html").read_text(encoding="utf-8")
    head = text[: text.index("<script")]
    assert "Warned of 1 of 2 failures, typically 70 h ahead" in head
    assert "stayed under the alert threshold of 50.0 %" in head
    assert "three &lt;/script&gt; assets" in head
    assert "2026-01-13 13:00" in head  # the missed failure, in the plant's time zone
    assert "undecided because the record ends too soon after" in head
    assert "http://" not in head
    assert "https://" not in head


def test_the_page_opens_without_a_network_and_draws_its_charts(written: tuple[dict[str, Any], Path]) -> None:
    wrong: list[str] = []
    with chromium() as browser:
        for width in (390, 1440):
            context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
            page = context.new_page()
            page.on("console", lambda message: wrong.append(message.text))
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
            page.goto((written[1] / "report.html").as_uri())
            page.wait_for_selector("[data-figure=reliability] svg.main-svg")
            drawn = page.locator("[data-figure]").evaluate_all(
                "all => all.map(one => one.querySelectorAll('svg').length)"
            )
            assert len(drawn) == 3
            assert min(drawn) > 0
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert "fan <2>" in page.locator("[data-figure=timeline]").inner_text()
            context.close()
    assert wrong == []
