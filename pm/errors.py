"""One tree of errors. Each says what is wrong, where, and how to mend it, and whether trying again can help."""

from __future__ import annotations


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


class StoreUnavailable(StoreError):
    """The store cannot be reached or is busy; the readings are still owed and the call may be tried again."""

    retryable = True


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
