"""What each point should read, given the others at the same time: the normal behaviour that wear departs from.

Load, speed and weather move every point of an asset together, and by more than wear does. A ridge regression on
piecewise-linear terms of the other points, fitted on training assets by asset model, takes that away; what is left
over is the residual. The method is the normal behaviour model of condition monitoring (Zaher et al., 2009) in its
simplest form.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

KNOTS = (-2.0, -0.67, 0.67)
"""Where the pieces meet, in normalised units: the quartiles, and what is well below (an asset switched off)."""
TERMS = 1 + len(KNOTS)
MOST_INPUTS = 12
"""A point is told from so many others at most, those that move with it most."""
RIDGE = 1e-3
"""Share of the rows that the pull of the weights towards zero counts as."""
USUAL = 0.9
"""A point is told from those that were read in at least so large a share of its readings: one that is read once a day
would leave it without an expectation for the rest of the day."""
ENOUGH_ROWS = 2_000
"""An asset model with fewer rows uses the fleet's weights."""
SAMPLE_ROWS = 50_000
CLIP = np.float32(8.0)
BLOCK_ROWS = 2_048
"""Rows whose residuals are computed at a time, so that they stay in the processor's cache."""


@dataclass(frozen=True)
class NormalBehaviour:
    """Weights of every point's expectation, by asset model, the last group for any other model."""

    inputs: Ints
    """[P, M] the points that each point is told from."""
    weights: Doubles
    """[G + 1, P, 1 + M * TERMS] constant first, then the terms of every input; in units of the residual's scale.

    Folds (`forecasting.crossfit`) follow, of as many groups each."""
    scale: Doubles
    """[G + 1, P] spread of the residual, in normalised units."""

    def as_json(self) -> dict[str, Any]:
        return {"inputs": self.inputs.tolist(), "weights": self.weights.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], groups: int, points: int) -> NormalBehaviour:
        inputs = np.asarray(values["inputs"], dtype=np.int64).reshape(points, -1)
        return cls(
            inputs,
            np.asarray(values["weights"], dtype=np.float64).reshape(groups, points, 1 + inputs.shape[1] * TERMS),
            np.asarray(values["scale"], dtype=np.float64).reshape(groups, points),
        )

    def residuals(self, normal: Floats, present: npt.NDArray[np.bool_], group: Ints, clip: np.float32 = CLIP) -> Floats:
        """[N, P] what each point reads beyond its expectation, in spreads up to `clip`; zero where it cannot be told:
        where the point was not read, or one that it is told from (`told`).

        normal: [N, P] normalised values, zero where missing. Sums run in a fixed order, term by term, so that a row's
        bits do not depend on the rows beside it.
        """
        residual = np.empty_like(normal)
        weights, scale = self.weights.astype(np.float32), self.scale.astype(np.float32)
        for number in np.unique(group).tolist():
            alike = np.flatnonzero(group == number)
            for begin in range(0, len(alike), BLOCK_ROWS):
                rows = alike[begin : begin + BLOCK_ROWS]
                residual[rows] = self._residuals(normal[rows], weights[number], scale[number])
        return np.where(self.told(present, group), np.clip(residual, -clip, clip), np.float32(0.0))

    def told(self, present: npt.NDArray[np.bool_], group: Ints) -> npt.NDArray[np.bool_]:
        """[N, P] whether a point was read and all that it is told from: an expectation that went on without its load
        would be off by more than wear is. What its assets seldom or never have weighs nothing, and is not missed."""
        told, needs = present.copy(), self.needs
        for number in np.unique(group).tolist():
            alike = group == number
            told[alike] &= ((~present[alike]).astype(np.float32) @ needs[number].T) == 0.0
        return told

    @functools.cached_property
    def needs(self) -> Floats:
        """[G + 1, P, P] 1 where a group's expectation of a point (row) heeds another (column), else 0."""
        groups, points = self.scale.shape
        heeded = np.asarray(self.weights[:, :, 1:].reshape(groups, points, -1, TERMS).any(axis=3))
        needs = np.zeros((groups, points, points), dtype=np.float32)
        for group, inputs in zip(needs, heeded, strict=True):
            np.put_along_axis(group, self.inputs, inputs.astype(np.float32), axis=1)
        return needs

    def _residuals(self, normal: Floats, weights: Floats, scale: Floats) -> Floats:
        """[n, P] of rows of one group, all points at a time. weights: [P, 1 + M * TERMS]; scale: [P]."""
        by_point = np.ascontiguousarray(normal.T)
        terms = _terms(by_point)
        expected = np.repeat(weights[:, :1], len(normal), axis=1)
        part = np.empty_like(expected)
        for place, others in enumerate(self.inputs.T):
            for term in range(TERMS):
                # Each input's index is within the points; "clip" spares numpy the check and a copy.
                np.take(terms[term], others, axis=0, out=part, mode="clip")
                part *= weights[:, 1 + place * TERMS + term, None]
                expected += part
        return ((by_point - expected) / scale[:, None]).T


def fit_behaviour(normal: Floats, present: npt.NDArray[np.bool_], group: Ints, groups: int) -> NormalBehaviour:
    """Ridge regression of every point on the others. normal, present: [N, P]; group: [N] below `groups`."""
    points = normal.shape[1]
    inputs = _companions(thinned(normal))
    weights = np.zeros((groups + 1, points, 1 + inputs.shape[1] * TERMS))
    scale = np.ones((groups + 1, points))
    for number in (groups, *range(groups)):
        rows = np.arange(len(normal)) if number == groups else np.flatnonzero(group == number)
        if number < groups and len(rows) < ENOUGH_ROWS:
            weights[number], scale[number] = weights[groups], scale[groups]
            own = present[rows]  # the fleet's weights may heed points that this model lacks
            for point in range(points):
                unusual = ~_usual(own[own[:, point]], inputs[point])
                weights[number, point, 1:].reshape(-1, TERMS)[unusual] = 0.0
            continue
        rows = thinned(rows)
        for point, found in enumerate(fit_expectations(normal[rows], present[rows], inputs)):
            if found is not None:
                weights[number, point], scale[number, point] = found
    return NormalBehaviour(inputs, weights, scale)


def fit_expectations(
    normal: Floats, present: npt.NDArray[np.bool_], inputs: Ints, least: int = 1
) -> list[tuple[Doubles, float] | None]:
    """Of every point its weights [1 + M * TERMS] and the spread of what is left over; None where these rows [N, P]
    hold fewer than `least` readings of it. inputs: [P, M]."""
    terms = _terms(normal)
    found: list[tuple[Doubles, float] | None] = []
    for point in range(normal.shape[1]):
        read = present[:, point]
        if read.sum() < least:
            found.append(None)
            continue
        usual = _usual(present[read], inputs[point])
        design = [np.ones(int(read.sum()))]
        design += [
            terms[term][read, other].astype(np.float64) for other in inputs[point][usual] for term in range(TERMS)
        ]
        matrix, target = np.stack(design, axis=1), normal[read, point].astype(np.float64)
        pull = RIDGE * len(target) * np.eye(matrix.shape[1])
        pull[0, 0] = 1e-9
        solved = np.linalg.solve(matrix.T @ matrix + pull, matrix.T @ target)
        weights = np.zeros(1 + inputs.shape[1] * TERMS)
        weights[0], weights[1:].reshape(-1, TERMS)[usual] = solved[0], solved[1:].reshape(-1, TERMS)
        found.append((weights, max(float(np.std(target - matrix @ solved)), 0.02)))
    return found


def _usual(present: npt.NDArray[np.bool_], others: Ints) -> npt.NDArray[np.bool_]:
    """[M] which of the others are usually read in these rows [R, P] of a point; all where there are no rows."""
    if not len(present):
        return np.ones(len(others), dtype=bool)
    return np.asarray(present[:, others].mean(axis=0) >= USUAL)


def _terms(normal: Floats) -> list[Floats]:
    """The pieces of a piecewise-linear function of every value, each in its shape; all zero for a value of zero."""
    return [normal, *(np.maximum(normal - np.float32(k), 0) - np.float32(max(-k, 0)) for k in KNOTS)]


def _companions(normal: Floats) -> Ints:
    """[P, M] for every point the others that correlate with it most, in the order of their columns."""
    points = normal.shape[1]
    centred = normal.astype(np.float64) - normal.mean(axis=0, dtype=np.float64)
    spread = np.sqrt((centred**2).sum(axis=0))
    likeness = np.abs(centred.T @ centred) / np.maximum(np.outer(spread, spread), 1e-12)
    np.fill_diagonal(likeness, -1.0)
    most = min(MOST_INPUTS, max(points - 1, 0))
    return np.sort(np.argsort(-likeness, axis=1, kind="stable")[:, :most], axis=1).astype(np.int64)


def thinned(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Evenly chosen rows, enough to fit by."""
    return rows[:: max(1, len(rows) // SAMPLE_ROWS)]
