"""Dead letters: messages that nothing could read or store, and who did what with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pm.domain import from_us, to_us
from pm.ports import Reject
from pm.record_database import Database, insert_rows
from pm.record_tables import dead_letter, letter_journal


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that no parser could read, kept until somebody deletes it or sends it again."""

    number: int
    reject: Reject


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters; all where nothing is said."""

    feed: str = ""
    """Name of the feed that brought them."""
    reason: str = ""
    """Their reason, to the letter."""
    text: str = ""
    """Part of the topic or of the reason."""


@dataclass(frozen=True, slots=True)
class LetterStep:
    """What somebody did with dead letters."""

    at: datetime
    """Plant time."""
    by: str | None
    """The user, or None on the command line."""
    what: str
    """"read again" or "dropped"."""
    letters: int
    """How many it was tried with."""
    gone: int
    """How many are no dead letters any more."""
    about: str = ""
    """A word on what they were."""


class LetterRecords:
    """What was dead on arrival, newest last."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_dead_letters(self, rejects: Iterable[Reject]) -> None:
        """Keep messages that could not be read, with the reason."""
        rows = [
            {
                "topic": _storable(r.topic),
                "payload": r.payload,
                "reason": _storable(r.reason),
                "received_us": r.received_us,
                "feed": _storable(r.feed),
            }
            for r in rejects
        ]
        if rows:
            with self._database.write() as connection:
                insert_rows(connection, dead_letter, rows)

    def dead_letters(self, limit: int = 100, wanted: Wanted | None = None, offset: int = 0) -> list[DeadLetter]:
        """The newest first."""
        query = _those(sa.select(dead_letter), wanted).order_by(dead_letter.c.number.desc())
        return self._read(query.limit(limit).offset(offset))

    def dead_letters_of(self, numbers: Sequence[int]) -> list[DeadLetter]:
        """Those of these numbers that are there, the newest first."""
        found: list[DeadLetter] = []
        for start in range(0, len(numbers), 500):
            found += self._read(sa.select(dead_letter).where(dead_letter.c.number.in_(numbers[start : start + 500])))
        return sorted(found, key=lambda letter: -letter.number)

    def dead_letter_numbers(self, wanted: Wanted, limit: int) -> list[int]:
        """Numbers of the oldest."""
        query = _those(sa.select(dead_letter.c.number), wanted).order_by(dead_letter.c.number).limit(limit)
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def dead_letter_count(self, wanted: Wanted | None = None) -> int:
        with self._database.read() as connection:
            query = _those(sa.select(sa.func.count()).select_from(dead_letter), wanted)
            return int(connection.execute(query).scalar_one())

    def dead_letter_reasons(self, limit: int = 10) -> list[tuple[str, int]]:
        """The commonest reasons, each with how many there are of it."""
        count = sa.func.count()
        query = (
            sa.select(dead_letter.c.reason, count)
            .group_by(dead_letter.c.reason)
            .order_by(count.desc(), dead_letter.c.reason)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [(reason, number) for reason, number in connection.execute(query)]

    def dead_letter_feeds(self) -> list[str]:
        """Feeds that brought any; those kept before feeds were written down have none."""
        query = sa.select(dead_letter.c.feed).distinct().where(dead_letter.c.feed != "").order_by(dead_letter.c.feed)
        with self._database.read() as connection:
            return list(connection.execute(query).scalars())

    def delete_dead_letters(self, numbers: Sequence[int]) -> int:
        """Delete by number; returns how many were there."""
        gone = 0
        with self._database.write() as connection:
            for start in range(0, len(numbers), 500):
                part = numbers[start : start + 500]
                gone += connection.execute(sa.delete(dead_letter).where(dead_letter.c.number.in_(part))).rowcount
        return gone

    def note_letters(self, step: LetterStep) -> None:
        """Keep what somebody did."""
        row = {
            "at_us": to_us(step.at),
            "by": step.by,
            "what": step.what,
            "letters": step.letters,
            "gone": step.gone,
            "about": _storable(step.about),
        }
        with self._database.write() as connection:
            insert_rows(connection, letter_journal, [row])

    def letter_steps(self, limit: int = 20) -> list[LetterStep]:
        """What was done, the latest first."""
        query = sa.select(letter_journal).order_by(letter_journal.c.number.desc()).limit(limit)
        with self._database.read() as connection:
            return [
                LetterStep(from_us(row.at_us), row.by, row.what, row.letters, row.gone, row.about)
                for row in connection.execute(query)
            ]

    def _read(self, query: sa.Select[Any]) -> list[DeadLetter]:
        with self._database.read() as connection:
            return [
                DeadLetter(row.number, Reject(row.topic, bytes(row.payload), row.reason, row.received_us, row.feed))
                for row in connection.execute(query)
            ]


def _those(query: sa.Select[Any], wanted: Wanted | None) -> sa.Select[Any]:
    if wanted is None:
        return query
    if wanted.feed:
        query = query.where(dead_letter.c.feed == wanted.feed)
    if wanted.reason:
        query = query.where(dead_letter.c.reason == wanted.reason)
    if wanted.text:
        parts = (dead_letter.c.topic, dead_letter.c.reason)
        query = query.where(sa.or_(*(part.icontains(wanted.text, autoescape=True) for part in parts)))
    return query


def _storable(text: str) -> str:
    """Text that every database takes. What a stranger sent must not keep its own dead letter from being kept."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
