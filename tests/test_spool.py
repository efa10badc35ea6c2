"""The spool: what is appended is durable and comes back in order, whatever a crash or a disk does to its files."""

from __future__ import annotations

import errno
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.spool import FORMAT, Spool, SpoolFull, SpoolLocked, decode, encode, scan
from pm.domain import Doubtful, Event, EventKind, Quality, Reading
from pm.ports import Delivery, Reject

T = TypeVar("T")
LIMIT = 2**24
NUMBERS = st.floats(allow_nan=False)
INSTANTS = st.integers(-(2**62), 2**62)
READINGS = st.builds(Reading, st.text(), INSTANTS, st.dictionaries(st.text(), NUMBERS, max_size=3))
EVENTS = st.builds(Event, st.text(), INSTANTS, st.sampled_from(EventKind), st.text())
REJECTS = st.builds(Reject, st.text(), st.binary(), st.text(), INSTANTS)
DOUBTFUL = st.builds(Doubtful, st.text(), INSTANTS, st.text(), st.text(), st.sampled_from(Quality))


def tuples(of: st.SearchStrategy[T]) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(of, max_size=3).map(tuple)


DELIVERIES = st.builds(
    Delivery,
    st.none(),
    tuples(READINGS),
    tuples(EVENTS),
    tuples(REJECTS),
    st.none() | INSTANTS,
    st.text(),
    st.binary(),
    INSTANTS,
    tuples(DOUBTFUL),
    tuples(st.tuples(st.text(), st.text())),
)


def delivery(number: int) -> Delivery:
    return Delivery(None, (Reading("a", number, {"n": float(number)}),), topic="t", payload=b"%d" % number)


def drained(spool: Spool, step: int = 3) -> list[Delivery]:
    found: list[Delivery] = []
    while some := spool.peek(step):
        found += some
        spool.drop(len(some))
    return found


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.spool"))


@given(DELIVERIES)
def test_a_delivery_comes_back_as_it_was(one: Delivery) -> None:
    record = encode(one)
    (found,) = scan(FORMAT + record)
    assert found.body is not None and decode(found.body) == one


def test_a_name_that_is_no_unicode_is_left_for_the_store_to_refuse() -> None:
    one = Delivery(None, (Reading("\ud800", 1, {"n": 1.0}),))
    (found,) = scan(FORMAT + encode(one))
    assert found.body is not None and decode(found.body) == one


@given(st.lists(DELIVERIES, min_size=1, max_size=5), st.data())
def test_cut_anywhere_the_records_before_are_kept_and_the_tail_is_counted(
    all_of_them: list[Delivery], data: st.DataObject
) -> None:
    records = [encode(one) for one in all_of_them]
    content = FORMAT + b"".join(records)
    cut = data.draw(st.integers(0, len(content)))
    ends = [len(FORMAT) + sum(map(len, records[: n + 1])) for n in range(len(records))]
    whole = sum(end <= cut for end in ends)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{0:016d}.spool").write_bytes(content[:cut])
        spool = Spool(Path(folder), limit=LIMIT)
        assert spool.held == whole and spool.corrupt == 0
        assert spool.torn == (cut not in (0, len(FORMAT), *ends))
        spool.append([delivery(7)])
        assert drained(spool) == [*all_of_them[:whole], delivery(7)]
        assert spool.held == 0 and spool.bytes == 0 and not segments(Path(folder))
        spool.close()


@given(st.integers(0, 4), st.data())
def test_one_damaged_byte_costs_one_record_at_most_and_is_counted(which: int, data: st.DataObject) -> None:
    records = [encode(delivery(number)) for number in range(5)]
    offset = data.draw(st.integers(0, len(records[which]) - 1))
    flipped = bytearray(records[which])
    flipped[offset] ^= data.draw(st.integers(1, 255))
    content = FORMAT + b"".join([*records[:which], bytes(flipped), *records[which + 1 :]])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{3:016d}.spool").write_bytes(content)
        spool = Spool(Path(folder), limit=LIMIT)
        assert (spool.corrupt, spool.torn) == ((1, 0) if which < 4 else (0, 1))
        assert drained(spool) == [delivery(number) for number in range(5) if number != which]
        assert spool.held == 0
        spool.close()


@given(st.binary(max_size=300))
def test_any_bytes_at_all_are_gone_through(content: bytes) -> None:
    found = list(scan(FORMAT + content))
    assert sum(one.end - one.start for one in found) == len(content)


def test_order_holds_over_segments_and_restarts(tmp_path: Path) -> None:
    for start in range(0, 40, 10):
        spool = Spool(tmp_path, limit=LIMIT, segment=300)
        for number in range(start, start + 10, 2):
            spool.append([delivery(number), delivery(number + 1)])
        spool.close()
    assert len(segments(tmp_path)) > 4
    spool = Spool(tmp_path, limit=LIMIT)
    assert spool.held == 40
    assert drained(spool) == [delivery(number) for number in range(40)]
    assert segments(tmp_path) == [] and spool.bytes == 0
    spool.close()


def test_appended_while_it_is_drained_goes_behind(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=LIMIT)
    spool.append([delivery(0), delivery(1)])
    assert spool.peek(1) == [delivery(0)]
    spool.append([delivery(2)])
    spool.drop(1)
    assert drained(spool, 1) == [delivery(1), delivery(2)]
    spool.append([delivery(3)])
    assert drained(spool) == [delivery(3)]
    spool.close()


def test_a_crash_in_the_middle_of_draining_brings_the_segment_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=LIMIT)
    spool.append([delivery(0), delivery(1)])
    spool.peek(1)
    spool.drop(1)
    spool.close()
    again = Spool(tmp_path, limit=LIMIT)
    assert drained(again) == [delivery(0), delivery(1)]
    again.close()


def test_at_its_limit_it_says_so_and_keeps_nothing_of_the_call(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit=400)
    spool.append([delivery(0)])
    with pytest.raises(SpoolFull, match="limit of 400 bytes; raise") as raised:
        spool.append([delivery(number) for number in range(1, 9)])
    assert raised.value.retryable
    assert drained(spool) == [delivery(0)]
    spool.append([delivery(9)])
    assert drained(spool) == [delivery(9)]
    spool.close()


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, call: str
) -> None:
    """The disk takes half of a write and then no more, or fails when it is to make it durable."""
    spool = Spool(tmp_path, limit=LIMIT)
    if before:
        spool.append([delivery(0)])
    sizes = [path.stat().st_size for path in segments(tmp_path)]
    real, calls = os.pwrite, [0]

    def failing(file: int, *arguments: object) -> int:
        calls[0] += 1
        if call == "pwrite" and calls[0] == 1:
            content, at = arguments
            assert isinstance(content, memoryview) and isinstance(at, int)
            return real(file, content[: len(content) // 2], at)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        with pytest.raises(SpoolFull, match="No space left on device"):
            spool.append([delivery(1), delivery(2)])
    assert [path.stat().st_size for path in segments(tmp_path)] == sizes
    spool.append([delivery(3)])
    assert drained(spool) == [delivery(0), delivery(3)][1 - before :]
    spool.close()


def _try_to_open(folder: Path, answer: object) -> None:
    try:
        Spool(folder, limit=LIMIT)
    except SpoolLocked as error:
        answer.put(str(error))  # type: ignore[attr-defined]
    else:
        answer.put("")  # type: ignore[attr-defined]


def test_two_processes_never_share_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    spool = Spool(tmp_path, limit=LIMIT)
    for expected in ("in use by another process", ""):
        other = context.Process(target=_try_to_open, args=(tmp_path, answer))
        other.start()
        said = answer.get(timeout=60)
        other.join()
        assert (expected in said) and bool(said) == bool(expected)
        if expected:
            spool.close()


def _append_until_killed(folder: Path, pipe: object) -> None:
    spool = Spool(folder, limit=LIMIT, segment=2000)
    for number in range(10**6):
        spool.append([delivery(number)])
        pipe.send(number)  # type: ignore[attr-defined]


def test_killed_while_appending_nothing_that_was_confirmed_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for round_number in range(2):
        folder = tmp_path / str(round_number)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_append_until_killed, args=(folder, theirs))
        process.start()
        confirmed = -1
        while confirmed < 50 + 37 * round_number:
            confirmed = ours.recv()
        process.kill()
        process.join()
        theirs.close()
        try:
            while True:
                confirmed = ours.recv()
        except EOFError:
            pass
        spool = Spool(folder, limit=LIMIT)
        found = drained(spool)
        assert len(found) in (confirmed + 1, confirmed + 2) and spool.corrupt == 0
        assert found == [delivery(number) for number in range(len(found))]
        spool.close()


def test_a_receipt_is_not_kept() -> None:
    (found,) = scan(FORMAT + encode(delivery(1)._replace(receipt=object())))
    assert found.body is not None and decode(found.body).receipt is None
