"""A SQLite file that others go on writing, copied as of one moment; and whether anybody has one open."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

_BUSY_SECONDS = 30.0
_PAGES_A_STEP = 4096
"""Between two steps Ctrl-C is heard."""


def snapshot(source: Path, target: Path) -> None:
    """Copy `source` as of one moment to `target`, which must not exist: one file, durable, readable by its owner alone.

    Writers go on meanwhile; what they write stays in the -wal file of the source until the copy is done. The copy is
    checked. Raises sqlite3.Error (damaged, no room, busy) or OSError.
    """
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    # Nobody else knows of the copy, and the file system that a backup goes to may have no locks.
    with closing(_connect(source, "rw")) as live, closing(_connect(target, "rw", vfs="unix-none")) as copy:
        copy.execute("PRAGMA synchronous = OFF")
        copy.execute("PRAGMA locking_mode = EXCLUSIVE")  # the copy of a file in WAL mode wants locks or this
        live.execute("BEGIN")
        live.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # from here on it is this moment
        live.backup(copy, pages=_PAGES_A_STEP)
        live.execute("ROLLBACK")
        copy.execute("PRAGMA journal_mode = DELETE")
        (said,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(said)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def at_rest(path: Path) -> bool:
    """Whether no other process has the SQLite file open; what its -wal file held is put into it then.

    True as well for a file that is too damaged to tell.
    """
    try:
        with closing(_connect(path, "rw", seconds=0.5)) as connection:
            # Every connection to a file in WAL mode holds a lock on it for as long as it is open.
            return bool(connection.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",))
    except sqlite3.OperationalError as error:
        return (error.sqlite_errorcode & 0xFF) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    except sqlite3.DatabaseError:
        return True


def _connect(path: Path, mode: str, *, vfs: str = "", seconds: float = _BUSY_SECONDS) -> sqlite3.Connection:
    address = f"file:{quote(str(path.absolute()))}?mode={mode}{f'&vfs={vfs}' if vfs else ''}"
    return sqlite3.connect(address, uri=True, timeout=seconds, isolation_level=None)
