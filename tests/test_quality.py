"""What makes a forecast abstain, case by case."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from pm.config import AssessSection
from pm.domain import Abstention, Asset, History, Point, Silence, to_us
from pm.quality import Limits, abstentions

AT = datetime(2026, 3, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
RULES = AssessSection(
    stale_after=6 * HOUR, min_history=24 * HOUR, off_points=("current", "speed"), off_below=0.5, off_after=12 * HOUR
)
Rows = list[tuple[str, float, float, float]]
"""(asset, hours before AT, current, speed)"""


def history(rows: Rows, *, assets: tuple[str, ...] = ("a",), interval: timedelta = HOUR) -> History:
    points = (Point("current"), Point("speed"))
    frame = pd.DataFrame(rows, columns=["asset", "time", "current", "speed"])[["time", "asset", "current", "speed"]]
    frame["time"] = pd.to_datetime([AT - timedelta(hours=float(h)) for h in frame["time"]], utc=True).as_unit("us")
    frame = frame.sort_values(["asset", "time"], ignore_index=True)
    events = pd.DataFrame({"time": frame["time"][:0], "asset": [], "kind": [], "code": []})
    return History(interval, points, (), tuple(Asset(name, "m") for name in assets), frame, events)


def steady(current: float, speed: float, *, hours: int = 48, asset: str = "a", newest: int = 0) -> Rows:
    return [(asset, float(h), current, speed) for h in range(newest, hours)]


NAN = float("nan")
OLD = {"a": AT - timedelta(days=300)}


@pytest.mark.parametrize(
    ("rows", "first", "expected"),
    [
        pytest.param(steady(9, 9), OLD, None, id="running"),
        pytest.param(steady(9, 9, newest=6), OLD, None, id="last reading exactly stale_after ago"),
        pytest.param(steady(9, 9, newest=7), OLD, Abstention.STALE, id="older"),
        pytest.param([], OLD, Abstention.STALE, id="read once, not lately"),
        pytest.param([], {}, Abstention.TOO_LITTLE_HISTORY, id="never read"),
        pytest.param(steady(9, 9, hours=24), {"a": AT - 23 * HOUR}, Abstention.TOO_LITTLE_HISTORY, id="too young"),
        pytest.param(steady(9, 9, hours=25), {"a": AT - 24 * HOUR}, None, id="just old enough"),
        pytest.param([], {"a": AT + HOUR}, Abstention.TOO_LITTLE_HISTORY, id="first read after the forecast"),
        pytest.param(
            [("a", -1.0, 9, 9), *steady(9, 9, newest=7)], OLD, Abstention.STALE, id="a later reading is unknown"
        ),
        pytest.param(
            [("a", 0.0, NAN, NAN), *steady(9, 9, newest=7)], OLD, Abstention.STALE, id="an empty row is no reading"
        ),
        pytest.param(steady(0, 0), OLD, Abstention.OFF, id="off"),
        pytest.param(steady(0.5, 0.1), OLD, Abstention.OFF, id="at off_below is off"),
        pytest.param(steady(0, 9), OLD, None, id="one point runs"),
        pytest.param([("a", -1.0, 9, 9), *steady(0, 0)], OLD, Abstention.OFF, id="that it runs later is unknown"),
        pytest.param(
            [*steady(0, 0, hours=11), ("a", 11.0, 9, 0), *steady(0, 0, newest=12)], OLD, None, id="ran 11 h ago"
        ),
        pytest.param([*steady(0, 0, hours=12), ("a", 12.0, 9, 9)], OLD, Abstention.OFF, id="ran 12 h ago"),
        pytest.param(steady(0, 0, hours=11), OLD, Abstention.OFF, id="one interval of the beginning missing"),
        pytest.param(steady(0, 0, hours=9), OLD, None, id="its beginning was not read"),
        pytest.param(steady(0, NAN), OLD, None, id="an unknown point is not off"),
        pytest.param(
            [("a", float(h), 0.0, 0.0 if h % 2 else NAN) for h in range(48)],
            OLD,
            Abstention.OFF,
            id="off as far as read",
        ),
        pytest.param(steady(0, 0, newest=7), OLD, Abstention.STALE, id="stale goes before off"),
        pytest.param(steady(0, 0, hours=20), {"a": AT - 20 * HOUR}, Abstention.OFF, id="off goes before too young"),
    ],
)
def test_abstains(rows: Rows, first: dict[str, datetime], expected: Abstention | None) -> None:
    assert abstentions(history(rows), AT, first=first, rules=RULES).get("a") is expected


def test_each_asset_is_judged_alone() -> None:
    rows = [*steady(9, 9), *steady(0, 0, asset="b"), *steady(9, 9, asset="c", newest=10)]
    first = dict.fromkeys("abcd", AT - timedelta(days=100))
    found = abstentions(history(rows, assets=("a", "b", "c", "d", "e")), AT, first=first, rules=RULES)
    assert found == {
        "b": Abstention.OFF,
        "c": Abstention.STALE,
        "d": Abstention.STALE,
        "e": Abstention.TOO_LITTLE_HISTORY,
    }


def test_without_off_points_nothing_is_off() -> None:
    rules = RULES.model_copy(update={"off_points": ()})
    assert abstentions(history(steady(0, 0)), AT, first=OLD, rules=rules) == {}


def test_an_off_point_that_nobody_reads_is_not_off() -> None:
    rules = RULES.model_copy(update={"off_points": ("current", "valve")})
    assert abstentions(history(steady(0, 0)), AT, first=OLD, rules=rules) == {}


def test_daily_readings_are_not_stale_after_six_hours() -> None:
    day = timedelta(days=1)
    rows = [("a", 24.0 * d, 9.0, 9.0) for d in range(1, 30)]
    assert abstentions(history(rows, interval=day), AT, first=OLD, rules=RULES) == {}
    stale = abstentions(history(rows[2:], interval=day), AT, first=OLD, rules=RULES)
    assert stale == {"a": Abstention.STALE}
    assert Limits.of(RULES, day) == Limits(stale_after=2 * day, min_history=2 * day, off_after=2 * day)


def test_a_thousand_assets_take_milliseconds() -> None:
    """An assessment of a large plant must not spend its time here."""
    import time

    hours = 168
    names = [f"asset-{n:04}" for n in range(1000)]
    frame = pd.DataFrame(
        {
            "time": np.tile(pd.date_range(AT - (hours - 1) * HOUR, AT, freq="1h").as_unit("us"), len(names)),
            "asset": np.repeat(names, hours),
            "current": 9.0,
            "speed": 9.0,
        }
    )
    large = history([], assets=tuple(names))
    large = History(large.interval, large.points, (), large.assets, frame, large.events)
    begun = time.perf_counter()
    assert abstentions(large, AT, first=dict.fromkeys(names, AT - timedelta(days=9)), rules=RULES) == {}
    assert time.perf_counter() - begun < 3.0


@pytest.mark.parametrize(
    ("silent_for", "expected"), [(0.5, None), (0.9, None), (1.0, Abstention.STALE), (30.0, Abstention.STALE)]
)
def test_an_asset_whose_source_is_silent_abstains_after_one_interval(
    silent_for: float, expected: Abstention | None
) -> None:
    silence = Silence("a", to_us(AT - silent_for * HOUR), "its device death was published")
    found = abstentions(history(steady(9, 9)), AT, first=OLD, rules=RULES, silences={"a": silence})
    assert found.get("a") is expected


def test_a_silence_of_later_is_not_known_yet() -> None:
    silence = Silence("a", to_us(AT + HOUR), "its device death was published")
    assert abstentions(history(steady(9, 9)), AT, first=OLD, rules=RULES, silences={"a": silence}) == {}
