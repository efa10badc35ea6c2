"""InfluxDB: the store contract against the real server, and what is particular to this store."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from connectors.batches import from_readings
from connectors.influx import InfluxStore
from connectors.influx_conflicts import SLOTS
from connectors.influxql import parse_readings, parse_rows, parse_times, tag_value
from connectors.line_protocol import bodies, event_lines, reading_lines
from pm import doctor
from pm.config import Config, StoreSection
from pm.domain import Reading, to_us
from pm.edges import open_store, wall_now
from pm.errors import StoreError, StoreUnavailable
from tests.servers.influxdb import InfluxServer, influxdb
from tests.servers.programs import free_port, program
from tests.store_contract import StoreContract, at, content, event, reading, us

_bucket_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluxServer]:
    with influxdb(tmp_path_factory.mktemp("influxdb")) as running:
        yield running


@pytest.fixture
def store(server: InfluxServer) -> Iterator[InfluxStore]:
    """An empty store in a database of its own, which the first write makes."""
    store = InfluxStore(url=server.url, bucket=f"plant {next(_bucket_numbers)}")
    yield store
    store.close()


def _lines(store: InfluxStore, *lines: str) -> None:
    """What another program writes into the same database."""
    store._connection.write(store._bucket, "\n".join(lines).encode(), "us")


class TestInfluxStore(StoreContract):
    @pytest.fixture
    def store(self, store: InfluxStore) -> InfluxStore:
        return store


def test_two_stores_see_the_same_rows_and_every_number_is_a_float(server: InfluxServer, store: InfluxStore) -> None:
    store.write([reading("a", 1, x=1.0)])
    store.write([reading("a", 2, x=1.5)])
    other = InfluxStore(url=server.url, bucket=store._bucket)
    assert content(other.readings(at(0), at(9))) == {("a", at(1)): {"x": 1.0}, ("a", at(2)): {"x": 1.5}}
    other.close()


def test_another_process_that_starts_later_reads_before_it_writes(server: InfluxServer, store: InfluxStore) -> None:
    store.write([reading("a", hour, x=5.0) for hour in range(4)])
    later = InfluxStore(url=server.url, bucket=store._bucket)
    later.write([reading("a", 1, x=4.0), reading("a", 2, x=6.0), reading("a", 9, x=1.0)])
    assert list(later.readings(at(-1), at(9))["x"]) == [5.0, 5.0, 6.0, 5.0, 1.0]
    assert list(store.conflicts()["value"]) == [4.0, 5.0]
    later.close()


def test_in_order_nothing_is_read_back(store: InfluxStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write([reading("a", 1, x=1.0), reading("b", 1, x=1.0)])
    monkeypatch.setattr(store._reader, "ask", lambda *_, **__: pytest.fail("a question was put"))
    store.write([reading("a", 2, x=1.0), reading("b", 2, x=1.0)])
    store.write([reading("a", 3, x=2.0)], [event("a", 1, "error", "e")])


def test_several_writers_read_before_every_write(server: InfluxServer, store: InfluxStore) -> None:
    others = [InfluxStore(url=server.url, bucket=store._bucket, only_writer=False) for _ in range(2)]
    for hour in range(3):
        others[0].write([reading("a", hour, x=1.0)])
        others[1].write([reading("a", hour, x=float(hour))])
    assert list(store.readings(at(-1), at(9))["x"]) == [1.0, 1.0, 2.0]
    assert list(store.conflicts()["value"]) == [0.0, 1.0]
    for other in others:
        other.close()


def test_a_server_that_went_away_in_between_overwrites_nothing(server: InfluxServer, store: InfluxStore) -> None:
    """A write that failed may have stored its lines, so the rows after it count as late."""
    store.write([reading("a", 1, x=1.0)])
    server.stop()
    try:
        with pytest.raises(StoreUnavailable):
            store.write([reading("a", 2, x=7.0)])
    finally:
        server.restart()
    other = InfluxStore(url=server.url, bucket=store._bucket)
    other.write([reading("a", 2, x=7.0)])  # as if the first had come through and only its answer was lost
    other.close()
    store.write([reading("a", 2, x=3.0)])
    assert list(store.readings(at(0), at(9))["x"]) == [1.0, 7.0]
    assert list(store.conflicts()["value"]) == [3.0]


def test_more_conflicts_than_nanoseconds_are_refused(store: InfluxStore) -> None:
    store.write([reading("a", 1, x=9999.0)])
    kept = [f"conflicts,asset=a x={value} {us(1) * 1000 + value}" for value in range(SLOTS - 1)]
    store._connection.write(store._bucket, "\n".join(kept).encode(), "ns")
    store.write([reading("a", 1, x=-1.0), reading("a", 1, x=5.0)])
    assert list(store.conflicts()["value"]) == [-1.0, *range(SLOTS - 1)]
    with pytest.raises(StoreError, match="more than 1000 different values"):
        store.write([reading("a", 1, x=-2.0)])
    store.write([reading("a", 1, x=-1.0), reading("a", 1, x=5.0)])


def test_rows_that_further_tags_set_apart_are_one(store: InfluxStore) -> None:
    store.write([reading("a", 1, x=1.0), reading("b", 1, x=1.0)])
    _lines(store, f"readings,asset=a,line=3 x=0.5,y=2 {us(1)}", f"readings,asset=a,line=4 z=3 {us(1)}")
    assert content(store.readings(at(0), at(9))) == {
        ("a", at(1)): {"x": 1.0, "y": 2.0, "z": 3.0},
        ("b", at(1)): {"x": 1.0},
    }
    assert store.counts()["readings"] == 2


def test_fields_of_others_do_no_harm(store: InfluxStore) -> None:
    store.write([reading("a", 1, x=1.0)])
    _lines(store, f'readings,asset=a,line=3 note="text",x=2,running=true {us(2)}', f"readings,asset=b count=3i {us(2)}")
    assert store.points() == ("count", "x")
    assert content(store.readings(at(0), at(9))) == {
        ("a", at(1)): {"x": 1.0},
        ("a", at(2)): {"x": 2.0},
        ("b", at(2)): {"count": 3.0},
    }


def test_a_query_that_csv_would_hide_is_told(store: InfluxStore) -> None:
    store.write([reading("a", 1, x=1.0)])
    with pytest.raises(StoreError, match="mixing aggregate"):
        store._reader.ask('SELECT count("x"), "x" FROM "readings"')


def test_a_long_batch_goes_in_several_requests(store: InfluxStore) -> None:
    hours = [hour / 100 for hour in range(25_000)]
    store.write([reading("a", hour, x=hour) for hour in hours])
    assert store.readings(at(-1), at(251))["x"].tolist() == hours
    assert store.counts()["readings"] == 25_000


def test_while_the_server_is_away_writing_may_be_tried_again(server: InfluxServer, store: InfluxStore) -> None:
    store.write([reading("a", 1, x=1.0)])
    server.stop()
    try:
        with pytest.raises(StoreUnavailable, match=server.url) as caught:
            store.write([reading("a", 2, x=2.0)])
        assert caught.value.retryable
        with pytest.raises(StoreUnavailable):
            store.readings(at(0), at(9))
    finally:
        server.restart()
    store.write([reading("a", 2, x=2.0)])
    assert list(store.readings(at(0), at(9))["x"]) == [1.0, 2.0]


def test_nobody_listening() -> None:
    store = InfluxStore(url=f"http://127.0.0.1:{free_port()}", bucket="b")
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        store.counts()
    store.close()
    store.close()


def test_a_wrong_password_is_refused_and_never_shown(tmp_path: Path) -> None:
    with influxdb(tmp_path, auth=True) as server:
        server.query("CREATE USER boss WITH PASSWORD 'b' WITH ALL PRIVILEGES")
        store = InfluxStore(url=server.url, bucket="b", token="someone:top-secret-word")
        for use in (lambda: store.write([reading("a", 1, x=1.0)]), store.counts):
            with pytest.raises(StoreError, match="refuses the token") as caught:
                use()
            assert not caught.value.retryable
            assert "top-secret-word" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__cause__}"
        store.close()


def test_tls_is_verified(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *(
                program("openssl", "openssl"),
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=127.0.0.1",
            ),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    with influxdb(tmp_path, tls=(certificate, key)) as server:
        trusting = InfluxStore(url=server.url, bucket="b", ca_file=str(certificate))
        trusting.write([reading("a", 1, x=1.0)])
        assert trusting.counts()["readings"] == 1
        trusting.close()
        stranger = InfluxStore(url=server.url, bucket="b")
        with pytest.raises(StoreError, match=r"TLS failed.*ca_file") as caught:
            stranger.counts()
        assert not caught.value.retryable
        stranger.close()


def test_the_doctor_tells_which_server_it_is_and_what_it_can(server: InfluxServer) -> None:
    section = StoreSection(kind="influxdb", url=server.url, bucket="examined", retention=timedelta(days=400))
    store = open_store(Config(store=section))
    an_hour_ago = to_us(wall_now()) - 3_600_000_000
    store.write([reading("a", 1, x=1.0)], [event("a", 1, "error", "e")])
    store.write([Reading("a", an_hour_ago, {"x": 1.0, "y": 1.0}), Reading("b", an_hour_ago, {"x": 1.0})])
    store.write([Reading("a", an_hour_ago, {"x": 2.0})])
    store.close()
    said = doctor._store(Config(store=section))
    assert "3 values of the last day, 1 beside greater ones; InfluxDB" in said
    assert "InfluxDB 1.6.7~rc0 OSS: makes a database with its retention policy, deletes" in said
    assert "keeps readings for 400 days" in said
    longer = doctor._store(Config(store=section.model_copy(update={"retention": None})))
    assert "asks for" not in longer
    server.stop()
    try:
        with pytest.raises(StoreUnavailable, match=r"status 502 \(Bad Gateway\)"):
            doctor._store(Config(store=section))
    finally:
        server.restart()


@pytest.mark.parametrize(
    ("tags", "asset"),
    [("asset=a", "a"), (r"asset=a\ 1,line=2", "a 1"), (r"area=x\,asset\=n,asset=b\,\=q", "b,=q"), ("line=2", "")],
)
def test_tags_of_an_answer(tags: str, asset: str) -> None:
    assert tag_value(tags, "asset") == asset


def test_headers_repeated_in_every_chunk_are_passed_over() -> None:
    body = b"name,tags,time,x\nreadings,asset=a,1,1.5\n\nname,tags,time,x\nreadings,asset=b,2,\n"
    answer = parse_readings(body, 1)
    assert [answer.assets[code] for code in answer.asset_of] == ["a", "b"]
    assert answer.times.tolist() == [1, 2]
    assert str(answer.values.tolist()) == "[[1.5], [nan]]"


def test_an_answer_of_version_3() -> None:
    """By the form of its v1-compatible CSV, not by a running server: no tags, the asset as a column, null, CRLF."""
    chunk = b"name,tags,time,asset,x,y\nreadings,,1,a 1,1.5,null\nreadings,,2,%s,null,2.5e-7\n\r\n"
    answer = parse_readings(chunk % b"a 1" + chunk % b"null", 2)
    assert [answer.assets[code] for code in answer.asset_of] == ["a 1", "a 1", "a 1", "null"]
    assert answer.times.tolist() == [1, 2, 1, 2]
    assert str(answer.values.tolist()) == "[[1.5, nan], [nan, 2.5e-07], [1.5, nan], [nan, 2.5e-07]]"
    assert parse_rows(chunk % b"b", ("time", "asset")) == [("1", "a 1"), ("2", "b")]
    assert parse_times(chunk % b"b") == {"a 1": 1, "b": 2}


def test_answers_without_rows() -> None:
    for body in (b"", b"\n", b"name,tags,time,x\n", b"name,tags,time,x\n\r\n"):
        assert len(parse_readings(body, 1).times) == 0
        assert parse_rows(body, ("time",)) == []
        assert parse_times(body) == {}


def test_an_answer_that_does_not_fit_the_question_is_refused() -> None:
    with pytest.raises(StoreError, match="2 fields where 1"):
        parse_readings(b"name,tags,time,a,b\nreadings,asset=a,1,1,2\n", 1)


def test_bodies_are_cut_by_lines_and_by_bytes() -> None:
    assert list(bodies(["aa", "bb", "cc"], most_lines=2)) == [b"aa\nbb", b"cc"]
    assert list(bodies(["aaaa", "bbbbbbbbbbbb", "c", "d"], most_bytes=6)) == [b"aaaa", b"bbbbbbbbbbbb", b"c\nd"]
    assert list(bodies([])) == []


def test_lines_as_the_server_is_to_read_them() -> None:
    [batch] = from_readings([reading("a 1", 0, {"x,y": 0.1, "z=": 2.0}), reading("b", 0)])
    assert list(reading_lines(batch)) == [
        rf"readings,asset=a\ 1 x\,y=0.1,z\==2.0 {us(0)}",
        f"readings,asset=b _empty=1 {us(0)}",
    ]
    assert list(event_lines([event("a 1", 0, "error", 'e"1')])) == [
        rf'events,asset=a\ 1,event=e"1,kind=error code="e\"1" {us(0)}'
    ]
