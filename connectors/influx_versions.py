"""What differs between InfluxDB 1.8, 2.x and 3, behind one adapter: where lines go, how a database and its retention
are made, whether anything can be deleted.

The forms of 2.x and 3 follow their documentation (tests/test_influx_versions.py); 1.x is tested on a real server.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import orjson

from connectors.influx_http import Connection, Unit
from connectors.influxql import identifier, literal, parse_rows
from pm.errors import StoreError

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_REFUSED = (401, 403)


@dataclass(frozen=True, slots=True)
class About:
    """What a server says it is."""

    version: str = ""
    """As "1.8.10", "2.7.6"; empty where the server does not tell."""
    build: str = ""
    """As "OSS", "Core", "Enterprise"."""

    @property
    def generation(self) -> int:
        """1, 2 or 3; a server that does not tell is taken for 2.x, whose addresses 1.8 and 3 have as well."""
        first = self.version.partition(".")[0]
        return int(first) if first.isdigit() else 2


class Dialect:
    """How one generation of InfluxDB wants to be spoken to. This class itself is versions 1.x."""

    deletes: ClassVar[bool] = True
    question_in_address: ClassVar[bool] = False
    """The question of `/query` goes with the address: early versions 3 look nowhere else for it."""
    csv_hides_errors: ClassVar[bool] = True
    """An answer without rows may be an error that only JSON tells."""
    longest_assets: ClassVar[int] = 50_000
    """Characters of asset names in one question."""
    makes_what: ClassVar[str] = "a database with its retention policy"

    def __init__(self, connection: Connection, about: About, bucket: str, retention: timedelta | None) -> None:
        self._connection = connection
        self._bucket = bucket
        self._retention = retention
        self.about = about

    def prepare(self) -> None:
        """What must be so before the first line is written or the first question put."""

    def write(self, body: bytes, unit: Unit) -> None:
        """Store lines. Raises Refusal, or ApiException with status 404 where the database is missing."""
        self._connection.write(self._bucket, body, unit)

    def make(self) -> None:
        """Make the database with the retention wanted. Raises StoreError where that is not allowed."""
        duration = f' WITH DURATION {_seconds(self._retention)}s NAME "pm"' if self._retention else ""
        self._run(f"CREATE DATABASE {identifier(self._bucket)}{duration}")

    def retention(self) -> timedelta | None:
        """How long the server keeps readings; None for always, or where it does not tell."""
        body = self._run(f"SHOW RETENTION POLICIES ON {identifier(self._bucket)}", "application/csv")
        for duration, default in parse_rows(body, ("duration", "default")):
            if default == "true":
                return _go_duration(duration)
        return None

    def delete(self, measurement: str, asset: str) -> None:
        """Remove everything of an asset. Raises StoreError where this version cannot."""
        self._run(f'DELETE FROM {identifier(measurement)} WHERE "asset" = {literal(asset)}')

    def describe(self) -> str:
        """One line for `pm doctor`."""
        name = " ".join(filter(None, ("InfluxDB", self.about.version or "of unknown version", self.about.build)))
        return f"{name}: makes {self.makes_what}, {'deletes' if self.deletes else 'cannot delete'}"

    def _run(self, query: str, accept: str = "application/json") -> bytes:
        body = self._connection.ask(
            query,
            accept=accept,
            parameters=[("db", self._bucket), ("epoch", "u")],
            in_address=self.question_in_address,
        )
        if accept == "application/json":
            raise_told(body, self._connection.url)
        return body


class Version2(Dialect):
    """2.x: buckets with retention rules; InfluxQL finds a bucket through a mapping of database names (DBRP)."""

    makes_what: ClassVar[str] = "a bucket with its retention and mapping"

    def prepare(self) -> None:
        """Map the bucket's name for InfluxQL where nothing does: since 2.4 the server does so by itself, and before
        that a bucket without a mapping answers as if it were empty."""
        found = self._found("/api/v2/buckets", [("name", self._bucket), *self._org()], "buckets")
        if found:
            self._map(found[0])

    def make(self) -> None:
        rules = [{"type": "expire", "everySeconds": _seconds(self._retention)}] if self._retention else []
        orgs = self._found("/api/v2/orgs", self._org(), "orgs")
        if not orgs:
            raise StoreError(f"InfluxDB at {self._connection.url} knows no organisation {self._connection.org!r}")
        wanted = {"name": self._bucket, "orgID": orgs[0]["id"], "retentionRules": rules}
        answer = self._connection.request("POST", "/api/v2/buckets", payload=wanted)
        if answer.status not in (201, 422):  # 422: another process has just made it
            raise StoreError(f"status {answer.status}: {answer.body.decode(errors='replace')[:200]}")
        self.prepare()

    def retention(self) -> timedelta | None:
        found = self._found("/api/v2/buckets", [("name", self._bucket), *self._org()], "buckets")
        rules = found[0].get("retentionRules", []) if found else []
        seconds = next((rule.get("everySeconds", 0) for rule in rules if rule.get("type", "expire") == "expire"), 0)
        return timedelta(seconds=seconds) if seconds else None

    def _map(self, bucket: dict[str, Any]) -> None:
        answer = self._connection.request("GET", "/api/v2/dbrps", [("orgID", bucket["orgID"]), ("db", self._bucket)])
        if answer.status in _REFUSED or (answer.status == 200 and orjson.loads(answer.body).get("content")):
            return  # mapped, or not ours to know: the server's own mapping has to do
        wanted = {
            "bucketID": bucket["id"],
            "orgID": bucket["orgID"],
            "database": self._bucket,
            "retention_policy": "autogen",
            "default": True,
        }
        made = self._connection.request("POST", "/api/v2/dbrps", payload=wanted)
        if made.status != 201:
            raise StoreError(
                f"InfluxDB at {self._connection.url} maps no database to bucket {self._bucket!r} and does not let this "
                f"token do so (status {made.status}); map it there with 'influx v1 dbrp create'"
            )

    def _org(self) -> list[tuple[str, str]]:
        return [("org", self._connection.org)] if self._connection.org else []

    def _found(self, path: str, query: Sequence[tuple[str, str]], what: str) -> list[dict[str, Any]]:
        answer = self._connection.request("GET", path, query)
        if answer.status != 200:
            return []
        found: list[dict[str, Any]] = orjson.loads(answer.body).get(what, [])
        return found


class Version3(Dialect):
    """3: databases that the first write makes; every refused line is named; nothing can be deleted."""

    deletes: ClassVar[bool] = False
    question_in_address: ClassVar[bool] = True
    csv_hides_errors: ClassVar[bool] = False
    longest_assets: ClassVar[int] = 5_000
    makes_what: ClassVar[str] = "a database with its retention"

    def prepare(self) -> None:
        """A database that a write makes keeps everything for ever, and in Core that cannot be changed afterwards: with
        a retention wanted, the database is made first."""
        if self._retention:
            self.make()

    def write(self, body: bytes, unit: Unit) -> None:
        names = {"us": "microsecond", "ns": "nanosecond"}
        # Without accept_partial=true one bad line would keep all others out; no_sync=false waits for the log.
        query = [("db", self._bucket), ("precision", names[unit]), ("accept_partial", "true"), ("no_sync", "false")]
        self._connection.post_lines("/api/v3/write_lp", query, body)

    def make(self) -> None:
        wanted = {"db": self._bucket}
        if self._retention:
            wanted["retention_period"] = f"{_seconds(self._retention)}s"
        answer = self._connection.request("POST", "/api/v3/configure/database", payload=wanted)
        if answer.status not in (200, 201, 409) and answer.status not in _REFUSED:  # 409: it is there already
            raise StoreError(f"status {answer.status}: {answer.body.decode(errors='replace')[:200]}")

    def retention(self) -> timedelta | None:
        return None

    def delete(self, measurement: str, asset: str) -> None:
        raise StoreError(
            f"InfluxDB {self.about.version} cannot delete rows; drop database {self._bucket!r} and import what is "
            "to stay, or keep imports apart with another store.bucket"
        )


def detect(connection: Connection, bucket: str, retention: timedelta | None) -> Dialect:
    """The dialect of the server that answers. Raises StoreError for what is no InfluxDB, StoreUnavailable."""
    answer = connection.request("GET", "/ping")
    headers = {name.lower(): value for name, value in answer.headers.items()}
    version = headers.get("x-influxdb-version", "")
    if not version and answer.body.startswith(b"{"):
        version = str(orjson.loads(answer.body).get("version", ""))
    about = About(version.removeprefix("v"), headers.get("x-influxdb-build", ""))
    if about.generation not in (1, 2, 3):
        raise StoreError(f"InfluxDB at {connection.url} is version {version}; pm speaks to 1.8, 2.x and 3")
    kinds: dict[int, type[Dialect]] = {1: Dialect, 2: Version2, 3: Version3}
    return kinds[about.generation](connection, about, bucket, retention)


def raise_told(body: bytes, url: str) -> None:
    """Raise the error that a JSON answer tells, whatever its status. A database not written to yet is no error."""
    for line in body.splitlines():
        answer = orjson.loads(line)
        for part in (answer, *answer.get("results", ())):
            message = part.get("error", "")
            if message and not message.startswith("database not found"):
                raise StoreError(f"InfluxDB at {url}: {message}")


def _seconds(duration: timedelta | None) -> int:
    return int(duration.total_seconds()) if duration else 0


def _go_duration(text: str) -> timedelta | None:
    """ "720h0m0s" as a timedelta; "0s" is for ever."""
    match = _DURATION.fullmatch(text)
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    return timedelta(hours=hours, minutes=minutes, seconds=seconds) or None
