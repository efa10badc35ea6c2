"""The search for thresholds: it agrees with the policy and the scorecard, and keeps its budget on new plants."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from numpy.typing import NDArray

from pm.budget import WORST_BLOCK, Threshold, _Ledger, thresholds
from pm.config import AlertsSection
from pm.policy import NEVER, FleetState, advance
from pm.scorecard import AlertSpan, score

HOUR = 3_600_000_000
RULES = AlertsSection()
Plant = tuple[NDArray[np.float64], NDArray[np.int64], list[NDArray[np.int64]]]


def plant(rng: np.random.Generator, assets: int, hours: int, *, decoys: float = 1.0, abstaining: float = 0.05) -> Plant:
    """Forecasts that rise before most failures, and before `decoys` false ones per asset-month."""
    times = np.arange(hours, dtype=np.int64) * HOUR
    p = rng.beta(1, 40, (assets, hours))
    failures = []
    for asset in range(assets):
        failed = np.sort(rng.choice(hours, max(1, hours // 1100), replace=False))
        for at in failed:
            onset = max(0, at - int(rng.integers(2, 100)))
            p[asset, onset:at] += rng.uniform(0.05, 0.9)
        for at in rng.integers(0, hours, rng.poisson(decoys * hours / 730)):
            p[asset, at : at + int(rng.integers(3, 40))] += rng.exponential(0.2)
        failures.append(failed * HOUR)
    p = np.clip(p, 0.0, 1.0)
    p[rng.uniform(size=p.shape) < abstaining] = np.nan
    return p, times, failures


def spans_of(
    p: NDArray[np.float64], times: NDArray[np.int64], failures: list[NDArray[np.int64]], limit: float
) -> list[AlertSpan]:
    """The alerts of one threshold, by the policy as the live plant runs it."""
    found: list[AlertSpan] = []
    open_: dict[int, int] = {}
    state = FleetState.fresh(len(p))
    past = np.stack([np.append(NEVER, f)[np.searchsorted(f, times)] for f in failures])
    for i, at in enumerate(times.tolist()):
        step = advance(state, at_us=at, probability=p[:, i], threshold=limit, renewed_us=past[:, i], rules=RULES)
        state = step.state
        found += [
            AlertSpan(f"{a:03}", "m", open_.pop(a), at) for a in np.flatnonzero(step.cleared | step.ended).tolist()
        ]
        open_.update(dict.fromkeys(np.flatnonzero(step.raised).tolist(), at))
    return found + [AlertSpan(f"{asset:03}", "m", at) for asset, at in open_.items()]


@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_the_scorecard(seed: int) -> None:
    p, times, failures = plant(np.random.default_rng(seed), 5, 1500)
    observed = {
        f"{a:03}": (int(times[np.flatnonzero(k)[0]]), int(times[np.flatnonzero(k)[-1]]))
        for a, k in enumerate(~np.isnan(p))
    }
    for budget, found in thresholds(p, times, failures, (0.05, 0.5, 2.0, 8.0), RULES).items():
        card = score(
            spans_of(p, times, failures, found.value),
            [(f"{a:03}", "m", int(f)) for a, failed in enumerate(failures) for f in failed],
            observed,
            minimum_lead=RULES.minimum_lead,
            rng=np.random.default_rng(0),
            replicates=2,
        )
        assert found.failures == len(card.failures)
        assert found.recall == card.recall.value
        assert found.rate * found.asset_months == pytest.approx(card.verdicts.count("false"))
        assert found.rate <= budget
        # Abstentions are no assessed time: 5 % of it here.
        assert found.asset_months == pytest.approx(card.asset_months * 0.95, rel=0.02)


def test_a_larger_budget_buys_a_lower_threshold_and_more_recall() -> None:
    p, times, failures = plant(np.random.default_rng(5), 20, 3000)
    found = list(thresholds(p, times, failures, (0.05, 0.2, 1.0, 3.0), RULES).values())
    assert [f.value for f in found] == sorted((f.value for f in found), reverse=True)
    recalls = [f.recall for f in found]
    assert recalls == sorted(recalls, key=lambda r: r or 0.0)
    assert found[0].value > found[-1].value


def quiet_but_for(heights: dict[int, tuple[float, ...]], assets: int, hours: int) -> NDArray[np.float64]:
    """[assets, hours] forecasts of nothing, but for a rise to each height, of 20 h, in a week of its own."""
    p = np.zeros((assets, hours))
    for asset, levels in heights.items():
        for number, height in enumerate(levels):
            p[asset, 30 + 168 * number : 50 + 168 * number] = height
    return p


def without_failures(p: NDArray[np.float64], budget: float) -> Threshold:
    times = np.arange(p.shape[1], dtype=np.int64) * HOUR
    observed_to = np.full(len(p), 10 * p.shape[1] * HOUR)
    return thresholds(p, times, [[]] * len(p), [budget], RULES, observed_to_us=observed_to)[budget]


def test_the_bound_is_the_formula_by_hand() -> None:
    """Ten asset-months of quiet and three false alerts in one of them, at known heights."""
    hours = round(30.44 * 24)
    p = quiet_but_for({0: (0.3, 0.5, 0.7)}, 10, hours)
    months, week = 10 * hours / (30.44 * 24), 7 / 30.44
    # No false alert: (0 + 1) / 10.2; one: (1 + 1) / 10.2; two: (2 + 1) / 10.2; three: (3 + 1) / 10.2.
    for false, (low, high), budget in (
        (0, (0.7, 1.0), 0.15),
        (1, (0.5, 0.7), 0.25),
        (2, (0.3, 0.5), 0.35),
        (3, (0.0, 0.3), 0.45),
    ):
        found = without_failures(p, budget)
        assert low <= found.value <= high
        assert found.guaranteed
        assert found.rate == pytest.approx(false / months)
        assert found.bound == pytest.approx((false + WORST_BLOCK) / (months + week))
        assert found.recall is None
    # Two asset-months: under (0 + 1) / 2.2 nothing can be guaranteed. No false alert was seen, and the result says so.
    unsure = without_failures(p[:2], 0.4)
    assert not unsure.guaranteed
    assert unsure.rate == 0.0 and unsure.value > 0.7 and unsure.bound > 0.4


def test_two_false_alerts_in_a_week_count_as_one_in_the_bound_alone() -> None:
    p = np.zeros((10, 731))
    p[0, 20:30] = p[0, 80:90] = 0.6
    found = without_failures(p, 0.4)
    assert found.value < 0.6
    assert found.rate == pytest.approx(2 / 10, rel=0.01)
    assert found.bound == pytest.approx((1 + WORST_BLOCK) / (10 + 7 / 30.44), rel=0.01)


def test_crossing_by_hand() -> None:
    """Three assets of four months. At a budget of 0.3 the others' choice for each (bounds over 8.2 months) is:

    for the first 0.5 (2 / 8.2; at 0.3 it would be 3 / 8.2), for the second 0.7 (2 / 8.2; at 0.5 3 / 8.2), for the third
    0.5 (2 / 8.2; at 0.3 4 / 8.2): one, no and one false alert.
    """
    found = without_failures(quiet_but_for({0: (0.3, 0.5), 1: (0.3,), 2: (0.7,)}, 3, 4 * 731), 0.3)
    assert found.crossed == pytest.approx(2 / 12, rel=0.01)
    assert found.rate == pytest.approx(2 / 12, rel=0.01)
    assert found.bound == pytest.approx(3 / (12 + 7 / 30.44), rel=0.01)
    assert without_failures(quiet_but_for({0: (0.3,)}, 1, 4 * 731), 0.3).crossed is None


def test_where_crossing_goes_over_the_budget_the_threshold_rises() -> None:
    """Four assets of ten months at three thresholds. All together would choose the second: (5 + 1) / 40.2 is under 0.2.
    But the others alone would choose the lowest for the first asset, whose twenty false alerts are 0.5 a month."""
    false = np.array([[20.0, 2.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    assert _Ledger(false, false, np.full(4, 10.0)).chosen(0.2) == (2, 0.0)
    alike = np.array([[4.0, 1.0, 0.0]] * 4)
    assert _Ledger(alike, alike, np.full(4, 10.0)).chosen(0.2) == (1, 0.1)


@pytest.mark.parametrize(("assets", "hours", "guaranteed"), [(4, 8760, True), (2, 3000, False)])
def test_an_alert_that_stands_for_ever_does_not_pass_for_a_good_one(assets: int, hours: int, guaranteed: bool) -> None:
    """At a threshold under everything each asset has one false alert in a year: 0.08 a month, and worthless."""
    rng = np.random.default_rng(11)
    times = np.arange(hours, dtype=np.int64) * HOUR
    p = np.full((assets, hours), 0.01)
    for asset in range(assets):
        for at in rng.integers(100, hours - 200, 24):
            p[asset, at : at + 10] = 0.4
    found = thresholds(p, times, [[]] * assets, [0.1], RULES)[0.1]
    assert found.value > 0.3
    assert found.guaranteed is guaranteed
    assert found.rate == 0.0


def test_undecided_alerts_are_not_false() -> None:
    times = np.arange(800, dtype=np.int64) * HOUR
    p = np.zeros((1, 800))
    p[0, 760:] = 0.9
    assert thresholds(p, times, [[]], [0.01], RULES)[0.01].value < 0.9
    seen_longer = thresholds(p, times, [[]], [0.01], RULES, observed_to_us=[1000 * HOUR])[0.01]
    assert seen_longer.value > 0.9
    failed_after = thresholds(p, times, [[820 * HOUR]], [0.01], RULES, observed_to_us=[1000 * HOUR])[0.01]
    assert failed_after.value < 0.9
    assert failed_after.recall == 1.0


def test_maintenance_silences_in_the_search_too() -> None:
    times = np.arange(1500, dtype=np.int64) * HOUR
    p = np.zeros((1, 1500))
    p[0, 500:520] = 0.9
    assert thresholds(p, times, [[]], [0.01], RULES)[0.01].value > 0.9
    assert thresholds(p, times, [[]], [0.01], RULES, renewals_us=[[499 * HOUR]])[0.01].rate == 0.0
    assert thresholds(p, times, [[]], [0.01], RULES, renewals_us=[[499 * HOUR]])[0.01].value < 0.9


def test_daily_forecasts_have_asset_months_of_days() -> None:
    times = np.arange(365, dtype=np.int64) * 24 * HOUR
    found = thresholds(np.zeros((4, 365)), times, [[]] * 4, [1.0], RULES)[1.0]
    assert found.asset_months == pytest.approx(4 * 365 / 30.44)


def test_a_gap_in_the_times_is_no_assessed_time() -> None:
    times = np.concatenate([np.arange(100), np.arange(5000, 5100)]).astype(np.int64) * HOUR
    found = thresholds(np.zeros((1, 200)), times, [[]], [1.0], RULES)[1.0]
    assert found.asset_months == pytest.approx(200 / (30.44 * 24))


def test_the_guarantee_holds_on_assets_not_seen() -> None:
    """Thresholds from 24 assets of a plant; on 24 others false alerts keep the budget, on average over plants."""
    budget, rates = 0.5, []
    for seed in range(8):
        p, times, failures = plant(np.random.default_rng([2, seed]), 48, 731, decoys=1.5)
        found = thresholds(p[:24], times, failures[:24], [budget], RULES, candidates=24)[budget]
        assert found.guaranteed
        alerts = spans_of(p[24:], times, failures[24:], found.value)
        failed = [(f"{a:03}", "m", int(f)) for a, times_us in enumerate(failures[24:]) for f in times_us]
        observed = {f"{a:03}": (int(times[0]), int(times[-1])) for a in range(24)}
        rng = np.random.default_rng(0)
        card = score(alerts, failed, observed, minimum_lead=RULES.minimum_lead, rng=rng, replicates=2)
        rates.append(card.false_alerts_per_asset_month.value or 0.0)
    mean, error = float(np.mean(rates)), float(np.std(rates) / np.sqrt(len(rates)))
    assert mean <= budget + 2 * error
    assert mean > 0.1, "so few false alerts would say that the threshold is needlessly high"


@pytest.mark.parametrize(
    ("p", "times", "failures", "says"),
    [
        (np.zeros((2, 5)), np.arange(5), [[]], "are not"),
        (np.zeros((1, 5)), np.arange(4), [[]], "are not"),
        (np.full((1, 5), np.nan), np.arange(5), [[]], "every forecast abstained"),
        (np.zeros((1, 5)), np.array([0, 1, 1, 2, 3]), [[]], "ascending"),
        (np.zeros((1, 1)), np.arange(1), [[]], "two or more"),
    ],
)
def test_refuses_what_makes_no_sense(
    p: NDArray[np.float64], times: NDArray[np.int64], failures: list[list[int]], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        thresholds(p, times, failures, [0.2], RULES)


def test_asset_months_hold_at_every_interval() -> None:
    for minutes in (10, 60):
        step = timedelta(minutes=minutes) // timedelta(microseconds=1)
        times = np.arange(1000, dtype=np.int64) * step
        found = thresholds(np.zeros((2, 1000)), times, [[], []], [1.0], RULES)[1.0]
        assert found.asset_months == pytest.approx(2 * 1000 * minutes / (30.44 * 24 * 60))
