"""Processes that train one network together: each takes its share of every batch, and all hold the same weights.

Started by `torchrun`, on one machine or several; a process started by itself is alone. Gradients are averaged by
`DistributedDataParallel`, over NCCL between GPUs and gloo between processors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
from torch import distributed

from forecasting.windows import Ints
from pm.errors import TrainingError

_PATIENCE: Final = timedelta(minutes=10)
"""How long one process waits for the others before it gives up."""


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    """The device that belongs to this process; None where the configuration decides."""

    @property
    def leads(self) -> bool:
        """The one that reports, calibrates and writes; the others only lend their hands."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.size == 1

    def share(self, items: Ints) -> Ints:
        """This process's part of what all have in common: every item belongs to one process, none to two."""
        return items[self.rank :: self.size]

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, in float64."""
        if self.alone:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        return [float(value) for value in summed]

    def most(self, value: int) -> int:
        """The greatest of what the processes say."""
        if self.alone:
            return value
        found = torch.tensor(value, device=self.device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def agreed(self, value: float) -> float:
        """What the leader says: clocks differ, and all must stop at the same step."""
        if self.alone:
            return value
        told = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(told, 0)
        return float(told)


ALONE: Final = Workers()


@contextmanager
def joined(device: str = "auto") -> Iterator[Workers]:
    """This process among those that `torchrun` started, met with them for the time of the block; else alone.

    device: as `train.device`; with "auto" each process takes the GPU of its local rank where there is one.
    Raises TrainingError where a machine has fewer GPUs than processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size <= 1:
        yield ALONE
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    own = torch.device("cpu")
    if on_gpu:
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise TrainingError(
                f"process {local} of this machine finds {torch.cuda.device_count()} GPUs; "
                "start as many with --nproc-per-node as it has"
            )
        own = torch.device("cuda", local)
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield Workers(distributed.get_rank(), distributed.get_world_size(), own)
    finally:
        distributed.destroy_process_group()
