"""The register: recordings, and the assets, points and failure modes that they or the feed brought."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from pm.domain import Asset, FailureMode, History, Point, Recording, parse_interval
from pm.errors import RecordsError
from pm.record_database import Database, insert_missing, insert_rows
from pm.record_tables import asset, failure_mode, point, recording

FEED = ""
"""In place of a recording's name: met in the feed, known from no recording."""
UNKNOWN_MODEL = "unknown"


class RegisterRecords:
    """What is known of the plant beyond its readings."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put_recording(self, described: Recording) -> None:
        """Register a recording with its assets, points and failure modes; the same name again replaces it.

        Assets that the feed brought before become the recording's. Raises RecordsError where an asset belongs to
        another recording.
        """
        history = described.history
        with self._database.write() as connection:
            self._refuse_second_owner(connection, described)
            self._forget(connection, described.name)
            connection.execute(
                sa.insert(recording),
                {
                    "name": described.name,
                    "interval": described.interval_text,
                    "about": described.about,
                    "source": described.source,
                    "licence": described.licence,
                },
            )
            names = [a.name for a in history.assets]
            for part in _parts(names):
                connection.execute(sa.delete(asset).where(asset.c.name.in_(part)))
            insert_rows(
                connection,
                asset,
                [
                    {
                        "name": a.name,
                        "model": a.model,
                        "static": json.dumps(dict(a.static)),
                        "recording": described.name,
                    }
                    for a in history.assets
                ],
            )
            insert_rows(connection, point, [_point_row(p, described.name, n) for n, p in enumerate(history.points)])
            insert_rows(
                connection,
                failure_mode,
                [
                    {"recording": described.name, "code": mode.code, "position": n, "about": mode.about}
                    for n, mode in enumerate(history.failure_modes)
                ],
            )

    def recordings(self) -> list[str]:
        """Names of the recordings registered, sorted."""
        with self._database.read() as connection:
            return list(connection.execute(sa.select(recording.c.name).order_by(recording.c.name)).scalars())

    def recording(self, name: str) -> Recording:
        """What `put_recording` was given, with empty frames of readings and events. Raises RecordsError."""
        with self._database.read() as connection:
            found = connection.execute(sa.select(recording).where(recording.c.name == name)).one_or_none()
            if found is None:
                raise RecordsError(f"no recording {name!r} is registered; import it with 'pm import'")
            assets = _assets(connection, asset.c.recording == name)
            points = _points(connection, point.c.recording == name)
            modes = _failure_modes(connection, failure_mode.c.recording == name)
        import pandas as pd  # takes longer to import than all other records together

        times = pd.Series([], dtype="datetime64[us, UTC]")
        words = pd.Series([], dtype="str")
        history = History(
            interval=parse_interval(found.interval),
            points=points,
            failure_modes=modes,
            assets=assets,
            readings=pd.DataFrame(
                {"time": times, "asset": words, **{p.name: pd.Series([], dtype="float64") for p in points}}
            ),
            events=pd.DataFrame({"time": times, "asset": words, "kind": words, "code": words}),
        )
        return Recording(found.name, found.interval, found.about, found.source, found.licence, history)

    def forget_recording(self, name: str) -> None:
        """Take a recording, its assets, points and failure modes off the register; nothing happens if unknown."""
        with self._database.write() as connection:
            self._forget(connection, name)

    def assets(self) -> tuple[Asset, ...]:
        """Every asset known, in the order registered."""
        with self._database.read() as connection:
            return _assets(connection, sa.true())

    def points(self) -> tuple[Point, ...]:
        """Every point known; one that several recordings name is as the first of them describes it."""
        with self._database.read() as connection:
            found: dict[str, Point] = {}
            for p in _points(connection, sa.true()):
                found.setdefault(p.name, p)
            return tuple(found.values())

    def failure_modes(self) -> tuple[FailureMode, ...]:
        """Every failure mode known; one that several recordings name is as the first of them describes it."""
        with self._database.read() as connection:
            found: dict[str, FailureMode] = {}
            for mode in _failure_modes(connection, sa.true()):
                found.setdefault(mode.code, mode)
            return tuple(found.values())

    def ensure_assets(self, names: Iterable[str]) -> None:
        """Register assets that the feed brought and nothing described: model "unknown", no static columns."""
        with self._database.write() as connection:
            ensure_assets(connection, names)

    def ensure_points(self, names: Iterable[str]) -> None:
        """Register points that the feed brought and nothing described."""
        with self._database.write() as connection:
            known = set(connection.execute(sa.select(point.c.name)).scalars())
            new = [name for name in dict.fromkeys(names) if name not in known]
            rows = [_point_row(Point(name), FEED, len(known) + n) for n, name in enumerate(new)]
            insert_missing(connection, point, rows)

    def ensure_failure_modes(self, codes: Iterable[str]) -> None:
        """Register failure modes that the feed's failure events brought and nothing described."""
        with self._database.write() as connection:
            known = set(connection.execute(sa.select(failure_mode.c.code)).scalars())
            new = [code for code in dict.fromkeys(codes) if code not in known]
            rows = [{"recording": FEED, "code": c, "position": len(known) + n, "about": ""} for n, c in enumerate(new)]
            insert_missing(connection, failure_mode, rows)

    @staticmethod
    def _forget(connection: Connection, name: str) -> None:
        for table, column in (
            (recording, recording.c.name),
            (asset, asset.c.recording),
            (point, point.c.recording),
            (failure_mode, failure_mode.c.recording),
        ):
            connection.execute(sa.delete(table).where(column == name))

    @staticmethod
    def _refuse_second_owner(connection: Connection, described: Recording) -> None:
        names = [a.name for a in described.history.assets]
        for part in _parts(names):
            owned = connection.execute(
                sa.select(asset.c.name, asset.c.recording)
                .where(asset.c.name.in_(part), asset.c.recording != described.name)
                .limit(1)
            ).one_or_none()
            if owned is not None:
                raise RecordsError(
                    f"recording {described.name}: asset {owned.name} is known from recording {owned.recording} "
                    "already; rename the assets, or import into another store"
                )


def ensure_assets(connection: Connection, names: Iterable[str]) -> None:
    """Within a transaction: register the assets that are not yet."""
    known = set(connection.execute(sa.select(asset.c.name)).scalars())
    rows = [
        {"name": name, "model": UNKNOWN_MODEL, "static": "{}", "recording": None}
        for name in dict.fromkeys(names)
        if name not in known
    ]
    insert_missing(connection, asset, rows)


def _parts(names: Sequence[str], size: int = 500) -> Iterable[Sequence[str]]:
    """Slices short enough for one statement's parameters."""
    return (names[start : start + size] for start in range(0, len(names), size))


def _point_row(p: Point, owner: str, position: int) -> dict[str, object]:
    return {
        "recording": owner,
        "name": p.name,
        "position": position,
        "unit": p.unit,
        "low": p.low,
        "high": p.high,
        "description": p.description,
    }


def _assets(connection: Connection, where: sa.ColumnElement[bool]) -> tuple[Asset, ...]:
    rows: Iterable[Row[tuple[str, str, str]]] = connection.execute(
        sa.select(asset.c.name, asset.c.model, asset.c.static).where(where).order_by(asset.c.number)
    )
    return tuple(Asset(row.name, row.model, json.loads(row.static)) for row in rows)


def _points(connection: Connection, where: sa.ColumnElement[bool]) -> tuple[Point, ...]:
    rows = connection.execute(sa.select(point).where(where).order_by(point.c.recording, point.c.position))
    return tuple(Point(row.name, row.unit, row.low, row.high, row.description) for row in rows)


def _failure_modes(connection: Connection, where: sa.ColumnElement[bool]) -> tuple[FailureMode, ...]:
    rows = connection.execute(
        sa.select(failure_mode).where(where).order_by(failure_mode.c.recording, failure_mode.c.position)
    )
    return tuple(FailureMode(row.code, row.about) for row in rows)
