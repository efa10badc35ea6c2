"""The schedule in plant time: what is due is a pure function of a trigger, the last tick and now.

APScheduler gives the triggers and the thread that looks again and again; it never decides from the machine's clock
whether a job is due, because plant time may run faster than it (a replay), stand still (a silent feed), or have
jumped while the service was away.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.cron.expressions import AllExpression
from apscheduler.triggers.interval import IntervalTrigger

from pm.errors import PmError
from pm.ports import Clock

log = logging.getLogger(__name__)

_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FIRST_LOOK_BACK = timedelta(hours=1)


class Trigger(Protocol):
    """What an APScheduler trigger is to us: the next time after another, time given as an argument."""

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None: ...


class Ticks(Protocol):
    """Where the last tick of each job is kept, so that a service that starts again knows what it has missed."""

    def last_tick(self, job: str) -> datetime | None: ...

    def set_tick(self, job: str, at: datetime) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """Something to do at certain times of the plant."""

    name: str
    trigger: Trigger
    run: Callable[[datetime], object]
    """Called with the tick. An error that is retryable brings the same tick again; any other, the next tick."""
    catch_up: Literal["all", "latest"] = "latest"
    """After a pause: every missed tick in its order, or only the latest of them."""


def cron(line: str, timezone: str = "UTC") -> Trigger:
    """The trigger of a cron line in a time zone. Weekday numbers are cron's own: 0 and 7 are Sunday.

    (APScheduler 3 counts Monday as 0, so that "0 3 * * 0" would run a day late.) Raises ValueError on a bad line.
    """
    fields = line.split()
    if len(fields) == 5:
        fields[4] = _named_weekdays(fields[4])
    return CronTrigger.from_crontab(" ".join(fields), timezone=timezone)  # type: ignore[no-any-return]


def _named_weekdays(field: str) -> str:
    def name(match: re.Match[str]) -> str:
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if not first <= last <= 7 or step == 0:
            raise ValueError(
                f"weekdays {match[0]!r} do not run from 0 (Sunday) to 7 (Sunday); write them as sun to sat"
            )
        return ",".join(dict.fromkeys(_WEEKDAYS[day] for day in range(first, last + 1, step)))

    parts = field.split(",")
    return ",".join(re.sub(r"^(\d+)(?:-(\d+))?(?:/(\d+))?$", name, part) for part in parts)


def due(trigger: Trigger, last: datetime, now: datetime) -> list[datetime]:
    """Every tick of `trigger` with last < tick <= now, in order, in UTC.

    At the end of summer time an hourly tick falls into both of the doubled hours, a tick at a fixed hour into the
    first only; at its beginning, a tick in the hour that does not exist comes as much later (cron's own custom).
    """
    return list(_ticks(trigger, last, now))


def latest_due(trigger: Trigger, last: datetime, now: datetime) -> datetime | None:
    """The last of `due(...)`, found without walking through a long absence tick by tick."""
    look_back = _FIRST_LOOK_BACK
    while True:
        start = max(last, now - look_back)
        found = due(trigger, start, now)
        if found:
            return found[-1]
        if start <= last:
            return None
        look_back *= 8


def _ticks(trigger: Trigger, last: datetime, now: datetime) -> Iterator[datetime]:
    previous = last
    fixed = _has_fixed_hour(trigger)
    while True:
        tick = trigger.get_next_fire_time(previous, previous)
        if tick is None:
            return
        previous = tick
        # Aware times of one zone compare by their wall time, which is ambiguous in the doubled hour; UTC is not.
        moment = tick.astimezone(UTC)
        if moment > now:
            return
        if last < moment and not (tick.fold and fixed):
            yield moment


def _has_fixed_hour(trigger: Trigger) -> bool:
    for field in getattr(trigger, "fields", ()):
        if field.name == "hour":
            return not any(type(expression) is AllExpression for expression in field.expressions)
    return False


class PlantSchedule:
    """Runs jobs when plant time has passed their ticks, one job after the other, in a thread of its own.

    Jobs run in the order given; each tick is written down after its run, so that a crash repeats a run and never
    loses one (jobs are idempotent per tick). A job that was never run before counts from `begin`, or from the
    first plant time that `advance` sees.
    """

    def __init__(self, *, clock: Clock, ticks: Ticks, jobs: Sequence[Job]) -> None:
        self._clock = clock
        self._ticks = ticks
        self._jobs = tuple(jobs)
        self._stopping = threading.Event()
        self._advancing = threading.Lock()
        self._begun = False
        self._scheduler: Any = None
        self._troubles: dict[str, str] = {}

    def begin(self, at: datetime) -> None:
        """Let jobs that were never run before count from `at`: their first tick is the first after it."""
        for job in self._jobs:
            if self._ticks.last_tick(job.name) is None:
                self._ticks.set_tick(job.name, at)

    def advance(self) -> int:
        """Run whatever is due at the clock's present plant time; returns how many runs succeeded."""
        with self._advancing:
            now = self._clock.now()
            if now is None:
                return 0
            if not self._begun:
                self.begin(now)
                self._begun = True
            return sum(self._catch_up(job, now) for job in self._jobs)

    def _catch_up(self, job: Job, now: datetime) -> int:
        last = self._ticks.last_tick(job.name) or now
        if job.catch_up == "all":
            waiting = due(job.trigger, last, now)
        else:
            latest = latest_due(job.trigger, last, now)
            waiting = [] if latest is None else [latest]
        done = 0
        for tick in waiting:
            if self._stopping.is_set():
                break
            outcome = self._run(job, tick)
            if outcome == "again":
                break
            self._ticks.set_tick(job.name, tick)
            done += outcome == "done"
        return done

    def start(self, *, every: timedelta) -> None:
        """Look every so often (real time) whether something is due, until `stop`."""
        self._stopping.clear()
        self._scheduler = BackgroundScheduler(timezone=UTC)
        again = IntervalTrigger(seconds=every.total_seconds(), timezone=UTC)
        self._scheduler.add_job(self._look, again, max_instances=1, coalesce=True, misfire_grace_time=None)
        # One look lasts as long as the runs it starts; that the next look waits for it is meant, and no warning.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._scheduler.start()
        log.info("schedule started: %s", ", ".join(f"{job.name} ({job.trigger})" for job in self._jobs))

    def stop(self) -> None:
        """Let the run that is under way end, then stop; the ticks that are left are caught up at the next start."""
        self._stopping.set()
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=True)
            self._scheduler = None
            log.info("schedule stopped")

    def _look(self) -> None:
        try:
            self.advance()
            self._well("schedule")
        except PmError as error:
            # The clock or the ticks could not be read (records away); nothing was lost, the next look tries again.
            self._ill("schedule", logging.WARNING, f"cannot look what is due: {error}; it looks again")

    def _run(self, job: Job, tick: datetime) -> Literal["done", "again", "failed"]:
        try:
            job.run(tick)
        except PmError as error:
            if error.retryable:
                self._ill(job.name, logging.WARNING, f"{error}; the same tick is tried again")
                return "again"
            self._ill(job.name, logging.ERROR, f"{error}; the next tick is tried")
            return "failed"
        except Exception:
            # A job's own fault must not end the others; the traceback is the report.
            log.exception("%s at %s failed unexpectedly; the next tick is tried", job.name, _text(tick))
            return "failed"
        self._well(job.name)
        return "done"

    def _ill(self, name: str, level: int, trouble: str) -> None:
        """Say it once, not at every look and tick of a plant whose time may run a thousand times as fast as ours."""
        if self._troubles.get(name) != trouble:
            self._troubles[name] = trouble
            log.log(level, "%s: %s", name, trouble)

    def _well(self, name: str) -> None:
        if self._troubles.pop(name, None) is not None:
            log.info("%s: all is well again", name)


def _text(tick: datetime) -> str:
    return f"{tick:%Y-%m-%dT%H:%M:%SZ}"
