"""The topic filters that a lasting session has with its broker, remembered so that those no longer wanted are ended.

A broker keeps the subscriptions of a session, and MQTT has no way to ask for them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

log = logging.getLogger(__name__)


class FilterMemory:
    """One session's filters, in a small JSON file of its own; without a folder nothing outlives the process.

    A file that cannot be read or written costs no message, only the unsubscribing, so it is told and passed over.
    """

    def __init__(self, folder: Path | None, session: str) -> None:
        self._path = None if folder is None else folder / f"{quote(session, safe=' @:')}.json"
        self._filters: frozenset[str] = frozenset()
        if self._path is None or not self._path.exists():
            return
        try:
            self._filters = frozenset(str(each) for each in json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s cannot be read (%s); subscriptions of before stay with the broker", self._path, error)

    def recall(self) -> frozenset[str]:
        """The filters that the session may have."""
        return self._filters

    def keep(self, filters: Collection[str]) -> None:
        """Remember these, durably, in place of those before."""
        if self._filters == frozenset(filters):
            return
        self._filters = frozenset(filters)
        if self._path is None:
            return
        beside = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("w", encoding="utf-8") as file:
                json.dump(sorted(filters), file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            log.warning(
                "%s cannot be written (%s); a later change of topics may not be unsubscribed",
                self._path,
                error.strerror,
            )
