"""The dashboard's pages and JSON over real records and a real store: what is shown, what is refused, what is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from dashboards import asset_charts, auth, fleet, wording
from dashboards.alerts import offered
from dashboards.app import create_app
from pm.alerts import transition
from pm.config import AlertsSection, DashboardSection, PlantSection
from pm.domain import (
    Abstention,
    Alert,
    AlertState,
    Asset,
    Cause,
    Explanation,
    Forecast,
    Point,
    Precedent,
    Reason,
    Silence,
    to_us,
)
from pm.errors import ModelError, TransitionError
from tests.dashboard_plant import NOW, PASSWORD, THRESHOLD, DashboardPlant, dashboard_plant, forecast


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardPlant]:
    with dashboard_plant(tmp_path_factory.mktemp("plant")) as made:
        yield made


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardPlant]:
    with dashboard_plant(tmp_path_factory.mktemp("empty"), filled=False) as made:
        yield made


def token(page: TestResponse) -> str:
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page.text)
    assert found, "the page carries no form token"
    return found[1]


def login(plant: DashboardPlant, name: str = "ann") -> FlaskClient:
    """A client that is logged in; hashing a password is slow on purpose, so it is done once for each user."""
    client = plant.app.test_client()
    sessions = plant.app.extensions.setdefault("test.sessions", {})
    if name not in sessions:
        form = {"name": name, "password": PASSWORD, "csrf_token": token(client.get("/login"))}
        assert client.post("/login", data=form).status_code == 302
        cookie = client.get_cookie("pm_session")
        assert cookie is not None
        sessions[name] = cookie.value
    client.set_cookie("pm_session", sessions[name])
    return client


def post(client: FlaskClient, plant: DashboardPlant, asset: str, what: str, **data: str) -> TestResponse:
    alert = plant.alert_of(asset)
    data["csrf_token"] = token(client.get(f"/alerts/{alert.id}"))
    return client.post(f"/alerts/{alert.id}/{what}", data=data, follow_redirects=True)


# ---- who may come in


@pytest.mark.parametrize("path", ["/", "/alerts", "/alerts/x", "/assets/pump-01"])
def test_strangers_are_sent_to_the_login_and_back(plant: DashboardPlant, path: str) -> None:
    answer = plant.app.test_client().get(path)
    assert answer.status_code == 302 and answer.headers["Location"].startswith("/login")
    came = plant.app.test_client()
    address = answer.headers["Location"]
    back = came.post(address, data={"name": "ann", "password": PASSWORD, "csrf_token": token(came.get(address))})
    assert back.headers["Location"] == path


@pytest.mark.parametrize("path", ["/api/fleet", "/api/alerts", "/api/assets/pump-01", "/api/figures/pump-01"])
def test_the_api_refuses_strangers_in_json(plant: DashboardPlant, path: str) -> None:
    answer = plant.app.test_client().get(path)
    assert answer.status_code == 401 and answer.get_json() == {"error": "log in first"}


def test_every_address_but_login_health_and_files_needs_a_login(plant: DashboardPlant) -> None:
    client = plant.app.test_client()
    for rule in plant.app.url_map.iter_rules():
        if rule.endpoint in ("auth.login", "healthz", "static", "plotly") or "GET" not in (rule.methods or ()):
            continue
        address = re.sub(r"<[^>]+>", "x", rule.rule)
        assert client.get(address).status_code in (302, 401), f"{address} answers a stranger"


def test_wrong_password_unknown_user_and_disabled_user_read_alike(plant: DashboardPlant) -> None:
    if "gone" not in {user.name for user in plant.records.users()}:
        plant.records.add_user("gone", PASSWORD, role="operator")
    inside = login(plant, "gone")
    plant.records.set_disabled("gone", True)
    assert inside.get("/").status_code == 302, "disabling a user ends the session"
    words = set()
    for name, password in (("ann", "wrong"), ("nobody", PASSWORD), ("gone", PASSWORD)):
        client = plant.app.test_client()
        answer = client.post(
            "/login", data={"name": name, "password": password, "csrf_token": token(client.get("/login"))}
        )
        assert answer.status_code == 401
        words.update(re.findall(r'flash problem" role="alert">([^<]+)', answer.text))
    assert words == {"Name or password is wrong."}


def test_guessing_is_slowed_for_one_name_from_one_place() -> None:
    now = [100.0]
    throttle = auth.Throttle(attempts=3, pause=30.0, clock=lambda: now[0], kept=2)
    key = ("ann", "10.0.0.1")
    for _ in range(3):
        assert throttle.wait(key) == 0
        throttle.failed(key)
    assert throttle.wait(key) == 30
    assert throttle.wait(("ann", "10.0.0.2")) == 0
    now[0] += 29
    assert throttle.wait(key) == pytest.approx(1)
    now[0] += 1
    assert throttle.wait(key) == 0
    throttle.failed(key)
    assert throttle.wait(key) == 30, "one more wrong password and the pause is back"
    throttle.passed(key)
    assert throttle.wait(key) == 0
    for name in ("a", "b", "c"):
        throttle.failed((name, ""))
    assert len(throttle._failures) == 2, "memory is bounded"


def test_the_sixth_wrong_password_is_not_looked_at(plant: DashboardPlant) -> None:
    client = plant.app.test_client()
    form = {"name": "mallory", "password": "x", "csrf_token": token(client.get("/login"))}
    assert [client.post("/login", data=form).status_code for _ in range(6)] == [401] * 5 + [429]


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\/evil",
        "javascript:alert(1)",
        "evil",
        "/a\nb",
        "",
        None,
    ],
)
def test_a_login_never_leads_off_the_host(target: str | None) -> None:
    assert auth.local_path(target) is None


@pytest.mark.parametrize("target", ["/", "/assets/pump-01?range=30d", "/assets/a%2Fb"])
def test_a_login_leads_back_to_where_it_was_asked_for(target: str) -> None:
    assert auth.local_path(target) == target


def test_login_ignores_a_foreign_next(plant: DashboardPlant) -> None:
    client = plant.app.test_client()
    address = "/login?next=https://evil.example/"
    answer = client.post(address, data={"name": "ann", "password": PASSWORD, "csrf_token": token(client.get(address))})
    assert answer.headers["Location"] == "/"


def test_logout_ends_the_session_and_takes_a_token(plant: DashboardPlant) -> None:
    client = login(plant)
    assert client.post("/logout").status_code == 400
    assert client.get("/").status_code == 200
    client.post("/logout", data={"csrf_token": token(client.get("/"))})
    assert client.get("/").status_code == 302


def test_session_cookie_is_kept_from_scripts_and_other_sites(plant: DashboardPlant) -> None:
    client = plant.app.test_client()
    answer = client.post(
        "/login", data={"name": "ann", "password": PASSWORD, "csrf_token": token(client.get("/login"))}
    )
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Secure" not in cookie
    lasts = re.search(r"Expires=([^;]+)", cookie)
    assert lasts and plant.app.config["PERMANENT_SESSION_LIFETIME"] == DashboardSection().session


def test_the_session_key_is_kept_in_the_records(plant: DashboardPlant) -> None:
    assert plant.app.config["SECRET_KEY"] == plant.records.secret("session")


@pytest.mark.parametrize("path", ["/login", "/healthz", "/nothing", "/static/pm.css"])
def test_every_answer_carries_the_headers(plant: DashboardPlant, path: str) -> None:
    headers = plant.app.test_client().get(path).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"


def test_pages_are_not_cached_and_files_are(plant: DashboardPlant) -> None:
    client = login(plant)
    assert client.get("/").headers["Cache-Control"] == "no-store"
    found = re.search(r'src="(/static/plotly[^"]+)"', client.get("/assets/pump-01").text)
    assert found
    packed = client.get(found[1], headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip" and "immutable" in packed.headers["Cache-Control"]
    plain = client.get(found[1])
    assert b"plotly.js" in plain.data[:200] and len(packed.data) < 0.5 * len(plain.data)


def test_no_page_holds_an_inline_script_or_style(plant: DashboardPlant) -> None:
    client = login(plant)
    alert = plant.alert_of("pump-01")
    for path in ("/login", "/", "/assets/pump-01", "/alerts", f"/alerts/{alert.id}", "/nothing"):
        text = client.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=\"", text), path
        assert "http://" not in re.sub(r'xmlns="[^"]+"', "", text) and "https://" not in text, (
            f"{path} names another host"
        )


def test_health_is_told_without_login(plant: DashboardPlant) -> None:
    answer = plant.app.test_client().get("/healthz")
    assert (answer.status_code, answer.get_json()) == (200, {"status": "ok"})


# ---- what the pages say


def assets_shown(text: str) -> list[str]:
    return re.findall(r'data-asset="([^"]+)"', text)


def test_fleet_by_risk_has_every_asset_once(plant: DashboardPlant) -> None:
    text = login(plant).get("/").text
    assert assets_shown(text) == [
        "pump-01", "motor-02", "gearbox-03", "pump-06", "conveyor-05", "compressor-04", "fan-07"
    ]  # fmt: skip
    assert "no forecast: stale" in text and "no forecast: not assessed yet" in text
    row = text[text.index('data-asset="compressor-04"') : text.index('data-asset="fan-07"')]
    assert "%" not in row, "an abstention shows no probability, least of all 0"


def test_fleet_is_sorted_and_filtered_by_its_address(plant: DashboardPlant) -> None:
    client = login(plant)
    assert assets_shown(client.get("/?sort=asset").text)[0] == "compressor-04"
    assert assets_shown(client.get("/?sort=life").text)[0] == "pump-01"
    assert assets_shown(client.get("/?sort=reading").text)[:2] == ["fan-07", "compressor-04"]
    assert assets_shown(client.get("/?state=no+forecast").text) == ["compressor-04", "fan-07"]
    assert assets_shown(client.get("/?state=alert&sort=asset").text) == ["motor-02", "pump-01"]
    assert assets_shown(client.get("/?q=PUMP").text) == ["pump-01", "pump-06"]
    assert "No asset fits" in client.get("/?q=zeppelin").text
    assert len(assets_shown(client.get("/?sort=%27%3B--&state=zzz&page=-4").text)) == 7, "nonsense means everything"


def test_a_large_fleet_is_paged() -> None:
    found = [
        fleet.row(Asset(f"a{i:04}", "m"), forecast(f"a{i:04}", NOW, 0.0005 * (i + 1)), None, {}) for i in range(950)
    ]
    ordered = fleet.chosen(found, sort="risk", state="", text="")
    assert [row.asset.name for row in ordered[:2]] == ["a0949", "a0948"]
    assert len(ordered) == 950


def test_asset_page_says_that_its_source_is_silent_and_why(plant: DashboardPlant) -> None:
    since = to_us(NOW - timedelta(hours=2))
    plant.records.note_source([Silence("pump-01", since, "its edge node's death was published")], [])
    try:
        page = login(plant).get("/assets/pump-01").text
        assert 'id="silence"' in page and "its edge node&#39;s death was published" in page
    finally:
        plant.records.note_source([Silence("pump-01", None, "")], [])
    assert 'id="silence"' not in login(plant).get("/assets/pump-01").text


def test_asset_page_says_all_of_one_asset(plant: DashboardPlant) -> None:
    text = login(plant).get("/assets/pump-01").text
    for words in (
        "centrifugal pump",
        "worn rolling bearing",
        "vibration mean 24 h",
        "+1.92",
        "−0.34",
        "E21",
        "unacknowledged",
    ):
        assert words in text
    assert "15:00 CET".replace(" ", "\N{NARROW NO-BREAK SPACE}") in text, "14:00 UTC is told in the plant's zone"


def test_asset_without_forecast_or_readings_says_so(plant: DashboardPlant) -> None:
    client = login(plant)
    assert "no forecast: stale" in client.get("/assets/compressor-04").text
    text = client.get("/assets/fan-07").text
    assert "no forecast: not assessed yet" in text and "Nothing was read in this time" in text
    assert client.get("/assets/fan-08").status_code == 404


def test_empty_service_says_what_to_do(empty: DashboardPlant) -> None:
    client = login(empty)
    assert "pm import" in client.get("/").text and "No plant time yet" in client.get("/").text
    assert "pm train" in client.get("/alerts").text
    assert client.get("/api/fleet").get_json()["assets"] == []


def test_alerts_stand_first_and_closed_ones_later(plant: DashboardPlant) -> None:
    text = login(plant).get("/alerts").text
    standing, closed = text.split("<caption>Closed", 1)
    assert plant.alert_of("pump-06").id in closed and "failed (bearing)" in closed
    assert plant.alert_of("pump-01").id in standing and plant.alert_of("motor-02").id in standing


def test_names_of_others_are_never_markup(tmp_path: Path) -> None:
    with dashboard_plant(tmp_path, filled=False) as plant:
        wicked = '<img src=x onerror="alert(1)">/../&?#%'
        plant.records.ensure_assets([wicked])
        plant.records.record(NOW, forecasts=[forecast(wicked, NOW, 0.4)], raised=[], changes=[], policy={})
        client = login(plant)
        page = client.get("/")
        assert "<img" not in page.text and "&lt;img" in page.text
        found = re.search(r'href="(/assets/[^"]+)"', page.text)
        assert found
        asset = client.get(found[1].replace("&amp;", "&"))
        assert asset.status_code == 200 and "<img" not in asset.text, "and its page can be reached"


# ---- what a person decides


def test_acknowledge_goes_into_the_records_with_name_and_plant_time(tmp_path: Path) -> None:
    with dashboard_plant(tmp_path) as plant:
        client = login(plant)
        text = post(client, plant, "pump-01", "acknowledge").text
        alert = plant.alert_of("pump-01")
        assert (alert.state, alert.acknowledged_by, alert.acknowledged_at) == (AlertState.ACKNOWLEDGED, "ann", NOW)
        assert "now acknowledged" in text
        again = post(client, plant, "pump-01", "acknowledge").text
        assert "cannot be acknowledged" in again

        post(client, plant, "pump-01", "shelve", hours="12")
        assert plant.alert_of("pump-01").shelved_until == NOW + timedelta(hours=12)
        post(client, plant, "pump-01", "unshelve")
        post(client, plant, "pump-01", "out-of-service")
        assert plant.alert_of("pump-01").state is AlertState.OUT_OF_SERVICE
        post(client, plant, "pump-01", "in-service")
        post(client, plant, "pump-01", "close", because="bearing replaced")
        alert = plant.alert_of("pump-01")
        assert (alert.state, alert.closed_because) == (AlertState.CLOSED, "bearing replaced")
        page = client.get(f"/alerts/{alert.id}").text
        assert page.count('<td data-label="By">ann</td>') == 6 and "bearing replaced" in page


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("shelve", {}), ("shelve", {"hours": "0"}), ("shelve", {"hours": "-3"}), ("shelve", {"hours": "nan"}),
        ("shelve", {"hours": "1e9"}), ("shelve", {"hours": "soon"}), ("close", {}), ("close", {"because": "  "}),
    ],
)  # fmt: skip
def test_a_decision_without_its_words_changes_nothing(plant: DashboardPlant, what: str, data: dict[str, str]) -> None:
    before = plant.alert_of("motor-02")
    assert "flash problem" in post(login(plant), plant, "motor-02", what, **data).text
    assert plant.alert_of("motor-02") == before


def test_a_viewer_may_look_and_not_decide(plant: DashboardPlant) -> None:
    client = login(plant, "vic")
    before = plant.alert_of("motor-02")
    assert "look, not decide" in client.get(f"/alerts/{before.id}").text
    assert "Acknowledge</button>" not in client.get("/alerts").text
    answer = post(client, plant, "motor-02", "close", because="no")
    assert answer.status_code == 403 and plant.alert_of("motor-02") == before


def test_a_post_without_token_changes_nothing(plant: DashboardPlant) -> None:
    client = login(plant)
    before = plant.alert_of("pump-01")
    assert client.post(f"/alerts/{before.id}/acknowledge").status_code == 400
    assert client.post(f"/api/alerts/{before.id}/acknowledge").status_code == 400
    assert plant.alert_of("pump-01") == before


def test_unknown_alert_or_step_is_not_found(plant: DashboardPlant) -> None:
    client = login(plant)
    csrf = token(client.get("/"))
    assert client.get("/alerts/none").status_code == 404
    assert client.post(f"/alerts/{plant.alert_of('pump-01').id}/explode", data={"csrf_token": csrf}).status_code == 404
    assert client.get("/api/alerts/none").get_json() == {"error": "There is nothing at this address."}


@pytest.mark.parametrize("state", list(AlertState))
def test_what_is_offered_is_what_the_state_allows(state: AlertState) -> None:
    alert = Alert("i", "a", "m", NOW, state, "c", 0.5, "v", cleared_at=NOW if "returned" in state else None)
    later = NOW + timedelta(hours=1)
    allowed = set()
    for what in ("acknowledge", "shelve", "unshelve", "out-of-service", "in-service", "close"):
        try:
            transition(alert, Cause(what.replace("-", " ")), NOW, by="ann", until=later, because="done")
            allowed.add(what)
        except TransitionError:
            continue
    assert set(offered(state)) == allowed
    assert bool(allowed) == (state is not AlertState.CLOSED)


# ---- the API


def test_api_tells_the_fleet_with_nulls_for_unknowns(plant: DashboardPlant) -> None:
    told = login(plant).get("/api/fleet").get_json()
    assert told["plant_time"] == told["last_assessment"] == "2026-03-20T14:00:00Z"
    assert told["threshold"] == THRESHOLD
    by_name = {asset["asset"]: asset for asset in told["assets"]}
    assert by_name["pump-01"]["p72"] > by_name["pump-01"]["p48"] > by_name["pump-01"]["p24"] > 0
    stale = by_name["compressor-04"]
    assert (stale["abstained"], stale["p24"], stale["p72"], stale["rul_hours"]) == ("stale", None, None, None)
    assert by_name["fan-07"]["abstained"] == "not assessed yet"


def test_api_tells_one_asset_and_its_alerts(plant: DashboardPlant) -> None:
    client = login(plant)
    told = client.get("/api/assets/pump-01").get_json()
    assert len(told["hazard"]) == 72 and told["static"] == {"age_years": 6, "site": "north"}
    assert sum(told["p72_by_mode"].values()) == pytest.approx(told["p72"])
    assert told["alerts"][0]["reasons"][0] == {"feature": "vibration mean 24 h", "contribution": 1.92}
    assert len(client.get("/api/alerts").get_json()["alerts"]) == 2
    assert len(client.get("/api/alerts?all=1").get_json()["alerts"]) == 3
    alert = told["alerts"][0]["alert"]
    assert client.get(f"/api/alerts/{alert}").get_json() == told["alerts"][0]


def test_api_acknowledges_with_the_token_in_a_header(tmp_path: Path) -> None:
    with dashboard_plant(tmp_path) as plant:
        client = login(plant)
        alert = plant.alert_of("pump-01").id
        headers = {"X-CSRFToken": token(client.get("/"))}
        assert client.post(f"/api/alerts/{alert}/acknowledge", headers=headers).get_json()["state"] == "acknowledged"
        assert client.post(f"/api/alerts/{alert}/acknowledge", headers=headers).status_code == 409
        viewer = login(plant, "vic")
        headers = {"X-CSRFToken": token(viewer.get("/"))}
        assert viewer.post(f"/api/alerts/{alert}/acknowledge", headers=headers).status_code == 403


def test_figures_are_those_of_the_page(plant: DashboardPlant) -> None:
    client = login(plant)
    made = client.get("/api/figures/pump-01?range=7d&point=flow&point=vibration").get_json()
    assert set(made) == {"ahead", "behind", "point:flow", "point:vibration"}
    assert made["ahead"]["data"][1]["y"][-1] == pytest.approx(0.72, abs=0.03)
    assert made["behind"]["data"][0]["x"][-1] == "2026-03-20 15:00:00"
    assert len(made["point:flow"]["data"][0]["x"]) == 168
    assert len(made["point:flow"]["layout"]["shapes"]) == 3, "two errors and a maintenance stand on every point"
    assert set(client.get("/api/figures/fan-07").get_json()) <= {"ahead", "behind"}
    assert "ahead" not in client.get("/api/figures/compressor-04").get_json()


def test_a_year_is_drawn_summed_up_with_its_spikes(plant: DashboardPlant) -> None:
    """8,760 hourly intervals in stretches of 12 hours: a band from the lowest to the highest around the mean."""
    client = login(plant)
    month = client.get("/api/figures/pump-01?range=90d&point=vibration").get_json()["point:vibration"]
    year = client.get("/api/figures/pump-01?range=1y&point=vibration").get_json()["point:vibration"]
    assert len(month["data"]) == 1 and len(month["data"][0]["x"]) == 24 * 8
    lowest, highest, mean = (trace["y"] for trace in year["data"])
    assert 16 <= len(mean) <= 17
    assert all(low <= middle <= high for low, middle, high in zip(lowest, mean, highest, strict=True))
    assert max(highest) == max(month["data"][0]["y"]) and min(lowest) == min(month["data"][0]["y"])
    assert year["data"][1]["fill"] == "tonexty" and "from" in year["data"][2]["text"][0]
    assert len(year["layout"]["shapes"]) == len(month["layout"]["shapes"])
    page = client.get("/assets/pump-01?range=1y").text
    assert "a year" in page and "vibration" in page


def test_records_away_is_said_and_not_thrown(tmp_path: Path) -> None:
    with dashboard_plant(tmp_path, filled=False) as plant:
        client = login(plant)
        plant.records.close()
        for file in tmp_path.glob("records.db*"):
            file.unlink()
        answer = client.get("/")
        assert answer.status_code in (500, 503) and "pm doctor" in answer.text
        assert str(tmp_path) not in answer.text, "paths are for the log"
        told = client.get("/api/fleet")
        assert told.status_code in (500, 503) and "pm doctor" in told.get_json()["error"]
        assert plant.app.test_client().get("/healthz").status_code == 503


# ---- wording and drawing


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "–"),
        (0.0, "<0.1 %"),
        (0.0004, "<0.1 %"),
        (0.034, "3.4 %"),
        (0.0996, "10 %"),
        (0.38, "38 %"),
        (1.0, ">99 %"),
    ],
)
def test_percent(share: float | None, text: str) -> None:
    assert wording.percent(share) == text.replace(" ", wording.THIN)


@pytest.mark.parametrize(
    ("hours", "text"),
    [(None, "–"), (0.2, "12 min"), (7.4, "7 h"), (47, "47 h"), (75, "3 d 3 h"), (300, "12 d")],
)
def test_duration(hours: float | None, text: str) -> None:
    assert wording.duration(hours) == text.replace(" ", wording.THIN)


def test_clock_names_its_zone() -> None:
    summer = datetime(2026, 7, 1, 12, tzinfo=UTC)
    assert "1\N{NO-BREAK SPACE}Jul\N{NO-BREAK SPACE}2026 14:00" in str(wording.clock(summer, ZoneInfo("Europe/Berlin")))
    assert "CEST" in str(wording.clock(summer, ZoneInfo("Europe/Berlin")))
    assert "UTC-03" in str(wording.clock(summer, ZoneInfo("America/Sao_Paulo")))
    assert 'datetime="2026-07-01T12:00:00+00:00"' in str(wording.clock(summer, ZoneInfo("Asia/Kolkata")))


def test_a_chart_over_a_clock_change_never_runs_backwards() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    end = datetime(2026, 10, 25, 6, tzinfo=UTC)
    zone, name = wording.chart_zone(berlin, end)
    times = [end - timedelta(hours=h) for h in range(12, -1, -1)]
    from pm.charts import plain

    told = plain(times, zone)
    assert name == "CET" and told == sorted(set(told)) and len(told) == 13


def test_sparkline_breaks_where_the_forecast_abstained() -> None:
    history = [
        forecast("a", NOW - timedelta(hours=3), 0.5),
        Forecast("a", NOW - timedelta(hours=2), "m", Abstention.STALE),
        forecast("a", NOW - timedelta(hours=1), 1.0 - 1e-12),
        forecast("a", NOW, 0.0),
    ]
    trend = fleet.runs(history, NOW)
    assert [len(run) for run in trend] == [1, 2]
    first, second = fleet.sparkline(trend, width=168, height=22)
    assert first.split()[0] == "165.0,11.0", "half-way up, three hours before the right edge"
    assert second == "167.0,1.0 168.0,21.0"


def test_thinning_keeps_spikes_and_ends() -> None:
    values = np.zeros(50_000)
    values[31_234], values[40_000] = 9.0, -9.0
    times, kept = asset_charts.thinned(np.arange(50_000), values, 1000)
    assert len(kept) <= 1002 and kept.max() == 9.0 and kept.min() == -9.0
    assert (np.diff(times) > 0).all()
    same, _ = asset_charts.thinned(np.arange(10), np.arange(10.0), 1000)
    assert len(same) == 10


def test_gaps_in_readings_are_gaps_in_the_line() -> None:
    hour = 3_600_000_000
    times = np.array([0, 1, 2, 30, 31]) * hour
    told, values = asset_charts.gapped(times, np.ones(5), hour)
    assert np.isnan(values[3]) and told[3] == 3 * hour and len(values) == 6


def test_limits_far_from_the_values_do_not_flatten_them() -> None:
    readings = pd.DataFrame({"time": pd.date_range(NOW, periods=3, freq="1h").as_unit("us"), "p": [10.0, 11.0, 12.0]})
    events = pd.DataFrame({"time": pd.to_datetime([], utc=True), "kind": [], "code": []})
    made = asset_charts.point_figures(
        [Point("p", "A", low=9.0, high=1000.0)], readings, events, interval=timedelta(hours=1), start=NOW,
        end=NOW + timedelta(hours=2), zone=UTC,
    )  # fmt: skip
    assert [shape["y0"] for shape in made["p"]["layout"]["shapes"]] == [9.0]


def test_reasons_of_now_are_worked_out_once_for_each_forecast(plant: DashboardPlant) -> None:
    asked = []

    def explain(asset: str, at: datetime) -> Explanation:
        asked.append((asset, at))
        return Explanation(
            [Reason("temperature slope 72 h", 0.9)], 0.25, 1.15, 0.02, NOW - timedelta(hours=30), True,
            [Precedent("gearbox-99", NOW - timedelta(days=200), "bearing wear", 24.0, 0.9312)],
        )  # fmt: skip

    app = create_app(
        records=plant.records, store=plant.store, plant=PlantSection(), dashboard=DashboardSection(),
        alerts=AlertsSection(), now=lambda: NOW, status=lambda: {"trouble": "the broker is away"}, explain=explain,
    )  # fmt: skip
    client = login(DashboardPlant(plant.records, plant.store, app))
    for _ in range(3):
        page = client.get("/assets/gearbox-03").text
        assert "temperature slope 72 h" in page
        assert "against the fleet&#39;s average of 2.0" in page or "against the fleet's average of 2.0" in page
        assert "or earlier" in page and "gearbox-99" in page and "bearing wear failure" in page
    told = client.get("/api/assets/gearbox-03").get_json()
    assert told["reasons"] == [{"feature": "temperature slope 72 h", "contribution": 0.9}]
    assert told["explanation"]["residual"] == pytest.approx(0.0)
    assert told["explanation"]["precedents"][0]["hours_left"] == 24.0
    assert asked == [("gearbox-03", NOW)]
    client.get("/assets/compressor-04")
    assert len(asked) == 1, "there is nothing to explain where there is no forecast"
    assert "the broker is away" in client.get("/").text


def test_reasons_that_cannot_be_had_do_not_take_the_page_with_them(plant: DashboardPlant) -> None:
    def explain(asset: str, at: datetime) -> Explanation:
        raise ModelError("the model is gone")

    app = create_app(
        records=plant.records, store=plant.store, plant=PlantSection(), dashboard=DashboardSection(),
        alerts=AlertsSection(), now=lambda: NOW, status=dict, explain=explain,
    )  # fmt: skip
    page = login(DashboardPlant(plant.records, plant.store, app)).get("/assets/pump-01")
    assert page.status_code == 200 and "when the last alert was raised" in page.text
