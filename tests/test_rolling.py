"""The rolling store answers as the store beneath it does, whatever is written and asked in between."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from connectors.embedded import EmbeddedStore
from pm.domain import EARLIEST, Event, EventKind, Reading, to_us
from pm.rolling import RollingStore
from tests.replay_cases import event, hour

WINDOW = timedelta(hours=6)

readings = st.builds(
    lambda asset, time, values: Reading(asset, to_us(hour(time)), values),
    st.sampled_from(["b", "a", "c"]),
    st.integers(0, 12),
    st.dictionaries(st.sampled_from(["y", "x"]), st.sampled_from([0.0, -0.0, 1.5, 2.5]), max_size=2),
)
events = st.builds(
    lambda asset, time, kind: event(asset, time, kind, "e"),
    st.sampled_from(["a", "b"]),
    st.integers(0, 12),
    st.sampled_from(EventKind),
)
writes = st.tuples(st.just("write"), st.lists(readings, max_size=4), st.lists(events, max_size=2))
reads = st.tuples(st.just("read"), st.integers(0, 14), st.sampled_from([None, ["a", "b"], ["c"]]))


def row(asset: str, time: float, **values: float) -> Reading:
    return Reading(asset, to_us(hour(time)), values)


def same_answers(rolling: RollingStore, store: EmbeddedStore, end: datetime, assets: list[str] | None) -> None:
    assert_frame_equal(rolling.readings(end - WINDOW, end, assets), store.readings(end - WINDOW, end, assets))
    assert_frame_equal(rolling.events(EARLIEST, end, assets), store.events(EARLIEST, end, assets))


@settings(max_examples=80)
@given(st.lists(st.one_of(writes, reads), min_size=2, max_size=14))
def test_answers_are_those_of_the_store_beneath(steps: list[tuple[str, object, object]]) -> None:
    store = EmbeddedStore(None)
    rolling = RollingStore(store)
    for kind, first, second in steps:
        if kind == "write":
            assert isinstance(first, list)
            assert isinstance(second, list)
            rolling.write(first, second)
        else:
            assert isinstance(first, int)
            assert second is None or isinstance(second, list)
            same_answers(rolling, store, hour(first), second)
    same_answers(rolling, store, hour(14), None)
    store.close()


class Counting(EmbeddedStore):
    """Counts how often it is read."""

    asked = 0

    def readings(self, *arguments: object, **more: object) -> object:  # type: ignore[override]
        self.asked += 1
        return super().readings(*arguments, **more)  # type: ignore[arg-type]


def test_a_window_that_moves_forward_is_read_from_the_store_once() -> None:
    store = Counting(None)
    rolling = RollingStore(store)
    rng = np.random.default_rng(0)
    for at in range(40):
        rolling.write([row(name, at, x=float(rng.normal())) for name in ("b", "a")])
        rolling.readings(hour(at) - WINDOW, hour(at))
    assert store.asked == 1
    assert_frame_equal(rolling.readings(hour(34), hour(40)), store.readings(hour(34), hour(40)))


def test_late_data_are_in_the_next_answer() -> None:
    rolling = RollingStore(EmbeddedStore(None))
    rolling.write([row("a", 1, x=1.0), row("a", 3, x=3.0)])
    assert len(rolling.readings(hour(0), hour(3))) == 2
    rolling.write([row("a", 2, x=2.0)], [event("a", 2, EventKind.ERROR, "late")])
    assert rolling.readings(hour(0), hour(3))["x"].tolist() == [1.0, 2.0, 3.0]
    assert rolling.events(EARLIEST, hour(3))["code"].tolist() == ["late"]


def test_an_answer_may_be_changed_without_harm() -> None:
    rolling = RollingStore(EmbeddedStore(None))
    rolling.write([row("a", 1, x=1.0)], [Event("a", to_us(hour(1)), EventKind.ERROR, "e")])
    for _ in range(2):
        answer, found = rolling.readings(hour(0), hour(2)), rolling.events(EARLIEST, hour(2))
        assert answer["x"].tolist() == [1.0]
        assert found["code"].tolist() == ["e"]
        answer.loc[0, "x"] = 9.0
        found.loc[0, "code"] = "changed"
        answer["y"] = 1.0


def test_points_may_be_named_and_assets_deleted() -> None:
    rolling = RollingStore(EmbeddedStore(None))
    rolling.write([row("a", 1, x=1.0, y=2.0), row("b", 1, y=3.0)])
    assert rolling.readings(hour(0), hour(2), None, ["y"])["y"].tolist() == [2.0, 3.0]
    assert len(rolling.readings(hour(0), hour(2))) == 2
    rolling.delete_assets(["a"])
    assert rolling.readings(hour(0), hour(2))["asset"].tolist() == ["b"]
    assert rolling.points() == ("x", "y")
    assert rolling.counts()["readings"] == 1
    assert set(rolling.span()) == {"b"}
