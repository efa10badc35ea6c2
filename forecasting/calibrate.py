"""Calibration of hazards on assets and times that training did not see."""

from __future__ import annotations

import functools
from collections.abc import Mapping
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
RIDGE = 2.0
"""Pull towards no change: the network's own log odds are taken to be right within about 0.5 (1 / (2 * 0.5 ** 2)), so
that a handful of failures cannot move them far."""


PARTS = 3
"""Equal parts of the horizon with a map each: up to 24, 48 and 72 h, the horizons that are told."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A map of the log odds by part of the horizon and failure mode: `scale[part] * logit + shift[part][mode]`.

    It changes hazards, and a failure within 24 h is still one within 48 h, so that calibrated probabilities keep
    p24 <= p48 <= p72. With a single part all bins share one map.
    """

    scale: tuple[float, ...]
    shift: tuple[tuple[float, ...], ...]

    @classmethod
    def none(cls, modes: int) -> Calibration:
        return cls((1.0,), ((0.0,) * modes,))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        if isinstance(values["scale"], float | int):  # models from before there were parts
            return cls((float(values["scale"]),), (tuple(float(v) for v in values["shift"]),))
        return cls(
            tuple(float(v) for v in values["scale"]), tuple(tuple(float(v) for v in part) for part in values["shift"])
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def hazard_by_mode(self, logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """[..., H, K] logits to [..., H, K] probability of failing by each mode in each bin given survival until it."""
        scale, shift = _by_bin(self.scale, self.shift, logits.shape[-2])
        mapped = logits * scale + shift
        peak = np.maximum(mapped.max(axis=-1, keepdims=True), 0.0)
        raised = np.exp(mapped - peak)
        return np.asarray(raised / (np.exp(-peak) + raised.sum(axis=-1, keepdims=True)))


@functools.lru_cache(maxsize=8)
def _by_bin(
    scale: tuple[float, ...], shift: tuple[tuple[float, ...], ...], bins: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """[H, 1] scale and [H, K] shift of every bin; kept between calls, so nobody may write to them."""
    part = _parts(bins, len(scale))
    found = np.asarray(scale)[part, None], np.asarray(shift)[part]
    for values in found:
        values.flags.writeable = False
    return found


def _parts(bins: int, parts: int) -> npt.NDArray[np.int64]:
    """[H] the part that each bin is in."""
    return np.arange(bins) * parts // bins


def fit_calibration(logits: Tensor, targets: Targets, failures: int, positions_per_failure: float) -> Calibration:
    """The scales and the shifts of least censored negative log-likelihood.

    A mode's shift is a common one and one for each part of the horizon, each drawn towards nothing, so that parts
    differ as far as failures say so.

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
    part = torch.from_numpy(_parts(logits.shape[-2], PARTS))
    moves = torch.zeros(PARTS + modes + PARTS * modes, dtype=torch.float64, requires_grad=True)

    def maps() -> tuple[Tensor, Tensor]:
        """[PARTS] scales, [PARTS, K] shifts."""
        stretch, common, own = moves.split([PARTS, modes, PARTS * modes])  # type: ignore[no-untyped-call]
        return stretch.exp(), common + own.view(PARTS, modes)

    optimiser = torch.optim.LBFGS([moves], max_iter=60, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimiser.zero_grad()
        scale, shift = maps()
        nll = censored_nll(logits * scale[part, None] + shift[part], doubled).sum() / positions_per_failure
        total = nll + RIDGE * moves.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(objective)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        scale, shift = maps()
    if not moves.detach().isfinite().all():
        return Calibration.none(modes)
    return Calibration(tuple(scale.tolist()), tuple(map(tuple, shift.tolist())))
