from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from forecasting.batches import Targets
from forecasting.calibrate import Calibration, fit_calibration
from forecasting.survival import cumulative_hazard, cumulative_incidence, probability_within, survival_curve


def drawn(logits: np.ndarray, rng: np.random.Generator) -> Targets:
    """Failures drawn from these logits [M, H, K]."""
    hazards = Calibration.none(logits.shape[2]).hazard_by_mode(logits)
    event, modes = np.full(len(logits), -1), np.zeros((len(logits), logits.shape[2]), dtype=np.float32)
    for m in range(len(logits)):
        for j in range(logits.shape[1]):
            draw = rng.random()
            hit = np.flatnonzero(draw < np.cumsum(hazards[m, j]))
            if len(hit):
                event[m], modes[m, hit[0]] = j, 1.0
                break
    known = np.where(event >= 0, event, logits.shape[1])
    zeros = torch.zeros(len(logits))
    return Targets(torch.from_numpy(event), torch.from_numpy(known), torch.from_numpy(modes), zeros, zeros.bool())


def test_a_distortion_is_undone():
    rng = np.random.default_rng(0)
    truth = rng.normal(-3.0, 1.0, (2000, 1, 2)) + np.zeros((1, 8, 1))
    targets = drawn(truth, rng)
    told = torch.from_numpy((truth - [0.5, -0.7]) / 0.8)
    calibration = fit_calibration(told, targets, failures=1000, positions_per_failure=1.0)
    for scale, shift in zip(calibration.scale, calibration.shift, strict=True):
        assert scale == pytest.approx(0.8, abs=0.08)
        assert shift == pytest.approx((0.5, -0.7), abs=0.2)


def test_each_part_of_the_horizon_has_its_own_distortion_undone():
    rng = np.random.default_rng(3)
    truth = rng.normal(-3.0, 1.0, (3000, 1, 2)) + np.zeros((1, 9, 1))
    wrong = np.repeat([0.8, 0.0, -0.8], 3)[:, None]
    calibration = fit_calibration(torch.from_numpy(truth - wrong), drawn(truth, rng), 1000, 1.0)
    # A scale moves log odds of -3 as a shift does: what counts is what comes of both.
    scale = np.repeat(calibration.scale, 3)[:, None]
    mended = (truth - wrong) * scale + np.repeat(calibration.shift, 3, axis=0)
    error = (mended - truth).mean(axis=(0, 2)).reshape(3, 3)[:, 0]
    assert np.abs(error).max() < 0.2


def test_parts_by_hand():
    """Six bins in three parts: the log odds of each pair get its own map; survival's stand at 0."""
    calibration = Calibration((1.0, 2.0, 1.0), ((0.0,), (0.0,), (np.log(3.0),)))
    hazard = calibration.hazard_by_mode(np.full((6, 1), np.log(2.0)))[:, 0]
    np.testing.assert_allclose(hazard, [2 / 3, 2 / 3, 4 / 5, 4 / 5, 6 / 7, 6 / 7])


def test_few_failures_change_nothing():
    rng = np.random.default_rng(0)
    logits = rng.normal(-3.0, 1.0, (50, 8, 2))
    assert fit_calibration(torch.from_numpy(logits), drawn(logits, rng), 4, 1.0) == Calibration.none(2)


def test_probabilities_grow_with_the_horizon_under_any_calibration():
    logits = np.random.default_rng(1).normal(0.0, 5.0, (100, 72, 3))
    hazard = (
        Calibration((1.7, 0.4, 2.0), ((0.5, -2.0, 3.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)))
        .hazard_by_mode(logits)
        .sum(axis=-1)
    )
    p24, p48, p72 = (probability_within(hazard, hours, 1.0) for hours in (24, 48, 72))
    assert ((hazard >= 0) & (hazard <= 1)).all()
    assert ((p24 <= p48) & (p48 <= p72)).all()


def test_survival_by_hand():
    hazard = np.array([0.1, 0.5, 0.2])
    np.testing.assert_allclose(survival_curve(hazard), [0.9, 0.45, 0.36])
    assert probability_within(hazard, 2, 1.0) == pytest.approx(0.55)
    assert probability_within(hazard, 47, 24.0) == pytest.approx(0.1)
    assert probability_within(hazard, 23, 24.0) == 0.0
    assert cumulative_hazard(hazard) == pytest.approx(-np.log(0.36))
    by_mode = np.array([[0.1, 0.0], [0.2, 0.3], [0.0, 0.2]])
    np.testing.assert_allclose(cumulative_incidence(by_mode), [0.1 + 0.9 * 0.2, 0.9 * 0.3 + 0.45 * 0.2])
    assert cumulative_incidence(by_mode).sum() == pytest.approx(1 - 0.36)


def test_a_calibration_survives_json():
    calibration = Calibration((1.1, 0.9), ((0.1, -0.2), (0.3, 0.4)))
    assert Calibration.from_json(json.loads(json.dumps(calibration.as_json()))) == calibration
    assert Calibration.from_json({"scale": 1.1, "shift": [0.1, -0.2]}) == Calibration((1.1,), ((0.1, -0.2),))
