"""What is wrong with a recording, gathered so that a person mends it in one go."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from pm.errors import RecordingError

SHOWN = 10


class Problems:
    """Problems of the recording in one folder, the first few in full."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: list[str] = []

    def add(self, path: Path, message: str, row: int | None = None) -> None:
        """A problem of a file; `row` as its kind of file counts rows."""
        where = f" row {row}" if row is not None else ""
        self._found.append(f"{path.relative_to(self._folder)}{where}: {message}")

    def add_rows(self, path: Path, wrong: NDArray[np.bool_], message: str) -> None:
        """One problem of many rows: the first is named, the rest are counted. `wrong`: a flag for each row."""
        rows = np.flatnonzero(wrong)
        if len(rows):
            more = f" (and {len(rows) - 1:,} rows more)" if len(rows) > 1 else ""
            self.add(path, message + more, int(rows[0]))

    def fatal(self, path: Path, message: str) -> NoReturn:
        """A problem after which nothing else can be said."""
        self.add(path, message)
        self.stop()
        raise AssertionError("stop() raises when there is a problem")

    def stop(self) -> None:
        """Raises RecordingError when anything was found."""
        if not self._found:
            return
        if len(self._found) == 1:
            raise RecordingError(f"{self._folder}/{self._found[0]}")
        rest = len(self._found) - SHOWN
        shown = [*self._found[:SHOWN], *([f"and {rest} more"] if rest > 0 else [])]
        raise RecordingError(
            "\n".join([f"{self._folder}: {len(self._found)} to mend:", *(f"  {line}" for line in shown)])
        )
