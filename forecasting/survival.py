"""Arithmetic of discrete-time hazards.

A hazard `h[j]` is the probability of failing in step `j` given survival until it; with competing failure modes
`h[j, k]` is that of failing in step `j` by mode `k`, and `h[j] = sum over k of h[j, k]`. Formulae: Kalbfleisch and
Prentice, The Statistical Analysis of Failure Time Data, 2nd ed. (2002), sections 2.4 and 8.2.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


def survival_curve(hazard: Doubles) -> Doubles:
    """[..., H] hazard to [..., H] probability of surviving each step and all before it."""
    return np.asarray(np.cumprod(1.0 - hazard, axis=-1))


def probability_within(hazard: Doubles, hours: float, step_hours: float) -> Doubles:
    """[..., H] hazard to [...] probability of failing within `hours`, rounded down to whole steps."""
    steps = int(hours / step_hours + 1e-9)
    if steps == 0:
        return np.zeros(hazard.shape[:-1])
    return np.asarray(1.0 - np.cumprod(1.0 - hazard[..., :steps], axis=-1)[..., -1])


def cumulative_incidence(hazard_by_mode: Doubles) -> Doubles:
    """[..., H, K] hazard by mode to [..., K] probability of failing by each mode within all H steps.

    Their sum is the probability of failing at all.
    """
    survived = 1.0 - hazard_by_mode.sum(axis=-1)
    before = np.ones_like(survived)
    np.cumprod(survived[..., :-1], axis=-1, out=before[..., 1:])
    return np.asarray((before[..., None] * hazard_by_mode).sum(axis=-2))


def cumulative_hazard(hazard: Doubles) -> Doubles:
    """[..., H] hazard to [...]: minus the logarithm of the probability of surviving all H steps."""
    return np.asarray(-np.log1p(-hazard).sum(axis=-1))
