"""What every store of readings must do. A store's test module subclasses `StoreContract` and gives it a `store`.

Time runs in hours here: `at(3)` is the third hour.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from pm.domain import EARLIEST, LATEST, Event, EventKind, Reading, to_us
from pm.errors import StoreError
from pm.ports import ReadingStore

START = datetime(2026, 3, 1, tzinfo=UTC)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def us(hours: float) -> int:
    return to_us(at(hours))


def reading(asset: str, hours: float, values: Mapping[str, float] | None = None, /, **named: float) -> Reading:
    return Reading(asset, us(hours), {**(values or {}), **named})


def event(asset: str, hours: float, kind: str, code: str) -> Event:
    return Event(asset, us(hours), EventKind(kind), code)


def content(frame: pd.DataFrame) -> dict[tuple[str, datetime], dict[str, float]]:
    """Rows of a readings frame by asset and time, without what was not read."""
    points = [column for column in frame.columns if column not in ("time", "asset")]
    return {
        (row["asset"], row["time"].to_pydatetime()): {p: row[p] for p in points if not np.isnan(row[p])}
        for _, row in frame.iterrows()
    }


def everything(store: ReadingStore) -> tuple[pd.DataFrame, pd.DataFrame]:
    return store.readings(EARLIEST, LATEST), store.events(EARLIEST, LATEST)


def event_rows(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    return list(zip(frame["asset"], frame["kind"], frame["code"], strict=True))


def assert_types(readings: pd.DataFrame, events: pd.DataFrame) -> None:
    assert list(readings.columns[:2]) == ["time", "asset"]
    assert str(readings["time"].dtype) == "datetime64[us, UTC]"
    assert readings["asset"].dtype == pd.Series([], dtype="str").dtype
    assert all(readings[column].dtype == np.float64 for column in readings.columns[2:])
    assert list(events.columns) == ["time", "asset", "kind", "code"]
    assert str(events["time"].dtype) == "datetime64[us, UTC]"
    assert all(events[column].dtype == pd.Series([], dtype="str").dtype for column in events.columns[1:])


class StoreContract:
    """The suite. `store` is empty at the start of every test."""

    @pytest.fixture
    def store(self) -> ReadingStore:
        raise NotImplementedError("the store's test module gives the store")

    def test_an_empty_store_answers_with_empty_frames_of_the_right_types(self, store: ReadingStore) -> None:
        readings, events = everything(store)
        assert_types(readings, events)
        assert len(readings) == len(events) == 0
        assert store.points() == ()
        assert store.span() == {}
        assert store.counts() == {"readings": 0, "events": 0}

    def test_what_is_written_is_read_back_in_canonical_order(self, store: ReadingStore) -> None:
        store.write(
            [reading("b", 2, x=1.5), reading("a", 3, x=-2.0, y=0.25), reading("a", 1, y=4.0)],
            [event("b", 1, "failure", "bearing"), event("a", 1, "maintenance", "seal"), event("a", 0.5, "error", "e9")],
        )
        readings, events = everything(store)
        assert_types(readings, events)
        assert list(readings["asset"]) == ["a", "a", "b"]
        assert list(readings["time"]) == [at(1), at(3), at(2)]
        assert content(readings) == {
            ("a", at(1)): {"y": 4.0},
            ("a", at(3)): {"x": -2.0, "y": 0.25},
            ("b", at(2)): {"x": 1.5},
        }
        assert list(events["time"]) == [at(0.5), at(1), at(1)]
        assert event_rows(events) == [("a", "error", "e9"), ("a", "maintenance", "seal"), ("b", "failure", "bearing")]
        assert store.counts() == {"readings": 3, "events": 3}
        assert store.span() == {"a": (at(1), at(3)), "b": (at(2), at(2))}
        assert set(store.points()) == {"x", "y"}

    def test_writing_twice_is_writing_once(self, store: ReadingStore) -> None:
        batch = [reading("a", hour, x=hour * 1.1, y=0.1) for hour in range(20)]
        events = [event("a", 3, "error", "e1")]
        store.write(batch, events)
        once = everything(store)
        store.write(batch[5:], events)
        store.write(batch + batch, events + events)
        for first, second in zip(once, everything(store), strict=True):
            pd.testing.assert_frame_equal(first, second)
        assert store.counts() == {"readings": 20, "events": 1}

    @pytest.mark.parametrize("together", [True, False], ids=["one batch", "batch by batch"])
    def test_partial_rows_join_in_any_order(self, store: ReadingStore, together: bool) -> None:
        parts = [("x", 1.0), ("y", 2.0), ("z", 3.0)]
        for hour, order in enumerate(permutations(parts)):
            rows = [reading("a", hour, {point: value}) for point, value in order]
            for batch in [rows] if together else [[row] for row in rows]:
                store.write(batch)
        expected = {("a", at(hour)): dict(parts) for hour in range(6)}
        assert content(everything(store)[0]) == expected

    def test_the_start_is_outside_and_the_end_inside(self, store: ReadingStore) -> None:
        store.write(
            [reading("a", hour, x=float(hour)) for hour in range(6)],
            [event("a", hour, "error", f"e{hour}") for hour in range(6)],
        )
        assert list(store.readings(at(1), at(4))["x"]) == [2.0, 3.0, 4.0]
        assert list(store.events(at(1), at(4))["code"]) == ["e2", "e3", "e4"]
        assert len(store.readings(at(4), at(4))) == 0
        assert len(store.readings(at(4), at(1))) == 0
        microsecond = timedelta(microseconds=1)
        assert list(store.readings(at(2) - microsecond, at(3) - microsecond)["x"]) == [2.0]

    def test_only_the_assets_named_are_read(self, store: ReadingStore) -> None:
        names = [f"asset-{number:03}" for number in range(250)]
        store.write([reading(n, 1, x=1.0) for n in names], [event(n, 1, "error", "e") for n in names])
        some = [*names[::-2], "nobody"]
        assert list(store.readings(at(0), at(2), some)["asset"]) == sorted(names[::-2])
        assert list(store.events(at(0), at(2), some)["asset"]) == sorted(set(some) - {"nobody"})
        for none in (["nobody"], []):
            readings, events = store.readings(at(0), at(2), none), store.events(at(0), at(2), none)
            assert_types(readings, events)
            assert len(readings) == len(events) == 0
            assert "x" in readings

    def test_only_the_points_named_are_read_in_their_order(self, store: ReadingStore) -> None:
        store.write([reading("a", 1, x=1.0, y=2.0, z=3.0), reading("a", 2, y=5.0), reading("a", 3, z=6.0)])
        frame = store.readings(at(0), at(9), points=["z", "unknown", "x"])
        assert list(frame.columns) == ["time", "asset", "z", "unknown", "x"]
        assert content(frame) == {("a", at(1)): {"z": 3.0, "x": 1.0}, ("a", at(3)): {"z": 6.0}}
        nothing = store.readings(at(0), at(9), points=["unknown"])
        assert list(nothing.columns) == ["time", "asset", "unknown"]
        assert len(nothing) == 0

    def test_many_points(self, store: ReadingStore) -> None:
        values = {f"point {number}": number / 7 for number in range(300)}
        store.write([Reading("a", us(1), values)])
        frame = store.readings(at(0), at(1))
        assert content(frame) == {("a", at(1)): values}
        assert set(store.points()) == set(values)

    def test_assets_of_different_kinds(self, store: ReadingStore) -> None:
        store.write([reading("pump", 1, flow=1.0), reading("motor", 1, current=2.0)])
        store.write([reading("fan", 1, speed=3.0)])
        frame = store.readings(at(0), at(1))
        assert content(frame) == {
            ("pump", at(1)): {"flow": 1.0},
            ("motor", at(1)): {"current": 2.0},
            ("fan", at(1)): {"speed": 3.0},
        }
        assert set(frame.columns) == {"time", "asset", "flow", "current", "speed"}

    def test_every_bit_of_a_number_comes_back(self, store: ReadingStore) -> None:
        numbers = [
            0.0, 1.0, -1.0, 0.1, 1 / 3, -2.5e-310, 5e-324, 1e-30, 1e22, 123456789012345678.0, 2.0**53 + 2,
            1.7976931348623157e308, -1.7976931348623157e308, np.nextafter(1.0, 2.0), float(np.float32(0.1)),
        ]  # fmt: skip
        numbers += np.random.default_rng(5).integers(0, 2**62, 300).view(np.float64).tolist()
        numbers = [number for number in numbers if np.isfinite(number)]
        store.write([reading("a", hour, x=number) for hour, number in enumerate(numbers)])
        got = store.readings(EARLIEST, LATEST)["x"].to_numpy()
        assert got.view(np.int64).tolist() == np.array(numbers).view(np.int64).tolist()

    def test_minus_zero_is_zero(self, store: ReadingStore) -> None:
        store.write([reading("a", 1, x=-0.0)])
        assert store.readings(EARLIEST, LATEST)["x"].to_numpy().view(np.int64).tolist() == [0]

    def test_times_far_away_and_a_microsecond_apart(self, store: ReadingStore) -> None:
        times = [to_us(datetime(1700, 1, 1, tzinfo=UTC)), -1, 0, 1, us(0), us(0) + 1, 2**53]
        store.write([Reading("a", time, {"x": float(n)}) for n, time in enumerate(times)])
        store.write([], [Event("a", time, EventKind.ERROR, "e") for time in times])
        readings, events = everything(store)
        assert [to_us(time) for time in readings["time"]] == times
        assert list(readings["x"]) == list(range(7))
        assert [to_us(time) for time in events["time"]] == times

    @pytest.mark.parametrize(
        "name",
        [
            "Pumpe süd",
            "泵 7",
            "a,b=c d",
            "quo\"te'd",
            "back\\slash",
            "tags=x,asset=y",
            "🛠",
            "Volt",
            "#1",
        ],
    )
    def test_any_printable_name(self, store: ReadingStore, name: str) -> None:
        store.write(
            [reading(name, 1, {name: 1.0, "volt": 2.0}), reading("other", 1, volt=3.0)], [event(name, 1, "error", name)]
        )
        assert content(store.readings(at(0), at(1), [name], [name])) == {(name, at(1)): {name: 1.0}}
        assert content(store.readings(at(0), at(1)))[name, at(1)] == {name: 1.0, "volt": 2.0}
        assert event_rows(store.events(at(0), at(1), [name])) == [(name, "error", name)]
        assert set(store.span()) == {name, "other"}
        store.delete_assets([name])
        assert content(store.readings(at(0), at(1))) == {("other", at(1)): {"volt": 3.0}}

    @pytest.mark.parametrize(
        ("bad", "says"),
        [
            (Reading("", 0, {"x": 1.0}), "asset name"),
            (Reading("two\nlines", 0, {"x": 1.0}), "control character"),
            (Reading("a", 0, {"nul\0": 1.0}), "control character"),
            (Reading("a\\", 0, {"x": 1.0}), "backslash"),
            (Reading("a", 0, {"back\\, comma": 1.0}), "backslash"),
            (Reading("a" * 256, 0, {"x": 1.0}), "256 characters"),
            (Reading("a", 0, {"time": 1.0}), "reserved"),
            (Reading("a", 0, {"_empty": 1.0}), "reserved"),
            (Reading("a", 2**60, {"x": 1.0}), "years 1685 to 2255"),
            (Reading("a", 0, {"x": float("inf")}), "finite"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_no_store_can_hold_is_refused_whole(self, store: ReadingStore, bad: Reading, says: str) -> None:
        with pytest.raises(StoreError, match=says) as caught:
            store.write([reading("good", 1, x=1.0), bad])
        assert "\n" not in str(caught.value)
        assert not caught.value.retryable
        assert store.counts() == {"readings": 0, "events": 0}

    def test_events_of_one_time_and_kind_differ_by_code(self, store: ReadingStore) -> None:
        both = [event("a", 1, "error", "error2"), event("a", 1, "error", "error3")]
        store.write([], both[:1])
        store.write([], both[1:])
        store.write([], [event("a", 1, "failure", "error2")])
        assert event_rows(everything(store)[1]) == [
            ("a", "error", "error2"),
            ("a", "error", "error3"),
            ("a", "failure", "error2"),
        ]

    def test_a_row_without_any_value_is_kept(self, store: ReadingStore) -> None:
        store.write([reading("a", 1), reading("a", 2, x=1.0), reading("b", 1)])
        assert content(everything(store)[0]) == {("a", at(1)): {}, ("a", at(2)): {"x": 1.0}, ("b", at(1)): {}}
        assert store.points() == ("x",)
        assert store.span() == {"a": (at(1), at(2)), "b": (at(1), at(1))}
        assert store.counts()["readings"] == 3
        store.write([reading("b", 1, x=7.0)])
        assert content(everything(store)[0])["b", at(1)] == {"x": 7.0}

    def test_nan_is_not_read(self, store: ReadingStore) -> None:
        store.write([reading("a", 1, x=1.0, y=2.0)])
        store.write([reading("a", 1, x=float("nan"), y=2.0)])
        assert content(everything(store)[0]) == {("a", at(1)): {"x": 1.0, "y": 2.0}}

    @pytest.mark.parametrize("together", [True, False], ids=["one batch", "batch by batch"])
    def test_of_two_values_the_greater_is_read_and_the_other_kept_whatever_the_order(
        self, store: ReadingStore, together: bool
    ) -> None:
        for hour, order in enumerate(permutations([1.5, -2.0, 3.0])):
            rows = [reading("a", hour, x=value, y=0.5) for value in order]
            for batch in [rows] if together else [[row] for row in rows]:
                store.write(batch)
            store.write(rows[::-1])
        store.write([reading("b", 1, x=1.0)])
        assert content(everything(store)[0]) == {
            **{("a", at(hour)): {"x": 3.0, "y": 0.5} for hour in range(6)},
            ("b", at(1)): {"x": 1.0},
        }
        conflicts = store.conflicts()
        assert str(conflicts["time"].dtype) == "datetime64[us, UTC]"
        assert list(conflicts.itertuples(index=False, name=None)) == [
            (at(hour), "a", "x", value) for hour in range(6) for value in (-2.0, 1.5)
        ]
        assert store.counts()["readings"] == 7
        store.delete_assets(["a"])
        assert len(store.conflicts()) == 0
        assert list(store.conflicts().columns) == ["time", "asset", "point", "value"]

    def test_late_readings_join_those_that_are_stored(self, store: ReadingStore) -> None:
        """Readings far apart in one batch, behind what the store has and before, some of them once more."""
        store.write([reading("a", hour, x=float(hour)) for hour in range(0, 2000, 50)], [event("a", 3, "error", "e")])
        late = [reading("a", hour, x=float(hour), y=1.0) for hour in (1950, 700, 701, 50, 2100, 3)]
        store.write([*late, reading("b", 700, x=2.0)])
        expected = {("a", at(hour)): {"x": float(hour)} for hour in range(0, 2000, 50)}
        expected |= {
            (row.asset, at(hour)): dict(row.values)
            for row, hour in zip(late, (1950, 700, 701, 50, 2100, 3), strict=True)
        }
        assert content(everything(store)[0]) == {**expected, ("b", at(700)): {"x": 2.0}}
        assert len(store.conflicts()) == 0

    def test_history_is_the_same_written_row_by_row(self, store: ReadingStore) -> None:
        generator = np.random.default_rng(1)
        values = generator.normal(size=(300, 4))
        values[generator.random((300, 4)) < 0.2] = np.nan
        hours = np.tile(np.arange(100), 3)
        readings = pd.DataFrame(values, columns=["d", "c", "b", "a"])
        readings.insert(0, "time", pd.to_datetime([at(int(hour)) for hour in hours], utc=True))
        readings.insert(1, "asset", pd.Series([f"m{n // 100}" for n in range(300)], dtype="str"))
        events = pd.DataFrame(
            {
                "time": pd.to_datetime([at(1), at(1), at(2)], utc=True),
                "asset": ["m0", "m0", "m1"],
                "kind": ["error", "failure", "maintenance"],
                "code": ["e", "e", "f"],
            }
        )
        shuffled = readings.sample(frac=1.0, random_state=3)
        store.write_history(shuffled, events)
        by_history = everything(store)
        assert content(by_history[0]) == content(readings)
        assert event_rows(by_history[1]) == event_rows(events)
        store.delete_assets(["m0", "m1", "m2"])
        assert store.counts() == {"readings": 0, "events": 0}
        rows = content(readings).items()
        store.write(
            [Reading(asset, to_us(time), row) for (asset, time), row in rows],
            [Event(a, to_us(t), EventKind(k), c) for t, a, k, c in events.itertuples(index=False)],
        )
        for first, second in zip(by_history, everything(store), strict=True):
            pd.testing.assert_frame_equal(first, second)

    def test_history_without_rows(self, store: ReadingStore) -> None:
        readings, events = everything(store)
        store.write_history(readings, events)
        assert store.counts() == {"readings": 0, "events": 0}

    def test_history_with_a_time_without_zone_is_refused(self, store: ReadingStore) -> None:
        readings = pd.DataFrame({"time": [START.replace(tzinfo=None)], "asset": ["a"], "x": [1.0]})
        with pytest.raises(StoreError, match="zone"):
            store.write_history(readings, store.events(EARLIEST, LATEST))

    def test_years_are_read_whole(self, store: ReadingStore) -> None:
        hours = [day * 24.0 for day in range(0, 800, 9)]
        store.write([reading(asset, hour, x=hour) for hour in hours for asset in ("a", "b")])
        frame = store.readings(EARLIEST, LATEST)
        assert list(frame["x"]) == hours * 2
        assert list(store.readings(at(100 * 24), at(700 * 24), ["b"])["x"]) == [h for h in hours if 2400 < h <= 16800]

    def test_long_views_are_summed_up(self, store: ReadingStore) -> None:
        """Stretches have their end inside; times before 1970 fall into theirs as well."""
        store.write([reading("a", hour / 2, x=hour * 1.5, y=-1.0) for hour in range(1, 10)])
        store.write([reading("b", 1, x=7.0), reading("a", 30, z=0.25), reading("c", 2), Reading("d", -1, {"x": 3.0})])
        frame = store.downsampled(at(0), at(4), timedelta(hours=2), ["a", "b", "c"])
        assert str(frame["time"].dtype) == "datetime64[us, UTC]"
        assert [str(frame[name].dtype) for name in ("lowest", "mean", "highest", "count")] == ["float64"] * 3 + [
            "int64"
        ]
        assert list(frame.itertuples(index=False, name=None)) == [
            (at(2), "a", "x", 1.5, 3.75, 6.0, 4),
            (at(4), "a", "x", 7.5, 9.75, 12.0, 4),
            (at(2), "a", "y", -1.0, -1.0, -1.0, 4),
            (at(4), "a", "y", -1.0, -1.0, -1.0, 4),
            (at(2), "b", "x", 7.0, 7.0, 7.0, 1),
        ]
        inside = store.downsampled(at(1), at(3), timedelta(hours=2), points=["x", "unknown"])
        assert list(zip(inside["time"], inside["asset"], inside["count"], strict=True)) == [
            (at(2), "a", 2),
            (at(4), "a", 2),
        ]
        everything = store.downsampled(EARLIEST, LATEST, timedelta(days=1), ["d"])
        assert list(everything["time"]) == [datetime(1970, 1, 1, tzinfo=UTC)]
        whole = store.downsampled(EARLIEST, LATEST, timedelta(days=1))
        assert list(zip(whole["asset"], whole["point"], strict=True)) == [
            ("a", "x"), ("a", "y"), ("a", "z"), ("b", "x"), ("d", "x"),
        ]  # fmt: skip

    def test_a_long_view_of_nothing_has_its_columns(self, store: ReadingStore) -> None:
        columns = ["time", "asset", "point", "lowest", "mean", "highest", "count"]
        assert list(store.downsampled(at(0), at(9), timedelta(hours=1)).columns) == columns
        store.write([reading("a", 1, x=1.0)])
        for nothing in (
            store.downsampled(at(0), at(9), timedelta(hours=1), ["nobody"]),
            store.downsampled(at(0), at(9), timedelta(hours=1), points=["unknown"]),
            store.downsampled(at(9), at(0), timedelta(hours=1)),
        ):
            assert len(nothing) == 0
            assert list(nothing.columns) == columns
        for bad in (timedelta(0), timedelta(seconds=-1), timedelta(microseconds=1500)):
            with pytest.raises(ValueError, match="whole milliseconds"):
                store.downsampled(at(0), at(9), bad)

    def test_deleted_assets_are_gone_and_the_others_stay(self, store: ReadingStore) -> None:
        store.write(
            [reading(asset, 1, x=1.0) for asset in "abc"],
            [event(asset, 1, "error", "e") for asset in "abc"],
        )
        store.delete_assets(["a", "c", "nobody"])
        readings, events = everything(store)
        assert list(readings["asset"]) == list(events["asset"]) == ["b"]
        assert set(store.span()) == {"b"}
        assert store.counts() == {"readings": 1, "events": 1}
        store.write([reading("a", 2, x=5.0)])
        assert content(everything(store)[0])["a", at(2)] == {"x": 5.0}
        store.delete_assets([])

    def test_several_threads_write_and_read_at_once(self, store: ReadingStore) -> None:
        failures: list[BaseException] = []

        def run(asset: str) -> None:
            try:
                for hour in range(40):
                    store.write([reading(asset, hour, {"x": float(hour), f"of {asset}": 1.0})])
                    assert len(store.readings(at(hour - 1), at(hour), [asset])) == 1
            except BaseException as failure:
                failures.append(failure)

        threads = [threading.Thread(target=run, args=(f"a{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert store.counts()["readings"] == 160
