"""Old readings out of the embedded store, in bites so small that ingest hardly waits, and the room they leave."""

from __future__ import annotations

import sqlite3
import time

from connectors.database import Database

_BITE = 2_000
"""Rows deleted in one transaction."""
_BITE_PAGES = 500
"""Pages moved in one transaction."""
_ROOM = 0.1
"""Share of the file that stays free for what comes; what is free beyond it goes back to the disk."""

_CUT = """
SELECT max(time), count(*) FROM (SELECT time FROM readings WHERE asset_id = ? AND time < ? ORDER BY time LIMIT ?)
"""


def delete_before(database: Database, time_us: int) -> int:
    """Remove readings and conflicts dated before a time; returns how many rows of readings. Events stay.

    May be broken off at any time and called again.
    """
    with database.reading() as connection:
        assets = [asset for (asset,) in connection.execute("SELECT id FROM assets ORDER BY id")]
    deleted = 0
    while assets:
        begun = time.monotonic()
        with database.writing() as connection:
            deleted += _bite(connection, assets, time_us)
        time.sleep(time.monotonic() - begun)  # half of the time is for those who wait to write
    return deleted


def _bite(connection: sqlite3.Connection, assets: list[int], time_us: int) -> int:
    """Delete some rows of the last assets listed; those that have none left are taken off the list."""
    deleted = 0
    while assets and deleted < _BITE:
        asset = assets[-1]
        last, rows = connection.execute(_CUT, (asset, time_us, _BITE - deleted)).fetchone()
        if rows:
            connection.execute("DELETE FROM readings WHERE asset_id = ? AND time <= ?", (asset, last))
            connection.execute("DELETE FROM conflicts WHERE asset_id = ? AND time <= ?", (asset, last))
        deleted += rows
        if deleted < _BITE:
            assets.pop()
    return deleted


def give_back(database: Database) -> int:
    """Shorten the file where much of it is free; returns how many pages went back to the disk."""
    given = 0
    pages: int
    left: int
    while True:
        begun = time.monotonic()
        with database.writing() as connection:
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            beyond = min(_BITE_PAGES, free - int(_ROOM * pages))
            if beyond <= 0:
                return given
            connection.execute(f"PRAGMA incremental_vacuum({beyond})").fetchall()
            (left,) = connection.execute("PRAGMA page_count").fetchone()
            given += pages - left
            if left == pages:  # a file that cannot be shortened (made before that was chosen)
                return given
        time.sleep(time.monotonic() - begun)
