"""What other commands do on the live broker: play a simulated plant or a recording over it, record what it brings."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING

from pm.config import Config, duration_text
from pm.domain import EARLIEST, LATEST, Asset, EventKind, FailureMode, History, Point, Recording
from pm.edges import local_broker, wall_us
from pm.errors import RecordingError
from pm.ports import Reject

if TYPE_CHECKING:
    from connectors.mqtt import MqttPublisher
    from pm.publish import Played
    from pm.simulate import SimulatedPlant

log = logging.getLogger(__name__)


@contextmanager
def until_interrupted(stop: threading.Event) -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set `stop`, so that what is under way ends in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def publisher(config: Config, client_id: str) -> Iterator[MqttPublisher]:
    """A connected publisher to the configured broker, or to the embedded one of a running service."""
    from connectors.mqtt import MqttPublisher

    opened = MqttPublisher(local_broker(config.mqtt), client_id=client_id)
    opened.open()
    try:
        yield opened
    finally:
        opened.close()


def publish_plant(
    plant: SimulatedPlant, config: Config, *, speed: float, stop: threading.Event, start: datetime | None = None
) -> Played:
    """Play what a simulated plant publishes after `start` (all of it when None), late and doubled readings included,
    at `speed` times real speed."""
    from pm.publish import PlayTopics, publish_steps
    from pm.simulate import deliveries

    topics = PlayTopics.of(config.mqtt, config.clock)
    history = plant.recording.history
    first, last = history.readings["time"].min(), history.readings["time"].max()
    steps = deliveries(plant, start or first - history.interval, last)
    with publisher(config, "pm-simulate") as opened:
        return publish_steps(steps, opened, topics=topics, speed=speed, stop=stop)


def publish_recording(
    recording: Recording, config: Config, *, assets: Sequence[str], speed: float | None, stop: threading.Event
) -> Played:
    """Play some of a recording's assets at `speed` times real speed; as fast as the broker takes them when None."""
    from pm.publish import PlayTopics, publish_history

    topics = PlayTopics.of(config.mqtt, config.clock)
    with publisher(config, "pm-replay") as opened:
        return publish_history(recording.history.only(assets), opened, topics=topics, speed=speed, stop=stop)


class _Refused:
    """Dead letters of a recording session: there is no store to keep them in, so they are logged and counted."""

    def __init__(self) -> None:
        self.count = 0

    def add_dead_letters(self, rejects: Sequence[Reject]) -> None:
        self.count += len(rejects)


def record_feed(config: Config, *, name: str, stop: threading.Event, seconds: float | None) -> Recording:
    """What the broker brings until `stop` is set or `seconds` have passed, as a recording.

    The session has a client id of its own, so that a running service's is left alone. Assets are of model "unknown".
    Raises RecordingError when nothing came.
    """
    from connectors.embedded import EmbeddedStore
    from connectors.mqtt import MqttFeed
    from pm.ingest import Ingest

    mqtt = local_broker(config.mqtt).model_copy(update={"client_id": f"{config.mqtt.client_id}-record"})
    feed = MqttFeed(mqtt, queue=config.ingest.queue, lasting=False)
    store = EmbeddedStore(None)
    refused = _Refused()
    ingest = Ingest(feed, store, refused, section=config.ingest, now_us=wall_us)
    feed.open()
    timer = threading.Timer(seconds, stop.set) if seconds is not None else None
    if timer is not None:
        timer.start()
    try:
        ingest.run(stop)
    finally:
        feed.close()
        if timer is not None:
            timer.cancel()
    readings, events = store.readings(EARLIEST, LATEST), store.events(EARLIEST, LATEST)
    if readings.empty:
        raise RecordingError("nothing was recorded: no reading came on the topics of mqtt.readings")
    if refused.count:
        log.warning("%d messages could not be read and are not in the recording", refused.count)
    assets = sorted({*readings["asset"], *events["asset"]})
    codes = sorted(events.loc[events["kind"] == EventKind.FAILURE.value, "code"].unique())
    history = History(
        interval=config.plant.interval,
        points=tuple(Point(point) for point in store.points()),
        failure_modes=tuple(FailureMode(code) for code in codes),
        assets=tuple(Asset(asset, "unknown") for asset in assets),
        readings=readings,
        events=events,
    )
    about = f"recorded from the live feed of {config.plant.name}"
    return Recording(name, duration_text(config.plant.interval), about, config.plant.name, "", history)
