"""Scores by hand, against scikit-learn, and by the laws they must keep."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_curve, roc_auc_score

from forecasting import censoring, metrics
from forecasting.floor import calibration_floor
from forecasting.metrics import UNKNOWN, Ranking, multiplicities, outcomes, ratio, score_horizon

HOUR = metrics.HOUR_US


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def hours(*values: float) -> np.ndarray:
    return np.array([round(value * HOUR) for value in values], np.int64)


# --- outcomes


def test_outcome_by_hand() -> None:
    """One asset, read until hour 100, failing at 40 and 60: what is known 24 h after each issue time."""
    issued = hours(0, 15, 16, 39, 40, 59, 60, 76, 77)
    found = outcomes(np.zeros(9), issued, [0, 0], hours(60, 40), hours(100))
    assert found.failure_hours.tolist() == [40, 25, 24, 1, 20, 1, np.inf, np.inf, np.inf]
    #                    0: fails at 40; 16: exactly 24 h; 40: its own failure is past, 60 is next; 76: seen to 100
    assert found.within(24).tolist() == [0, 0, 1, 1, 1, 1, 0, 0, UNKNOWN]
    assert found.within(72).tolist() == [1, 1, 1, 1, 1, 1, UNKNOWN, UNKNOWN, UNKNOWN]


def test_outcome_between_two_horizons_asks_only_those_alive_at_the_first() -> None:
    found = outcomes(np.zeros(5), hours(0, 10, 16, 17, 39), [0], hours(40), hours(200))
    #  40 h ahead, 30 h, exactly 24 h (decided by then), 23 h, 1 h
    assert found.within(72, after=24).tolist() == [1, 1, UNKNOWN, UNKNOWN, UNKNOWN]
    assert found.within(30, after=24).tolist() == [0, 1, UNKNOWN, UNKNOWN, UNKNOWN]


def test_a_failure_after_the_last_reading_is_known_all_the_same() -> None:
    found = outcomes([0, 0], hours(50, 98), [0], hours(101), hours(99))
    assert found.within(24).tolist() == [0, 1]
    assert found.within(50).tolist() == [0, 1]  # 49 h of record, and a failure at 51 h: it was alive at 50
    assert found.within(72).tolist() == [1, 1]


def test_outcomes_keep_assets_apart() -> None:
    found = outcomes([1, 0, 1, 2], hours(0, 0, 10, 0), [1, 0, 1], hours(30, 20, 5), hours(90, 90, 90))
    assert found.failure_hours.tolist() == [5, 20, 20, np.inf]
    assert found.assets == 3


def test_conditional_probability() -> None:
    early, late = np.array([0.0, 0.2, 1.0]), np.array([0.5, 0.6, 1.0])
    assert metrics.conditional(early, late) == pytest.approx([0.5, 0.5, 0.0])


# --- ranking


@pytest.mark.parametrize(
    ("truth", "score", "expected"),
    [
        ([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1], (1 / 1 + 2 / 3) / 2),
        ([0, 0, 1], [0.9, 0.8, 0.7], 1 / 3),
        ([1, 1, 0], [0.9, 0.8, 0.7], 1.0),
        ([1, 0], [0.5, 0.5], 0.5),  # a tie is one threshold: half of what it warns of is right
        ([1, 0, 0, 1], [0.9, 0.4, 0.4, 0.4], 0.5 * 1 + 0.5 * 2 / 4),
    ],
)
def test_average_precision_by_hand(truth: list[int], score: list[float], expected: float) -> None:
    assert metrics.average_precision(truth, score) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("truth", "score", "expected"),
    [
        ([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1], 3 / 4),
        ([0, 1], [0.9, 0.1], 0.0),
        ([1, 0], [0.5, 0.5], 0.5),
    ],
)
def test_roc_auc_by_hand(truth: list[int], score: list[float], expected: float) -> None:
    assert metrics.roc_auc(truth, score) == pytest.approx(expected)


def test_scores_of_nothing_are_not_a_number() -> None:
    assert np.isnan(metrics.average_precision([0, 0], [0.1, 0.2]))
    assert np.isnan(metrics.average_precision([], []))
    assert np.isnan(metrics.roc_auc([1, 1], [0.1, 0.2]))
    assert np.isnan(metrics.roc_auc([], []))
    assert np.isnan(metrics.brier([], []))
    assert np.isnan(metrics.calibration_error([], []))
    assert np.isnan(metrics.rul_rmse([], []))


rows = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.integers(0, 4)),
    min_size=2,
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(rows, st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_ranking_equals_scikit_learn_with_assets_drawn_several_times(
    drawn: list[tuple[bool, float, int]], often: list[int]
) -> None:
    truth, score, asset = (np.array(column) for column in zip(*drawn, strict=True))
    multiplicity = np.array(often, float)
    weight = multiplicity[asset]
    ranking = Ranking(truth, score, asset)
    positives, negatives = weight[truth].sum(), weight[~truth].sum()
    if positives:
        used = weight > 0
        expected = average_precision_score(truth[used], score[used], sample_weight=weight[used])
        assert ranking.average_precision(multiplicity) == pytest.approx(expected)
    else:
        assert np.isnan(ranking.average_precision(multiplicity))
    if positives and negatives:
        assert ranking.roc_auc(multiplicity) == pytest.approx(roc_auc_score(truth, score, sample_weight=weight))
    else:
        assert np.isnan(ranking.roc_auc(multiplicity))


def test_ranking_equals_scikit_learn_on_many_rows(rng: np.random.Generator) -> None:
    truth = rng.random(5000) < 0.03
    score = np.round(rng.random(5000) * 0.5 + truth * rng.random(5000), 3)
    assert metrics.average_precision(truth, score) == pytest.approx(average_precision_score(truth, score))
    assert metrics.roc_auc(truth, score) == pytest.approx(roc_auc_score(truth, score))
    assert metrics.brier(truth, score / 2) == pytest.approx(brier_score_loss(truth, score / 2))
    recall, precision = Ranking(truth, score).curve()
    precisions, recalls, _ = precision_recall_curve(truth, score)
    best = {r: p for r, p in zip(recalls, precisions, strict=True) if r > 0}
    by_recall = {r: max(p for q, p in best.items() if q == r) for r in best}
    assert set(np.round(recall, 9)) <= set(np.round(list(by_recall), 9))
    assert recall[-1] == 1.0
    assert np.all(np.diff(recall) > 0)
    assert precision[-1] == pytest.approx(truth.sum() / (score >= score[truth].min()).sum())


def test_ranking_is_quick_enough_to_bootstrap_a_fleet_year(rng: np.random.Generator) -> None:
    """600,000 rows of 70 assets: a replicate is a pass, not a sort."""
    asset = np.repeat(np.arange(70), 8760)
    truth = rng.random(asset.size) < 0.05
    score = rng.random(asset.size) + truth
    started = time.perf_counter()
    ranking = Ranking(truth, score, asset)
    for draw in multiplicities(70, 20, rng):
        ranking.average_precision(draw)
    assert time.perf_counter() - started < 3.0


# --- intervals


def test_estimate_is_the_percentile_interval() -> None:
    found = metrics.estimate(0.5, np.arange(1001) / 1000)
    assert (found.low, found.high) == pytest.approx((0.025, 0.975))
    assert metrics.estimate(float("nan"), np.ones(3)).value is None


def test_an_interval_is_withheld_where_many_replicates_are_undefined() -> None:
    replicates = np.where(np.arange(100) < 20, np.nan, 0.5)
    found = metrics.estimate(0.5, replicates)
    assert (found.value, found.low, found.high) == (0.5, None, None)


def test_the_interval_of_a_mean_is_the_textbook_one(rng: np.random.Generator) -> None:
    """200 assets with one row each: the bootstrap must agree with the standard error of the mean."""
    value = rng.normal(3.0, 2.0, 200)
    found = metrics.mean_over_assets(value, np.arange(200), multiplicities(200, 4000, rng))
    error = value.std() / np.sqrt(200)
    assert found.value == pytest.approx(value.mean())
    assert found.low == pytest.approx(value.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(value.mean() + 1.96 * error, abs=0.15 * error)


def test_rows_of_one_asset_count_as_one_witness(rng: np.random.Generator) -> None:
    """Each row repeated a hundred times inside its asset tells nothing new: the interval stays."""
    value = rng.normal(size=30)
    draws = multiplicities(30, 500, rng)
    once = metrics.mean_over_assets(value, np.arange(30), draws)
    often = metrics.mean_over_assets(np.repeat(value, 100), np.repeat(np.arange(30), 100), draws)
    assert often.low == pytest.approx(once.low)
    assert often.high == pytest.approx(once.high)


def test_paired_difference_is_narrower_than_either(rng: np.random.Generator) -> None:
    draws = multiplicities(40, 500, rng)
    common = rng.normal(size=40)
    better, worse = common + 0.1 + rng.normal(0, 0.01, 40), common
    a = metrics.mean_over_assets(better, np.arange(40), draws)
    b = metrics.mean_over_assets(worse, np.arange(40), draws)
    assert a.low < b.high  # apart they overlap
    assert a.minus(b).low > 0.05  # in pairs they do not
    assert a.minus(metrics.Estimate(None)).value is None


def test_multiplicities_draw_as_many_assets_as_there_are(rng: np.random.Generator) -> None:
    draws = multiplicities(7, 300, rng)
    assert draws.shape == (300, 7)
    assert np.all(draws.sum(1) == 7)
    assert np.all(draws == np.round(draws))


def test_one_asset_has_no_interval(rng: np.random.Generator) -> None:
    found = metrics.mean_over_assets(rng.random(50), np.zeros(50, np.int64), multiplicities(1, 100, rng))
    assert found.value is not None
    assert (found.low, found.high) == (None, None)


# --- calibration


def test_calibration_error_by_hand() -> None:
    """Two bins: forecasts 0.1 and 0.3 of which none failed, 0.6 and 0.8 of which one did."""
    error = metrics.calibration_error([0, 0, 1, 0], [0.1, 0.3, 0.6, 0.8], bins=2)
    assert error == pytest.approx((2 * 0.2 + 2 * abs(0.7 - 0.5)) / 4)


def test_calibration_error_equals_a_plain_reference(rng: np.random.Generator) -> None:
    probability = rng.random(2000)
    truth = rng.random(2000) < probability**2
    parts = np.array_split(np.argsort(probability), 10)
    expected = sum(abs(probability[p].mean() - truth[p].mean()) * p.size for p in parts) / 2000
    assert metrics.calibration_error(truth, probability) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_has_no_say(drawn: list[tuple[bool, float, int]], shuffle: st.DataObject) -> None:
    """Equal forecasts share a bin, so that shuffling rows changes nothing."""
    again = list(drawn)
    shuffle.shuffle(again)  # type: ignore[attr-defined]
    one, other = ([np.array(c) for c in zip(*listed, strict=True)] for listed in (drawn, again))
    assert metrics.calibration_error(one[0], one[1]) == pytest.approx(metrics.calibration_error(other[0], other[1]))
    assert metrics.average_precision(one[0], one[1]) == pytest.approx(
        metrics.average_precision(other[0], other[1]), nan_ok=True
    )


def test_the_floor_of_a_single_forecast_by_hand(rng: np.random.Generator) -> None:
    """A forecast of 0.3 comes true with chance 0.3, off by 0.7, else it is off by 0.3: 2 x 0.3 x 0.7 in the mean."""
    found = calibration_floor(np.array([0.3]), np.zeros(1, int), np.zeros(1, int), 72, rng, replicates=4000)
    assert found.value == pytest.approx(0.42, abs=0.02)
    assert (found.low, found.high) == pytest.approx((0.3, 0.7))


def test_the_floor_of_independent_forecasts_is_the_textbook_one(rng: np.random.Generator) -> None:
    """One bin of 400 assets forecast once at 0.2: the mean distance of a share from its chance, sqrt(2 pq / (pi n))."""
    found = calibration_floor(np.full(400, 0.2), np.arange(400), np.zeros(400, int), 72, rng, replicates=1000)
    assert found.value == pytest.approx(np.sqrt(2 * 0.16 / (np.pi * 400)), rel=0.08)


def test_overlapping_windows_are_worth_fewer(rng: np.random.Generator) -> None:
    """A forecast each hour for 72 h of each asset says hardly more than one: as many draws as pieces, not as hours."""
    assets, times = np.repeat(np.arange(400), 72), np.tile(np.arange(72) * HOUR, 400)
    floor = calibration_floor(np.full(assets.size, 0.2), assets, times, 72, rng, replicates=200).value
    alone = calibration_floor(np.full(400, 0.2), np.arange(400), np.zeros(400, int), 72, rng, replicates=200).value
    assert 0.6 * alone < floor < 1.05 * alone
    far_apart = calibration_floor(np.full(assets.size, 0.2), assets, times * 100, 72, rng, replicates=200).value
    assert far_apart < 0.2 * alone


def test_a_floor_is_of_the_calibration_error(rng: np.random.Generator) -> None:
    """With forecasts of 0 and 1 nothing is left to chance; of others, a draw is the error by its own definition."""
    told = np.repeat([0.0, 1.0], 50)
    assert calibration_floor(told, np.arange(100), np.zeros(100, int), 24, rng).value == 0.0
    told = rng.random(500)
    fate = np.random.default_rng(5)
    fate.integers(24 * HOUR, size=500)
    happened = fate.random((500, 1))[:, 0] < told
    found = calibration_floor(told, np.arange(500), np.zeros(500, int), 24, np.random.default_rng(5), replicates=1)
    assert found.value == pytest.approx(metrics.calibration_error(happened, told))


def test_a_floor_leaves_out_what_abstained(rng: np.random.Generator) -> None:
    told = np.array([np.nan, 1.0])
    assert calibration_floor(told, np.zeros(2, int), np.zeros(2, int), 72, rng).value == 0.0
    assert calibration_floor(told[:1], np.zeros(1, int), np.zeros(1, int), 72, rng).value is None


def test_reliability_curve_counts_every_row_and_holds_the_frequency(rng: np.random.Generator) -> None:
    asset = np.repeat(np.arange(50), 200)
    probability = rng.random(asset.size) * 0.4
    truth = rng.random(asset.size) < probability
    curve = metrics.reliability(truth, probability, asset, multiplicities(50, 300, rng))
    assert curve.count.sum() == asset.size
    assert np.all(np.diff(curve.predicted) > 0)
    assert np.all((curve.low <= curve.observed) & (curve.observed <= curve.high))
    assert np.mean((curve.low <= curve.predicted) & (curve.predicted <= curve.high)) >= 0.7
    assert curve.error.value is not None
    assert curve.error.value < 0.02
    assert set(curve.to_json()) == {"predicted", "observed", "count", "low", "high"}


# --- one horizon


def test_horizon_score_leaves_out_what_is_unknown_or_abstained(rng: np.random.Generator) -> None:
    truth = np.array([1, 0, UNKNOWN, 0, 1], np.int8)
    probability = np.array([0.8, 0.1, 0.9, np.nan, 0.6])
    found = score_horizon(truth, probability, np.array([0, 0, 1, 1, 1]), multiplicities(2, 50, rng))
    assert (found.known, found.positives, found.unknown) == (3, 2, 2)
    assert found.base_rate == pytest.approx(2 / 3)
    assert found.pr_auc.value == 1.0
    assert found.brier.value == pytest.approx((0.2**2 + 0.1**2 + 0.4**2) / 3)


def test_horizon_score_without_a_failure_has_no_ranking(rng: np.random.Generator) -> None:
    found = score_horizon(np.zeros(4, np.int8), np.full(4, 0.1), np.zeros(4, np.int64), multiplicities(1, 20, rng))
    assert found.pr_auc.value is None
    assert found.roc_auc.value is None
    assert found.brier.value == pytest.approx(0.01)
    assert found.recall.size == 0


def test_horizon_score_of_no_rows_at_all(rng: np.random.Generator) -> None:
    found = score_horizon(np.empty(0, np.int8), np.empty(0), np.empty(0, np.int64), multiplicities(3, 20, rng))
    assert found.known == 0
    assert found.base_rate is None
    assert found.brier.value is None
    assert found.reliability.error.value is None


# --- remaining life


def test_remaining_life_by_hand() -> None:
    assert metrics.rul_rmse([10.0, 20.0], [13.0, 16.0]) == pytest.approx(np.sqrt((9 + 16) / 2))
    penalty = metrics.phm08_penalty([50.0, 50.0, 50.0], [37.0, 50.0, 60.0])
    assert penalty == pytest.approx([np.e - 1, 0.0, np.e - 1])


def test_rul_rmse_over_assets_agrees(rng: np.random.Generator) -> None:
    truth, predicted = rng.random(60) * 100, rng.random(60) * 100
    found = metrics.rul_rmse_over_assets(truth, predicted, np.repeat(np.arange(6), 10), multiplicities(6, 200, rng))
    assert found.value == pytest.approx(metrics.rul_rmse(truth, predicted))
    assert found.low <= found.value <= found.high


# --- censoring weights


def test_kaplan_meier_of_being_followed_by_hand() -> None:
    """Five rows: failure at 2, end at 4, failure at 4, end at 6, end at 9 (hours)."""
    found = outcomes([0, 1, 2, 3, 4], np.zeros(5, np.int64), [0, 2], hours(2, 4), hours(99, 4, 99, 6, 9))
    share = censoring.followed(found)
    assert share.hours.tolist() == [4, 6, 9]
    #  at 4: four at risk, of whom the failure leaves first: one of three ends; at 6: one of two; at 9: the last
    assert share.share == pytest.approx([2 / 3, 1 / 3, 0.0])
    assert share.before(4.0) == 1.0
    assert share.at(4.0) == pytest.approx(2 / 3)
    weights = censoring.weights(found, 5.0, share)
    assert weights == pytest.approx([1.0, 0.0, 1.0, 1.5, 1.5])
    assert weights.sum() == pytest.approx(5.0)  # the rows that can be followed stand in for the one that cannot


def test_without_censoring_the_weighted_scores_are_the_plain_ones(rng: np.random.Generator) -> None:
    n = 400
    ahead = rng.integers(1, 150, n).astype(float)
    found = outcomes(np.arange(n), np.zeros(n, np.int64), np.arange(n), hours(*ahead), hours(*[200.0] * n))
    probability = np.clip(1 - ahead / 150 + rng.normal(0, 0.2, n), 0.01, 0.99)
    draws, share = multiplicities(n, 20, rng), censoring.followed(found)
    auc = censoring.dynamic_auc(found, 72.0, probability, draws, share)
    assert auc.value == pytest.approx(roc_auc_score(ahead <= 72, probability))
    grid = np.array([24.0, 48.0, 72.0])
    cumulative = np.stack([probability * 0.5, probability * 0.8, probability], axis=1)
    scores = [0.0, *(np.mean((cumulative[:, k] - (ahead <= hour)) ** 2) for k, hour in enumerate(grid))]
    expected = np.trapezoid(scores, [0.0, *grid]) / 72
    assert censoring.integrated_brier(found, grid, cumulative, draws, share).value == pytest.approx(expected)


def test_weights_undo_censoring(rng: np.random.Generator) -> None:
    """Half the rows end early at random: the weighted score is that of the full data, the plain one is not."""
    n = 20_000
    ahead = rng.exponential(60.0, n)
    end = rng.uniform(0.0, 150.0, n)
    full = outcomes(np.arange(n), np.zeros(n, np.int64), np.arange(n), hours(*ahead), hours(*[1e4] * n))
    seen = ahead <= end
    cut = outcomes(np.arange(n), np.zeros(n, np.int64), np.flatnonzero(seen), hours(*ahead[seen]), hours(*end))
    truth = full.within(72)
    share = censoring.followed(cut)
    weighted = np.average(full.failure_hours <= 72, weights=censoring.weights(cut, 72.0, share))
    known = cut.within(72)
    assert weighted == pytest.approx(truth.mean(), abs=0.015)
    assert abs((known[known != UNKNOWN] == 1).mean() - truth.mean()) > 0.05


def test_ratio_of_nothing_is_not_a_number() -> None:
    assert np.isnan(ratio([1.0], [0.0])).all()
