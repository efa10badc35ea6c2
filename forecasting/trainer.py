"""One optimiser step: batches of windows to better weights, in whatever precision the device is made for."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from forecasting.batches import Resident, Windows
from forecasting.losses import counts, loss_of
from forecasting.model import HazardTransformer
from forecasting.precision import Precision
from forecasting.windows import Ints
from forecasting.workers import ALONE, Workers
from pm.config import TrainSection
from pm.errors import TrainingError

log = logging.getLogger(__name__)

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
        self.steps = 0

    def update(self) -> None:
        """Move towards the network's present weights."""
        self.steps += 1
        decay = min(EMA_DECAY, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self._mine, self._theirs, 1.0 - decay)


class Trainer:
    """A network with its optimiser, stepping over batches of windows, alone or together with other processes.

    What is random in a step (dropout, hidden points) follows from the seed, the process and the step's number.
    """

    def __init__(
        self,
        network: HazardTransformer,
        settings: TrainSection,
        precision: Precision,
        points: int,
        steps: int,
        workers: Workers = ALONE,
    ) -> None:
        """points: how many of the step features are point values. steps: optimiser steps planned in all."""
        self.network = network
        self.averaged = Averaged(network)
        self.planned = steps
        self.done = 0
        self.parts = settings.accumulate
        """Pieces that a batch is computed in: as configured, more where memory ran out."""
        self._settings = settings
        self._precision = precision
        self._points = points
        self._workers = workers
        self._device = next(network.parameters()).device
        self._forward: nn.Module = network
        if settings.compile == "on" or (settings.compile == "auto" and self._device.type == "cuda"):
            self._forward = cast(nn.Module, torch.compile(self._forward))
        if not workers.alone:
            self._forward = DistributedDataParallel(self._forward)
        self._optimiser = torch.optim.AdamW(
            _parameter_groups(network, settings.weight_decay), betas=(0.9, 0.98), fused=True
        )
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=precision.scaled)

    def step(self, resident: Resident, ends: Ints) -> tuple[float, int]:
        """One optimiser step over the windows with these ends; its summed loss and how many positions it counted.

        ends: the whole batch, the same in every process; each takes its share. The loss is divided by the positions
        of the whole batch, so that parts and processes add up to the batch in one piece. Where a GPU's memory runs
        out the batch is taken in twice as many parts, and so are those after it.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = self._settings.learning_rate * rate_at(self.done / self.planned)
        mine = self._workers.share(ends)
        while True:
            torch.manual_seed(_step_seed(self._settings.seed, self._workers.rank, self.done))
            try:
                total, positions = self._gradients(resident, mine if len(mine) else ends[:1], bool(len(mine)))
                break
            except torch.OutOfMemoryError:
                self._optimiser.zero_grad(set_to_none=True)
                self._smaller_parts(len(mine))
        self.done += 1
        if not positions:
            self._optimiser.zero_grad(set_to_none=True)
            return 0.0, 0
        with record_function("optimiser"):
            self._scaler.unscale_(self._optimiser)
            nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
            self._scaler.step(self._optimiser)
            self._scaler.update()
            self._optimiser.zero_grad(set_to_none=True)
            self.averaged.update()
        return total, positions

    def _gradients(self, resident: Resident, ends: Ints, counting: bool) -> tuple[float, int]:
        """Gradients of the whole batch over its positions, from the windows of this process.

        counting: False where the batch had none for this process; it then takes part with a window that counts
        nothing, since every process must meet the others in the backward pass.
        """
        parts = [part for part in np.array_split(ends, self.parts) if len(part)]
        with record_function("targets"):
            targets = [resident.targets(part) for part in parts]
            alive = [resident.alive(part) for part in parts]
            masks = [counts(*pair, MIN_PATCHES) & counting for pair in zip(targets, alive, strict=True)]
            own = sum(int(mask.sum()) for mask in masks)
            positions = int(self._workers.total([float(own)])[0])
        total = 0.0
        self.network.train()
        for number, (part, target, mask) in enumerate(zip(parts, targets, masks, strict=True), start=1):
            with record_function("gather"):
                windows = self._hiding(resident, part)
            with self._joining(number == len(parts)):
                with (
                    record_function("forward"),
                    torch.autocast(self._device.type, self._precision.dtype, enabled=self._precision.autocast),
                ):
                    outlook = self._forward(windows)
                with record_function("loss"):
                    loss = loss_of(outlook, target, mask, self._settings.life_weight)
                with record_function("backward"):
                    # Averaged over the processes by DistributedDataParallel: their sum is what is wanted.
                    torch.autograd.backward(self._scaler.scale(loss * self._workers.size / max(positions, 1)))
            total += float(loss.detach())
        return self._workers.total([total])[0], positions

    def _hiding(self, resident: Resident, ends: Ints) -> Windows:
        """The windows with points made missing at random, each for a whole window, so that none is relied on alone."""
        windows = resident.windows(ends)
        if not self._settings.point_dropout or not self._points:
            return windows
        kept = torch.rand(len(windows), 1, self._points, device=windows.steps.device) >= self._settings.point_dropout
        return resident.without(windows, ends, kept[:, 0])

    def _joining(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged with the other processes in the last part's backward pass alone."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[None], self._forward.no_sync())

    def _smaller_parts(self, windows: int) -> None:
        if not self._workers.alone:
            # The others wait in the backward pass for what this process can no longer give.
            raise TrainingError(
                f"memory ran out at {-(-windows // self.parts)} windows at a time; raise train.accumulate"
            )
        if self.parts >= windows:
            raise TrainingError("memory runs out with a single window; lower train.width or train.context")
        torch.cuda.empty_cache()
        self.parts = min(2 * self.parts, windows)
        log.warning("memory ran out: batches are computed in %d parts from here on", self.parts)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next step depends on: tensors by name, and numbers."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"averaged.{name}": tensor for name, tensor in self.averaged.network.state_dict().items()}
        for number, moments in self._optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": tensor for name, tensor in moments.items()}
        numbers = {"done": self.done, "planned": self.planned, "averaged": self.averaged.steps}
        return tensors, numbers | {"parts": self.parts, "scaler": self._scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """What `state` told. Raises RuntimeError and KeyError where it is of another network."""
        self.network.load_state_dict(_under(tensors, "network."))
        self.averaged.network.load_state_dict(_under(tensors, "averaged."))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under(tensors, "optimiser.").items():
            number, _, key = name.partition(".")
            moments.setdefault(int(number), {})[key] = tensor
        self._optimiser.load_state_dict(self._optimiser.state_dict() | {"state": moments})
        self.done, self.planned, self.parts = numbers["done"], numbers["planned"], numbers["parts"]
        self.averaged.steps = numbers["averaged"]
        self._scaler.load_state_dict(numbers["scaler"])


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _step_seed(seed: int, rank: int, step: int) -> int:
    """Seeds far apart for neighbouring steps and processes."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)[0] >> 1)


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
