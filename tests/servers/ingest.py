"""An ingest in a process of its own, so that a test can kill it."""

from __future__ import annotations

import logging
import multiprocessing
import resource
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

from connectors.embedded import EmbeddedStore
from connectors.influx import InfluxStore
from connectors.mqtt_group import feed_of
from connectors.spool import Spool
from pm.config import IngestSection, MqttSection
from pm.domain import Event, Reading
from pm.errors import StoreUnavailable
from pm.ingest import Ingest
from pm.ports import ReadingStore, Reject

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


class FlaggedStore(EmbeddedStore):
    """The embedded store, away as long as a file stands beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._flag = path.with_suffix(".away")

    def write(self, readings: Sequence[Reading], events: Sequence[Event] = ()) -> None:
        if self._flag.exists():
            raise StoreUnavailable("the store is away")
        super().write(readings, events)


def start_ingest(
    section: MqttSection,
    store: Path | str,
    *,
    batch: int,
    log: Path | None = None,
    file_limit: int | None = None,
    spool: Path | None = None,
) -> BaseProcess:
    """store: file of the embedded store, or address of InfluxDB. log: file that warnings are added to.

    file_limit: bytes that a file of the process may have; beyond that writing fails as on a full disk. spool: folder
    for batches while the store is away, which an embedded one is as long as STORE.away exists.
    """
    process = _CONTEXT.Process(target=_ingest, args=(section, store, batch, log, file_limit, spool), daemon=True)
    process.start()
    return process


def open_store(store: Path | str) -> ReadingStore:
    if isinstance(store, Path):
        return FlaggedStore(store)
    return InfluxStore(url=store, bucket="pm", timeout=timedelta(seconds=5))


def _ingest(
    section: MqttSection,
    store: Path | str,
    batch: int,
    log: Path | None,
    file_limit: int | None,
    folder: Path | None,
) -> None:
    if log is not None:
        logging.basicConfig(filename=log, level=logging.WARNING)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    feed = feed_of(section)
    spool = None if folder is None else Spool(folder, limit=64 * 2**20, segment=4096)
    feed.open()
    ingest = Ingest(
        feed,
        open_store(store),
        DeadLetterList(),
        section=IngestSection(batch=batch),
        now_us=wall_us,
        spool=spool,
    )
    ingest.run(threading.Event())
