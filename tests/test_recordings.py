"""Recordings: what is written reads back as it was, and each kind of damage gets its refusal."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors import recordings
from connectors.recording_tables import events_frame
from pm.domain import Asset, FailureMode, History, Point, Recording, parse_interval, to_us
from pm.errors import RecordingError

SHARED = Path(__file__).parents[2] / "shared" / "recordings"
START = datetime(2026, 1, 1, tzinfo=UTC)


def frame(rows: list[tuple[datetime, str, list[float]]], points: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "time": pd.Series([row[0] for row in rows], dtype="datetime64[us, UTC]"),
            "asset": pd.Series([row[1] for row in rows], dtype="str"),
            **{point: pd.Series([row[2][i] for row in rows], dtype="float64") for i, point in enumerate(points)},
        }
    )


def small() -> Recording:
    hours = [START + timedelta(hours=i) for i in range(4)]
    rows = [(hour, asset, [1.5 * i, math.nan]) for asset in ("a", "b") for i, hour in enumerate(hours)]
    events = [(to_us(hours[1]), "a", "error", "e7"), (to_us(hours[2]), "b", "failure", "bearing")]
    history = History(
        interval=timedelta(hours=1),
        points=(Point("vibration", "mm/s", 0.0, 30.0, "RMS"), Point("pressure", "bar")),
        failure_modes=(FailureMode("bearing", "wears out"),),
        assets=(Asset("a", "m1", {"age": 3, "site": "north"}), Asset("b", "m2", {"age": 4, "site": "south"})),
        readings=frame(rows, ["vibration", "pressure"]),
        events=events_frame(events),
    )
    return Recording("small", "1h", 'about "it"\n', "tests", "CC0", history)


def same(one: Recording, other: Recording) -> None:
    pd.testing.assert_frame_equal(one.history.readings, other.history.readings)
    pd.testing.assert_frame_equal(one.history.events, other.history.events)
    empty = pd.DataFrame()
    bare = [replace(r, history=replace(r.history, readings=empty, events=empty)) for r in (one, other)]
    assert repr(bare[0]) == repr(bare[1])  # types of static values too
    assert recordings.fingerprint(one) == recordings.fingerprint(other)


# Names as people give them; control characters are refused, and a test below says so.
names = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8).map(lambda text: "x" + text)
numbers = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))


@st.composite
def recorded(draw: st.DrawFn) -> Recording:
    """Any recording that the format can hold."""
    points = draw(
        st.lists(names.filter(lambda name: name not in ("time", "asset")), min_size=1, max_size=4, unique=True)
    )
    assets = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    columns = draw(st.lists(names.filter(lambda name: name not in ("model", "asset")), max_size=3, unique=True))
    kinds = {column: draw(st.sampled_from([st.integers(-(2**63), 2**63 - 1), numbers, texts])) for column in columns}
    modes = draw(st.lists(names, max_size=3, unique=True))
    value = st.one_of(numbers, st.floats(width=32, allow_infinity=False), st.just(math.nan))
    keys = draw(st.lists(st.tuples(st.sampled_from(assets), moments), max_size=12, unique=True))
    rows = [
        (time, asset, draw(st.lists(value, min_size=len(points), max_size=len(points)))) for asset, time in sorted(keys)
    ]
    kind = st.tuples(st.just("failure"), st.sampled_from(modes)) if modes else st.nothing()
    event = st.tuples(
        moments.map(to_us),
        st.sampled_from(assets),
        st.one_of(kind, st.tuples(st.sampled_from(["error", "maintenance"]), names)),
    ).map(lambda e: (e[0], e[1], *e[2]))
    limits = st.tuples(numbers, numbers).filter(lambda pair: pair[0] < pair[1])
    interval = draw(st.sampled_from(["1s", "10m", "1h", "1d"]))
    history = History(
        interval=parse_interval(interval),
        points=tuple(
            Point(name, draw(texts), *draw(st.one_of(st.just((None, None)), limits)), draw(texts)) for name in points
        ),
        failure_modes=tuple(FailureMode(code, draw(texts)) for code in modes),
        assets=tuple(Asset(name, draw(texts), {c: draw(kinds[c]) for c in columns}) for name in assets),
        readings=frame(rows, points),
        events=events_frame(sorted(draw(st.lists(event, max_size=8, unique=True)))),
    )
    return Recording(draw(names), interval, draw(st.text(st.characters(exclude_categories=("Cs",)))), "", "", history)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(recorded())
def test_written_reads_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, recording: Recording) -> None:
    folder = tmp_path_factory.mktemp("recording") / "out"
    recordings.write(recording, folder)
    same(recordings.read(folder), recording)


def test_rows_without_any_value_survive(tmp_path: Path) -> None:
    recording = small()
    recording.history.readings.loc[2, "vibration"] = np.nan
    recordings.write(recording, tmp_path / "out")
    assert len(recordings.read(tmp_path / "out").history.readings) == 8


def test_unsorted_frames_are_written_in_order(tmp_path: Path) -> None:
    recording = small()
    shuffled = replace(
        recording,
        history=replace(
            recording.history,
            readings=recording.history.readings.sample(frac=1.0, random_state=1).reset_index(drop=True),
            events=recording.history.events.iloc[::-1].reset_index(drop=True),
        ),
    )
    recordings.write(shuffled, tmp_path / "out")
    same(recordings.read(tmp_path / "out"), recording)
    assert recordings.fingerprint(shuffled) == recordings.fingerprint(recording)


def test_several_files_serve_as_one(tmp_path: Path) -> None:
    recordings.write(small(), tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "readings.parquet")
    (tmp_path / "out" / "readings.parquet").unlink()
    (tmp_path / "out" / "readings").mkdir()
    pq.write_table(table.slice(3), tmp_path / "out" / "readings" / "1.parquet")
    pq.write_table(table.slice(0, 3), tmp_path / "out" / "readings" / "2.parquet")
    same(recordings.read(tmp_path / "out"), small())


def test_other_zones_and_wider_floats_say_the_same(tmp_path: Path) -> None:
    recordings.write(small(), tmp_path / "out")
    path = tmp_path / "out" / "readings.parquet"
    table = pq.read_table(path)
    schema = pa.schema(
        [
            ("time", pa.timestamp("ns", tz="Europe/Berlin")),
            ("asset", pa.dictionary(pa.int32(), pa.string())),
            ("vibration", pa.float64()),
            ("pressure", pa.float64()),
        ]
    )
    pq.write_table(table.cast(schema), path)
    (tmp_path / "out" / "events.csv").write_text(
        "code,kind,asset,time\ne7,error,a,2026-01-01T02:00:00+01:00\nbearing,failure,b,2026-01-01T02:00:00Z\n"
    )
    same(recordings.read(tmp_path / "out"), small())


def test_floats_are_stored_as_narrow_as_they_can_be(tmp_path: Path) -> None:
    recording = small()
    recording.history.readings["pressure"] = 0.1
    recordings.write(recording, tmp_path / "out")
    schema = pq.read_schema(tmp_path / "out" / "readings.parquet")
    assert schema.field("vibration").type == pa.float32()
    assert schema.field("pressure").type == pa.float64()
    assert schema.field("time").type == pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize("name", ["edp-wind", "cmapss-fd001-test"])
def test_public_recordings_round_trip(tmp_path: Path, name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"recording {name} is not on this machine")
    recording = recordings.read(SHARED / name)
    assert len(recording.history.readings) > 1000
    recordings.write(recording, tmp_path / "out")
    same(recordings.read(tmp_path / "out"), recording)


def test_fingerprint_sees_every_part() -> None:
    base = small()
    history = base.history
    louder, later, other = history.readings.copy(), history.readings.copy(), history.events.copy()
    louder.loc[0, "vibration"] += 1e-9
    later.loc[7, "time"] += pd.Timedelta("1us")
    other.loc[0, "code"] = "e8"
    changed = [
        replace(history, readings=louder),
        replace(history, readings=later),
        replace(history, events=other),
        replace(history, interval=timedelta(hours=2)),
        replace(history, points=history.points[:1]),
        replace(history, assets=(history.assets[0], replace(history.assets[1], static={"age": 5, "site": "south"}))),
        replace(history, failure_modes=()),
    ]
    prints = {recordings.fingerprint(h) for h in (history, *changed)}
    assert len(prints) == len(changed) + 1
    assert recordings.fingerprint(replace(base, name="other")) == recordings.fingerprint(history)


# -- refusals


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def reshape(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "readings.parquet"
        pq.write_table(change(pq.read_table(path)), path)

    return apply


def put(column: str, values: pa.Array) -> Callable[[Path], None]:
    return reshape(lambda table: table.set_column(table.schema.get_field_index(column), column, values))


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return change


def raw(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def both(folder: Path) -> None:
    (folder / "readings").mkdir()


times = [START + timedelta(hours=i % 4) for i in range(8)]
naive = pa.array([time.replace(tzinfo=None) for time in times], type=pa.timestamp("us"))
beyond = pa.array([to_us(START) if i else 2**62 for i in range(8)], type=pa.timestamp("us", tz="UTC"))
fine = pa.array([to_us(START) * 1000 + 1 + i for i in range(8)], type=pa.timestamp("ns", tz="UTC"))
strangers = pa.array(["a"] * 4 + ["b", "c", "c", "b"])
vanished = pa.array([*times[:3], None, *times[4:]], type=pa.timestamp("us", tz="UTC"))
infinite = pa.array([0.0] * 5 + [math.inf, 0.0, -math.inf], type=pa.float32())

DAMAGE: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no recording.toml": (lambda f: (f / "recording.toml").unlink(), ["recording.toml", "is missing"]),
    "no assets": (lambda f: (f / "assets.csv").unlink(), ["assets.csv", "is missing"]),
    "no events": (lambda f: (f / "events.csv").unlink(), ["events.csv", "is missing"]),
    "no readings": (lambda f: (f / "readings.parquet").unlink(), ["readings.parquet", "is missing"]),
    "readings twice": (both, ["readings", "keep one of the two"]),
    "not TOML": (edit("recording.toml", "format = 1", "format = "), ["recording.toml", "not TOML", "line 1"]),
    "unknown format": (edit("recording.toml", "format = 1", "format = 2"), ["format = 2", "reads format = 1"]),
    "no format": (edit("recording.toml", "format = 1", ""), ["write format = 1"]),
    "unknown key": (edit("recording.toml", "licence", "license"), ["license: no such key", "do you mean licence?"]),
    "unknown point key": (edit("recording.toml", "high", "hihg"), ["points.vibration.hihg", "do you mean high?"]),
    "bad interval": (edit("recording.toml", '"1h"', '"hourly"'), ["'hourly'", "write it as 10m, 1h or 1d"]),
    "interval a number": (edit("recording.toml", '"1h"', "3600"), ["interval = 3600 is not text"]),
    "no name": (edit("recording.toml", 'name = "small"', ""), ["name is missing"]),
    "limit not a number": (edit("recording.toml", "low = 0.0", 'low = "0"'), ["points.vibration.low = '0'"]),
    "limits crossed": (edit("recording.toml", "low = 0.0", "low = 31"), ["low = 31 is not under high = 30"]),
    "reserved point": (edit("recording.toml", '"pressure"', '"time"'), ["cannot be called 'time'"]),
    "points not tables": (
        edit("recording.toml", '[points."vibration"]', '[[points]]\nname = "vibration"\n[extra]'),
        ["points is not made of tables"],
    ),
    "point without column": (
        edit("recording.toml", '[points."pressure"]', '[points."level"]\n[points."pressure"]'),
        ["readings.parquet", "column level is missing"],
    ),
    "column without point": (
        edit("recording.toml", '[points."pressure"]\nunit = "bar"', ""),
        ["column pressure", 'no [points."pressure"]'],
    ),
    "not UTF-8": (raw("assets.csv", b"asset,model\n\xff,m\n"), ["assets.csv", "not UTF-8 at byte 12"]),
    "empty assets": (raw("assets.csv", b""), ["assets.csv", "is empty"]),
    "asset twice": (edit("assets.csv", "b,m2", "a,m2"), ["assets.csv row 3", "asset a stands in row 2 already"]),
    "asset without a name": (edit("assets.csv", "b,m2", ",m2"), ["assets.csv row 3", "give it a name"]),
    "no model column": (edit("assets.csv", "model", "modell"), ["column model is missing"]),
    "column twice": (edit("assets.csv", "site", "age"), ["column name 'age'"]),
    "NaN age": (edit("assets.csv", "m2,4", "m2,nan"), ["assets.csv row 3", "age is nan"]),
    "no age": (edit("assets.csv", "m2,4", "m2,"), ["assets.csv row 3", "age is empty"]),
    "assets cut off": (edit("assets.csv", "b,m2,4,south", "b,m2"), ["assets.csv row 3", "2 cells", "cut off?"]),
    "bad quotes": (edit("assets.csv", "south", '"south'), ["assets.csv", "not CSV at line"]),
    "event of a stranger": (edit("events.csv", "Z,b,", "Z,c,"), ["events.csv row 3", "asset 'c' is not in assets.csv"]),
    "event without zone": (edit("events.csv", "01:00:00Z", "01:00:00"), ["events.csv row 2", "end it with Z"]),
    "event without time": (edit("events.csv", "2026-01-01T01:00:00Z", "Friday"), ["row 2", "'Friday' is not a time"]),
    "event of another age": (edit("events.csv", "2026-01-01T01", "0026-01-01T01"), ["row 2", "outside 1678"]),
    "event of no kind": (edit("events.csv", "error", "eror"), ["row 2", "kind 'eror' is none of error, maintenance"]),
    "event without code": (edit("events.csv", ",e7", ","), ["events.csv row 2", "give it a code"]),
    "unknown failure": (edit("events.csv", "bearing", "seal"), ["row 3", '[failure_modes."seal"]']),
    "unknown event column": (edit("events.csv", "kind,code", "kind,code,who"), ["column who is not known"]),
    "event twice": (
        edit("events.csv", "2026-01-01T02:00:00Z,b,failure,bearing", "2026-01-01T01:00:00Z,a,error,e7"),
        ["events.csv row 3", "stands in row 2 already"],
    ),
    "events cut off": (cut("events.csv", 0.6), ["events.csv row 3", "cut off?"]),
    "readings cut off": (cut("readings.parquet", 0.7), ["readings.parquet", "may be cut off"]),
    "readings empty": (cut("readings.parquet", 0.0), ["readings.parquet", "may be cut off"]),
    "readings garbled": (raw("readings.parquet", b"PAR1" + b"\x00" * 50 + b"PAR1"), ["not whole Parquet"]),
    "text point": (put("pressure", pa.array(["1"] * 8)), ["point pressure is string; write it as float"]),
    "bool point": (put("pressure", pa.array([True] * 8)), ["point pressure is bool; write it as float"]),
    "whole-number point": (put("pressure", pa.array([1] * 8)), ["point pressure is int64; write it as float"]),
    "time without zone": (put("time", naive), ["time has no zone; write it as timestamp[us, UTC]"]),
    "time as text": (put("time", pa.array(["now"] * 8)), ["time is string"]),
    "time too fine": (put("time", fine), ["finer than microseconds"]),
    "time missing": (put("time", vanished), ["readings.parquet row 3", "time is empty"]),
    "time beyond all stores": (put("time", beyond), ["readings.parquet row 0", "outside 1678 to 2261"]),
    "asset a number": (put("asset", pa.array([1] * 8)), ["asset is int64; write it as text"]),
    "asset missing": (put("asset", pa.array(["a"] * 7 + [None])), ["row 7", "asset is empty"]),
    "reading of a stranger": (put("asset", strangers), ["row 5", "asset 'c' is not in assets.csv", "1 rows more"]),
    "infinite": (put("pressure", infinite), ["row 5", "pressure is infinite; write null"]),
    "no asset column": (reshape(lambda t: t.drop_columns(["asset"])), ["column asset is missing"]),
    "reading twice": (
        reshape(lambda t: pa.concat_tables([t, t.slice(6, 1)])),
        ["readings.parquet row 8", "b at 2026-01-01T02:00:00+00:00 was read before"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "out"
    recordings.write(small(), folder)
    harm, told = DAMAGE[damage]
    harm(folder)
    with pytest.raises(RecordingError) as refusal:
        recordings.read(folder)
    assert not refusal.value.retryable
    for part in told:
        assert part in str(refusal.value)


def test_several_problems_are_told_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    recordings.write(small(), folder)
    edit("events.csv", "bearing", "seal")(folder)
    edit("events.csv", "error", "eror")(folder)
    put("pressure", infinite)(folder)
    with pytest.raises(RecordingError) as refusal:
        recordings.read(folder)
    lines = str(refusal.value).splitlines()
    assert lines[0].endswith("3 to mend:")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "events.csv row 2",
        "events.csv row 3",
        "readings.parquet row 5",
    ]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no such folder"):
        recordings.read(tmp_path / "nowhere")


def test_a_full_folder_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    recordings.write(small(), folder)
    with pytest.raises(RecordingError, match="not empty"):
        recordings.write(small(), folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    recordings.write(small(), empty)
    same(recordings.read(empty), small())


def changed(**changes: object) -> Recording:
    base = small()
    return replace(base, history=replace(base.history, **changes))  # type: ignore[arg-type]


UNWRITABLE = {
    "text that looks like a number": (
        changed(assets=(Asset("a", "m", {"age": "3"}), Asset("b", "m", {"age": "4"}))),
        "static column age holds text",
    ),
    "text beside numbers": (
        changed(assets=(Asset("a", "m", {"age": "old"}), Asset("b", "m", {"age": 4}))),
        "static column age holds text",
    ),
    "different static columns": (
        changed(assets=(Asset("a", "m", {"age": 3}), Asset("b", "m", {"site": "x"}))),
        "differs from a in its static columns",
    ),
    "a reading of a stranger": (changed(assets=(Asset("a", "m"),)), "asset 'b' is not in assets.csv"),
    "an unknown failure": (changed(failure_modes=()), "failure code 'bearing'"),
    "a point without readings": (changed(points=(Point("vibration"),)), "columns and points differ in pressure"),
    "an interval that differs": (changed(interval=timedelta(minutes=10)), "does interval 1h say 0:10:00"),
    "a line break in a name": (
        changed(assets=(Asset("a", "m"), Asset("b", "m"), Asset("c\nd", "m"))),
        "control characters",
    ),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_would_not_read_back_is_not_written(tmp_path: Path, case: str) -> None:
    recording, told = UNWRITABLE[case]
    with pytest.raises(RecordingError, match=told):
        recordings.write(recording, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []  # nor is half of it left behind
