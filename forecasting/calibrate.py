"""Calibration of hazards on assets and times that training did not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from forecasting.batches import Targets
from forecasting.losses import censored_nll

MIN_FAILURES = 5
"""With fewer failures to go by, the network's own hazards stand."""
RIDGE = 8.0
"""Pull towards no change: the network's own log odds are taken to be right within about 0.25 (1 / (2 * 0.25 ** 2)), so
that a handful of failures cannot move them far."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A monotone map of the log odds of every bin: `scale * logit + shift[mode]`.

    The map of hazards is the same in each bin and a failure within 24 h is still one within 48 h, so that calibrated
    probabilities keep p24 <= p48 <= p72.
    """

    scale: float
    shift: tuple[float, ...]

    @classmethod
    def none(cls, modes: int) -> Calibration:
        return cls(1.0, (0.0,) * modes)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        return cls(float(values["scale"]), tuple(float(v) for v in values["shift"]))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def hazard_by_mode(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """[..., H, K] logits to [..., H, K] probability of failing by each mode in each bin given survival until it."""
        mapped = logits * self.scale + np.asarray(self.shift)
        peak = np.maximum(mapped.max(axis=-1, keepdims=True), 0.0)
        raised = np.exp(mapped - peak)
        return np.asarray(raised / (np.exp(-peak) + raised.sum(axis=-1, keepdims=True)))


def fit_calibration(logits: Tensor, targets: Targets, failures: int, positions_per_failure: float) -> Calibration:
    """The scale and the shifts of least censored negative log-likelihood.

    logits: [M, H, K] of M positions; targets: theirs, [M]. failures: how many failures these positions look at, each
    from `positions_per_failure` of them; positions of one failure say one thing many times, so that the likelihood is
    weighed down by that number before the pull towards no change is added.
    """
    modes = logits.shape[-1]
    if failures < MIN_FAILURES:
        return Calibration.none(modes)
    logits = logits.double()
    doubled = Targets(
        targets.event_bin, targets.known_bins, targets.modes.double(), targets.rul.double(), targets.rul_known
    )
    moves = torch.zeros(1 + modes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([moves], max_iter=60, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimiser.zero_grad()
        nll = censored_nll(logits * moves[0].exp() + moves[1:], doubled).sum() / positions_per_failure
        total = nll + RIDGE * moves.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(objective)  # type: ignore[no-untyped-call]
    found: Sequence[float] = moves.detach().tolist()
    if not np.isfinite(found).all():
        return Calibration.none(modes)
    return Calibration(float(np.exp(found[0])), tuple(found[1:]))
