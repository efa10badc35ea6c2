"""What pm says to InfluxDB 2.x and 3 and how it reads their answers, by recorded forms.

Recorded contract tests: the forms in here were written from InfluxData's documentation and the published sources of the
servers. None of them ran against a 2.x or 3; 1.x is tested on a real server (test_influx_store.py).
https://docs.influxdata.com/influxdb/v2/api/ and https://docs.influxdata.com/influxdb3/core/api/
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta

import orjson
import pytest

from connectors.influx import InfluxStore
from connectors.influx_http import Connection
from connectors.influx_versions import Dialect, Version2, Version3, detect
from pm.domain import EARLIEST, LATEST, from_us
from pm.errors import RowsRefused, StoreError, StoreUnavailable
from tests.servers.influx_answers import Asked, StandIn, Told, stand_in
from tests.servers.influxdb import influxdb
from tests.store_contract import at, content, event, reading, us

Answers = Callable[[Asked], Told]

PING = {
    "1.8": Told(204, headers={"X-Influxdb-Version": "1.8.10", "X-Influxdb-Build": "OSS"}),
    "2": Told(204, headers={"X-Influxdb-Version": "v2.7.6", "X-Influxdb-Build": "OSS"}),
    "3": Told(
        200,
        b'{"version":"3.4.2","revision":"2a1f9d6","process_id":"b1a9c3de-9f0c-4d57-8d4b-1d8c1c4c9f3e"}',
        {"x-influxdb-version": "3.4.2", "x-influxdb-build": "Core"},
    ),
    "3 without headers": Told(200, b'{"version":"3.0.0","revision":"5ad0b1c"}'),
    "a silent proxy": Told(204),
}
BUCKET = {"id": "0a1b2c3d4e5f6071", "orgID": "1f1f1f1f1f1f1f1f", "name": "plant", "type": "user"}
BUCKET["retentionRules"] = [{"type": "expire", "everySeconds": 2592000, "shardGroupDurationSeconds": 86400}]  # type: ignore[assignment]


def told(status: int, body: object) -> Told:
    return Told(status, orjson.dumps(body), {"Content-Type": "application/json"})


def store_of(server: StandIn, **options: object) -> InfluxStore:
    return InfluxStore(url=server.url, bucket="plant", token="secret-token", **options)  # type: ignore[arg-type]


def connection_to(url: str, *, pack: bool | None = None) -> Connection:
    return Connection(url=url, org="", token="", verify_tls=True, ca_file="", timeout=timedelta(seconds=5), pack=pack)


class Second:
    """2.x: one bucket, mapped for InfluxQL or not."""

    def __init__(self, *, bucket: bool = True, mapped: bool = True, write: Answers | None = None) -> None:
        self.bucket, self.mapped = bucket, mapped
        self.write = write or (lambda _: Told(204))

    def __call__(self, request: Asked) -> Told:
        match request.method, request.path:
            case "GET", "/ping":
                return PING["2"]
            case "GET", "/api/v2/buckets":
                return told(200, {"buckets": [BUCKET] if self.bucket else []})
            case "GET", "/api/v2/orgs":
                return told(200, {"orgs": [{"id": BUCKET["orgID"], "name": "works"}]})
            case "POST", "/api/v2/buckets":
                self.bucket = True
                return told(201, BUCKET)
            case "GET", "/api/v2/dbrps":
                virtual = {"id": "x", "database": "plant", "retention_policy": "autogen", "virtual": True}
                return told(200, {"content": [virtual] if self.mapped else []})
            case "POST", "/api/v2/dbrps":
                self.mapped = True
                return told(201, {"id": "y"})
            case "POST", "/api/v2/write":
                if not self.bucket:
                    return told(404, {"code": "not found", "message": 'bucket "plant" not found'})
                return self.write(request)
            case "POST", "/query":
                return Told(200)
        return told(404, {"code": "not found", "message": "path not found"})


class Third:
    """3 Core: a table with rows, each chunk of a CSV answer with its header, `tags` empty, no quotes."""

    def __init__(self, *, rows: dict[int, float] | None = None, files_us: int | None = None) -> None:
        self.rows = rows or {}
        self.files_us = files_us
        """Longest time between rows whose files one question may open."""
        self.refused: list[tuple[int, str]] = []
        self.made: list[object] = []

    def __call__(self, request: Asked) -> Told:
        match request.method, request.path:
            case "GET", "/ping":
                return PING["3"]
            case "POST", "/api/v3/configure/database":
                self.made.append(orjson.loads(request.body))
                return Told(200)
            case "POST", "/api/v3/write_lp":
                return self._write(request)
            case "GET", "/query":
                return self._query(request.question)
        return Told(404, b"not found")

    def _write(self, request: Asked) -> Told:
        bad = [(n, line) for n, line in enumerate(request.lines, 1) if " x=" in line and "asset=bad" in line]
        self.refused += bad
        if not bad:
            return Told(204)
        says = "invalid column type for column 'x', expected iox::column_type::field::integer, got iox::column_type"
        named = [
            {"original_line": line, "line_number": number, "error_message": f"{says}::field::float"}
            for number, line in bad
        ]
        return told(400, {"error": "partial write of line protocol occurred", "data": named})

    def _query(self, question: str) -> Told:
        if question.startswith("SHOW FIELD KEYS"):
            known = b"name,tags,fieldKey,fieldType\nreadings,,x,float\n\r\n"
            return Told(200, known if self.rows and '"readings"' in question else b"")
        if '"readings"' not in question:
            return Told(200)
        times = re.search(r"time > (-?\d+) AND time <= (-?\d+)", question)
        assert times
        start, end = int(times[1]) // 1000, int(times[2]) // 1000
        rows = sorted((time, value) for time, value in self.rows.items() if start < time <= end)
        if self.files_us and rows and rows[-1][0] - rows[0][0] > self.files_us:
            return Told(
                500,
                b"Error while planning query: External error: Query would exceed file limit of 432 parquet files. "
                b"Please specify a smaller time range for your query. You can increase the file limit with the "
                b"`--query-file-limit` option in the serve command, however, query performance will be slower and the "
                b"server may get OOM killed or become unstable as a result",
            )
        if "LIMIT 1" in question:
            rows = rows[-1:] if "DESC" in question else rows[:1]
        chunks = [rows[n : n + 2] for n in range(0, len(rows), 2)]
        text = "".join(
            "name,tags,time,asset,x\n" + "".join(f"readings,,{time},a 1,{value}\n" for time, value in chunk) + "\r\n"
            for chunk in chunks
        )
        return Told(200, text.encode(), {"Content-Type": "application/csv"})


@pytest.mark.parametrize(
    ("form", "kind", "version"),
    [
        ("1.8", Dialect, "1.8.10"),
        ("2", Version2, "2.7.6"),
        ("3", Version3, "3.4.2"),
        ("3 without headers", Version3, "3.0.0"),
        ("a silent proxy", Version2, ""),
    ],
)
def test_the_version_is_found_by_the_answer_to_a_ping(form: str, kind: type[Dialect], version: str) -> None:
    with stand_in(lambda _: PING[form]) as server:
        connection = connection_to(server.url)
        found = detect(connection, "plant", None)
        connection.close()
    assert type(found) is kind and found.about.version == version
    assert found.describe().startswith(f"InfluxDB {version or 'of unknown version'}")


def test_a_version_of_the_future_is_refused() -> None:
    with stand_in(lambda _: Told(204, headers={"X-Influxdb-Version": "4.1"})) as server:
        store = store_of(server)
        with pytest.raises(StoreError, match=r"version 4\.1; pm speaks to 1\.8, 2\.x and 3"):
            store.counts()
        store.close()


def test_2x_takes_lines_with_bucket_org_and_precision() -> None:
    with stand_in(Second()) as server:
        store = store_of(server, org="works")
        store.write([reading("a 1", 1, x=1.5)], [event("a 1", 1, "error", "e")])
        store.close()
    [readings, events] = server.of("/api/v2/write")
    assert readings.query == {"org": "works", "bucket": "plant", "precision": "us"}
    assert readings.headers["authorization"] == "Token secret-token"
    assert readings.lines == [rf"readings,asset=a\ 1 x=1.5 {us(1)}"]
    assert events.lines[0].startswith("events,")
    assert not [r for r in server.asked if r.method == "POST" and "dbrps" in r.path], "the server maps by itself"
    asked = server.of("/query")[0]
    assert asked.method == "POST" and asked.query == {"db": "plant", "epoch": "u", "chunked": "true"}
    assert asked.headers["accept"] == "application/csv"


def test_2x_a_bucket_is_made_with_its_retention_and_mapped_for_influxql() -> None:
    with stand_in(Second(bucket=False, mapped=False)) as server:
        store = store_of(server, org="works", retention=timedelta(days=30))
        store.write([reading("a", 1, x=1.5)])
        assert "keeps readings for 30 days" in store.describe()
        store.close()
    [made] = [r for r in server.of("/api/v2/buckets") if r.method == "POST"]
    assert orjson.loads(made.body) == {
        "name": "plant",
        "orgID": BUCKET["orgID"],
        "retentionRules": [{"type": "expire", "everySeconds": 2592000}],
    }
    [mapping] = [r for r in server.of("/api/v2/dbrps") if r.method == "POST"]
    assert orjson.loads(mapping.body) == {
        "bucketID": BUCKET["id"],
        "orgID": BUCKET["orgID"],
        "database": "plant",
        "retention_policy": "autogen",
        "default": True,
    }
    assert [len(r.lines) for r in server.of("/api/v2/write")] == [1, 1], "the same line again once there is a bucket"


def test_2x_without_the_right_to_make_a_bucket() -> None:
    def answer(request: Asked) -> Told:
        if request.path in {"/api/v2/buckets", "/api/v2/orgs"} and request.method == "POST":
            return told(403, {"code": "forbidden", "message": "insufficient permissions for write"})
        return Second(bucket=False)(request)

    with stand_in(answer) as server:
        store = store_of(server, org="works")
        with pytest.raises(StoreError, match=r"no bucket 'plant' and does not let this token make it.*store\.bucket"):
            store.write([reading("a", 1, x=1.5)])
        store.close()


def test_2x_a_partial_write_names_one_field_and_a_count() -> None:
    def write(request: Asked) -> Told:
        bad = [line for line in request.lines if "asset=bad" in line and "x=" in line]
        says = 'failure writing points to database: partial write: field type conflict: input field "x" on measurement '
        says += f'"readings" is type float, already exists as type integer dropped={len(bad)}'
        return told(422, {"code": "unprocessable entity", "message": says}) if bad else Told(204)

    with stand_in(Second(write=write)) as server:
        store = store_of(server)
        with pytest.raises(RowsRefused) as caught:
            store.write([reading("good", 1, y=1.0), reading("bad", 1, x=1.0, y=2.0), reading("bad", 2, x=2.0)])
        store.close()
    assert set(caught.value.readings) == {("bad", us(1)), ("bad", us(2))}
    bodies = [request.lines for request in server.of("/api/v2/write")]
    assert len(bodies) == 4 and [f"readings,asset=bad y=2.0 {us(1)}"] in bodies


@pytest.mark.parametrize(
    ("answer", "kind", "says", "wait"),
    [
        (Told(429, b'{"code":"too many requests"}', {"Retry-After": "7"}), StoreUnavailable, "slow down, for 7 s", 7.0),
        (
            Told(503, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}),
            StoreUnavailable,
            "status 503",
            30.0,
        ),
        (Told(500, b'{"code":"internal error","message":"engine: disk"}'), StoreUnavailable, "engine: disk", 0.0),
        (Told(408, b""), StoreUnavailable, "slow down", 0.0),
        (
            Told(401, b'{"code":"unauthorized","message":"unauthorized access"}'),
            StoreError,
            r"refuses the token.*store\.token",
            None,
        ),
        (Told(400, b'{"code":"invalid","message":"url missing org"}'), StoreError, "status 400: url missing org", None),
    ],
    ids=["429", "503 with a date", "500", "408", "401", "400"],
)
def test_what_a_write_may_be_answered(answer: Told, kind: type[StoreError], says: str, wait: float | None) -> None:
    with stand_in(Second(write=lambda _: answer)) as server:
        store = store_of(server)
        with pytest.raises(kind, match=says) as caught:
            store.write([reading("a", 1, x=1.0)])
        store.close()
    assert caught.value.retryable == (wait is not None) and "secret" not in str(caught.value)
    assert getattr(caught.value, "wait", None) == wait


def test_a_server_that_hangs_is_unavailable_after_the_timeout() -> None:
    import time

    def answer(request: Asked) -> Told:
        if request.path == "/api/v2/write":
            time.sleep(1.0)
        return Second()(request)

    with stand_in(answer) as server:
        store = store_of(server, timeout=timedelta(milliseconds=300))
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            store.write([reading("a", 1, x=1.0)])
        store.close()


def test_3_takes_lines_at_its_own_address_with_its_own_precision_names() -> None:
    answers = Third()
    with stand_in(answers) as server:
        store = store_of(server, retention=timedelta(days=30))
        store.write([reading("a", 1, x=1.5)])
        assert "InfluxDB 3.4.2 Core: makes a database with its retention, cannot delete" in store.describe()
        with pytest.raises(StoreError, match=r"3\.4\.2 cannot delete rows; drop database 'plant'"):
            store.delete_assets(["a"])
        store.close()
    [written] = server.of("/api/v3/write_lp")
    assert written.query == {
        "db": "plant", "precision": "microsecond", "accept_partial": "true", "no_sync": "false",
    }  # fmt: skip
    assert written.headers["authorization"] == "Token secret-token"
    assert answers.made == [{"db": "plant", "retention_period": "2592000s"}]
    assert not server.of("/api/v2/write")


def test_3_names_every_line_that_it_refuses() -> None:
    with stand_in(Third()) as server:
        store = store_of(server)
        rows = [reading("good", 1, x=1.0), reading("bad", 1, x=1.0, y=2.0), reading("good", 2, x=1.0)]
        with pytest.raises(RowsRefused, match="invalid column type for column 'x'") as caught:
            store.write([*rows, reading("bad", 2, x=1.0)])
        store.close()
    assert set(caught.value.readings) == {("bad", us(1)), ("bad", us(2))}
    bodies = [request.lines for request in server.of("/api/v3/write_lp")]
    assert len(bodies) == 3 and [f"readings,asset=bad y=2.0 {us(1)}"] in bodies


def test_3_is_read_in_its_form_of_csv_with_the_question_in_the_address() -> None:
    rows = {us(hour): hour / 4 for hour in range(1, 6)}
    with stand_in(Third(rows=rows)) as server:
        store = store_of(server)
        frame = store.readings(at(0), at(9))
        assert content(frame) == {("a 1", at(hour)): {"x": hour / 4} for hour in range(1, 6)}
        assert store.span() == {"a 1": (at(1), at(5))}
        assert store.points() == ("x",)
        store.close()
    assert {request.method for request in server.of("/query")} == {"GET"}


@pytest.mark.parametrize("hours", [3, 100])
def test_3_core_opens_few_files_for_a_question_so_it_is_put_for_shorter_times(hours: int) -> None:
    """Years are read all the same, and what went well is remembered."""
    rows = {us(hour): float(hour) for hour in range(0, 2400, 37)}
    with stand_in(Third(rows=rows, files_us=hours * 3_600_000_000)) as server:
        store = store_of(server)
        assert list(store.readings(at(-1), at(2400))["x"]) == [rows[time] for time in sorted(rows)]
        before = len(server.of("/query"))
        assert store.span() == {"a 1": (from_us(min(rows)), from_us(max(rows)))}
        assert store.counts()["readings"] == len(rows)
        assert before < 2400 / hours * 4
        again = len(server.of("/query"))
        window: tuple[datetime, datetime] = (at(500), at(500 + hours // 2))
        store.readings(*window)
        assert len(server.of("/query")) - again == 2, "the fields, and one question"
        store.close()


def test_3_a_database_not_written_to_is_empty() -> None:
    def answer(request: Asked) -> Told:
        return PING["3"] if request.path == "/ping" else told(404, {"error": "database not found: plant"})

    with stand_in(answer) as server:
        store = store_of(server)
        assert store.points() == () and store.span() == {} and len(store.readings(EARLIEST, LATEST)) == 0
        store.close()


def test_lines_are_packed_quickly_for_another_machine_and_not_on_this(tmp_path: object) -> None:
    for pack, encoding in ((None, ""), (True, "gzip")):
        for answers in (Second(), Third()):
            with stand_in(answers) as server:
                store = store_of(server, pack=pack)
                store.write([reading("a", hour, x=1.5) for hour in range(100)])
                store.close()
            [written] = [*server.of("/api/v2/write"), *server.of("/api/v3/write_lp")]
            assert written.headers.get("content-encoding", "") == encoding
            assert len(written.lines) == 100
    assert connection_to("https://influx.example:8086")._pack and not connection_to("http://[::1]:8086")._pack


def test_the_real_server_takes_packed_lines(tmp_path_factory: pytest.TempPathFactory) -> None:
    with influxdb(tmp_path_factory.mktemp("influxdb")) as server:
        store = InfluxStore(url=server.url, bucket="packed", pack=True)
        store.write([reading("a", hour, x=float(hour)) for hour in range(100)])
        assert list(store.readings(at(-1), at(99))["x"]) == [float(hour) for hour in range(100)]
        assert store.describe().startswith("InfluxDB 1.6.7")
        store.close()
