"""Dead letters on the dashboard: shown without doing harm, read again or dropped by those who may, written down."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from playwright.sync_api import Browser, expect

from dashboards.letters import AT_ONCE
from dashboards.sources import Sources
from dashboards.wording import payload_text, size
from pm.domain import EARLIEST, LATEST
from pm.errors import StoreUnavailable
from pm.ports import Reject
from pm.record_letters import LetterStep, Wanted
from pm.record_tables import letter_journal
from pm.records import Records
from tests.dashboard_plant import LETTERS, NOW, PASSWORD, DashboardPlant, dashboard_plant
from tests.record_databases import another, records, server
from tests.servers.chromium import chromium, served, watched
from tests.test_dashboard import login, token

__all__ = ["another", "records", "server"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DashboardPlant]:
    with dashboard_plant(tmp_path_factory.mktemp("letters")) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def plant(filled: DashboardPlant) -> DashboardPlant:
    """With LETTERS and an empty journal."""
    filled.records.delete_dead_letters([letter.number for letter in filled.records.dead_letters(10_000)])
    filled.records.add_dead_letters(LETTERS)
    with filled.records._database.write() as connection:
        connection.execute(sa.delete(letter_journal))
    return filled


def numbers(plant: DashboardPlant) -> list[int]:
    """Of the letters, in the order of LETTERS."""
    return sorted(letter.number for letter in plant.records.dead_letters())


def step(client: FlaskClient, what: str, **form: object) -> str:
    form["csrf_token"] = token(client.get("/letters"))
    return client.post(f"/letters/{what}", data=form, follow_redirects=True).text


def test_the_page_counts_by_reason_filters_and_does_no_harm(plant: DashboardPlant) -> None:
    client = login(plant)
    page = client.get("/letters").text
    assert len(re.findall(r"data-letter=", page)) == 5
    assert re.search(r"flow: &#39;n/a&#39; is not a number</a> <b>2</b>", page)
    assert 'class="badge quiet">5<' in client.get("/").text
    assert "<script>alert" not in page and "<img" not in page and "\u202e" not in page and "\0" not in page
    assert "\\u202etxt" in page and "&lt;img src=x" in page
    assert len(page) < 60_000, "a payload is shortened"
    for query, found in (
        ("q=SPBV1", 1),
        ("reason=no+rule+for+this+yesterday", 1),
        ("feed=Sparkplug+B", 1),
        ("q=%25", 0),
    ):
        assert len(re.findall(r"data-letter=", client.get(f"/letters?{query}").text)) == found, query


def test_many_are_paged_the_newest_first(plant: DashboardPlant) -> None:
    plant.records.add_dead_letters([Reject("t", b"%d" % n, "many", n) for n in range(120)])
    client = login(plant)
    first, last = (client.get(f"/letters?reason=many&page={n}").text for n in (1, 3))
    assert len(re.findall(r"data-letter=", first)) == 50 and ">119<" in first
    assert len(re.findall(r"data-letter=", last)) == 20 and ">0<" in last
    assert "Page 3 of 3" in last and client.get("/letters?page=99999&reason=many").text.count("data-letter=") == 20


def test_a_step_is_confirmed_then_done_and_written_down(plant: DashboardPlant) -> None:
    client = login(plant)
    third = numbers(plant)[2]
    asked = step(client, "drop/confirm", number=[third])
    assert "Drop this dead letter?" in asked and plant.records.dead_letter_count() == 5, "nothing is done yet"
    done = step(client, "drop", number=re.findall(r'name="number" value="(\d+)"', asked))
    assert "1 dead letter dropped." in done and "1 of 1 dropped" in done
    assert plant.records.letter_steps() == [LetterStep(NOW, "ann", "dropped", 1, 1, LETTERS[2].reason)]
    assert third not in numbers(plant)
    assert "gone already" in step(client, "drop", number=[third])


def test_reading_again_stores_what_can_be_read_and_keeps_the_rest(plant: DashboardPlant) -> None:
    client = login(plant)
    asked = step(client, "retry/confirm", all="1")
    assert "Read again 5 dead letters?" in asked
    done = step(client, "retry", number=re.findall(r'name="number" value="(\d+)"', asked))
    assert "1 dead letter stored; 4 dead letters still cannot be read" in done
    stored = plant.store.readings(EARLIEST, LATEST, ["fan-07"])
    assert stored["flow"].tolist() == [12.5]
    assert {letter.reject.feed for letter in plant.records.dead_letters()} == {"broker.example:1883", "Sparkplug B"}
    (noted,) = plant.records.letter_steps()
    assert (noted.by, noted.what, noted.letters, noted.gone) == ("ann", "read again", 5, 1)


def test_all_that_fit_are_those_of_the_filter(plant: DashboardPlant) -> None:
    client = login(plant)
    asked = step(client, "drop/confirm", all="1", reason=LETTERS[0].reason)
    assert "Drop 2 dead letters?" in asked
    assert re.findall(r'name="number" value="(\d+)"', asked) == [str(n) for n in numbers(plant)[1::-1]]
    plant.records.add_dead_letters([Reject("t", b"", "many", 0)] * (AT_ONCE + 7))
    assert "7 more that fit are left" in step(client, "drop/confirm", all="1", reason="many")


def test_who_may_not_decide_looks_only(plant: DashboardPlant) -> None:
    client = login(plant, "vic")
    page = client.get("/letters").text
    assert "data-letter" in page and "formaction" not in page and 'type="checkbox"' not in page
    for what in ("drop", "drop/confirm", "retry", "retry/confirm"):
        form = {"csrf_token": token(client.get("/letters")), "number": numbers(plant)}
        assert client.post(f"/letters/{what}", data=form).status_code == 403, what
    ann = login(plant)
    assert ann.post("/letters/drop", data={"number": numbers(plant)}).status_code == 400, "no form token"
    assert plant.app.test_client().post("/letters/drop", data={"number": "1"}).status_code in (302, 400)
    assert plant.records.dead_letter_count() == 5 and plant.records.letter_steps() == []


def test_what_is_nonsense_does_nothing(plant: DashboardPlant) -> None:
    client = login(plant)
    for number in ("", "x", "-1", "9" * 30, "0"):
        assert "gone already" in step(client, "drop", number=number)
        assert "Choose dead letters first" in step(client, "retry/confirm", number=number)
    form = {"csrf_token": token(client.get("/letters")), "number": "1"}
    assert client.post("/letters/burn", data=form).status_code == 404
    form["back"] = "https://elsewhere.example/"
    assert client.post("/letters/drop", data=form).headers["Location"] == "/letters"
    assert plant.records.dead_letter_count() == 4


def test_a_store_that_is_away_loses_none(plant: DashboardPlant, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(numbers: Sequence[int]) -> tuple[int, int]:
        raise StoreUnavailable("the store at secret.example is away")

    held: Sources = plant.app.extensions["pm"]
    monkeypatch.setitem(
        plant.app.extensions,
        "pm",
        Sources(held.records, held.store, held.plant, held.alerts, held.now, held.status, retry=away),
    )
    said = step(login(plant), "retry", number=numbers(plant))
    assert "The dead letters are kept" in said and "secret.example" not in said
    assert plant.records.dead_letter_count() == 5 and plant.records.letter_steps() == []


def test_an_assets_page_tells_what_late_readings_would_have_changed(plant: DashboardPlant) -> None:
    page = login(plant).get("/assets/motor-02").text
    section = page[page.index('id="revised"') :].split("</section>")[0]
    assert len(re.findall("<tr><td>", section.replace("\n", ""))) == 2
    assert "<b>41\N{NARROW NO-BREAK SPACE}%</b>" in section and "07:05" in section
    assert "What late readings" not in login(plant).get("/assets/pump-01").text


def test_what_a_stranger_sent_is_shown_in_one_line() -> None:
    assert payload_text(b'{"a": 1}', 20) == '{"a": 1}'
    assert payload_text("grün °C".encode(), 20) == "grün °C"
    assert payload_text(b"a\nb\x1b[31m\xff\xe2\x80\xae", 40) == "a\\nb\\x1b[31m\\xff\\u202e"
    assert payload_text(b"x" * 10_000, 5) == "xxxxx…"
    assert payload_text(b"\0" * 5, 5) == "\\x00\\…"
    assert payload_text(b"", 5) == ""
    assert [size(n).replace("\N{NARROW NO-BREAK SPACE}", " ") for n in (0, 1023, 2048, 2**20)] == [
        "0 B", "1023 B", "2 KiB", "1 MiB",
    ]  # fmt: skip


def test_the_records_find_and_count_dead_letters(records: Records) -> None:
    records.add_dead_letters([*LETTERS, Reject("100%_sure", b"\0", "nul \0 in it", 1)])
    assert records.dead_letter_reasons(2) == [(LETTERS[0].reason, 2), (LETTERS[4].reason, 1)]
    assert records.dead_letter_feeds() == ["Sparkplug B", "broker.example:1883"]
    for wanted, count in (
        (Wanted(), 6),
        (Wanted(text="PUMP"), 2),
        (Wanted(text="%_s"), 1),
        (Wanted(feed="Sparkplug B"), 1),
        (Wanted(reason=LETTERS[0].reason, text="01/"), 2),
        (Wanted(reason="not"), 0),
    ):
        assert records.dead_letter_count(wanted) == count, wanted
        assert len(records.dead_letters(10, wanted)) == count == len(records.dead_letter_numbers(wanted, 10))
    first = records.dead_letter_numbers(Wanted(), 1)
    assert [letter.reject for letter in records.dead_letters_of(first)] == [LETTERS[0]]
    assert len(records.dead_letters_of([*first, 10**9])) == 1
    assert [letter.reject for letter in records.dead_letters(1, offset=5)] == [LETTERS[0]]


@pytest.mark.parametrize(("width", "height", "dark"), [(1440, 900, False), (390, 844, True)])
def test_in_a_browser_a_letter_is_read_again(
    plant: DashboardPlant, browser: Browser, width: int, height: int, dark: bool
) -> None:
    with (
        served(plant.app) as address,
        watched(browser, address, width=width, height=height, dark=dark) as seen,
    ):
        page = seen.page
        page.goto("/letters")
        page.fill("#name", "ann")
        page.fill("#password", PASSWORD)
        page.click("button.strong")
        expect(page.locator("tr[data-letter]")).to_have_count(5)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "no page scrolls sideways"
        page.locator(f'tr[data-letter="{numbers(plant)[3]}"] input').check()
        page.get_by_role("button", name="Read again…", exact=True).click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Read again this dead letter?")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.get_by_role("button", name="Read again").click()
        expect(page.locator(".flash.done")).to_have_text("1 dead letter stored.")
        expect(page.locator("#letter-count")).to_contain_text("4")
        expect(page.locator("#letter-steps")).to_contain_text("ann")
        assert seen.complaints == []
