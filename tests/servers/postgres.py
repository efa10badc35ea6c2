"""A real PostgreSQL on a free loopback port, with a password, in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.servers.programs import free_port, listening, program, stop, wait_until

PASSWORD = "a password of the tests"


@dataclass
class Postgres:
    """A server that tests may stop and start; `fresh` gives each test an empty database."""

    folder: Path
    port: int
    user: str | None
    """Who runs it: PostgreSQL refuses root."""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "60",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [_binary("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port), *options],
            stdout=log,
            stderr=log,
            user=self.user,
            cwd=self.folder,
        )
        wait_until(lambda: listening(self.port) and self._answers(), "PostgreSQL")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(2)  # "fast": open sessions are ended
            stop(self._process)
            self._process = None

    def url(self, database: str) -> str:
        return f"postgresql+pg8000://pm@127.0.0.1:{self.port}/{database}"

    def fresh(self) -> str:
        """The address of a database without a table; what the test before left in it is gone."""
        self._psql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return self.url("postgres")

    def _answers(self) -> bool:
        try:
            self._psql("SELECT 1")
        except subprocess.CalledProcessError:
            return False
        return True

    def _psql(self, statement: str) -> None:
        address = f"postgresql://pm@127.0.0.1:{self.port}/postgres"
        subprocess.run(
            [_binary("psql"), "-q", "-c", statement, address],
            env={**os.environ, "PGPASSWORD": PASSWORD},
            check=True,
            capture_output=True,
        )


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A running server; its folder goes when the block ends. Skips where PostgreSQL is not installed."""
    initdb = _binary("initdb")
    user = _not_root()
    # Not under pytest's folder: that is closed to the user whom the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="pm-postgres-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        subprocess.run(
            [initdb, "-D", str(folder / "data"), "-U", "pm", "-A", "scram-sha-256", "--pwfile", str(password), "-N"],
            check=True,
            capture_output=True,
            user=user,
            cwd=folder,
        )
        server = Postgres(folder, free_port(), user)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _binary(name: str) -> str:
    """Debian keeps the server's programs off the path, by version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    return str(found[-1]) if found else program(name, "postgresql")


def _not_root() -> str | None:
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"
