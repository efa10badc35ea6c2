"""The embedded store: the contract on disk and in memory, and what is particular to SQLite."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import database
from connectors.embedded import EmbeddedStore
from connectors.layouts import MOST_POINTS
from pm.domain import EARLIEST, LATEST, Reading
from pm.errors import StoreError, StoreUnavailable
from tests.store_contract import StoreContract, at, content, event, everything, reading

ROOT = Path(__file__).parents[1]


class TestInMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Iterator[EmbeddedStore]:
        store = EmbeddedStore()
        yield store
        store.close()


class TestOnDisk(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[EmbeddedStore]:
        store = EmbeddedStore(tmp_path / "readings.db")
        yield store
        store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "readings.db"


def test_points_come_in_the_order_first_seen() -> None:
    store = EmbeddedStore()
    store.write([reading("a", 1, z=1.0, m=1.0)])
    store.write([reading("a", 2, b=1.0, z=1.0, a=1.0)])
    assert store.points() == ("z", "m", "b", "a")
    assert list(store.readings(EARLIEST, LATEST).columns) == ["time", "asset", "z", "m", "b", "a"]


def test_points_that_differ_in_case_alone_are_two() -> None:
    store = EmbeddedStore()
    store.write([reading("a", 1, volt=1.0, Volt=2.0)])
    assert content(everything(store)[0]) == {("a", at(1)): {"volt": 1.0, "Volt": 2.0}}


_values = st.dictionaries(st.sampled_from("xyz"), st.sampled_from([-1.0, 0.0, 1.0, 2.0]), max_size=3)
_readings = st.lists(st.builds(Reading, st.sampled_from("ab"), st.integers(0, 2), _values), max_size=14)


@settings(max_examples=40, deadline=None)
@given(readings=_readings, seed=st.integers(0, 1000), cut=st.integers(1, 5))
def test_content_and_conflicts_do_not_depend_on_the_order_of_arrival(
    readings: list[Reading], seed: int, cut: int
) -> None:
    stores = [EmbeddedStore(), EmbeddedStore()]
    stores[0].write(readings)
    shuffled = readings.copy()
    Random(seed).shuffle(shuffled)
    for start in range(0, len(shuffled), cut):
        stores[1].write(shuffled[start : start + cut])
    rows = [content(everything(store)[0]) for store in stores]
    assert rows[0] == rows[1]
    pd.testing.assert_frame_equal(stores[0].conflicts(), stores[1].conflicts())
    seen: dict[tuple[str, int, str], set[float]] = {}
    for one in readings:
        for point, value in one.values.items():
            seen.setdefault((one.asset, one.time_us, point), set()).add(value)
    assert len(stores[0].conflicts()) == sum(len(values) - 1 for values in seen.values())
    kept = {(a, int(t.timestamp() * 1e6), p): v for (a, t), row in rows[0].items() for p, v in row.items()}
    assert kept == {key: max(values) for key, values in seen.items()}


def test_a_second_value_is_kept_beside_the_first(caplog: pytest.LogCaptureFixture) -> None:
    store = EmbeddedStore()
    store.write([reading("a", 1, x=5.0, y=1.0)])
    store.write([reading("a", 1, x=4.0, y=1.0)])
    assert content(everything(store)[0]) == {("a", at(1)): {"x": 5.0, "y": 1.0}}
    conflicts = store.conflicts()
    assert conflicts.to_dict("records") == [{"time": at(1), "asset": "a", "point": "x", "value": 4.0}]
    assert "1 readings differ" in caplog.text
    store.delete_assets(["a"])
    assert len(store.conflicts()) == 0


def test_doubled_rows_of_a_history_end_as_if_written_one_by_one() -> None:
    frame = pd.DataFrame(
        {
            "time": pd.to_datetime([at(1), at(1), at(1), at(2)], utc=True),
            "asset": ["a"] * 4,
            "x": [1.0, 3.0, np.nan, 4.0],
            "y": [np.nan, 2.0, 2.0, np.nan],
        }
    )
    store = EmbeddedStore()
    store.write_history(frame, everything(store)[1])
    assert content(everything(store)[0]) == {("a", at(1)): {"x": 3.0, "y": 2.0}, ("a", at(2)): {"x": 4.0}}
    assert list(store.conflicts()["value"]) == [1.0]


def test_too_many_points_are_refused_and_nothing_is_kept() -> None:
    store = EmbeddedStore()
    with pytest.raises(StoreError, match=f"holds {MOST_POINTS}"):
        store.write([Reading("a", 1, {f"p{n}": 1.0 for n in range(MOST_POINTS + 1)})])
    assert store.points() == ()
    assert store.counts()["readings"] == 0
    values = {f"p{n}": n / 3 for n in range(5000)}
    store.write([Reading("a", 1, values)])
    assert content(everything(store)[0]) == {("a", datetime(1970, 1, 1, 0, 0, 0, 1, UTC)): values}


def test_points_are_added_to_an_empty_store_and_to_a_full_one() -> None:
    store = EmbeddedStore()
    store.write([], [event("a", 1, "error", "e")])
    store.write([reading("a", 1, x=1.0)])
    store.write([reading("a", 2, y=2.0, z=3.0)])
    store.delete_assets(["a"])
    store.write([reading("a", 3, z=4.0, w=5.0)])
    store.write([reading("b", 3, x=6.0)])
    assert content(everything(store)[0]) == {("a", at(3)): {"z": 4.0, "w": 5.0}, ("b", at(3)): {"x": 6.0}}
    assert store.points() == ("x", "y", "z", "w")


def test_a_history_that_fails_half_way_leaves_nothing(path: Path) -> None:
    store = EmbeddedStore(path)
    store.write([reading("a", 1, x=1.0)])
    before = everything(store)
    many = pd.DataFrame({"time": pd.to_datetime([at(2)], utc=True), "asset": ["new"]})
    many = many.join(pd.DataFrame({f"p{n}": [1.0] for n in range(MOST_POINTS)}))
    with pytest.raises(StoreError):
        store.write_history(many, before[1])
    for first, second in zip(before, everything(store), strict=True):
        pd.testing.assert_frame_equal(first, second)
    assert store.points() == ("x",)


def test_the_file_and_its_folder_are_made_and_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data" / "readings.db"
    store = EmbeddedStore(path)
    store.write([reading("a", 1, x=1.0)])
    assert {entry.name: entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()} == {
        "readings.db": 0o600,
        "readings.db-wal": 0o600,
        "readings.db-shm": 0o600,
    }
    store.close()
    assert [entry.name for entry in path.parent.iterdir()] == ["readings.db"]


def test_the_store_is_the_same_opened_again(path: Path) -> None:
    with_first = EmbeddedStore(path)
    with_first.write([reading("b", 1, y=1.0), reading("a", 1, x=1.0)], [event("a", 1, "error", "e")])
    before = everything(with_first)
    with_first.close()
    again = EmbeddedStore(path)
    for first, second in zip(before, everything(again), strict=True):
        pd.testing.assert_frame_equal(first, second)
    again.write([reading("a", 2, x=2.0)])
    assert again.points() == ("y", "x")


def test_closed_twice_and_used_after(path: Path) -> None:
    store = EmbeddedStore(path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match=r"readings\.db"):
        store.counts()
    with pytest.raises(StoreError, match=r"readings\.db"):
        store.write([reading("a", 1, x=1.0)])


def test_a_reader_sees_whole_batches_only(path: Path) -> None:
    writer, reader = EmbeddedStore(path), EmbeddedStore(path)
    done = threading.Event()

    def write() -> None:
        for hour in range(150):
            writer.write([reading(asset, hour, x=1.0) for asset in ("a", "b")], [event("a", hour, "error", "e")])
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    sizes = set()
    while not done.is_set():
        frame = reader.readings(EARLIEST, LATEST)
        assert (frame["asset"] == "a").sum() == (frame["asset"] == "b").sum()
        sizes.add(len(frame))
    thread.join()
    assert len(sizes) > 3
    assert reader.counts() == {"readings": 300, "events": 150}


_READER = """
import sys
from pathlib import Path
from connectors.embedded import EmbeddedStore
store = EmbeddedStore(Path(sys.argv[1]))
for line in sys.stdin:
    print(store.counts()["readings"], flush=True)
"""

_NUMBERED_WRITER = """
import sys
from pathlib import Path
from connectors.embedded import EmbeddedStore
from pm.domain import Event, EventKind, Reading
store = EmbeddedStore(Path(sys.argv[1]))
number = int(sys.argv[2])
while True:
    batch = range(number, number + 7)
    store.write([Reading("a", n, {"x": float(n), f"new {n // 50}": 1.0}) for n in batch],
                [Event("a", number, EventKind.ERROR, "e")])
    print(number, flush=True)
    number += 7
"""


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_another_process_reads_while_this_one_writes(path: Path) -> None:
    store = EmbeddedStore(path)
    with child(_READER, str(path)) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for rows in range(1, 4):
            store.write([reading("a", rows, x=1.0)])
            with store._database.writing() as connection:  # in the midst of a write the other is not held up
                connection.execute("DELETE FROM readings")
                other.stdin.write("\n")
                other.stdin.flush()
                assert other.stdout.readline() == f"{rows}\n"
                connection.execute("ROLLBACK")
                connection.execute("BEGIN")
        other.stdin.close()
        assert other.wait(20) == 0


def test_what_was_acknowledged_outlives_kill_9(path: Path) -> None:
    random = Random(7)
    written = 0
    for _ in range(5):
        with child(_NUMBERED_WRITER, str(path), str(written)) as writer:
            assert writer.stdout is not None
            acknowledged = [int(writer.stdout.readline()) for _ in range(random.randrange(1, 60))]
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
        store = EmbeddedStore(path)
        frame, events = everything(store)
        store.close()
        numbers = frame["x"].astype(int).tolist()
        assert numbers == list(range(len(numbers)))
        assert len(numbers) % 7 == 0, "half a batch is stored"
        assert len(numbers) >= acknowledged[-1] + 7
        assert len(events) == len(numbers) // 7
        written = len(numbers)
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check.close()


def test_a_store_held_by_another_process_is_busy_and_may_be_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.2)
    store = EmbeddedStore(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match=r"readings\.db is busy"):
        store.write([reading("a", 1, x=1.0)])
    assert store.counts()["readings"] == 0  # reading is not held up
    holder.execute("ROLLBACK")
    store.write([reading("a", 1, x=1.0)])
    assert store.counts()["readings"] == 1
    holder.close()


def test_a_full_disk_is_told_and_the_store_goes_on_afterwards(path: Path) -> None:
    store = EmbeddedStore(path)
    store.write([reading("a", 1, x=1.0)])
    with store._database._write_lock:
        limited = store._database._writer.execute("PRAGMA max_page_count = 30").fetchone()
    assert limited == (30,)
    batch = [reading("a", hour, x=hour / 7, y=hour / 3) for hour in range(20_000)]
    with pytest.raises(StoreUnavailable, match="disk full") as caught:
        store.write(batch)
    assert caught.value.retryable
    assert store.counts()["readings"] == 1
    with store._database._write_lock:
        store._database._writer.execute("PRAGMA max_page_count = 1000000")
    store.write(batch)
    assert store.counts()["readings"] == 20_000


def test_a_damaged_file_is_refused_by_name(path: Path) -> None:
    store = EmbeddedStore(path)
    store.write([reading("a", hour, x=float(hour)) for hour in range(5000)])
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:9000] + bytes(range(256)) * ((len(whole) - 9000) // 256))
    with pytest.raises(StoreError, match=r"readings\.db is damaged.*backup"):
        everything(EmbeddedStore(path))
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match=r"readings\.db is damaged"):
        EmbeddedStore(path)


def test_the_file_of_another_program_is_left_alone(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE treasure (gold)")
    other.commit()
    other.close()
    with pytest.raises(StoreError, match="another program"):
        EmbeddedStore(path)
    other = sqlite3.connect(path)
    assert other.execute("SELECT name FROM sqlite_schema").fetchall() == [("treasure",)]
    other.close()


def test_a_store_of_a_later_version_is_refused(path: Path) -> None:
    EmbeddedStore(path).close()
    later = sqlite3.connect(path)
    later.execute(f"PRAGMA user_version = {database.SCHEMA_VERSION + 1}")
    later.close()
    with pytest.raises(StoreError, match=f"format {database.SCHEMA_VERSION + 1}"):
        EmbeddedStore(path)


def test_old_readings_go_in_bites_and_leave_a_shorter_file(path: Path) -> None:
    store = EmbeddedStore(path)
    store.write_history(
        pd.DataFrame(
            {
                "time": pd.to_datetime([at(hour) for hour in range(20_000)] * 2, utc=True),
                "asset": ["a"] * 20_000 + ["b"] * 20_000,
                **{f"p{n}": np.random.default_rng(n).normal(size=40_000) for n in range(8)},
            }
        ),
        everything(store)[1],
    )
    store.write([reading("a", 5, p0=99.0), reading("a", 19_990, p0=99.0)], [event("a", 1, "failure", "f")])
    store.close()
    size = path.stat().st_size
    store = EmbeddedStore(path)
    stop = threading.Event()
    written = []

    def write() -> None:
        while not stop.is_set():
            store.write([reading("new", len(written), x=1.0)])
            written.append(1)

    thread = threading.Thread(target=write)
    thread.start()
    assert store.delete_before(at(-1)) == 0
    before = len(written)
    deleted = store.delete_before(at(19_900))
    stop.set()
    thread.join()
    assert deleted >= 2 * 19_900
    assert len(written) > before
    left = store.readings(EARLIEST, LATEST, ["a", "b"])
    assert list(left["time"]) == [at(hour) for hour in range(19_900, 20_000)] * 2
    assert store.counts()["events"] == 1
    assert list(store.conflicts()["time"]) == [at(19_990)]
    store.close()
    assert path.stat().st_size < size / 3
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check.close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/readings\.db.*mend store\.path"):
        EmbeddedStore(tmp_path / "file" / "readings.db")
    with pytest.raises(StoreError, match=r"mend store\.path"):
        EmbeddedStore(tmp_path)


def test_two_processes_may_make_the_store_at_once(path: Path) -> None:
    code = "import sys; from pathlib import Path; from connectors.embedded import EmbeddedStore as S\n"
    code += "sys.stdin.readline(); S(Path(sys.argv[1])).close()"
    children = [child(code, str(path)) for _ in range(3)]
    for process in children:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(30) for process in children] == [0, 0, 0]
    for process in children:
        process.communicate()
    assert EmbeddedStore(path).counts() == {"readings": 0, "events": 0}


def test_a_copy_of_a_store_at_rest_is_whole(path: Path, tmp_path: Path) -> None:
    """docs/stores.md tells to copy all three files of a store that nobody writes to."""
    store = EmbeddedStore(path)
    store.write([reading("a", hour, x=float(hour)) for hour in range(100)])
    copy = tmp_path / "copy"
    copy.mkdir()
    for entry in tmp_path.glob("readings.db*"):
        shutil.copy(entry, copy)
    assert EmbeddedStore(copy / "readings.db").counts()["readings"] == 100
