"""`pm restore`: a backup into the places that the configuration names, whole or not at all.

Everything is first written beside its place, under a hidden name, and its checksum compared. Only then it is renamed
into place. A list of these renamings is on the disk before the first, so that a restore that is cut off in their midst
is finished by the next.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from connectors.database import SCHEMA_VERSION
from connectors.snapshots import at_rest
from pm import config as configuration
from pm.backup_archive import CONFIGURATION, READINGS, RECORDS, BackupReader, Manifest
from pm.config import Config
from pm.config.files import DEFAULT_PATH
from pm.errors import BackupError
from pm.record_database import sqlite_file
from pm.record_tables import SCHEMA

log = logging.getLogger(__name__)

_STAGED = ".restoring"
_SQLITE_SUFFIXES = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    manifest: Manifest
    places: tuple[Path, ...]
    """What was put into place."""
    aside: tuple[Path, ...]
    """Under these names lies what was in its way."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a part of the backup goes: a file of it, or all files below a folder of it."""

    part: str
    to: Path
    database: bool = False

    @property
    def staged(self) -> Path:
        return self.to.with_name(f".{self.to.name}{_STAGED}")

    def present(self) -> list[Path]:
        """What is in its way by now."""
        names = _SQLITE_SUFFIXES if self.database else ("",)
        return [path for path in (self.to.with_name(self.to.name + name) for name in names) if path.exists()]


def restore(source: Path, *, config_path: Path | None, replace: bool, at: datetime) -> Restored:
    """Restore the backup `source` into the places that the configuration names. at: now.

    Without a configuration file the backup's own is written to `config_path` (pm.toml) and heeded. What is in the way
    is refused, or with `replace` kept beside under another name. Raises BackupError or ConfigError; nothing is changed
    then.
    """
    file = (config_path or DEFAULT_PATH).absolute()
    with BackupReader(source) as archive:
        _refuse_later(source, archive.manifest)
        written = not file.is_file() and CONFIGURATION in archive.manifest.files
        staged: list[_Place] = []
        try:
            if written:
                own = _Place(CONFIGURATION, file)
                _stage(archive, own, staged)
                config = configuration.load(own.staged)
            else:
                config = configuration.load(config_path)
            _finish_earlier(_plan_path(config))
            places = _places(source, archive.manifest, config)
            stamp = f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}"
            moves = _out_of_the_way(places, replace, f".before-restore-{stamp}")
            for place in places:
                _stage(archive, place, staged)
            _point_to_models(staged, archive.manifest, config.models.dir)
            _rename_all(_plan_path(config), [*moves, *((place.staged, place.to) for place in reversed(staged))])
        except OSError as error:
            named = f" {error.filename}" if error.filename else ""
            raise BackupError(
                f"{source} cannot be restored ({error.strerror}{named}); mend the rights, or make room"
            ) from error
        finally:
            for place in staged:
                _remove(place.staged)
    return Restored(archive.manifest, tuple(place.to for place in staged), tuple(to for _, to in moves))


def _refuse_later(source: Path, manifest: Manifest) -> None:
    store, schema = int(manifest.store.get("format", 0)), str(manifest.records.get("schema", ""))
    if store > SCHEMA_VERSION or schema > SCHEMA:
        raise BackupError(
            f"{source} was made by pm {manifest.pm} (store format {store}, records schema {schema or 'none'}); this pm "
            f"knows up to {SCHEMA_VERSION} and {SCHEMA}: restore it with pm {manifest.pm} or a later one"
        )


def _places(source: Path, manifest: Manifest, config: Config) -> list[_Place]:
    places = []
    if READINGS in manifest.files:
        if config.store.kind != "embedded":
            raise BackupError(
                f'{source} holds an embedded store, and store.kind is {config.store.kind}; set it to "embedded"'
            )
        places.append(_Place(READINGS, config.store.path, database=True))
    if RECORDS in manifest.files:
        path = sqlite_file(config.records.url)
        if path is None:
            raise BackupError(f"{source} holds records of SQLite; set records.url to sqlite:///data/records.db")
        places.append(_Place(RECORDS, path.absolute(), database=True))
    places += [_Place(part, config.models.dir / Path(part).name) for part in sorted(manifest.models.values())]
    spools = sorted({name.split("/")[1] for name in manifest.files if name.startswith("spool/")})
    return places + [_Place(f"spool/{name}", config.models.dir.parent / "spool" / name) for name in spools]


def _out_of_the_way(places: Sequence[_Place], replace: bool, suffix: str) -> list[tuple[Path, Path]]:
    """Renamings that make room; nothing is renamed yet."""
    if not replace:
        found = [str(path) for place in places for path in place.present()]
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise BackupError(
                f"{found[0]}{more} is there already and left as it is; restore into an empty place, "
                "or with --replace, which keeps what is there beside under another name"
            )
    for place in places:
        if place.database and place.to.exists() and not at_rest(place.to):
            raise BackupError(f"{place.to} is in use; stop pm before what it works on is replaced")
    return [
        (path, path.with_name(f"{place.to.name}{suffix}{path.name.removeprefix(place.to.name)}"))
        for place in places
        for path in place.present()
    ]


def _stage(archive: BackupReader, place: _Place, staged: list[_Place]) -> None:
    """Write a part beside its place, checked."""
    place.to.parent.mkdir(parents=True, exist_ok=True)
    _remove(place.staged)  # of a restore that was killed
    staged.append(place)
    if place.part in archive.manifest.files:
        archive.extract(place.part, place.staged)
        return
    place.staged.mkdir()
    for name in archive.manifest.files:
        if name.startswith(f"{place.part}/"):
            to = place.staged / name.removeprefix(f"{place.part}/")
            to.parent.mkdir(parents=True, exist_ok=True)
            archive.extract(name, to)


def _point_to_models(staged: Sequence[_Place], manifest: Manifest, folder: Path) -> None:
    """The records name each model's folder; it is another one now."""
    for place in staged:
        if place.part == RECORDS:
            with closing(sqlite3.connect(place.staged)) as connection, connection:
                connection.executemany(
                    "UPDATE model SET path = ? WHERE version = ?",
                    [(str(folder.absolute() / Path(part).name), version) for version, part in manifest.models.items()],
                )


def _plan_path(config: Config) -> Path:
    return config.models.dir.parent / ".restore.json"


def _rename_all(plan: Path, moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename all of these or, where one fails, none; a process that is killed meanwhile leaves the plan behind."""
    plan.parent.mkdir(parents=True, exist_ok=True)
    making = plan.with_name(f"{plan.name}.new")
    with making.open("w", encoding="utf-8") as file:
        json.dump([[str(one.absolute()), str(to.absolute())] for one, to in moves], file)
        file.flush()
        os.fsync(file.fileno())
    making.rename(plan)
    _sync(plan.parent)
    done: list[tuple[Path, Path]] = []
    try:
        for one, to in moves:
            one.rename(to)
            done.append((one, to))
        for folder in {to.parent for _, to in moves}:
            _sync(folder)
    except BaseException:
        for one, to in reversed(done):
            to.rename(one)
        raise
    finally:
        plan.unlink()


def _finish_earlier(plan: Path) -> None:
    """Do what is left of the renamings of a restore that was killed in their midst."""
    if not plan.exists():
        return
    moves = [(Path(one), Path(to)) for one, to in json.loads(plan.read_text(encoding="utf-8"))]
    left = [(one, to) for one, to in moves if one.exists()]
    for _, to in left:
        if to.exists() and to not in {one for one, _ in left}:
            raise BackupError(f"{to} was made since a restore was cut off; move it away and restore again")
    for one, to in left:
        one.rename(to)
    plan.unlink()
    log.warning("a restore that was cut off is finished now: %d of %d renamings were left", len(left), len(moves))


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
