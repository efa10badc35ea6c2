"""`pm backup`: what the service holds on this machine, as of now, in one file, while it goes on running.

Each part is as of its own moment, so the order is: records, models, messages on disk, readings. What the records speak
of, and what went from disk into the store meanwhile, is then in the readings.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import SecretStr

from connectors.snapshots import snapshot
from pm.backup_archive import CONFIGURATION, READINGS, RECORDS, BackupWriter, Manifest
from pm.config import Config, Section
from pm.edges import BACKUP_TICK, open_records
from pm.errors import BackupError, RecordsError
from pm.record_database import sqlite_file
from pm.record_tables import SCHEMA

log = logging.getLogger(__name__)

_WORK = ".pm-backup-"
_LOGIN = re.compile(r"(?<=://)([^/@:\s]*):[^/@\s]*@")


@dataclass(frozen=True, slots=True)
class MadeBackup:
    """A backup that was made."""

    path: Path
    bytes: int
    manifest: Manifest


def back_up(config: Config, target: Path, *, config_path: Path | None, at: datetime) -> MadeBackup:
    """Write a backup to `target`, a file, or a folder in which it is named after the time `at` (now).

    Under its name the file is whole from the first moment. Raises BackupError, and then nothing is left.
    """
    if target.is_dir():
        target /= f"pm-{at.astimezone(UTC):%Y%m%dT%H%M%SZ}.zip"
    _refuse_existing(target)
    try:
        with _work_folder(target.parent) as work:
            manifest = _write(config, work, config_path, at)
            size = (work / "backup").stat().st_size
            _put(work / "backup", target)
    except OSError as error:
        raise BackupError(f"backup {target}: {error.strerror}; mend the folder, or make room on its disk") from None
    _remember(config, at)
    return MadeBackup(target, size, manifest)


def _write(config: Config, work: Path, config_path: Path | None, at: datetime) -> Manifest:
    store: dict[str, Any] = {"kind": config.store.kind}
    records: dict[str, Any] = {"kind": "sqlite"}
    lacking: list[str] = []
    with BackupWriter(work / "backup") as archive:
        text, secrets = _configuration(config_path)
        if text:
            archive.add_text(CONFIGURATION, text)

        folders = _add_records(config, archive, work, records, lacking)
        models = _add_models(folders, archive, lacking)
        _add_spool(config.models.dir.parent / "spool", archive)
        _add_readings(config, archive, work, store, lacking)

        manifest = Manifest(
            made_at=at.astimezone(UTC).isoformat(timespec="seconds"),
            pm=version("pm"),
            plant=config.plant.name,
            store=store,
            records=records,
            models=models,
            secrets=tuple(secrets),
            not_covered=tuple(lacking),
            files=archive.files,
        )
        archive.finish(manifest)
    return manifest


def _add_records(
    config: Config, archive: BackupWriter, work: Path, told: dict[str, Any], lacking: list[str]
) -> dict[str, str]:
    """Add the records; the folders of the models on record, by version."""
    path = sqlite_file(config.records.url)
    if path is None:
        told["kind"] = "server"
        lacking.append(
            "the records, which are in PostgreSQL: save them with pg_dump --format=custom, restore them by pg_restore"
        )
        with open_records(config) as records:
            return {row.version: row.path for row in records.models()}
    if not path.exists():
        lacking.append(f"the records: {path} is not there")
        return {}
    with _snapshot(path, work / RECORDS) as copy:
        (told["schema"],) = copy.execute("SELECT version_num FROM alembic_version").fetchone()
        told["alerts"], told["users"], told["models"] = copy.execute(
            "SELECT (SELECT count(*) FROM alert), (SELECT count(*) FROM account), (SELECT count(*) FROM model)"
        ).fetchone()
        folders = dict(copy.execute("SELECT version, path FROM model").fetchall())
    archive.add(RECORDS, work / RECORDS)
    (work / RECORDS).unlink()
    return folders


def _add_models(folders: Mapping[str, str], archive: BackupWriter, lacking: list[str]) -> dict[str, str]:
    """Add the models on record; their folders in the archive, by version."""
    placed: dict[str, str] = {}
    for name, path in folders.items():
        folder = Path(path)
        if not folder.is_dir():
            lacking.append(f"model {name}: {folder} is not there")
            continue
        place = f"models/{folder.name}"
        if place in placed.values():
            place += f"-{len(placed)}"
        for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
            archive.add(f"{place}/{file.relative_to(folder).as_posix()}", file)
        placed[name] = place
    return placed


def _add_spool(folder: Path, archive: BackupWriter) -> None:
    """Messages on disk that the store does not have yet. A segment that grows, or is stored and gone, is no matter:
    its end may be torn, and what has gone is in the readings, which are copied later."""
    for file in sorted(folder.glob("*/*.spool")):
        with contextlib.suppress(FileNotFoundError):
            archive.add(f"spool/{file.parent.name}/{file.name}", file)


def _add_readings(config: Config, archive: BackupWriter, work: Path, told: dict[str, Any], lacking: list[str]) -> None:
    path = config.store.path
    if config.store.kind != "embedded":
        lacking.append(
            "the readings, which are in InfluxDB: save them with its own tool (1.8: influxd backup -portable, "
            "2.x: influx backup, 3: a copy of its object store)"
        )
        return
    if not path.exists():
        lacking.append(f"the readings: {path} is not there")
        return
    with _snapshot(path, work / READINGS) as copy:
        (told["format"],) = copy.execute("PRAGMA user_version").fetchone()
        told["readings"], told["events"] = copy.execute(
            "SELECT (SELECT count(*) FROM readings), (SELECT count(*) FROM events)"
        ).fetchone()
    archive.add(READINGS, work / READINGS)
    (work / READINGS).unlink()


@contextmanager
def _snapshot(path: Path, copy: Path) -> Iterator[sqlite3.Connection]:
    try:
        snapshot(path, copy)
        with closing(sqlite3.connect(copy)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise BackupError(f"{path} cannot be copied to {copy.parent.parent}: {error}; mend that first") from error


def _configuration(path: Path | None) -> tuple[str, list[str]]:
    """The file of the configuration without its secrets, and the keys that were left out."""
    if path is None or not path.is_file():
        return "", []
    left_out: list[str] = []
    tables = _without_secrets(tomllib.loads(path.read_text(encoding="utf-8")), _secret_keys(Section), "", left_out)
    head = "# From a backup of pm, without comments and without secrets.\n"
    if left_out:
        head += f"# Left out, to be set again: {', '.join(left_out)}\n"
    return head + tomli_w.dumps(tables), left_out


def _secret_keys(section: type[Section]) -> set[str]:
    own = {name for name, field in section.model_fields.items() if field.annotation is SecretStr}
    return own.union(*(_secret_keys(kind) for kind in section.__subclasses__()))


def _without_secrets(value: Any, secret: set[str], place: str, left_out: list[str]) -> Any:
    if isinstance(value, dict):
        kept = {}
        for key, inner in value.items():
            where = f"{place}.{key}" if place else key
            if key in secret:
                left_out.append(where)
            else:
                kept[key] = _without_secrets(inner, secret, where, left_out)
        return kept
    if isinstance(value, list):
        return [_without_secrets(inner, secret, f"{place}.{n}", left_out) for n, inner in enumerate(value)]
    if isinstance(value, str) and _LOGIN.search(value):
        left_out.append(f"the password in {place}")
        return _LOGIN.sub(r"\1@", value)
    return value


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the target, gone afterwards; those that killed backups left are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_WORK}*"):
        with contextlib.suppress(OSError), _held(left):
            shutil.rmtree(left)
    work = Path(tempfile.mkdtemp(prefix=_WORK, dir=folder))  # mode 0700
    try:
        with _held(work):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """A lock that goes with the process. Raises OSError where another has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _put(made: Path, target: Path) -> None:
    try:
        os.link(made, target)  # unlike a renaming, never over another file
    except FileExistsError:
        _refuse_existing(target)
    except OSError:  # a file system without links
        _refuse_existing(target)
        made.rename(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise BackupError(f"{target} exists already and is left as it is; name another file, or a folder")


def _remember(config: Config, at: datetime) -> None:
    """Note in the records that a backup was made; records of another version are not migrated for it."""
    path = sqlite_file(config.records.url)
    if path is not None:
        if not path.exists():
            return
        with closing(sqlite3.connect(path)) as connection:
            if connection.execute("SELECT version_num FROM alembic_version").fetchone() != (SCHEMA,):
                return
    try:
        with open_records(config) as records:
            records.set_tick(BACKUP_TICK, at)
    except RecordsError as error:
        log.warning("the backup is made, but the records do not remember it: %s", error)
