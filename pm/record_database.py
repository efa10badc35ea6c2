"""The database under the records: opened, brought to the present schema, and its errors told in our words."""

from __future__ import annotations

import logging
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.pool import QueuePool

from pm.errors import RecordsError, RecordsUnavailable
from pm.record_tables import SCHEMA

log = logging.getLogger(__name__)

BUSY_SECONDS = 30
"""How long a writer waits for another before it gives up with RecordsUnavailable."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_ROWS_A_STATEMENT = 500
_MISTAKEN = {"28", "3D"}
"""SQLSTATE classes of a login that is refused and a database that is not there."""
_PASSING = {"08", "40", "53", "55", "57"}
"""SQLSTATE classes that pass: connection, rollback of a deadlock, resources, a lock, an operator at work."""
_MIGRATION_LOCK = 7_204_733_160_518
"""PostgreSQL advisory lock that lets one process migrate at a time; any number that nobody else uses."""


class Database:
    """Connections for reading and for writing, safe for many threads and many processes."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._writer = engine.execution_options(writes=True)
        self.name = name
        """The address without its password, for messages."""

    @classmethod
    def open(cls, url: str, password: str | None = None) -> Database:
        """Connect to `url` and migrate. Raises RecordsUnavailable when it cannot be reached, RecordsError else."""
        try:
            address = make_url(url)
        except exc.ArgumentError:
            raise RecordsError(
                f"records.url {url.partition('@')[0].partition(':')[0]}:... is not an address; "
                "write sqlite:///data/records.db or postgresql+pg8000://user@host/pm"
            ) from None
        if password:
            address = address.set(password=password)
        name = address.render_as_string(hide_password=True)
        try:
            engine = _sqlite(address) if address.get_backend_name() == "sqlite" else _server(address)
        except (ImportError, exc.NoSuchModuleError) as error:
            raise RecordsError(
                f"records database {name}: its driver is missing ({error}); install pm[postgres], "
                "and write postgresql+pg8000:// in records.url"
            ) from None
        database = cls(engine, name)
        database._migrate()
        return database

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection whose queries all see one state (SQLite) or the latest committed (PostgreSQL)."""
        with self._told(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: committed when the block ends, rolled back when it raises."""
        with self._told(), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def _migrate(self) -> None:
        """Bring the database to SCHEMA, once, however many processes open it together."""
        with self.read() as connection:
            present = _revision(connection)
        if present == SCHEMA:
            return
        # Imported here: a database that is up to date opens without it.
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with self.write() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            present = _revision(connection)
            if present == SCHEMA:
                return
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, SCHEMA)
            except CommandError as error:
                raise RecordsError(
                    f"records database {self.name} has schema {present}, this pm knows up to {SCHEMA} ({error}); "
                    "run the newer pm, or restore the backup made before it was upgraded"
                ) from None
        log.info("records database %s migrated from schema %s to %s", self.name, present or "none", SCHEMA)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            raise self._in_our_words(error) from error
        except exc.TimeoutError as error:
            raise RecordsUnavailable(
                f"records database {self.name}: every connection has been in use for {BUSY_SECONDS} s; try again"
            ) from error

    def _in_our_words(self, error: exc.DBAPIError) -> RecordsError:
        """What the driver says, with the mend; whether trying again helps decides the class."""
        detail = _detail(error.orig)
        text = f"records database {self.name}: {detail.get('text', error.orig)}"
        code = detail.get("code", "")
        if code[:2] in _MISTAKEN:
            return RecordsError(f"{text}; mend records.url and records.password")
        if code[:2] in _PASSING:
            return RecordsUnavailable(f"{text}; try again")
        if error.connection_invalidated or isinstance(error, exc.InterfaceError):
            return RecordsUnavailable(f"{text}; is the server running at this address? Try again")
        if "locked" in text or "busy" in text:
            return RecordsUnavailable(f"{text}; another process has been writing for {BUSY_SECONDS} s, try again")
        if "unable to open" in text or "readonly" in text:
            return RecordsError(f"{text}; give this user the right to write the file and its folder")
        if "malformed" in text or "not a database" in text:
            return RecordsError(f"{text}; the file is damaged or foreign, restore a backup or name another file")
        return RecordsError(text)


def lock(connection: Connection, table: sa.Table) -> None:
    """Let one transaction at a time decide over `table`; readers go on. In SQLite every writer is alone already."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE"))


def insert_rows(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows whose keys are all new."""
    _execute(connection, sa.insert(table), rows)


def insert_new(connection: Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is there already; whether it was new."""
    return connection.execute(_insert(connection, table).on_conflict_do_nothing(), row).rowcount == 1


def insert_missing(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows whose keys are not there already, whoever else does the same meanwhile."""
    _execute(connection, _insert(connection, table).on_conflict_do_nothing(), rows)


def replace_rows(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, taking the place of those with the same primary key."""
    if not rows:
        return
    insert = _insert(connection, table)
    key = [column.name for column in table.primary_key]
    others = {name: insert.excluded[name] for name in rows[0] if name not in key}
    _execute(connection, insert.on_conflict_do_update(index_elements=key, set_=others), rows)


def _insert(connection: Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _execute(connection: Connection, insert: sa.Insert, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    if connection.dialect.name != "postgresql":
        connection.execute(insert, list(rows))
        return
    # pg8000 would make a round trip of every row.
    for start in range(0, len(rows), _ROWS_A_STATEMENT):
        connection.execute(insert.values(list(rows[start : start + _ROWS_A_STATEMENT])))


def _detail(error: Any) -> dict[str, str]:
    """Code and text of what PostgreSQL answered, as pg8000 hands it on; empty for anything else."""
    fields = error.args[0] if getattr(error, "args", None) else None
    if isinstance(fields, dict) and "C" in fields:
        return {"code": str(fields["C"]), "text": str(fields.get("M", fields["C"]))}
    return {}


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _server(address: URL) -> Engine:
    return sa.create_engine(
        address,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_timeout=BUSY_SECONDS,
        connect_args={"timeout": BUSY_SECONDS},
    )


def _sqlite(address: URL) -> Engine:
    """SQLite in WAL mode: readers never wait for the writer, and what was committed survives a power cut."""
    in_memory = address.database in {None, "", ":memory:"}
    if not in_memory:
        _create(Path(str(address.database)))
    engine = sa.create_engine(
        address,
        hide_parameters=True,  # in errors: they may be password hashes
        poolclass=QueuePool,
        # A database in memory lives in its one connection.
        pool_size=1 if in_memory else 5,
        max_overflow=0 if in_memory else 10,
        pool_timeout=BUSY_SECONDS,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions late; _begin does it
        _switch_to_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and writes later cannot wait for another writer (SQLITE_BUSY_SNAPSHOT).
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _switch_to_wal(connection: Any) -> None:
    """Of several connections that find a new file and switch at once, SQLite refuses some without waiting."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _create(path: Path) -> None:
    """The file, readable by its owner alone: it holds password hashes and the key that signs sessions.

    It is linked into place whole, and one that is there is never opened here: closing it would drop the locks that
    another connection of this process holds on it (POSIX forgets a process's locks when any descriptor is closed).
    """
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, made = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        os.close(descriptor)
        try:
            os.link(made, path)
        except FileExistsError:
            log.debug("records database %s was made by another process meanwhile", path)
        finally:
            Path(made).unlink()
    except OSError as error:
        raise RecordsError(
            f"records database {path} cannot be opened ({error.strerror}); "
            "give this user the right to write the file and its folder, or change records.url"
        ) from None


def sqlite_file(url: str) -> Path | None:
    """The file of an address of SQLite; None for a database in memory or on a server."""
    address = make_url(url)
    if address.get_backend_name() != "sqlite" or address.database in {None, "", ":memory:"}:
        return None
    return Path(str(address.database))
