from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import given, settings
from hypothesis import strategies as st

from pm.errors import ModelError, StoreUnavailable
from pm.schedule import Job, PlantSchedule, cron, due, latest_due

HOUR = timedelta(hours=1)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class SetClock:
    def __init__(self, time: datetime | None = None) -> None:
        self.time = time

    def now(self) -> datetime | None:
        return self.time


class KeptTicks:
    def __init__(self) -> None:
        self.kept: dict[str, datetime] = {}

    def last_tick(self, job: str) -> datetime | None:
        return self.kept.get(job)

    def set_tick(self, job: str, at: datetime) -> None:
        self.kept[job] = at


def test_due_is_open_at_the_last_tick_and_closed_at_now() -> None:
    hourly = cron("0 * * * *")
    assert due(hourly, at("2026-01-01T10:00"), at("2026-01-01T12:00")) == [
        at("2026-01-01T11:00"),
        at("2026-01-01T12:00"),
    ]
    assert due(hourly, at("2026-01-01T10:00"), at("2026-01-01T10:59")) == []
    assert due(hourly, at("2026-01-01T10:00"), at("2026-01-01T10:00")) == []
    assert due(hourly, at("2026-01-01T12:00"), at("2026-01-01T10:00")) == []


def test_due_of_an_interval_trigger() -> None:
    trigger = IntervalTrigger(minutes=10, start_date=at("2026-01-01T00:00"), timezone=UTC)
    assert due(trigger, at("2026-01-01T00:10"), at("2026-01-01T00:30")) == [
        at("2026-01-01T00:20"),
        at("2026-01-01T00:30"),
    ]


@pytest.mark.parametrize(
    ("line", "last", "now", "ticks"),
    [
        # Summer time ends in Berlin on 25 October 2026 at 03:00 CEST = 01:00Z: the hour 02:00-03:00 comes twice.
        ("0 * * * *", "2026-10-24T23:00", "2026-10-25T03:00", ["25T00", "25T01", "25T02", "25T03"]),
        ("0 2 * * *", "2026-10-24T12:00", "2026-10-26T12:00", ["25T00", "26T01"]),
        ("0 3 * * *", "2026-10-24T12:00", "2026-10-26T12:00", ["25T02", "26T02"]),
        # Summer time begins on 29 March 2026 at 02:00 CET = 01:00Z: the hour 02:00-03:00 does not exist.
        ("0 * * * *", "2026-03-28T23:00", "2026-03-29T03:00", ["29T00", "29T01", "29T02", "29T03"]),
        ("0 2 * * *", "2026-03-28T12:00", "2026-03-30T12:00", ["29T01", "30T00"]),
        ("0 3 * * *", "2026-03-28T12:00", "2026-03-30T12:00", ["29T01", "30T01"]),
    ],
)
def test_ticks_at_the_changes_of_summer_time(line: str, last: str, now: str, ticks: list[str]) -> None:
    found = due(cron(line, "Europe/Berlin"), at(last), at(now))
    assert [f"{tick:%dT%H}" for tick in found] == ticks
    assert all(tick.tzinfo is UTC for tick in found)


def test_a_look_in_the_middle_of_the_doubled_hour_loses_no_tick() -> None:
    half_hourly = cron("*/30 * * * *", "Europe/Berlin")
    last, found = at("2026-10-24T23:30"), []
    for minutes in range(0, 241, 7):
        now = at("2026-10-24T23:30") + timedelta(minutes=minutes)
        found += due(half_hourly, last, now)
        last = found[-1] if found else last
    assert found == due(half_hourly, at("2026-10-24T23:30"), now)
    assert [b - a for a, b in pairwise(found)] == [timedelta(minutes=30)] * (len(found) - 1)


@settings(max_examples=30, deadline=None)
@given(
    line=st.sampled_from(["0 * * * *", "*/10 * * * *", "30 2 * * *", "0 3 * * sun", "15 4 1 * *"]),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"]),
    start=st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)),
    minutes=st.lists(st.integers(0, 40 * 24 * 60), min_size=1, max_size=4),
)
def test_looking_often_finds_what_looking_once_finds(line: str, zone: str, start: datetime, minutes: list[int]) -> None:
    trigger, begin = cron(line, zone), start.replace(tzinfo=UTC)
    once = due(trigger, begin, begin + timedelta(minutes=sum(minutes)))
    often, last = [], begin
    for step in minutes:
        often += due(trigger, last, last + timedelta(minutes=step))
        last += timedelta(minutes=step)
    assert often == once == sorted(set(once))
    assert latest_due(trigger, begin, last) == (once[-1] if once else None)


@pytest.mark.parametrize(
    ("line", "days"),
    [
        ("0 3 * * 0", ["Sun"]),
        ("0 3 * * 7", ["Sun"]),
        ("0 3 * * 1-5", ["Mon", "Tue", "Wed", "Thu", "Fri"]),
        ("0 3 * * 5-7", ["Fri", "Sat", "Sun"]),
        ("0 3 * * 0,3", ["Wed", "Sun"]),
        ("0 3 * * mon", ["Mon"]),
        ("0 3 * * 1-5/2", ["Mon", "Wed", "Fri"]),
    ],
)
def test_weekday_numbers_are_those_of_cron(line: str, days: list[str]) -> None:
    monday = at("2026-01-05T00:00")
    assert [f"{tick:%a}" for tick in due(cron(line), monday, monday + timedelta(days=7))] == days


@pytest.mark.parametrize("line", ["0 3 * * 8", "0 3 * * 5-2", "0 3 * *", "61 * * * *"])
def test_a_bad_cron_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        cron(line)


def test_a_long_absence_is_found_quickly() -> None:
    begun = time.perf_counter()
    assert latest_due(cron("* * * * *"), at("2016-01-01T00:00"), at("2026-01-01T00:00")) == at("2026-01-01T00:00")
    assert time.perf_counter() - begun < 1.0


def schedule_of(
    run: Callable[[datetime], object], clock: SetClock, ticks: KeptTicks, catch_up: str = "all"
) -> PlantSchedule:
    job = Job("assess", cron("0 * * * *"), run, "all" if catch_up == "all" else "latest")
    return PlantSchedule(clock=clock, ticks=ticks, jobs=[job])


def test_a_silent_clock_runs_nothing_and_a_first_look_only_begins() -> None:
    clock, ticks, ran = SetClock(), KeptTicks(), list[datetime]()
    schedule = schedule_of(ran.append, clock, ticks)
    assert schedule.advance() == 0
    assert ticks.kept == {}
    clock.time = at("2026-01-01T10:00")
    assert schedule.advance() == 0
    assert ticks.kept == {"assess": at("2026-01-01T10:00")}
    clock.time = at("2026-01-01T11:00")
    assert schedule.advance() == 1
    assert ran == [at("2026-01-01T11:00")]


def test_begin_sets_where_jobs_count_from_and_moves_none_that_ran() -> None:
    clock, ticks, ran = SetClock(at("2026-01-01T12:00")), KeptTicks(), list[datetime]()
    schedule = schedule_of(ran.append, clock, ticks)
    schedule.begin(at("2026-01-01T09:00"))
    schedule.advance()
    schedule.begin(at("2026-01-01T00:00"))
    schedule.advance()
    assert ran == [at("2026-01-01T10:00"), at("2026-01-01T11:00"), at("2026-01-01T12:00")]


def test_every_missed_tick_of_a_feed_and_only_the_latest_of_a_wall_clock() -> None:
    for catch_up, hours in (("all", [1, 2, 3, 4, 5]), ("latest", [5])):
        clock, ticks, ran = SetClock(at("2026-01-01T00:00")), KeptTicks(), list[datetime]()
        schedule_of(ran.append, clock, ticks, catch_up).advance()
        clock.time = at("2026-01-01T05:20")
        # Another schedule on the same ticks: the service was away and has come back.
        schedule_of(ran.append, clock, ticks, catch_up).advance()
        assert [tick.hour for tick in ran] == hours
        assert ticks.kept == {"assess": at("2026-01-01T05:00")}


def test_a_retryable_error_brings_the_same_tick_again_and_holds_back_the_next(caplog: pytest.LogCaptureFixture) -> None:
    clock, ticks, ran = SetClock(at("2026-01-01T00:00")), KeptTicks(), list[datetime]()
    away = True

    def run(tick: datetime) -> None:
        if away:
            raise StoreUnavailable("influxdb http://store: refused; start it")
        ran.append(tick)

    schedule = schedule_of(run, clock, ticks)
    schedule.advance()
    clock.time = at("2026-01-01T02:00")
    with caplog.at_level(logging.WARNING):
        assert schedule.advance() == 0
        assert schedule.advance() == 0
    assert ticks.kept == {"assess": at("2026-01-01T00:00")}
    assert caplog.text.count("same tick is tried again") == 1, "told once, not at every look"
    assert "start it" in caplog.text
    away = False
    assert schedule.advance() == 2
    assert ran == [at("2026-01-01T01:00"), at("2026-01-01T02:00")]


@pytest.mark.parametrize("error", [ModelError("no champion; run 'pm train'"), ZeroDivisionError("division by zero")])
def test_a_failed_run_is_told_and_neither_the_next_tick_nor_another_job_suffers(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    clock, ticks, ran = SetClock(at("2026-01-01T00:00")), KeptTicks(), list[datetime]()

    def fail_once(tick: datetime) -> None:
        if tick.hour == 1:
            raise error
        ran.append(tick)

    others = list[datetime]()
    jobs = [Job("assess", cron("0 * * * *"), fail_once, "all"), Job("other", cron("0 * * * *"), others.append, "all")]
    schedule = PlantSchedule(clock=clock, ticks=ticks, jobs=jobs)
    schedule.advance()
    clock.time = at("2026-01-01T02:00")
    with caplog.at_level(logging.ERROR):
        assert schedule.advance() == 3
    assert [tick.hour for tick in ran] == [2]
    assert [tick.hour for tick in others] == [1, 2]
    assert str(error) in caplog.text


def test_the_thread_follows_the_clock_and_stops_between_two_ticks() -> None:
    clock, ticks, ran = SetClock(at("2026-01-01T00:00")), KeptTicks(), list[datetime]()
    running, go_on = threading.Event(), threading.Event()

    def run(tick: datetime) -> None:
        ran.append(tick)
        if tick.hour == 3:
            running.set()
            go_on.wait(10)

    schedule = schedule_of(run, clock, ticks)
    schedule.begin(at("2026-01-01T00:00"))
    schedule.start(every=timedelta(seconds=0.02))
    clock.time = at("2026-01-01T02:00")
    deadline = time.monotonic() + 10
    while len(ran) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [tick.hour for tick in ran] == [1, 2]
    clock.time = at("2026-01-02T00:00")
    assert running.wait(10)
    stopping = threading.Thread(target=schedule.stop)
    stopping.start()
    time.sleep(0.1)
    go_on.set()
    stopping.join(10)
    assert not stopping.is_alive()
    # The run that was under way ended and was written down; the rest of the day waits for the next start.
    assert [tick.hour for tick in ran] == [1, 2, 3]
    assert ticks.kept == {"assess": at("2026-01-01T03:00")}


def test_a_zone_with_half_hours_ticks_at_its_own_full_hours() -> None:
    found = due(cron("0 8 * * *", "Asia/Kolkata"), at("2026-01-01T00:00"), at("2026-01-02T00:00"))
    assert [tick.astimezone(ZoneInfo("Asia/Kolkata")).hour for tick in found] == [8]
    assert found == [at("2026-01-01T02:30")]
