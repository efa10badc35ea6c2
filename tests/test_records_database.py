"""The database under the records: migrations, several processes, refusals, a server that goes away."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from pm.errors import RecordsError, RecordsUnavailable
from pm.record_tables import SCHEMA, account, metadata
from pm.records import Records
from tests.record_databases import HOUR, T0, Open, another, records, server
from tests.servers.postgres import PASSWORD, Postgres

__all__ = ["another", "records", "server"]


# The database


def test_the_migrations_make_the_tables(another: Open) -> None:
    records = another()
    with records._database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == SCHEMA


def test_the_schema_is_the_newest_migration() -> None:
    import pm.migrations

    config = Config()
    config.set_main_option("script_location", str(Path(str(pm.migrations.__file__)).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == SCHEMA


def test_many_who_open_an_empty_database_at_once(another: Open) -> None:
    start = threading.Barrier(4)

    def open_(n: int) -> Records:
        start.wait()
        return another()

    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(open_, range(4)))
    opened[0].set_tick("job", T0)
    assert all(records.last_tick("job") == T0 for records in opened)


def test_a_newer_database_is_refused(another: Open) -> None:
    records = another()
    with records._database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(RecordsError, match="schema 9999, this pm knows up to"):
        another()


def test_many_threads_share_one_object(records: Records) -> None:
    def work(n: int) -> None:
        for hour in range(5):
            records.set_tick(f"job-{n}", T0 + hour * HOUR)
            records.secret(f"secret-{n}")

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))
    assert {records.last_tick(f"job-{n}") for n in range(12)} == {T0 + 4 * HOUR}


_WRITE_TICKS = """
import sys
from datetime import UTC, datetime, timedelta
from pm.records import Records
with Records.open(sys.argv[1]) as records:
    for hour in range(40):
        records.set_tick(sys.argv[2], datetime(2026, 3, 1, 6, tzinfo=UTC) + timedelta(hours=hour))
"""


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'records.db'}"
    jobs = ["job-0", "job-1", "job-2"]
    processes = [subprocess.Popen([sys.executable, "-c", _WRITE_TICKS, url, job]) for job in jobs]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    with Records.open(url) as records:
        assert {records.last_tick(job) for job in jobs} == {T0 + 39 * HOUR}


def test_the_file_is_its_owners_alone_and_durable(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "records.db"
    with Records.open(f"sqlite:///{path}") as records:
        records.set_tick("job", T0)
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with records._database.read() as connection:
            assert connection.execute(sa.text("PRAGMA journal_mode")).scalar() == "wal"
            assert connection.execute(sa.text("PRAGMA synchronous")).scalar() == 2


def test_records_in_memory_serve_many_threads() -> None:
    with Records.open("sqlite://") as records, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: records.set_tick(f"job-{n}", T0), range(8)))
        assert {records.last_tick(f"job-{n}") for n in range(8)} == {T0}


def test_a_writer_that_never_ends_makes_others_give_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pm.record_database.BUSY_SECONDS", 0.2)
    path = tmp_path / "records.db"
    with Records.open(f"sqlite:///{path}") as records:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RecordsUnavailable, match="try again") as refused:
            records.set_tick("job", T0)
        assert refused.value.retryable
        assert records.last_tick("job") is None
        other.execute("ROLLBACK")
        other.close()
        records.set_tick("job", T0)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nonsense", "is not an address; write sqlite:///data/records.db"),
        ("postgresql+nodriver://pm@host/pm", r"driver is missing .* install pm\[postgres\]"),
        ("sqlite:////proc/nowhere/records.db", "cannot be opened"),
    ],
)
def test_addresses_that_cannot_be(url: str, says: str) -> None:
    with pytest.raises(RecordsError, match=says) as refused:
        Records.open(url)
    assert not refused.value.retryable


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    path.write_bytes(b"something else entirely, and long enough to be taken for a header of a database file")
    before = path.read_bytes()
    with pytest.raises(RecordsError, match="damaged or foreign"):
        Records.open(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_server_that_is_away_can_be_tried_again(server: Postgres) -> None:
    url = server.fresh()
    with Records.open(url, PASSWORD) as records:
        records.set_tick("job", T0)
        server.stop()
        try:
            with pytest.raises(RecordsUnavailable, match=r"try again|Try again") as refused:
                records.set_tick("job", T0 + HOUR)
            assert refused.value.retryable
            with pytest.raises(RecordsUnavailable):
                Records.open(url, PASSWORD)
        finally:
            server.start()
        assert records.last_tick("job") == T0


def test_a_wrong_password_is_told_and_never_shown(server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    url = server.fresh()
    caplog.set_level(logging.DEBUG)
    with pytest.raises(
        RecordsError, match=r"password authentication failed .*; mend records.url and records.password"
    ) as refused:
        Records.open(url, "hunter2hunter2")
    assert not refused.value.retryable
    assert "hunter2hunter2" not in str(refused.value) + caplog.text
    assert "pm:***@127.0.0.1" in str(refused.value)
    with pytest.raises(RecordsError, match=r"mend records.url"):
        Records.open(server.url("nowhere"), PASSWORD)


def test_what_is_on_record_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    code = (
        "import os, sys; from datetime import *; from pm.records import Records\n"
        f"records = Records.open('sqlite:///{path}')\n"
        "records.add_user('ann', 'correct horse')\n"
        "records.set_tick('job', datetime(2026, 3, 1, 6, tzinfo=UTC))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False)
    assert done.returncode == -9
    with Records.open(f"sqlite:///{path}") as records:
        assert records.last_tick("job") == T0
        assert records.check_password("ann", "correct horse") is not None


def test_an_error_shows_no_row(another: Open) -> None:
    """What was to be written may be a password's hash; with --debug the whole chain of errors is printed."""
    records = another()
    row = {"name": "ann", "password": "argon2-of-ann", "role": "viewer", "disabled": False}
    with pytest.raises(RecordsError) as refused, records._database.write() as connection:
        connection.execute(sa.insert(account), row)
        connection.execute(sa.insert(account), row)
    assert "argon2-of-ann" not in "".join(traceback.format_exception(refused.value))
