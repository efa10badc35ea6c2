"""An ingest in a process of its own, so that a test can kill it."""

from __future__ import annotations

import multiprocessing
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from connectors.embedded import EmbeddedStore
from connectors.mqtt_group import feed_of
from pm.config import IngestSection, MqttSection
from pm.ingest import Ingest
from pm.ports import Reject

# Forked from a server that has everything imported: a kill at a random moment then hits the work, not the imports.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.servers.ingest"])


class DeadLetterList:
    """Dead letters in memory."""

    def __init__(self) -> None:
        self.rejects: list[Reject] = []

    def add_dead_letters(self, rejects: object) -> None:
        assert isinstance(rejects, list)
        self.rejects += rejects


def wall_us() -> int:
    return time.time_ns() // 1000


def start_ingest(section: MqttSection, store: Path, *, batch: int) -> BaseProcess:
    process = _CONTEXT.Process(target=_ingest, args=(section, store, batch), daemon=True)
    process.start()
    return process


def _ingest(section: MqttSection, store: Path, batch: int) -> None:
    feed = feed_of(section)
    feed.open()
    ingest = Ingest(feed, EmbeddedStore(store), DeadLetterList(), section=IngestSection(batch=batch), now_us=wall_us)
    ingest.run(threading.Event())
