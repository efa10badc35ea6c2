"""A backup made while others write holds all that was acknowledged before; a restore is whole or changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pandas as pd
import pytest

from connectors.embedded import EmbeddedStore
from connectors.spool import Spool
from pm import config, restore
from pm.backup import back_up
from pm.backup_archive import BackupReader
from pm.domain import EARLIEST, LATEST
from pm.edges import open_records, open_store
from pm.errors import BackupError
from pm.ports import Delivery
from pm.records import ModelRow
from tests.servers.programs import wait_until
from tests.store_contract import event, everything, reading
from tests.test_embedded_store import child

NOW = datetime(2026, 11, 25, 9, tzinfo=UTC)
TOML = """
[store]
path = "data/readings.db"
token = "s3cret-token"
[records]
url = "sqlite:///data/records.db"
[[mqtt.more]]
host = "127.0.0.2"
password = "s3cret-too"
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plant with readings, events, a user, two models and a message that waits on disk: its folder."""
    folder = tmp_path_factory.mktemp("template") / "plant"
    folder.mkdir()
    (folder / "pm.toml").write_text(TOML)
    configuration = config.load(folder / "pm.toml")
    store = open_store(configuration)
    store.write([reading("a", hour, x=hour / 7) for hour in range(100)], [event("a", 3, "failure", "f")])
    store.write([reading("a", 5, x=-1.0), reading("b", 1, y=2.0)])
    store.close()
    with open_records(configuration) as records:
        records.add_user("ann", "correct horse", role="admin")
        for name in ("one", "two"):
            model = configuration.models.dir / name
            (model / "deep").mkdir(parents=True)
            (model / "weights").write_bytes(name.encode() * 1000)
            (model / "deep" / "scales.json").write_text("{}")
            records.add_model(ModelRow(f"{name}@1", str(model), created_at=NOW, trained_until=NOW))
    spool = Spool(configuration.models.dir.parent / "spool" / "pm-ingest-mqtt", limit=2**20)
    spool.append([Delivery(None, readings=(reading("late", 1, x=1.0),))])
    spool.close()
    return folder


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    """The pm.toml of a plant of its own."""
    folder = tmp_path / "plant"
    shutil.copytree(template, folder)
    with closing(sqlite3.connect(folder / "data" / "records.db")) as connection, connection:
        connection.execute("UPDATE model SET path = replace(path, ?, ?)", (str(template), str(folder)))
    return folder / "pm.toml"


@pytest.fixture
def backup(path: Path, tmp_path: Path) -> Path:
    return back_up(config.load(path), tmp_path / "backup.zip", config_path=path, at=NOW).path


def tree(folder: Path) -> dict[str, bytes]:
    files = (entry for entry in sorted(folder.rglob("*")) if entry.is_file() and not entry.name.endswith("-shm"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def bring_back(backup: Path, folder: Path, *, replace: bool = False) -> restore.Restored:
    return restore.restore(backup, config_path=folder / "pm.toml", replace=replace, at=NOW)


def test_what_is_restored_is_what_was_backed_up(path: Path, backup: Path, tmp_path: Path) -> None:
    before = everything(open_store(config.load(path)))
    conflicts = open_store(config.load(path)).conflicts()
    shutil.rmtree(tmp_path / "plant")  # the machine is gone
    restored = bring_back(backup, tmp_path / "new")
    configuration = config.load(tmp_path / "new" / "pm.toml")
    store = open_store(configuration)
    for first, second in zip(before, everything(store), strict=True):
        pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(conflicts, store.conflicts())
    with open_records(configuration) as records:
        assert [user.name for user in records.users()] == ["ann"]
        assert records.check_password("ann", "correct horse")
        for row in records.models():
            folder = Path(row.path)
            assert folder.parent == configuration.models.dir
            assert (folder / "weights").read_bytes() == folder.name.encode() * 1000
            assert (folder / "deep" / "scales.json").read_text() == "{}"
    spool = Spool(configuration.models.dir.parent / "spool" / "pm-ingest-mqtt", limit=2**20)
    assert [delivery.readings for delivery in spool.peek(10)] == [(reading("late", 1, x=1.0),)]
    spool.close()
    assert restored.manifest.store == {"kind": "embedded", "format": 2, "readings": 101, "events": 1}
    assert not list((tmp_path / "new").rglob("*restor*"))
    assert configuration.mqtt.more[0].host == "127.0.0.2"
    assert all(place.stat().st_mode & 0o077 == 0 for place in restored.places if place.is_file())


def test_no_secret_of_the_configuration_is_in_a_backup_and_the_file_is_private(path: Path, tmp_path: Path) -> None:
    text = TOML.replace("sqlite:///data/records.db", "postgresql+pg8000://pm:s3cret-url@db/pm")
    path.write_text(text.replace("[records]", "[records] # s3cret"))
    whole = config.load(path)
    with_server = whole.model_copy(update={"records": whole.records.model_copy(update={"url": "sqlite://"})})
    backup = back_up(with_server, tmp_path / "other.zip", config_path=path, at=NOW)
    with zipfile.ZipFile(backup.path) as archive:
        written = archive.read("pm.toml").decode()
    assert "s3cret" not in written
    assert "postgresql+pg8000://pm@db/pm" in written
    assert set(backup.manifest.secrets) == {"store.token", "mqtt.more.0.password", "the password in records.url"}
    assert any("pg_dump" in lacking for lacking in backup.manifest.not_covered)
    assert backup.path.stat().st_mode & 0o777 == 0o600


def test_influxdb_is_not_covered_and_a_backup_says_so(path: Path, tmp_path: Path) -> None:
    path.write_text(TOML.replace("[store]", '[store]\nkind = "influxdb"'))
    backup = back_up(config.load(path), tmp_path / "b.zip", config_path=path, at=NOW)
    [lacking] = backup.manifest.not_covered
    assert "influxd backup" in lacking
    bring_back(backup.path, tmp_path / "new")
    assert not (tmp_path / "new" / "data" / "readings.db").exists()
    assert (tmp_path / "new" / "data" / "records.db").exists()


def test_the_records_remember_the_last_backup(path: Path, backup: Path) -> None:
    with open_records(config.load(path)) as records:
        assert records.last_tick("backup") == NOW


def test_nothing_is_overwritten_unless_asked_and_then_kept_beside(path: Path, backup: Path, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match=r"backup\.zip exists already"):
        back_up(config.load(path), backup, config_path=path, at=NOW)
    store = open_store(config.load(path))
    store.write([reading("later", 1, x=1.0)])
    before = tree(tmp_path / "plant")
    with pytest.raises(BackupError, match=r"is there already.*--replace"):
        bring_back(backup, tmp_path / "plant")
    with pytest.raises(BackupError, match=r"readings\.db is in use; stop pm"):
        bring_back(backup, tmp_path / "plant", replace=True)
    assert tree(tmp_path / "plant") == before
    store.close()
    restored = bring_back(backup, tmp_path / "plant", replace=True)
    assert open_store(config.load(path)).counts()["readings"] == 101
    [aside] = [place for place in restored.aside if "readings.db" in place.name]
    assert EmbeddedStore(aside).counts()["readings"] == 102
    assert path.read_text() == TOML


@pytest.mark.parametrize("name", ["readings.db", "records.db", "models/one/weights", "manifest.json", "spool"])
def test_a_damaged_backup_is_refused_by_name_and_leaves_nothing(backup: Path, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(backup) as archive:
        [info] = [info for info in archive.infolist() if info.filename.startswith(name)]
        start, middle = info.header_offset + 30 + len(info.filename) + 20, info.compress_size // 2
    content = bytearray(backup.read_bytes())
    content[start + middle] ^= 0xFF
    backup.write_bytes(content)
    (tmp_path / "new").mkdir()
    with pytest.raises(BackupError, match=name):
        bring_back(backup, tmp_path / "new")
    assert tree(tmp_path / "new") == {}


def rewritten(backup: Path, change: Callable[[dict[str, object]], None]) -> Path:
    """The same backup with another manifest."""
    other = backup.with_name("other.zip")
    with zipfile.ZipFile(backup) as archive, zipfile.ZipFile(other, "w") as out:
        for info in archive.infolist():
            content = archive.read(info)
            if info.filename == "manifest.json":
                told = json.loads(content)
                change(told)
                content = json.dumps(told).encode()
            out.writestr(info.filename, content)
    return other


def test_what_a_later_version_made_or_a_stranger_is_refused(backup: Path, tmp_path: Path) -> None:
    for change in ({"format": 2}, {"store": {"format": 3}}, {"records": {"schema": "9999"}}):
        with pytest.raises(
            BackupError, match=r"this pm knows .*; ?restore it with pm 7|this pm knows .*restore it with"
        ):
            bring_back(rewritten(backup, lambda told, c=change: told.update({"pm": "7.0", **c})), tmp_path / "new")  # type: ignore[misc]
    escaping = rewritten(backup, lambda told: told["files"].update({"../x": {"bytes": 1, "sha256": ""}}))  # type: ignore[attr-defined]
    with pytest.raises(BackupError, match="leads out"):
        bring_back(escaping, tmp_path / "new")
    other = rewritten(backup, lambda told: told["files"]["records.db"].update({"sha256": "0" * 64}))  # type: ignore[index]
    with pytest.raises(BackupError, match=r"records\.db in it is damaged \(its checksum differs\)"):
        bring_back(other, tmp_path / "new")
    backup.write_bytes(backup.read_bytes()[:-200])
    with pytest.raises(BackupError, match="was cut short"):
        bring_back(backup, tmp_path / "new")
    assert not list(tmp_path.glob("new/**/*.db"))


def test_a_damaged_store_makes_no_backup(path: Path, tmp_path: Path) -> None:
    data = tmp_path / "plant" / "data" / "readings.db"
    whole = data.read_bytes()
    data.write_bytes(whole[:16384] + os.urandom(8192) + whole[24576:])
    with pytest.raises(BackupError, match=r"readings\.db cannot be copied"):
        back_up(config.load(path), tmp_path / "out" / "b.zip", config_path=path, at=NOW)
    assert list((tmp_path / "out").iterdir()) == []


_WRITER = """
import sys, time
from pathlib import Path
from connectors.embedded import EmbeddedStore
from pm.domain import Reading
store = EmbeddedStore(Path(sys.argv[1]))
with Path(sys.argv[2]).open("w") as acknowledged:
    for start in range(0, 10**9, 7):
        store.write([Reading("n", n, {"x": float(n), f"new {n // 50}": 1.0}) for n in range(start, start + 7)])
        print(start + 6, file=acknowledged, flush=True)
        time.sleep(0.005)
"""

_WORK = """
import os, sys, time
from datetime import UTC, datetime
from pathlib import Path
from pm import config
from pm.backup import back_up
from pm.restore import restore

def make(path, target):
    back_up(config.load(path), target, config_path=path, at=datetime.now(UTC))

def bring_back(backup, path):
    restore(backup, config_path=path, replace=False, at=datetime.now(UTC))

def cut_off(backup, path):
    rename, seen = Path.rename, []
    def cut(one, to):
        seen.append(to)
        return os.kill(os.getpid(), 9) if len(seen) == 3 else rename(one, to)
    Path.rename = cut
    bring_back(backup, path)

for line in sys.stdin:
    work, seconds, *paths = line.split()
    worker = os.fork()  # all is imported by now, so that a kill hits the work
    if not worker:
        globals()[work](*map(Path, paths))
        os._exit(0)
    if float(seconds):
        time.sleep(float(seconds))
        os.kill(worker, 9)
    os.waitpid(worker, 0)
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def work_and_kill() -> Iterator[Callable[[str, float, Path, Path], None]]:
    """Do something in a process of its own, and kill that after some seconds; with 0 let it end."""
    with child(_WORK) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run(work: str, seconds: float, *paths: Path) -> None:
            stdin.write(f"{work} {seconds} {' '.join(map(str, paths))}\n")
            stdin.flush()
            assert stdout.readline() == "done\n"

        yield run
        stdin.close()


Kill = Callable[[str, float, Path, Path], None]


def test_backups_beside_a_writer_killed_at_random_hold_all_that_was_acknowledged(
    path: Path, tmp_path: Path, work_and_kill: Kill
) -> None:
    data, out, log = tmp_path / "plant" / "data" / "readings.db", tmp_path / "out", tmp_path / "acknowledged"
    out.mkdir()
    chance = Random(5)
    cut_off = 0
    with child(_WRITER, str(data), str(log)) as writer:
        wait_until(lambda: log.exists() and log.stat().st_size > 0, "the writer")
        for name in ("warm.zip", "whole.zip"):
            began = time.monotonic()
            work_and_kill("make", 0, path, out / name)
            whole = time.monotonic() - began
        for number in range(8):
            if number == 5:  # and the writer is killed too, in the midst of a batch
                os.kill(writer.pid, signal.SIGKILL)
            written = out / f"{number}.zip"
            acknowledged = int(log.read_text().split("\n")[-2])
            latest = 0.1 * whole if number % 2 else whole  # some early, whatever else the machine does
            work_and_kill("make", 0 if number in (3, 6) else chance.uniform(0.001, latest), path, written)
            if not written.exists():
                cut_off += 1
                continue
            folder = tmp_path / f"new-{number}"
            bring_back(written, folder)
            store = EmbeddedStore(folder / "data" / "readings.db")
            numbers = store.readings(EARLIEST, LATEST, ["n"], ["x"])["x"].astype(int).tolist()
            store.close()
            assert numbers == list(range(len(numbers)))
            assert len(numbers) % 7 == 0
            assert len(numbers) > acknowledged
    assert 0 < cut_off <= 6
    assert all(entry.suffix == ".zip" or entry.name.startswith(".pm-backup-") for entry in out.iterdir())
    back_up(config.load(path), out, config_path=path, at=NOW)
    assert not list(out.glob(".*")), "what killed backups left is cleaned away"


def test_a_restore_killed_at_random_is_none_or_is_made_up_by_the_next(
    backup: Path, tmp_path: Path, work_and_kill: Kill
) -> None:
    chance = Random(3)
    for number in range(6):
        folder = tmp_path / f"new-{number}"
        work_and_kill("bring_back", chance.uniform(0.0, 0.06), backup, folder / "pm.toml")
        if not (folder / "pm.toml").exists():  # the last to be put into place
            bring_back(backup, folder)
        store = open_store(config.load(folder / "pm.toml"))
        assert store.counts() == {"readings": 101, "events": 1}
        store.close()


def test_a_restore_cut_off_between_two_renamings_is_finished_by_the_next(
    backup: Path, tmp_path: Path, work_and_kill: Kill
) -> None:
    folder = tmp_path / "new"
    work_and_kill("cut_off", 0, backup, folder / "pm.toml")
    assert (folder / "data" / ".restore.json").exists()
    with pytest.raises(BackupError, match="is there already"):  # finished first, and then in the way of another
        bring_back(backup, folder)
    store = open_store(config.load(folder / "pm.toml"))
    assert store.counts() == {"readings": 101, "events": 1}
    store.close()


def test_a_restore_that_fails_half_way_changes_nothing(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, count = Path.rename, [0]

    def failing(one: Path, to: Path) -> Path:
        count[0] += 1
        if count[0] == 4:
            raise OSError(28, "No space left on device", str(to))
        return rename(one, to)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(BackupError, match="No space left"):
            bring_back(backup, tmp_path / "new")
    assert tree(tmp_path / "new") == {}
    with BackupReader(backup) as archive:
        assert archive.manifest.plant == "plant"
