"""Deliveries on disk while the store is away: appended with checksums, made durable, read back in order.

A spool is a folder of segments. A segment is a mark of its format and then records; a record is a mark, its length, a
CRC-32 of length and body, and the body, one delivery as JSON. Nothing is appended to a segment of an earlier process,
so what a crash left at its end is never built upon. A segment is removed when all of it is taken away again; a crash
before that brings its deliveries a second time, which is harmless since stores keep one row for the same reading.
"""

from __future__ import annotations

import base64
import fcntl
import json
import logging
import math
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pm.domain import Doubtful, Event, EventKind, Quality, Reading
from pm.errors import PmError
from pm.ports import Delivery, Reject

log = logging.getLogger(__name__)

FORMAT = b"pmspool1"
MARK = b"\xffpm\xfe"
"""Begins a record. Bodies are UTF-8, which has no such bytes, so a damaged length cannot hide the next record."""
_HEAD = struct.Struct("<4sII")
SEGMENT_BYTES = 4 * 2**20
"""A segment that has grown to this is followed by another; one is read into memory at a time."""


class SpoolFull(PmError):
    """The spool is at its limit or its disk takes no more; nothing of the call was kept, and it may be tried again."""

    retryable = True


class SpoolLocked(PmError):
    """Another process has this spool."""


def encode(delivery: Delivery) -> bytes:
    """One record of this delivery; all but its receipt, which means nothing after a restart."""
    content = [
        [[r.asset, r.time_us, {point: _number(value) for point, value in r.values.items()}] for r in delivery.readings],
        [[e.asset, e.time_us, str(e.kind), e.code] for e in delivery.events],
        [[r.topic, _text(r.payload), r.reason, r.received_us] for r in delivery.rejects],
        delivery.clock_us,
        delivery.topic,
        _text(delivery.payload),
        delivery.received_us,
        [[d.asset, d.time_us, d.point, d.value, str(d.quality)] for d in delivery.doubtful],
        [list(tag) for tag in delivery.tags],
    ]
    try:
        body = orjson.dumps(content)
    except TypeError:  # half surrogates, integers beyond 64 bits: the store is to refuse these, not the spool
        body = json.dumps(content).encode()
    return _HEAD.pack(MARK, len(body), _checksum(body)) + body


def decode(body: bytes) -> Delivery:
    """The delivery of a record's body. Raises ValueError, TypeError or KeyError for what `encode` never wrote."""
    try:
        content: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        content = json.loads(body)
    readings, events, rejects, clock_us, topic, payload, received_us, doubtful, tags = content
    return Delivery(
        None,
        tuple(Reading(a, t, {point: float(value) for point, value in values.items()}) for a, t, values in readings),
        tuple(Event(a, t, EventKind(kind), code) for a, t, kind, code in events),
        tuple(Reject(t, base64.b64decode(p), reason, at) for t, p, reason, at in rejects),
        clock_us,
        topic,
        base64.b64decode(payload),
        received_us,
        tuple(Doubtful(a, t, point, value, Quality(quality)) for a, t, point, value, quality in doubtful),
        tuple((key, value) for key, value in tags),
    )


@dataclass(frozen=True, slots=True)
class Found:
    """What stands at one place of a segment: a body, or (None) bytes that are no record."""

    start: int
    end: int
    body: bytes | None
    torn: bool = False
    """No record follows: the end of a segment whose writing was cut off."""


def scan(content: bytes) -> Iterator[Found]:
    """The records of a segment in order, and what lies between them damaged. Pure; any bytes are allowed."""
    at = len(FORMAT)
    if content[:at] != FORMAT:
        at = 0
    while at < len(content):
        body = _body(content, at)
        if body is not None:
            yield Found(at, at + _HEAD.size + len(body), body)
            at += _HEAD.size + len(body)
            continue
        following = content.find(MARK, at + 1)
        while following >= 0 and _body(content, following) is None:
            following = content.find(MARK, following + 1)
        end = following if following >= 0 else len(content)
        yield Found(at, end, None, torn=following < 0)
        at = end


class Spool:
    """One folder of segments, held by one process. One thread uses it; the counts may be read from any."""

    def __init__(self, folder: Path, *, limit: int, segment: int = SEGMENT_BYTES) -> None:
        """limit: bytes that the segments may take in all.

        Raises SpoolLocked where another process has the folder, OSError where it cannot be made or read.
        """
        self._folder = folder
        self._limit = limit
        self._segment = segment
        self.held = 0
        """Deliveries that it holds."""
        self.bytes = 0
        """Bytes of its segments."""
        self.torn = 0
        """Segments whose end was cut off, by a crash before its deliveries were acknowledged."""
        self.corrupt = 0
        """Stretches passed over because they were damaged on disk."""
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise SpoolLocked(f"spool {folder} is in use by another process; give each its own ingest.spool") from None
        self._out: int | None = None
        self._sizes: deque[tuple[Path, int]] = deque()
        self._ahead: deque[tuple[Delivery, int]] = deque()
        self._read = 0
        self._next = 0
        try:
            self._recover()
        except BaseException:
            os.close(self._lock)
            raise

    def append(self, deliveries: Sequence[Delivery]) -> None:
        """Keep these behind all that is held; durable when it returns. Raises SpoolFull, and then none is kept."""
        content = b"".join(map(encode, deliveries))
        if not content:
            return
        new = self._out is None
        added = len(content) + (len(FORMAT) if new else 0)
        if self.bytes + added > self._limit:
            raise SpoolFull(f"spool {self._folder} is at its limit of {self._limit} bytes; raise ingest.spool_limit")
        size = 0 if new else self._sizes[-1][1]
        path = self._folder / f"{self._next:016d}.spool" if new else self._sizes[-1][0]
        try:
            if self._out is None:
                self._out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                content = FORMAT + content
            _write_at(self._out, content, size)
            os.fsync(self._out)
            if new:
                self._sync_folder()
        except OSError as error:
            self._take_back(path, size)
            raise SpoolFull(f"spool {self._folder} takes no more ({error.strerror}); make room on its disk") from None
        if new:
            self._next += 1
            self._sizes.append((path, added))
        else:
            self._sizes[-1] = (path, size + added)
        self.bytes += added
        self.held += len(deliveries)
        if size + added >= self._segment:
            self._end_segment()

    def peek(self, limit: int) -> list[Delivery]:
        """Up to `limit` of the oldest deliveries (of one segment); none only where the spool is empty."""
        while not self._ahead and self._sizes:
            self._read_ahead()
            if not self._ahead:
                self._remove_first()  # nothing in it could be read
        if not self._sizes and self.held:
            self.corrupt += 1
            log.error("spool %s lost %d messages to damage on its disk", self._folder, self.held)
            self.held = 0
        return [delivery for delivery, _ in list(self._ahead)[:limit]]

    def drop(self, count: int) -> None:
        """Forget the `count` oldest, which `peek` gave and which are durable elsewhere by now."""
        for _ in range(count):
            _, self._read = self._ahead.popleft()
        self.held -= count
        if not self._ahead and self._sizes and self._read >= self._sizes[0][1]:
            self._remove_first()

    def close(self) -> None:
        """Let another process have it. What it holds stays."""
        self._end_segment()
        os.close(self._lock)

    def _recover(self) -> None:
        for path in sorted(self._folder.glob("*.spool")):
            content = path.read_bytes()
            records = 0
            for found in scan(content):
                records += found.body is not None
                self._note(path, found)
            self._next = int(path.stem) + 1
            self._sizes.append((path, len(content)))
            self.bytes += len(content)
            self.held += records
        if self.held:
            log.info("spool %s holds %d messages from before", self._folder, self.held)

    def _note(self, path: Path, found: Found) -> None:
        size = found.end - found.start
        if found.torn:
            self.torn += 1
            log.warning("spool segment %s ends in %d bytes that were cut off; passed over", path, size)
        elif found.body is None:
            self.corrupt += 1
            log.error("spool segment %s is damaged at byte %d; %d bytes passed over", path, found.start, size)

    def _read_ahead(self) -> None:
        path, size = self._sizes[0]
        with path.open("rb") as file:
            content = file.read(size)
        for found in scan(content):
            if found.body is None or found.start < self._read:
                continue
            try:
                self._ahead.append((decode(found.body), found.end))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                self.held -= 1
                self.corrupt += 1
                log.error("spool segment %s has no delivery at byte %d (%s); passed over", path, found.start, error)
        if self._ahead:  # damaged bytes behind the last record are read with it
            delivery, _ = self._ahead.pop()
            self._ahead.append((delivery, size))

    def _remove_first(self) -> None:
        path, size = self._sizes[0]
        if len(self._sizes) == 1:
            self._end_segment()
        path.unlink(missing_ok=True)
        self._sizes.popleft()
        self.bytes -= size
        self._read = 0
        self._sync_folder()

    def _end_segment(self) -> None:
        if self._out is not None:
            os.close(self._out)
            self._out = None

    def _take_back(self, path: Path, size: int) -> None:
        """As before the call. Where even that fails, a restart brings what nobody acknowledged: twice, not lost."""
        if self._out is None:
            return
        try:
            os.ftruncate(self._out, size)
            if not size:
                path.unlink()
        except OSError as error:
            log.warning("spool segment %s could not be cut back: %s", path, error.strerror)
            self._next += not size  # its name is taken
        self._end_segment()

    def _sync_folder(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _body(content: bytes, at: int) -> bytes | None:
    if len(content) - at < _HEAD.size:
        return None
    mark, length, checksum = _HEAD.unpack_from(content, at)
    start = at + _HEAD.size
    if mark != MARK or length > len(content) - start:
        return None
    body = content[start : start + length]
    return body if _checksum(body) == checksum else None


def _checksum(body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(len(body).to_bytes(4, "little")))


def _write_at(file: int, content: bytes, at: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _text(payload: bytes) -> str:
    return base64.b64encode(payload).decode()
