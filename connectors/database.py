"""Connections to the embedded store's SQLite file: made, versioned, shared among threads, their errors told plainly."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from connectors.old_formats import from_format_1
from pm.errors import StoreError, StoreUnavailable

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
_APPLICATION_ID = 0x706D7264  # "pmrd", so that another program's SQLite file is not taken for a store
_PAGE_BYTES = 8192  # a row of 200 points stays in its page; 4096 would spill it from 100 on
_BUSY_SECONDS = 10.0
_WAL_LIMIT_BYTES = 64 * 2**20
_WAL_TOO_LONG = 4
"""A -wal file of so many times its limit is emptied by force, which waits for those who read."""
_WAL_WAIT_SECONDS = 3.0
"""For so long; our own reads hold one state for 2 s at most."""
_WAL_AGAIN_SECONDS = 60.0
"""After a vain wait."""
_CHECKPOINT_PAGES = _WAL_LIMIT_BYTES // _PAGE_BYTES  # a page that every batch touches is then written back once of many

# `layout` and `cells`: connectors.packing. `points` of an asset: connectors.layouts.
# The check is made once more for every row by PRAGMA integrity_check.
READINGS = """
CREATE TABLE readings (
    asset_id INTEGER NOT NULL, time INTEGER NOT NULL, layout INTEGER NOT NULL, cells BLOB NOT NULL,
    PRIMARY KEY (asset_id, time),
    CHECK (CASE layout WHEN 0 THEN length(cells) > 0 AND length(cells) % 24 = 0 ELSE length(cells) = 8 + 8 * layout END)
) WITHOUT ROWID, STRICT
"""
_SCHEMA = f"""
CREATE TABLE assets (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, points BLOB NOT NULL DEFAULT x'') STRICT;
CREATE TABLE points (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
{READINGS.strip()};
CREATE TABLE conflicts (
    asset_id INTEGER NOT NULL, time INTEGER NOT NULL, point_id INTEGER NOT NULL, value REAL NOT NULL,
    PRIMARY KEY (asset_id, time, point_id, value)
) WITHOUT ROWID, STRICT;
CREATE TABLE events (
    time INTEGER NOT NULL, asset_id INTEGER NOT NULL, kind TEXT NOT NULL, code TEXT NOT NULL,
    PRIMARY KEY (time, asset_id, kind, code)
) WITHOUT ROWID, STRICT;
CREATE INDEX events_by_asset ON events (asset_id, time);
"""


class Database:
    """One SQLite file in WAL mode, or a database in memory, for several threads and (the file) several processes.

    One connection writes, under a lock; reads borrow a connection of their own, so that they neither wait for the
    writer nor see half of a batch. In memory there is one connection for all, one at a time.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._write_lock = threading.RLock()
        self._idle: list[sqlite3.Connection] = []
        self._idle_lock = threading.Lock()
        self._closed = False
        self._next_wait = 0.0
        with self._told():
            if path is not None:
                _make_file(path)
            self._writer = self._connect()
            try:
                self._prepare()
            except BaseException:
                self._writer.close()
                raise

    @property
    def name(self) -> str:
        return str(self._path) if self._path is not None else "store in memory"

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: durable when the block ends, undone when it raises."""
        with self._write_lock, self._told():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
                self._bound_wal()
            except BaseException:
                if self._writer.in_transaction:  # SQLite undoes some failures (disk full) by itself
                    self._writer.execute("ROLLBACK")
                raise

    def _bound_wal(self) -> None:
        """Empty a -wal file that has outgrown its limit: reads that overlap keep it from being begun anew by itself.

        Who reads one state for longer than is waited for is told of; the file goes on growing until that ends.
        """
        if self._path is None or time.monotonic() < self._next_wait:
            return
        wal = Path(f"{self._path}-wal")
        try:
            if wal.stat().st_size <= _WAL_TOO_LONG * _WAL_LIMIT_BYTES:
                return
            self._writer.execute(f"PRAGMA busy_timeout = {int(1000 * _WAL_WAIT_SECONDS)}")
            try:
                (busy, _, _) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {int(1000 * _BUSY_SECONDS)}")
            if not busy:
                return
            why = f"some process has been reading one state of the store for longer than {_WAL_WAIT_SECONDS:g} s"
        except (sqlite3.Error, OSError) as error:  # what was written is durable all the same
            why = str(error)
        self._next_wait = time.monotonic() + _WAL_AGAIN_SECONDS
        size = wal.stat().st_size // 2**20 if wal.exists() else 0
        log.warning(
            "%s has grown to %d MiB and goes on growing: %s; it shrinks when that (a backup, a sqlite3 left open) ends",
            wal,
            size,
            why,
        )

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one state of the store throughout the block."""
        if self._path is None:
            with self._write_lock, self._told():
                yield self._writer
            return
        with self._told():
            connection = self._borrow()
            try:
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                connection.close()
                raise
            self._give_back(connection)

    def close(self) -> None:
        """Wait for the writer, then close; reads under way end in an error. Twice is once."""
        with self._write_lock, self._idle_lock:
            self._closed = True
            for connection in (*self._idle, self._writer):
                connection.close()
            self._idle.clear()

    def _borrow(self) -> sqlite3.Connection:
        with self._idle_lock:
            if self._closed:
                raise sqlite3.ProgrammingError("closed")
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._idle_lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path if self._path is not None else ":memory:",
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,  # each is used by one thread at a time: by the lock, or borrowed
            cached_statements=512,
        )
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA cache_size = -32768")
        if self._path is None:
            connection.execute("PRAGMA synchronous = OFF")
        else:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        return connection

    def _prepare(self) -> None:
        """Make the tables in an empty file; refuse a file that is not this store's or is newer.

        A file that is a store already is opened without a write, so that no writer at work holds it up.
        """
        if self._path is not None:
            if self._is_empty():  # the one time that this can be chosen
                self._writer.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._writer.execute("PRAGMA journal_mode = WAL")
        if self._is_empty():
            with self.writing() as connection:
                if self._is_empty():  # another process may have been quicker
                    for statement in _SCHEMA.split(";\n"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                    log.debug("made the tables of %s", self.name)
        (application,) = self._writer.execute("PRAGMA application_id").fetchone()
        if application != _APPLICATION_ID:
            raise StoreError(f"{self.name} is a SQLite file of another program; name another file in store.path")
        if self._version() == 1:
            self._rewrite()
        if self._version() != SCHEMA_VERSION:
            raise StoreError(
                f"{self.name} has store format {self._version()}, this pm knows {SCHEMA_VERSION}; "
                "use the version of pm that wrote it"
            )

    def _rewrite(self) -> None:
        """Bring a store of format 1 to the present one, whole or not at all, and give back what that frees."""
        with self.writing() as connection:
            if self._version() != 1:  # another process may have been quicker
                return
            log.info("%s has store format 1; rewriting it, which takes about a minute for each GiB", self.name)
            from_format_1(connection, READINGS)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        try:
            self._writer.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._writer.execute("VACUUM")
        except sqlite3.OperationalError as error:  # in use by another process, or no room for it; nothing depends on it
            log.warning("%s is rewritten, but its file was not shortened (%s)", self.name, error)
        log.info("%s rewritten to store format %d", self.name, SCHEMA_VERSION)

    def _version(self) -> int:
        return int(self._writer.execute("PRAGMA user_version").fetchone()[0])

    def _is_empty(self) -> bool:
        return bool(self._writer.execute("SELECT count(*) = 0 FROM sqlite_schema").fetchone()[0])

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as ours: what cannot be reached now apart from what needs a person."""
        try:
            yield
        except sqlite3.Error as error:
            raise told(error, self.name) from error
        except OSError as error:
            raise StoreError(f"{self.name}: {error.strerror}; mend store.path or the rights on it") from error


def _make_file(path: Path) -> None:
    """The file and its folder, readable by their owner alone; SQLite gives its -wal and -shm files the same rights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    # A file that is there is never opened here: POSIX forgets all of a process's locks on a file when any descriptor
    # of it is closed, and another store of this process may hold some.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def told(error: sqlite3.Error, name: str) -> StoreError:
    """The StoreError that says what an error of SQLite means and how to mend it."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the low byte: what happened; the rest: where
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreUnavailable(f"{name} is busy: another process has held it for {_BUSY_SECONDS:g} s")
        case sqlite3.SQLITE_FULL:
            return StoreUnavailable(f"{name}: disk full; free space on its disk, what is owed is kept until then")
        case sqlite3.SQLITE_IOERR:
            return StoreUnavailable(f"{name}: the disk fails to read or write ({error}); check disk and free space")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreError(f"{name} is damaged or no store ({error}); put a backup in its place or move it away")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return StoreError(f"{name} cannot be written ({error}); mend the rights on the file and its folder")
    return StoreError(f"{name}: {error}")
