"""Plays a recording or a simulated plant over MQTT, step by step, with clock messages that say what is complete."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from connectors.payloads import encode_clock, encode_event, encode_readings
from connectors.topics import ASSET, TopicTemplate
from pm.config import ClockSection, MqttSection
from pm.domain import Event, EventKind, History, Reading, from_us, to_us
from pm.errors import FeedError
from pm.ports import Publisher

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

Step = tuple[datetime, Sequence[Reading], Sequence[Event]]
"""Plant time T, and what is published for it: everything that becomes known after the step before and up to T."""


@dataclass(frozen=True, slots=True)
class PlayTopics:
    """Where a play publishes."""

    readings: TopicTemplate
    """Names the asset alone."""
    events: TopicTemplate
    """Names the asset alone."""
    clock: str

    @classmethod
    def of(cls, mqtt: MqttSection, clock: ClockSection) -> PlayTopics:
        """The first configured templates that need nothing but the asset. Raises FeedError where there is none."""
        return cls(_plain("readings", mqtt.readings), _plain("events", mqtt.events), clock.topic)


@dataclass(frozen=True, slots=True)
class Played:
    """What was published."""

    steps: int
    readings: int
    events: int


def publish_history(
    history: History,
    publisher: Publisher,
    *,
    topics: PlayTopics,
    speed: float | None,
    stop: threading.Event,
    sleep: Callable[[float], object] | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Played:
    """Play a history from its first reading or event to its last; see `publish_steps`."""
    return publish_steps(
        history_steps(history), publisher, topics=topics, speed=speed, stop=stop, sleep=sleep, monotonic=monotonic
    )


def publish_steps(
    steps: Iterable[Step],
    publisher: Publisher,
    *,
    topics: PlayTopics,
    speed: float | None,
    stop: threading.Event,
    sleep: Callable[[float], object] | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Played:
    """For each step: its events and readings, then, once they are confirmed, the clock message.

    speed: seconds of plant time per second; None for as fast as the broker takes them. A play that falls behind does
    not wait until it has caught up. stop: ends the play between two steps. sleep: by default waits on `stop`.
    Raises FeedUnavailable where the broker does not confirm.
    """
    sleep = stop.wait if sleep is None else sleep
    origin: tuple[datetime, float] | None = None
    count = readings_sent = events_sent = 0
    for at, readings, events in steps:
        if speed is not None:
            origin = origin or (at, monotonic())
            due = origin[1] + (at - origin[0]).total_seconds() / speed
            if (wait := due - monotonic()) > 0:
                sleep(wait)
        if stop.is_set():
            break
        for event in events:
            publisher.publish(topics.events.topic(asset=event.asset), encode_event(event))
        for reading in readings:
            publisher.publish(topics.readings.topic(asset=reading.asset), encode_readings([reading]))
        publisher.flush()
        publisher.publish(topics.clock, encode_clock(to_us(at)))
        count += 1
        readings_sent += len(readings)
        events_sent += len(events)
    publisher.flush()
    return Played(count, readings_sent, events_sent)


def history_steps(history: History) -> Iterator[Step]:
    """A history as steps of its interval, counted from its earliest time; steps in which nothing happened included."""
    readings = _ReadingRows(history)
    events = _EventRows(history)
    starts = [int(rows.times[0]) for rows in (readings, events) if len(rows.times)]
    if not starts:
        return
    last = max(int(rows.times[-1]) for rows in (readings, events) if len(rows.times))
    interval_us = history.interval // timedelta(microseconds=1)
    at = min(starts)
    while True:
        yield from_us(at), readings.up_to(at), events.up_to(at)
        if at >= last:
            return
        at += interval_us


class _ReadingRows:
    """The readings of a history in time order (assets in order within a time), taken once from front to back."""

    def __init__(self, history: History) -> None:
        times = _microseconds(history.readings)
        self._order = np.argsort(times, kind="stable")
        self.times = times[self._order]
        self._assets = history.readings["asset"].to_numpy(dtype=object)
        self._points = [point.name for point in history.points]
        self._columns = [history.readings[name].to_numpy(np.float64) for name in self._points]
        self._next = 0

    def up_to(self, at_us: int) -> list[Reading]:
        end = int(np.searchsorted(self.times, at_us, side="right"))
        rows = self._order[self._next : end]
        times = self.times[self._next : end].tolist()
        self._next = end
        columns = [column[rows].tolist() for column in self._columns]
        values = zip(*columns, strict=True) if columns else [()] * len(rows)
        return [
            Reading(asset, time_us, {name: v for name, v in zip(self._points, row, strict=True) if not math.isnan(v)})
            for asset, time_us, row in zip(self._assets[rows].tolist(), times, values, strict=True)
        ]


class _EventRows:
    """The events of a history in time order, taken once from front to back."""

    def __init__(self, history: History) -> None:
        self._frame = history.events.reset_index(drop=True)
        times = _microseconds(history.events)
        self._order = np.argsort(times, kind="stable")
        self.times = times[self._order]
        self._next = 0

    def up_to(self, at_us: int) -> list[Event]:
        end = int(np.searchsorted(self.times, at_us, side="right"))
        rows, times = self._order[self._next : end], self.times[self._next : end].tolist()
        self._next = end
        if not len(rows):
            return []
        taken = self._frame.iloc[rows]
        return [
            Event(asset, time_us, EventKind(kind), code)
            for asset, time_us, kind, code in zip(taken["asset"], times, taken["kind"], taken["code"], strict=True)
        ]


def _microseconds(frame: pd.DataFrame) -> NDArray[np.int64]:
    times: NDArray[np.int64] = frame["time"].to_numpy("datetime64[us]").astype(np.int64)
    return times


def _plain(what: str, templates: Sequence[str]) -> TopicTemplate:
    for text in templates:
        template = TopicTemplate(text)
        if template.names == (ASSET,):
            return template
    raise FeedError(
        f"no topic template of mqtt.{what} needs the asset alone ({', '.join(templates) or 'there is none'}); "
        f"add one, like plant/{{asset}}/{what}"
    )
