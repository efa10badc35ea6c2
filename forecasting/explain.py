"""Why a forecast is what it is: what each input adds to it, against the average of the fleet.

An input is a point, an event code, a static column, the asset's model or age: all columns that come of it, together.
Its contribution is its Shapley value (Shapley, A value for n-person games, 1953; Lundberg & Lee, A unified approach to
interpreting model predictions, NeurIPS 2017): what the log of the cumulative hazard over the horizon gains when the
input takes the place of the fleet's average, on average over the orders in which inputs can do so. Orders are sampled,
each together with its reverse (Castro, Gomez & Tejada, 2009; Mitchell, Cooper, Frank & Holmes, 2022). In every order
the gains add up to the whole change, so that the contributions do too, however many orders are sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forecasting.batches import Windows
from forecasting.features import Columns, columns_of
from forecasting.windows import FeatureSchema, Ints

Doubles = npt.NDArray[np.float64]

ASKED = 256
"""The network is asked about so many mixtures of window and average, as far as `ORDERS` allow."""
ORDERS = (4, 16)
"""Orders sampled, at least and at most."""


@dataclass(frozen=True)
class Average:
    """What the training windows hold on average."""

    steps: npt.NDArray[np.float32]
    """[C]"""
    slow: npt.NDArray[np.float32]
    """[L]"""
    static: npt.NDArray[np.float32]
    """[S]"""
    summary: npt.NDArray[np.float32]
    """[M]"""


def average_of(windows: Windows) -> Average:
    """The average of windows that carry the summary of their last token."""

    def mean(values: Tensor, counted: Tensor | None = None) -> npt.NDArray[np.float32]:
        chosen = values.flatten(0, -2) if counted is None else values[counted]
        return chosen.double().mean(dim=0).nan_to_num().float().numpy(force=True)

    return Average(
        mean(windows.steps, _begun(windows.steps)),
        mean(windows.slow, windows.alive),
        mean(windows.static),
        mean(windows.summary),
    )


class Mixtures:
    """One window with some of its inputs and the average's others."""

    def __init__(self, window: Windows, average: Average, schema: FeatureSchema) -> None:
        """window: a single one, with the summary of its last token."""
        self._window = window
        device = window.steps.device
        held = [torch.from_numpy(values).to(device) for values in _parts(average)]
        steps = torch.where(_begun(window.steps)[..., None], held[0], 0.0)
        slow = torch.where(window.alive[..., None], held[1], 0.0)
        self._average = Windows(
            steps, slow, held[2].expand_as(window.static), window.alive, held[3].expand_as(window.summary)
        )
        every = columns_of(schema)
        self._inputs = tuple(columns for columns in every if self._differs(columns))
        self.names = tuple(columns.name for columns in self._inputs)
        """Inputs in which the window differs from the average; any other contributes nothing."""

    def of(self, taken: npt.NDArray[np.bool_]) -> Windows:
        """Windows [n] that take these inputs ([n, inputs]) from the window. The last of all takes everything."""
        window, average = self._window, self._average

        def mixed(own: Tensor, other: Tensor, columns: Sequence[tuple[int, ...]]) -> Tensor:
            mask = np.ones((len(taken), own.shape[-1]), dtype=bool)
            for number, places in enumerate(columns):
                mask[:, list(places)] = taken[:, number, None]
            shaped = torch.from_numpy(mask).to(own.device)
            return torch.where(shaped if own.ndim == 2 else shaped[:, None], own, other)

        return Windows(
            mixed(window.steps, average.steps, [columns.steps for columns in self._inputs]),
            mixed(window.slow, average.slow, [columns.slow for columns in self._inputs]),
            mixed(window.static, average.static, [columns.static for columns in self._inputs]),
            window.alive.expand(len(taken), -1),
            mixed(window.summary, average.summary, [columns.summary for columns in self._inputs]),
        )

    def _differs(self, columns: Columns) -> bool:
        window, average = self._window, self._average
        pairs = (
            (window.steps, average.steps, columns.steps),
            (window.slow, average.slow, columns.slow),
            (window.static, average.static, columns.static),
            (window.summary, average.summary, columns.summary),
        )
        return any(bool((own[..., list(at)] != other[..., list(at)]).any()) for own, other, at in pairs if at)


@dataclass(frozen=True)
class Shares:
    """What each input adds to a value."""

    contributions: Doubles
    """[inputs] in the order that they were asked for."""
    base: float
    """The value with no input taken from the window."""
    full: float
    """The value with all of them."""


def shapley(value: Callable[[npt.NDArray[np.bool_]], Doubles], inputs: int) -> Shares:
    """Shapley values by sampled orders; their sum is `full - base` but for rounding.

    value: [n, inputs] which are taken to [n] values; asked once, for different sets only. The orders are the same
    every time, so that a forecast has the same reasons whenever it is asked for them.
    """
    if not inputs:
        only = float(value(np.zeros((1, 0), dtype=bool))[0])
        return Shares(np.zeros(0), only, only)
    count = int(np.clip(ASKED // inputs, *ORDERS)) // 2 * 2
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(inputs) for _ in range(count // 2)]
    orders = [*drawn, *(order[::-1] for order in drawn)]
    place = np.stack([np.argsort(order) for order in orders])
    # Of each order the sets of its first 0, 1, ... inputs.
    sets = place[:, None, :] < np.arange(inputs + 1)[:, None]
    different, which = np.unique(sets.reshape(-1, inputs), axis=0, return_inverse=True)
    values = value(different)[which.reshape(len(orders), inputs + 1)]
    gains = np.zeros(inputs)
    for order, gained in zip(orders, np.diff(values, axis=1), strict=True):
        gains[order] += gained
    return Shares(gains / len(orders), float(values[0, 0]), float(values[0, -1]))


def pick(windows: Windows, rows: Ints) -> Windows:
    """These windows out of many."""
    chosen = torch.from_numpy(rows).to(windows.alive.device)
    parts = (windows.steps, windows.slow, windows.static, windows.alive, windows.summary)
    return Windows(*(part[chosen] for part in parts))


def _begun(steps: Tensor) -> Tensor:
    """[B, T] whether each step stands at or after the first reading of its window."""
    return (steps != 0).any(dim=-1).cummax(dim=1).values


def _parts(average: Average) -> tuple[npt.NDArray[np.float32], ...]:
    return average.steps, average.slow, average.static, average.summary
