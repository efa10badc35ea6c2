"""One tree of errors. Each says what is wrong, where, and how to mend it, and whether trying again can help."""

from __future__ import annotations

from collections.abc import Mapping


class PmError(Exception):
    """Root of every error that `pm` raises on purpose; its text is one line for a person.

    `retryable` is true where the same call may succeed later without anyone mending anything
    (a server that is down), false where it cannot (a wrong file, a refused login).
    """

    retryable = False


class ConfigError(PmError):
    """The configuration breaks one or more rules; the message lists each key, its value and the mend."""


class RecordingError(PmError):
    """A recording is damaged; the message names the file, the row and the mend."""


class StoreError(PmError):
    """The store refused for good (a type conflict, a missing database without the right to create it)."""


class RowsRefused(StoreError):
    """The store will not take some rows of a call, now or later; every other row of it is durable.

    readings: why, by asset and time (µs) of each row refused. events: why, by asset, time, kind and code.
    """

    def __init__(
        self,
        message: str,
        *,
        readings: Mapping[tuple[str, int], str],
        events: Mapping[tuple[str, int, str, str], str] | None = None,
    ) -> None:
        super().__init__(message)
        self.readings = readings
        self.events = events or {}


class StoreUnavailable(StoreError):
    """The store cannot be reached or is busy; the readings are still owed and the call may be tried again.

    wait: seconds for which the store asks to be left alone, where it says so.
    """

    retryable = True

    def __init__(self, message: str = "", *, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class FeedError(PmError):
    """The feed (broker) refused for good: wrong credentials, an untrusted certificate, a bad topic filter."""


class FeedUnavailable(FeedError):
    """The feed cannot be reached now."""

    retryable = True


class ModelError(PmError):
    """A model artefact is damaged, foreign, or does not fit the data it is asked to forecast."""


class TrainingError(PmError):
    """The history cannot be learned from (no failures, too short); the message says what is missing."""


class RecordsError(PmError):
    """The records database refused: a missing migration, an unknown alert or user."""


class RecordsUnavailable(RecordsError):
    """The records database cannot be reached or is busy; the same call may be tried again."""

    retryable = True


class TransitionError(PmError):
    """An alert cannot take this step from the state it is in."""


class BackupError(PmError):
    """A backup cannot be made here, or what is to be restored is damaged, of a later version or in the way of it."""
