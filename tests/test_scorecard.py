"""The scorecard by hand-worked cases. Times are hours; asset "a" is observed from 0 to 2000 unless said otherwise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from pm.domain import Alert, AlertState
from pm.scorecard import AlertSpan, FailureTime, Interval, Scorecard, Verdict, lead_hours, score, spans

HOUR = 3_600_000_000
MINUTE = HOUR // 60
Span = tuple[float, float | None]


def card(
    alerts: list[Span],
    failures: list[float],
    *,
    end: float = 2000,
    start: float = 0,
    minimum_lead: timedelta = timedelta(hours=1),
) -> Scorecard:
    return score(
        [("a", "bearing", int(r * HOUR), None if e is None else int(e * HOUR)) for r, e in alerts],
        [("a", "bearing", int(f * HOUR)) for f in failures],
        {"a": (int(start * HOUR), int(end * HOUR))},
        minimum_lead=minimum_lead,
        rng=np.random.default_rng(0),
        replicates=10,
    )


@pytest.mark.parametrize(
    ("alerts", "failures", "leads", "verdicts"),
    [
        pytest.param([], [500], [None], "", id="nothing raised: missed"),
        pytest.param([(460, 500)], [500], [40.0], "T", id="raised 40 h before"),
        pytest.param([(460, None)], [500], [40.0], "T", id="still standing at the end of the record"),
        pytest.param([(460, 470)], [500], [40.0], "T", id="cleared 30 h before: it was raised within 72 h"),
        pytest.param([(428, 430)], [500], [72.0], "T", id="raised exactly 72 h before"),
        pytest.param([(427, 430)], [500], [72.0], "F", id="raised 73 h before, standing at 72 h: warned, and false"),
        pytest.param([(300, 501)], [500], [72.0], "F", id="standing for 200 h: the lead is 72 h at most"),
        pytest.param([(300, 428)], [500], [None], "F", id="ended as the 72 h began"),
        pytest.param([(300, 428.5)], [500], [72.0], "F", id="ended half an hour later"),
        pytest.param([(499, None)], [500], [1.0], "T", id="exactly the minimum lead"),
        pytest.param([(499.5, None)], [500], [None], "T", id="too late to be a warning, but not false"),
        pytest.param([(500, None)], [500], [None], "T", id="raised as it failed"),
        pytest.param([(501, 510)], [500], [None], "F", id="raised after it"),
        pytest.param(
            [(460, 465), (480, 500)], [500], [40.0], "TT", id="two alerts before one failure: the first leads"
        ),
        pytest.param([(460, 490), (480, 500)], [500], [40.0], "T", id="overlapping alerts are one"),
        pytest.param([(460, 480), (480, 500)], [500], [40.0], "TT", id="one ends as the next begins: two"),
        pytest.param([(100, None), (480, 500)], [500], [72.0], "F", id="an alert that never ends swallows the rest"),
        pytest.param([(460, 501)], [500, 500], [40.0, 40.0], "T", id="two failures at once"),
        pytest.param([(460, 501)], [500, 520], [40.0, 60.0], "T", id="one alert, two failures within 72 h"),
        pytest.param([(460, 501)], [500, 573], [40.0, None], "T", id="the second failure comes later than 72 h after"),
        pytest.param([(460, 600)], [500, 650], [40.0, 72.0], "T", id="standing on into the next failure's window"),
        pytest.param([(100, 110)], [], [], "F", id="no failure at all"),
        pytest.param([(1928, None)], [], [], "F", id="raised 72 h before the end"),
        pytest.param([(1928.5, None)], [], [], "U", id="raised less than 72 h before the end"),
        pytest.param([(1950, None)], [1990], [40.0], "T", id="near the end, but it failed"),
        pytest.param([(1990, None)], [2010], [20.0], "T", id="failed after the last reading"),
        pytest.param([], [2072], [None], "", id="failed 72 h after the last reading: counts"),
    ],
)
def test_cases(alerts: list[Span], failures: list[float], leads: list[float | None], verdicts: str) -> None:
    found = card(alerts, failures)
    letters = {"T": Verdict.TRUE, "F": Verdict.FALSE, "U": Verdict.UNDECIDED}
    assert list(found.lead_hours) == leads
    assert list(found.verdicts) == [letters[letter] for letter in verdicts]
    assert found.unobserved == 0


def test_failures_that_nobody_could_see_are_left_out_and_counted() -> None:
    found = card([], [50, 100, 101, 2073], start=100)
    assert [f.time_us for f in found.failures] == [101 * HOUR]
    assert found.unobserved == 3
    stray = score([], [("b", "m", HOUR)], {"a": (0, HOUR)}, minimum_lead=timedelta(0), rng=np.random.default_rng(0))
    assert (stray.failures, stray.unobserved) == ((), 1)


def test_an_alert_of_an_unknown_asset_is_refused() -> None:
    with pytest.raises(ValueError, match="asset b, which was not observed"):
        score([("b", "m", 0, None)], [], {"a": (0, HOUR)}, minimum_lead=timedelta(0), rng=np.random.default_rng(0))


def test_the_minimum_lead_moves_recall_and_not_recall_at_a_lead() -> None:
    found = card([(490, 500), (970, 1000)], [500, 1000], minimum_lead=timedelta(hours=12))
    assert found.recall.value == 0.5
    assert {hours: share.value for hours, share in found.recall_at_lead.items()} == {1: 1, 6: 1, 24: 0.5, 48: 0, 72: 0}


def test_a_fleet_worked_by_hand() -> None:
    """Three assets of 30.44 days; five failures, three warned; two true alerts, two false, one undecided."""
    month = round(30.44 * 24 * HOUR)
    found = score(
        [
            ("a", "seal", 100 * HOUR, 160 * HOUR),  # true, 60 h; its mode is right for the first only
            ("a", "seal", 300 * HOUR, 310 * HOUR),  # false
            ("b", "bearing", 190 * HOUR, None),  # true, 10 h
            ("c", "bearing", 50 * HOUR, 60 * HOUR),  # false
            ("c", "bearing", 700 * HOUR, None),  # undecided
        ],
        [
            ("a", "seal", 160 * HOUR),
            ("a", "bearing", 160 * HOUR),
            ("a", "seal", 600 * HOUR),
            ("b", "bearing", 200 * HOUR),
            ("c", "winding", 400 * HOUR),
        ],
        {"a": (0, month), "b": (0, month), "c": (0, month)},
        minimum_lead=timedelta(hours=1),
        rng=np.random.default_rng(7),
        replicates=2000,
    )
    report = found.report()
    assert report["asset_months"] == pytest.approx(3.0)
    assert report["failures"] == {
        "total": 5,
        "warned": 3,
        "missed": 2,
        "by_mode": {
            "bearing": {"total": 2, "warned": 2, "missed": 0, "named": 1},
            "seal": {"total": 2, "warned": 1, "missed": 1, "named": 1},
            "winding": {"total": 1, "warned": 0, "missed": 1, "named": 0},
        },
    }
    assert report["recall"]["value"] == pytest.approx(3 / 5)
    assert report["recall"]["at_lead"] == {"1h": 0.6, "6h": 0.6, "24h": 0.4, "48h": 0.4, "72h": 0.0}
    assert report["precision"]["value"] == pytest.approx(2 / 4)
    assert report["false_alerts_per_asset_month"]["value"] == pytest.approx(2 / 3)
    assert report["lead_hours"] == {
        "median": 60.0,
        "p10": pytest.approx(20.0),
        "p90": 60.0,
    }
    assert [f.time_us // HOUR for f in found.missed] == [600, 400]
    # Resamples of three assets can hold none but c (0 of 1 warned) or none but b (1 of 1).
    assert (report["recall"]["low"], report["recall"]["high"]) == (0.0, 1.0)
    assert (report["false_alerts_per_asset_month"]["low"], report["false_alerts_per_asset_month"]["high"]) == (0.0, 1.0)


def test_the_interval_narrows_with_the_fleet_and_covers_the_value() -> None:
    def interval(n: int) -> Interval:
        alerts = [(f"a{i:03}", "m", 440 * HOUR, 500 * HOUR) for i in range(0, n, 2)]
        failures = [(f"a{i:03}", "m", 500 * HOUR) for i in range(n)]
        observed = {f"a{i:03}": (0, 2000 * HOUR) for i in range(n)}
        rng = np.random.default_rng(1)
        return score(alerts, failures, observed, minimum_lead=timedelta(hours=1), rng=rng).recall

    narrow, wide = interval(400), interval(20)
    assert narrow.value == wide.value == 0.5
    assert narrow.low is not None and narrow.high is not None and wide.low is not None and wide.high is not None
    assert wide.low < narrow.low < 0.5 < narrow.high < wide.high
    # A share of n assets at one half: standard error sqrt(0.25 / n), 1.96 of them on each side.
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * (0.25 / 400) ** 0.5, rel=0.2)


def test_the_same_generator_gives_the_same_intervals() -> None:
    def once() -> Scorecard:
        alerts = [("a", "m", 440 * HOUR, 500 * HOUR), ("c", "m", 0, 10 * HOUR)]
        observed = dict.fromkeys("abc", (0, 2000 * HOUR))
        failures = [("a", "m", 500 * HOUR), ("b", "m", 500 * HOUR)]
        return score(alerts, failures, observed, minimum_lead=timedelta(hours=1), rng=np.random.default_rng(3))

    assert once() == once()


def test_what_cannot_be_divided_is_unknown_and_not_zero() -> None:
    found = card([], [])
    assert found.recall == found.precision == Interval(None, None, None)
    assert found.report()["lead_hours"] == {"median": None, "p10": None, "p90": None}
    assert found.false_alerts_per_asset_month.value == 0.0


def test_one_asset_has_no_interval() -> None:
    assert card([(460, 500)], [500]).recall == Interval(1.0, None, None)


def test_the_order_of_what_comes_in_does_not_matter() -> None:
    alerts = [("b", "m", 10 * HOUR, 20 * HOUR), ("a", "m", 440 * HOUR, 500 * HOUR), ("b", "m", 5 * HOUR, 12 * HOUR)]
    failures = [("b", "m", 70 * HOUR), ("a", "m", 500 * HOUR), ("a", "k", 90 * HOUR)]
    observed = {"a": (0, 2000 * HOUR), "b": (0, 2000 * HOUR)}

    def once(step: int) -> Scorecard:
        rng = np.random.default_rng(3)
        return score(alerts[::step], failures[::step], observed, minimum_lead=timedelta(hours=1), rng=rng)

    assert once(1) == once(-1)


T0 = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cleared", "closed", "ended"), [(None, None, None), (5, None, 5), (None, 7, 7), (5, 7, 5), (7, 5, 5)]
)
def test_an_alert_stands_until_it_is_cleared_or_closed(
    cleared: int | None, closed: int | None, ended: int | None
) -> None:
    def after(hours: int | None) -> datetime | None:
        return None if hours is None else T0 + timedelta(hours=hours)

    alert = Alert(
        "i", "a", "m", T0, AlertState.CLOSED, "", 0.5, "v", cleared_at=after(cleared), closed_at=after(closed)
    )
    (span,) = spans([alert])
    assert (span.asset, span.failure_mode) == ("a", "m")
    assert span.ended_us == (None if ended is None else span.raised_us + ended * HOUR)


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([("a", 110)], 10.0),
        ([("a", 172)], 72.0),
        ([("a", 172.1)], None),
        ([("a", 100)], 0.0),
        ([("a", 99)], None),
        ([("b", 110)], None),
        ([("a", 130), ("a", 110)], 10.0),
        ([], None),
    ],
)
def test_the_lead_of_an_alert(failures: list[tuple[str, float]], expected: float | None) -> None:
    failed = [FailureTime(asset, "m", int(time * HOUR)) for asset, time in failures]
    assert lead_hours(AlertSpan("a", "m", 100 * HOUR), failed) == expected
