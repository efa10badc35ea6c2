"""The file that a backup is: a zip archive of its parts, and a manifest with the checksum of each.

manifest.json   what is in it, when and by which pm it was made
pm.toml         the configuration without its secrets
readings.db     the embedded store, as of one moment
records.db      the service's records, as of one moment
models/NAME/    the models on record
spool/NAME/     messages that waited on disk for the store
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from pm.errors import BackupError

FORMAT = 1
MANIFEST = "manifest.json"
CONFIGURATION, READINGS, RECORDS = "pm.toml", "readings.db", "records.db"
_CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a backup."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself."""

    made_at: str
    """ISO 8601, UTC."""
    pm: str
    """Version of the pm that made it."""
    plant: str
    store: Mapping[str, Any] = field(default_factory=dict)
    """Kind; for an embedded store also its format and how many rows of readings and events it holds."""
    records: Mapping[str, Any] = field(default_factory=dict)
    """Kind; for SQLite also its schema and how many alerts, users and models it holds."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Folder in the archive by version, for each model on record whose folder was found."""
    secrets: tuple[str, ...] = ()
    """Keys of the configuration that were left out."""
    not_covered: tuple[str, ...] = ()
    """What is not in the backup, and how to save it."""
    files: Mapping[str, Part] = field(default_factory=dict)
    format: int = FORMAT


class BackupWriter:
    """A new archive, readable by its owner alone. A context manager."""

    def __init__(self, path: Path) -> None:
        self.files: dict[str, Part] = {}
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w+b")
        # The quickest level: readings hardly shrink, a records database does.
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError, ValueError):  # after an error it is thrown away anyhow
            self._zip.close()
        self._file.close()

    def add(self, name: str, source: Path) -> None:
        """A file of at most the bytes that it has now: one that grows meanwhile is cut there."""
        with source.open("rb") as file:
            left = os.fstat(file.fileno()).st_size
            with self._zip.open(name, "w", force_zip64=True) as out:
                checksum, size = hashlib.sha256(), 0
                while chunk := file.read(min(_CHUNK, left - size)):
                    checksum.update(chunk)
                    out.write(chunk)
                    size += len(chunk)
        self.files[name] = Part(size, checksum.hexdigest())

    def add_text(self, name: str, text: str) -> None:
        content = text.encode()
        self._zip.writestr(name, content)
        self.files[name] = Part(len(content), hashlib.sha256(content).hexdigest())

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest last; the archive is whole and on the disk when this returns."""
        self._zip.writestr(MANIFEST, json.dumps(asdict(manifest), indent=1))
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())


class BackupReader:
    """An archive to restore from; refuses what is none, is damaged, or of a later form. A context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise BackupError(f"{path} is no backup of pm, or was cut short ({said}); name another") from None
        try:
            self.manifest = self._manifest()
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def extract(self, name: str, target: Path) -> None:
        """Write one file out, durable, readable by its owner alone. Raises BackupError where it is not as it was."""
        part = self.manifest.files[name]
        checksum, size = hashlib.sha256(), 0
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            try:
                with self._zip.open(name) as file:
                    while chunk := file.read(_CHUNK):
                        checksum.update(chunk)
                        size += len(chunk)
                        out.write(chunk)
            except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError) as error:
                raise self._damaged(name, str(error)) from None
            out.flush()
            os.fsync(out.fileno())
        if (size, checksum.hexdigest()) != (part.bytes, part.sha256):
            raise self._damaged(name, "its checksum differs")

    def _damaged(self, name: str, why: str) -> BackupError:
        return BackupError(f"{self._path}: {name} in it is damaged ({why}); restore another backup")

    def _manifest(self) -> Manifest:
        try:
            told: Any = json.loads(self._zip.read(MANIFEST))
            later = int(told["format"]) > FORMAT
            if not later:
                files = {name: Part(**part) for name, part in told.pop("files").items()}
                manifest = Manifest(**told, files=files)
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError, TypeError, AttributeError) as error:
            raise BackupError(f"{self._path}: {MANIFEST} in it is missing or damaged ({error}); name another") from None
        if later:
            raise BackupError(
                f"{self._path} has backup format {told['format']}, this pm knows {FORMAT}; "
                f"restore it with pm {told.get('pm', 'of a later version')}"
            )
        for name in manifest.files:
            place = PurePosixPath(name)
            if place.is_absolute() or ".." in place.parts or "\\" in name:
                raise BackupError(f"{self._path} has a file {name!r}, which leads out of the backup; name another")
        return manifest
