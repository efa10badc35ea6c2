"""Rows that InfluxDB will not take: only those are named, everything else of the batch is stored, in few requests."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.batches import Batch, from_readings
from connectors.influx import InfluxStore
from connectors.influx_http import Refusal
from connectors.influx_refusals import settle
from pm.domain import EARLIEST, LATEST, Event, EventKind, Reading
from pm.errors import RowsRefused, StoreError
from tests.servers.influxdb import InfluxServer, influxdb
from tests.store_contract import at, content, event, event_rows, everything, reading, us

_bucket_numbers = itertools.count()
HOUR = 3_600_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InfluxServer]:
    with influxdb(tmp_path_factory.mktemp("influxdb")) as running:
        yield running


@pytest.fixture
def store(server: InfluxServer) -> Iterator[InfluxStore]:
    opened = InfluxStore(url=server.url, bucket=f"refusing {next(_bucket_numbers)}")
    yield opened
    opened.close()


@pytest.fixture
def posts(store: InfluxStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lines of every write request."""
    lines: list[int] = []
    write = store._connection.write

    def counted(bucket: str, body: bytes, unit: object) -> None:
        lines.append(body.count(b"\n") + 1)
        write(bucket, body, unit)  # type: ignore[arg-type]

    monkeypatch.setattr(store._connection, "write", counted)
    return lines


def foreign(store: InfluxStore, *lines: str) -> None:
    """What another program wrote into the same database."""
    store._connection.write(store._bucket, "\n".join(lines).encode(), "us")


def test_a_point_that_began_as_an_integer_loses_that_value_alone(store: InfluxStore, posts: list[int]) -> None:
    """The server drops a whole line for one field; its other points are stored all the same."""
    store.write([reading("first", 1, y=1.0)])
    foreign(store, f"readings,asset=z x=1i {us(1)}")
    posts.clear()
    rows = [reading("a", 1, x=1.0, y=2.0), *(reading(f"b{n}", 1, y=3.0) for n in range(50)), reading("c", 1, x=2.0)]
    with pytest.raises(RowsRefused, match=r"2 rows refused.*field type conflict.*mend the field's type") as caught:
        store.write(rows, [event("a", 1, "error", "e")])
    assert not caught.value.retryable and "\n" not in str(caught.value)
    assert set(caught.value.readings) == {("a", us(1)), ("c", us(1))}
    assert "dropped" not in caught.value.readings["a", us(1)]
    got = content(store.readings(at(0), at(9), points=["x", "y"]))
    assert got["a", at(1)] == {"y": 2.0} and ("c", at(1)) not in got and len(got) == 53
    assert event_rows(everything(store)[1]) == [("a", "error", "e")]
    assert len(posts) <= 5  # the batch, those without x, those with it, what is left of them, the events


def test_types_differ_by_shard_and_so_do_refusals(store: InfluxStore, posts: list[int]) -> None:
    """1.x and 2.x hold a field's type a week at a time; which weeks, only trying tells."""
    store.write([reading("first", -24 * 30, x=1.0)])
    foreign(store, f"readings,asset=z x=1i {us(24 * 8)}")
    posts.clear()
    rows = [reading("a", 24 * day + 1, x=float(day)) for day in range(40)]
    with pytest.raises(RowsRefused) as caught:
        store.write(rows)
    refused = {time for _, time in caught.value.readings}
    assert us(24 * 8 + 1) in refused and 0 < len(refused) <= 7
    stored = store.readings(at(0), LATEST, ["a"])["time"]
    assert {row.time_us for row in rows} - refused == {int(t.timestamp() * 1e6) for t in stored}
    assert len(posts) < 20


def test_readings_older_than_the_retention(server: InfluxServer, posts: list[int]) -> None:
    store = InfluxStore(url=server.url, bucket="a month", retention=timedelta(days=30))
    now = int(time.time() * 1e6)
    fresh = [Reading("a", now - hour * HOUR, {"x": float(hour)}) for hour in range(3)]
    old = [Reading("a", now - hour * HOUR, {"x": 1.0}) for hour in (24 * 40, 24 * 90)]
    with pytest.raises(RowsRefused, match="beyond retention policy") as caught:
        store.write([*fresh, *old])
    assert set(caught.value.readings) == {("a", row.time_us) for row in old}
    assert sorted(store.readings(EARLIEST, LATEST)["x"]) == [0.0, 1.0, 2.0]
    assert "keeps readings for 30 days" in store.describe() and "asks for" not in store.describe()
    other = InfluxStore(url=server.url, bucket="a month", retention=timedelta(days=60))
    assert "store.retention asks for 60 days" in other.describe()
    other.close()
    store.close()


def test_events_that_are_refused(server: InfluxServer, store: InfluxStore) -> None:
    store.write([reading("a", 1, x=1.0)])
    foreign(store, f"events,asset=z code=1i {us(1)}")
    events = [event("a", hour, "error", "e") for hour in (1, 24 * 30)]
    with pytest.raises(RowsRefused) as caught:
        store.write([reading("a", 1, x=1.0)], events)
    assert set(caught.value.events) == {("a", us(1), "error", "e")} and not caught.value.readings
    assert b"2026-03-31" in server.query(f'SELECT "code"::string FROM "{store._bucket}".."events"')
    assert content(everything(store)[0]) == {("a", at(1)): {"x": 1.0}}


def test_long_names_make_small_requests(store: InfluxStore, posts: list[int]) -> None:
    """Servers and proxies refuse large bodies, some by closing the connection."""
    values = {f"{number:0>255}": 1.5 for number in range(100)}
    store.write([Reading("a", us(hour), values) for hour in range(200)])
    assert store.counts()["readings"] == 200
    assert max(posts) * 100 * 260 < 4_000_000 and sum(posts) >= 200


class Shards:
    """A server that refuses values of point x at some times, with the words of one version."""

    def __init__(self, bad: set[int], form: str) -> None:
        self.bad, self.form = bad, form
        self.rows: dict[tuple[str, int], dict[str, float]] = {}
        self.requests = 0

    def post(self, part: Batch) -> None:
        self.requests += 1
        dropped: list[int] = []
        for row in range(len(part)):
            time_us = int(part.times[row])
            values = {p: float(v) for p, v in zip(part.points, part.values[row], strict=True) if not np.isnan(v)}
            if time_us in self.bad and "x" in values:
                dropped.append(row)
            else:
                self.rows.setdefault((part.assets[part.asset_of[row]], time_us), {}).update(values)
        if dropped and self.form == "3":
            says = "invalid column type for column 'x', expected iox::column_type::field::integer"
            raise Refusal("partial write of line protocol occurred", lines=dict.fromkeys(dropped, says))
        if dropped and self.form == "1":
            first = [row for row in dropped if part.times[row] // 10 == part.times[dropped[0]] // 10]  # of one shard
            says = f'partial write: field type conflict: input field "x" on measurement "r" dropped={len(first)}'
            raise Refusal(says, dropped=len(first))
        if dropped:
            raise Refusal("413 too large" if self.form == "silent" else "unable to parse")


@given(
    times=st.lists(st.integers(0, 60), min_size=1, max_size=40, unique=True),
    bad=st.sets(st.integers(0, 60), max_size=12),
    with_y=st.sets(st.integers(0, 60)),
    form=st.sampled_from(["1", "3", "silent"]),
)
def test_every_row_ends_stored_or_named(times: list[int], bad: set[int], with_y: set[int], form: str) -> None:
    rows = [Reading("a", t, {"x": 1.0} | ({"y": 2.0} if t in with_y else {})) for t in times]
    shards = Shards(bad, form)
    [batch] = from_readings(rows)
    refused = settle(batch, shards.post)
    assert set(refused) == {("a", t) for t in times if t in bad}
    for row in rows:
        if row.time_us not in bad:
            assert shards.rows["a", row.time_us] == dict(row.values)
        elif form != "silent" and "y" in row.values:
            assert shards.rows["a", row.time_us] == {"y": 2.0}
        else:
            assert ("a", row.time_us) not in shards.rows
    if not bad & set(times):
        assert shards.requests == 1


def test_one_bad_row_of_ten_thousand_is_found_in_few_requests() -> None:
    [batch] = from_readings([Reading("a", t, {"x": 1.0}) for t in range(10_000)])
    for form, most in (("1", 40), ("3", 2), ("silent", 40)):
        shards = Shards({777}, form)
        assert set(settle(batch, shards.post)) == {("a", 777)}
        assert len(shards.rows) == 9_999 and shards.requests <= most


def test_a_refusal_of_everything_is_the_stores_and_not_the_rows(server: InfluxServer) -> None:
    """A name that no database can have: nothing is halved, nothing named."""
    store = InfluxStore(url=server.url, bucket="")
    with pytest.raises(StoreError) as caught:
        store.write([reading("a", 1, x=1.0)], [Event("a", 0, EventKind.ERROR, "e")])
    assert not isinstance(caught.value, RowsRefused)
    store.close()
