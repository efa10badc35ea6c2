"""The dashboard in a real browser: logged in, looked at, decided upon; nothing leaves the host, nothing complains."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from pm.domain import AlertState, Cause
from tests.dashboard_plant import NOW, PASSWORD, DashboardPlant, dashboard_plant
from tests.servers.chromium import Watched, chromium, served, watched


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardPlant]:
    with dashboard_plant(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture(scope="module")
def address(plant: DashboardPlant) -> Iterator[str]:
    with served(plant.app) as url:
        yield url


def log_in(seen: Watched) -> None:
    seen.page.goto("/")
    seen.page.get_by_label("Name").fill("ann")
    seen.page.get_by_label("Password").fill(PASSWORD)
    seen.page.get_by_role("button", name="Log in").click()
    seen.page.wait_for_url("**/")


def fits(seen: Watched) -> bool:
    return bool(seen.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@pytest.mark.parametrize(("width", "height", "dark"), [(1440, 900, False), (390, 844, True)])
def test_from_login_to_the_charts(
    plant: DashboardPlant, browser: Browser, address: str, width: int, height: int, dark: bool
) -> None:
    with watched(browser, address, width=width, height=height, dark=dark) as seen:
        page = seen.page
        log_in(seen)
        names = page.locator("tr[data-asset]").evaluate_all("rows => rows.map(row => row.dataset.asset)")
        assert names[:3] == ["pump-01", "motor-02", "gearbox-03"] and len(names) == 7
        assert fits(seen), "no page scrolls sideways"
        page.get_by_role("link", name="pump-01").first.click()
        page.wait_for_url("**/assets/pump-01")
        expect(page.locator("[data-figure] svg.main-svg").first).to_be_visible()
        places = page.locator("[data-figure]")
        assert places.count() == 6
        for place in places.all():
            expect(place.locator("svg.main-svg").first).to_be_visible()
        assert page.locator('[data-figure="ahead"] .bars .point').count() == 72
        assert page.locator('[data-figure="behind"] .js-line').count() >= 2
        assert fits(seen)
        page.get_by_role("link", name="30 days").click()
        expect(page.locator('[aria-current="true"]')).to_have_text("30 days")
        expect(page.locator('[data-figure="behind"] svg.main-svg').first).to_be_visible()
        page.get_by_role("link", name="Alerts").first.click()
        expect(page.locator("tr[data-alert]").first).to_be_visible()
        assert fits(seen)
        assert seen.complaints == []


def test_an_alert_is_acknowledged_and_other_pages_learn_of_it(
    tmp_path_factory: pytest.TempPathFactory, browser: Browser
) -> None:
    with (
        dashboard_plant(tmp_path_factory.mktemp("decide")) as plant,
        served(plant.app) as url,
        watched(browser, url, width=1440, height=900) as seen,
        watched(browser, url, width=1440, height=900) as other,
    ):
        log_in(other)
        expect(other.page.locator("#waiting .badge")).to_contain_text("1")
        log_in(seen)
        seen.page.goto("/alerts")
        seen.page.get_by_role("button", name="Acknowledge").click()
        expect(seen.page.locator(".flash.done")).to_contain_text("now acknowledged")
        alert = plant.alert_of("pump-01")
        assert (alert.state, alert.acknowledged_by, alert.acknowledged_at) == (AlertState.ACKNOWLEDGED, "ann", NOW)
        # The page that nobody touched says so by itself.
        expect(other.page.locator('tr[data-asset="pump-01"] .chip')).to_have_text("acknowledged", timeout=12_000)
        expect(other.page.locator("#waiting .badge")).to_have_count(0)
        assert seen.complaints == [] and other.complaints == []


def test_refreshing_keeps_what_a_person_is_typing(plant: DashboardPlant, browser: Browser, address: str) -> None:
    with watched(browser, address, width=1440, height=900) as seen:
        log_in(seen)
        alert = plant.alert_of("motor-02")
        seen.page.goto(f"/alerts/{alert.id}")
        why = seen.page.get_by_placeholder("bearing replaced")
        why.fill("half a sen")
        plant.records.change_alert(alert.id, Cause.OUT_OF_SERVICE, at=NOW, by="bob")
        seen.page.evaluate("refresh()")
        expect(seen.page.locator("#alert-head .chip")).to_have_text("out of service")
        expect(why).to_have_value("half a sen")
        plant.records.change_alert(alert.id, Cause.IN_SERVICE, at=NOW, by="bob")
        assert seen.complaints == []


def test_pages_work_without_javascript(plant: DashboardPlant, browser: Browser, address: str) -> None:
    context = browser.new_context(java_script_enabled=False, base_url=address)
    try:
        page = context.new_page()
        page.goto("/")
        page.fill("#name", "ann")
        page.fill("#password", PASSWORD)
        page.click("button.strong")
        assert page.locator("tr[data-asset]").count() == 7
        page.select_option("select[name=state]", "no forecast")
        page.get_by_role("button", name="Show").click()
        assert page.locator("tr[data-asset]").count() == 2
        page.goto(f"/alerts/{plant.alert_of('motor-02').id}")
        page.select_option("select[name=hours]", "4")
        page.get_by_role("button", name="Shelve").click()
        assert plant.alert_of("motor-02").state is AlertState.SHELVED
        page.get_by_role("button", name="Take off the shelf").click()
        assert plant.alert_of("motor-02").state is AlertState.ACKNOWLEDGED
    finally:
        context.close()


def test_a_lost_service_is_said_on_the_page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        dashboard_plant(tmp_path_factory.mktemp("lost")) as plant,
        watched(browser, "http://127.0.0.1", width=1440, height=900),
        served(plant.app) as url,
    ):
        context = browser.new_context(base_url=url)
        page = context.new_page()
        page.goto("/")
        page.fill("#name", "ann")
        page.fill("#password", PASSWORD)
        page.click("button.strong")
        context.set_offline(True)
        page.evaluate("refresh()")
        expect(page.locator("#lost")).to_contain_text("cannot be reached")
        context.set_offline(False)
        page.evaluate("refresh()")
        expect(page.locator("#lost")).to_be_hidden()
        context.close()
