from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from forecasting.split import MIN_LATER_FAILURES, split_assets, validation_start
from pm.domain import Asset, Event, EventKind, to_us
from tests.forecasting_cases import HOUR, START, event_frame, history_of, reading_frame, worn_plant


def fleet(count: int, failing: int) -> object:
    frame = reading_frame([(f"a{n}", [START, START + HOUR], {"x": np.zeros(2)}) for n in range(count)])
    events = [Event(f"a{n}", to_us(START), EventKind.FAILURE, "seal") for n in range(failing)]
    return history_of(frame, events, tuple(Asset(f"a{n}", f"model{n % 2}") for n in range(count)))


@pytest.mark.parametrize("count", range(2, 30))
def test_every_asset_is_in_exactly_one_part(count):
    history = fleet(count, count // 2)
    split = split_assets(history, 0.3, 0.25, seed=count)
    assert sorted(split.train + split.validation + split.held_out) == sorted(a.name for a in history.assets)
    assert split.train and split.validation
    assert (count < 3) or split.held_out


def test_four_assets_are_dealt_two_one_one():
    split = split_assets(fleet(4, 4), 0.3, 0.25, seed=0)
    assert [len(split.train), len(split.validation), len(split.held_out)] == [2, 1, 1]


def test_parts_are_alike_in_failures_and_models():
    split = split_assets(fleet(100, 40), 0.3, 0.25, seed=3)
    for part in (split.train, split.validation, split.held_out):
        failing = sum(int(name[1:]) < 40 for name in part) / len(part)
        odd = sum(int(name[1:]) % 2 for name in part) / len(part)
        assert 0.33 < failing < 0.47
        assert 0.38 < odd < 0.62


def test_the_seed_decides():
    history = fleet(20, 10)
    assert split_assets(history, 0.3, 0.25, 1) == split_assets(history, 0.3, 0.25, 1)
    assert split_assets(history, 0.3, 0.25, 1) != split_assets(history, 0.3, 0.25, 2)


def test_nothing_is_held_out_when_nothing_is_asked():
    assert split_assets(fleet(5, 2), 0.0, 0.25, 0).held_out == ()


def test_one_asset_trains_and_validates():
    split = split_assets(fleet(1, 1), 0.3, 0.25, 0)
    assert split.train == split.validation == ("a0",)


def test_validation_takes_the_latest_quarter_where_it_holds_failures():
    history = worn_plant(assets=20, days=80)
    names = [asset.name for asset in history.assets]
    start = validation_start(history, names)
    assert start is not None
    assert START + timedelta(days=59) < start < START + timedelta(days=61)
    failures = history.events[history.events["kind"] == "failure"].sort_values("time")
    later = failures[failures["time"] > start]
    enough = replace(history, events=later.tail(MIN_LATER_FAILURES))
    assert validation_start(enough, names) == start
    assert validation_start(replace(history, events=later.tail(MIN_LATER_FAILURES - 1)), names) is None


def test_run_to_failure_has_no_later_time():
    history = worn_plant(assets=12, days=80)
    last = history.readings.groupby("asset")["time"].max()
    events = [Event(str(asset), to_us(time), EventKind.FAILURE, "seal") for asset, time in last.items()]
    assert validation_start(replace(history, events=event_frame(events)), list(last.index)) is None
