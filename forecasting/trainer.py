"""One optimiser step: batches of windows to better weights, in whatever precision the device is made for."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from forecasting.batches import Resident, Windows
from forecasting.losses import counts, loss_of
from forecasting.model import HazardTransformer
from forecasting.precision import Precision
from forecasting.windows import Ints
from pm.config import TrainSection

MIN_PATCHES = 2
"""Patches before a position that is learned from."""
WARM_UP = 0.05
EMA_DECAY = 0.995
CLIP_NORM = 1.0


class Averaged:
    """Exponential moving average of the weights, which is what validates and is kept."""

    def __init__(self, network: HazardTransformer) -> None:
        self.network: HazardTransformer = copy.deepcopy(network).eval().requires_grad_(False)
        self._mine: list[Tensor] = list(self.network.parameters())
        self._theirs: list[Tensor] = list(network.parameters())
        self._steps = 0

    def update(self) -> None:
        """Move towards the network's present weights."""
        self._steps += 1
        decay = min(EMA_DECAY, (1 + self._steps) / (10 + self._steps))
        with torch.no_grad():
            torch._foreach_lerp_(self._mine, self._theirs, 1.0 - decay)


class Trainer:
    """A network with its optimiser, stepping over batches of windows."""

    def __init__(
        self, network: HazardTransformer, settings: TrainSection, precision: Precision, points: int, steps: int
    ) -> None:
        """points: how many of the step features are point values. steps: optimiser steps planned in all."""
        self.network = network
        self.averaged = Averaged(network)
        self.planned = steps
        self._settings = settings
        self._precision = precision
        self._points = points
        self._device = next(network.parameters()).device
        self._optimiser = torch.optim.AdamW(
            _parameter_groups(network, settings.weight_decay), betas=(0.9, 0.98), fused=True
        )
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=precision.scaled)
        self._done = 0

    def step(self, resident: Resident, ends: Ints) -> tuple[float, int]:
        """One optimiser step over the windows with these ends; its summed loss and how many positions it counted.

        The loss is divided by the positions of the whole batch, so that parts add up to the batch in one piece.
        """
        parts = [part for part in np.array_split(ends, self._settings.accumulate) if len(part)]
        loaded = [(resident.windows(part), resident.targets(part)) for part in parts]
        counted = [counts(targets, windows.alive, MIN_PATCHES) for windows, targets in loaded]
        positions = int(sum(int(c.sum()) for c in counted))
        for group in self._optimiser.param_groups:
            group["lr"] = self._settings.learning_rate * rate_at(self._done / self.planned)
        self._done += 1
        if not positions:
            return 0.0, 0
        total = 0.0
        self.network.train()
        for (windows, targets), mask in zip(loaded, counted, strict=True):
            windows = hide_points(windows, self._points, self._settings.point_dropout)
            with torch.autocast(self._device.type, self._precision.dtype, enabled=self._precision.autocast):
                outlook = self.network(windows)
            loss, _ = loss_of(outlook, targets, mask)
            torch.autograd.backward(self._scaler.scale(loss / positions))
            total += float(loss.detach())
        self._scaler.unscale_(self._optimiser)
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad(set_to_none=True)
        self.averaged.update()
        return total, positions


def hide_points(windows: Windows, points: int, share: float) -> Windows:
    """The windows with points made missing at random, each for a whole window, so that none is relied on alone."""
    if share == 0.0 or points == 0:
        return windows
    kept = torch.rand(len(windows), 1, points, device=windows.steps.device) >= share
    others = windows.steps.shape[-1] - 3 * points
    mask = torch.cat([kept, kept, kept, torch.ones_like(kept[..., :1]).expand(-1, -1, others)], dim=-1)
    return replace(windows, steps=windows.steps * mask)


def rate_at(share: float) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine to a hundredth."""
    if share < WARM_UP:
        return max(share, 1e-3) / WARM_UP
    falling = min(1.0, (share - WARM_UP) / (1.0 - WARM_UP))
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * falling))


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, list[Tensor] | float]]:
    """Matrices decay; biases and norms do not."""
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    others = [p for p in network.parameters() if p.ndim < 2]
    return [{"params": list(matrices), "weight_decay": weight_decay}, {"params": list(others), "weight_decay": 0.0}]
