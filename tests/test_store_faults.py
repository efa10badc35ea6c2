"""The embedded store under what a long life brings: readers that never pause, kills in the midst of tidying up."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest

from connectors import database
from connectors.embedded import EmbeddedStore
from pm.domain import EARLIEST, LATEST
from tests.store_contract import at, event, everything, reading
from tests.test_embedded_store import child

MIB = 2**20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "readings.db"


@pytest.fixture
def short_wal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of half a megabyte instead of 64."""
    monkeypatch.setattr(database, "_WAL_LIMIT_BYTES", MIB // 2)
    monkeypatch.setattr(database, "_CHECKPOINT_PAGES", 64)
    monkeypatch.setattr(database, "_WAL_WAIT_SECONDS", 0.3)


def batch(number: int) -> list:
    """About 80 KiB."""
    return [reading("a", 500 * number + hour, **{f"p{n}": hour / 7 for n in range(18)}) for hour in range(500)]


def wal(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


@pytest.mark.usefixtures("short_wal")
def test_readers_that_overlap_do_not_let_the_log_grow(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Four readers that never pause can keep one attempt from finding its moment; the next comes after a minute.
    monkeypatch.setattr(database, "_WAL_AGAIN_SECONDS", 0.0)
    store = EmbeddedStore(path)
    store.write(batch(0))
    stop = threading.Event()

    def read() -> None:
        """Holds a state for a while, and lets go only after another thread has taken one."""
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            while not stop.is_set():
                connection.execute("BEGIN")
                connection.execute("SELECT count(*) FROM points").fetchone()
                time.sleep(0.02)
                connection.execute("COMMIT")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    longest = 0
    for number in range(1, 60):
        store.write(batch(number))
        longest = max(longest, wal(path))
    stop.set()
    for thread in threads:
        thread.join()
    assert longest < 3.5 * MIB, "5 MiB were written"
    assert store.counts()["readings"] == 30_000
    store.close()


@pytest.mark.usefixtures("short_wal")
def test_a_reader_that_never_lets_go_is_told_of_and_the_log_shrinks_after_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "_WAL_AGAIN_SECONDS", 0.2)
    store = EmbeddedStore(path)
    store.write(batch(0))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        (before,) = connection.execute("SELECT count(*) FROM readings").fetchone()
        for number in range(1, 35):
            store.write(batch(number))
        assert "readings.db-wal has grown to 2 MiB and goes on growing" in caplog.text
        assert wal(path) > 2 * MIB
        assert connection.execute("SELECT count(*) FROM readings").fetchone() == (before,)
    time.sleep(0.25)
    store.write(batch(35))
    assert wal(path) <= MIB
    assert store.counts()["readings"] == 36 * 500
    store.close()


_TIDYING = """
import os, sys, time
from datetime import datetime
from pathlib import Path
from connectors import retention
from connectors.embedded import EmbeddedStore
retention._BITE, retention._BITE_PAGES = 50, 5
for line in sys.stdin:
    worker = os.fork()  # all is imported by now, so that a kill hits the work
    if not worker:
        EmbeddedStore(Path(sys.argv[1])).delete_before(datetime.fromisoformat(sys.argv[2]))
        os._exit(0)
    time.sleep(float(line))
    os.kill(worker, 9)
    print(os.waitpid(worker, 0)[1], flush=True)
"""


def test_killed_in_the_midst_of_deleting_and_shortening_the_store_is_whole(path: Path) -> None:
    hours, kept = 6_000, 600
    store = EmbeddedStore(path)
    store.write_history(
        pd.DataFrame(
            {
                "time": pd.to_datetime([at(hour) for hour in range(hours)] * 2, utc=True),
                "asset": ["a"] * hours + ["b"] * hours,
                **{f"p{n}": np.random.default_rng(n).normal(size=2 * hours) for n in range(8)},
            }
        ),
        everything(store)[1],
    )
    store.write([], [event("a", 1, "failure", "f")])
    cut = at(hours - kept)
    expected = store.readings(at(hours - kept - 1), LATEST)
    store.close()
    size, chance, kills = path.stat().st_size, Random(11), 0
    with child(_TIDYING, str(path), cut.isoformat()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(6):
            process.stdin.write(f"{chance.uniform(0.0, 0.1)}\n")
            process.stdin.flush()
            kills += process.stdout.readline() == "9\n"
            store = EmbeddedStore(path)
            pd.testing.assert_frame_equal(store.readings(at(hours - kept - 1), LATEST), expected)
            store.close()
            with closing(sqlite3.connect(path)) as check:
                assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        process.stdin.close()
    assert kills
    store = EmbeddedStore(path)
    store.delete_before(cut)
    pd.testing.assert_frame_equal(store.readings(EARLIEST, LATEST), expected)
    assert store.counts() == {"readings": 2 * kept, "events": 1}
    store.close()
    assert path.stat().st_size < size / 3
