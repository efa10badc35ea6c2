"""The training loop: passes over the history until the validation slice stops improving, resumable at any step."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from forecasting.batches import Resident
from forecasting.losses import loss_of
from forecasting.model import HazardTransformer, Network, Outlook
from forecasting.precision import Precision
from forecasting.profiling import Profile
from forecasting.resume import Snapshot, SnapshotFile
from forecasting.trainer import MIN_PATCHES, Trainer
from forecasting.windows import Grid, Ints
from forecasting.workers import ALONE, Workers
from pm.config import TrainSection
from pm.errors import TrainingError

log = logging.getLogger(__name__)

MIN_STEPS = 32
"""Optimiser steps in an epoch at least; a short history is passed over several times."""
STOPPING_WINDOWS = 2_000
"""Windows of the validation slice that are forecast after every epoch at most."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands, reported several times an epoch."""

    epoch: int
    """From 1."""
    epochs: int
    fraction: float
    """Share of the planned steps that is done."""
    loss: float
    """Mean loss of this epoch so far, in nats per position."""
    validation: float | None
    """Mean loss at moments of the validation slice, after the last whole epoch."""
    eta_seconds: float
    rate: float
    """Windows per second, in all processes together."""


@dataclass(frozen=True)
class Epoch:
    loss: float
    validation: float


@dataclass(slots=True)
class _Sums:
    """What the epoch at work has added up so far."""

    batch: int = 0
    total: float = 0.0
    positions: int = 0

    @property
    def loss(self) -> float:
        return self.total / max(self.positions, 1)


class EpochLoop:
    """Epochs over the windows of a grid, judged after each; keeps the averaged network of the best one."""

    def __init__(
        self,
        network: HazardTransformer,
        grid: Grid,
        resident: Resident,
        validation: Resident,
        judged: Ints,
        settings: TrainSection,
        precision: Precision,
        *,
        workers: Workers,
        began: float,
        eligible: Ints | None = None,
        progress: Callable[[Progress], None] | None = None,
        snapshots: SnapshotFile | None = None,
        profile: Profile | None = None,
    ) -> None:
        """began: monotonic time from which `train.max_minutes` count. eligible: only windows that end with one of
        these rows; all when None. snapshots: where the loop's state is kept, and found again."""
        self._grid, self._resident, self._validation = grid, resident, validation
        self._settings, self._precision, self._workers = settings, precision, workers
        self._eligible, self._progress, self._snapshots, self._profile = eligible, progress, snapshots, profile
        self._stopping = workers.share(judged[:: max(1, -(-len(judged) // STOPPING_WINDOWS))])
        self._steps = len(list(self._batches(1)))
        self._planned = settings.epochs
        self._trainer = Trainer(
            network, settings, precision, len(grid.schema.points), self._steps * self._planned, workers
        )
        self._best = copy.deepcopy(self._trainer.averaged.network)
        self._best_score, self._best_epoch = math.inf, 0
        self._epochs: list[Epoch] = []
        self._over = False
        self._sums = _Sums()
        self._began, self._started = began, time.monotonic()
        self._saved = self._told = self._started
        self._fresh = 0
        """Windows that this process has seen learned from since it started."""

    def run(self) -> tuple[HazardTransformer, list[Epoch]]:
        """The averaged network of the best epoch, and how each went. Raises TrainingError when the loss diverges."""
        if self._eligible is not None:  # a trained network is not to be made worse
            self._best_score = self._score()
        self._resume()
        while not self._over and len(self._epochs) < self._planned:
            self._epoch(len(self._epochs) + 1)
            number, now = len(self._epochs), self._now()
            self._over = number - self._best_epoch >= self._settings.patience or now > self._limit
            if not self._over:
                self._plan(number, now)
            self._save()
        return self._best, self._epochs

    @property
    def _limit(self) -> float:
        return self._began + 60 * self._settings.max_minutes

    def _now(self) -> float:
        return self._workers.agreed(time.monotonic() - self._began) + self._began

    def _batches(self, number: int) -> Iterator[Ints]:
        rng = np.random.default_rng([self._settings.seed, number])
        return batches(self._grid, self._settings.batch, rng, self._eligible)

    def _epoch(self, number: int) -> None:
        for batch, ends in enumerate(self._batches(number), start=1):
            if batch <= self._sums.batch:  # done before the training was cut off
                continue
            loss, counted = self._trainer.step(self._resident, ends)
            self._sums.batch, self._fresh = batch, self._fresh + len(ends)
            self._sums.total, self._sums.positions = self._sums.total + loss, self._sums.positions + counted
            if self._profile is not None:
                self._profile.step()
            self._report(number)
            if self._now() > self._limit:
                break
            if time.monotonic() - self._saved > self._settings.snapshot.total_seconds():
                self._save()
        score = self._score()
        if not math.isfinite(score):
            raise TrainingError("training diverged: the loss is no number; lower train.learning_rate")
        epoch = Epoch(self._sums.loss, score)
        self._epochs.append(epoch)
        self._sums = _Sums()
        log.info(
            "epoch %d of %d: loss %.4f, validation %.4f, %.0f windows/s",
            number,
            self._planned,
            epoch.loss,
            score,
            self._rate(),
            extra={"epoch": number, "epochs": self._planned, "windows_per_second": self._rate(), **asdict(epoch)},
        )
        if score < self._best_score:
            self._best = copy.deepcopy(self._trainer.averaged.network)
            self._best_score, self._best_epoch = score, number

    def _score(self) -> float:
        network = self._trainer.averaged.network
        weight = self._settings.life_weight
        return validation_loss(network, self._validation, self._stopping, self._precision, self._workers, weight)

    def _plan(self, number: int, now: float) -> None:
        """Epochs that end within the time allowed at the rate so far, so that the learning rate falls in time.

        Where the machine has become faster they are more again, and the rate is as high as it is so far from the end.
        """
        spent = now - self._started
        fitting = max(number, int((self._limit - self._started) / (spent / number)))
        planned = int(self._workers.agreed(min(self._settings.epochs, fitting)))
        if planned < self._planned:
            log.info("%d epochs instead of %d fit into train.max_minutes", planned, self._planned)
        self._planned = planned
        self._trainer.planned = self._steps * self._planned

    def _rate(self) -> float:
        return self._fresh / max(time.monotonic() - self._started, 1e-9)

    def _report(self, number: int) -> None:
        now = time.monotonic()
        if self._progress is None or now - self._told < 0.5:
            return
        self._told = now
        done = number - 1 + self._sums.batch / max(self._sums.batch, self._steps)
        share = min(done / self._planned, 1.0)
        last = self._epochs[-1].validation if self._epochs else None
        rate = self._rate()
        left = (self._planned - done) * self._steps * self._settings.batch / max(rate, 1e-9)
        self._progress(Progress(number, self._planned, share, self._sums.loss, last, max(left, 0.0), rate))

    def _save(self) -> None:
        if self._snapshots is None or not self._workers.leads:
            return
        self._saved = time.monotonic()
        tensors, numbers = self._trainer.state()
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.state_dict().items()}
        loop: dict[str, Any] = {
            "epochs": [asdict(epoch) for epoch in self._epochs],
            "best_score": self._best_score if math.isfinite(self._best_score) else None,
            "best_epoch": self._best_epoch,
            "planned": self._planned,
            "over": self._over,
            "sums": asdict(self._sums),
            "spent": self._saved - self._began,
        }
        self._snapshots.save(Snapshot(tensors, {"trainer": numbers, "loop": loop}))

    def _resume(self) -> None:
        snapshot = self._snapshots.load() if self._snapshots is not None else None
        found = self._workers.total([float(snapshot is not None)])[0]
        if 0 < found < self._workers.size:  # the others would wait in their first step for ever
            raise TrainingError(
                f"{found:.0f} of {self._workers.size} processes find the state that the first one saved; "
                "keep the model's folder on a disk that every node shares, or copy the state to each"
            )
        if snapshot is None:
            return
        try:
            self._trainer.restore(snapshot.tensors, snapshot.numbers["trainer"])
            best = {name[5:]: tensor for name, tensor in snapshot.tensors.items() if name.startswith("best.")}
            self._best.load_state_dict(best)
            loop = snapshot.numbers["loop"]
            self._epochs = [Epoch(**epoch) for epoch in loop["epochs"]]
            self._best_epoch = loop["best_epoch"]
            self._best_score = math.inf if loop["best_score"] is None else loop["best_score"]
            self._planned, self._over, self._sums = loop["planned"], loop["over"], _Sums(**loop["sums"])
            spent = float(loop["spent"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise TrainingError(f"the state of a training does not fit this one ({error}); begin again") from None
        # The time spent before counts, and sets the pace: as if training had begun so much earlier.
        self._began -= spent
        self._started -= spent
        self._fresh = self._trainer.done * self._settings.batch
        log.info("training goes on after epoch %d, step %d", len(self._epochs), self._trainer.done)


def batches(grid: Grid, size: int, rng: np.random.Generator, eligible: Ints | None = None) -> Iterator[Ints]:
    """One epoch: windows that tile every asset's life from a random start, in random order, as `Resident` names them:
    [B, 2] the row that each ends with, or its asset's last, and the steps that it goes on after that.

    Every step with enough before it is as likely as any other to be at a place of a window. A window moved to
    end with its asset's last row would show, where records end in failure, the hours before it again and again, at the
    same hours left and at the same place. eligible: only windows that end with one of these rows, which are the last of
    their assets, ascending.
    """
    context, least = grid.schema.context, (MIN_PATCHES + 1) * grid.schema.patch
    ends: list[Ints] = []
    bounds = np.stack([grid.offsets[:-1], grid.offsets[1:]], axis=1)
    able = bounds[:, 1] - bounds[:, 0] >= least
    if eligible is not None:
        able &= np.isin(bounds[:, 1] - 1, eligible)
    # A pass may by chance hold no window of a short stretch; where some asset can give one, a later pass will.
    while able.any() and sum(map(len, ends)) < MIN_STEPS * size:
        for first, after in bounds[able]:
            tiles = np.arange(first + rng.integers(context), after - 1 + context, context)
            rows = np.minimum(tiles, after - 1)
            chosen = rows - np.maximum(tiles - context, first - 1) >= least
            if eligible is not None:
                chosen &= np.isin(rows, eligible)
            ends.append(np.stack([rows, tiles - rows], axis=1)[chosen])
    order = rng.permutation(np.concatenate(ends)) if ends else np.empty((0, 2), np.int64)
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def validation_loss(
    network: Network,
    resident: Resident,
    ends: Ints,
    precision: Precision,
    workers: Workers = ALONE,
    life_weight: float = 0.0,
) -> float:
    """Mean loss in nats at the ends of these windows, each with its whole context: the censored negative
    log-likelihood, and `life_weight` times that of remaining life.

    workers: processes that have disjoint parts of the windows, for the mean over all of them.
    """
    total = torch.zeros((), dtype=torch.float64)
    with torch.inference_mode():
        for begin in range(0, len(ends), 256):
            part = ends[begin : begin + 256]
            with torch.autocast(resident.device.type, precision.dtype, enabled=precision.autocast):
                outlook = network(resident.windows(part, last=True), last=True)
            targets = resident.targets(part).last()
            said = Outlook(outlook.logits[:, 0], outlook.rul[:, 0], outlook.embedding[:, 0])
            counted = torch.ones(len(part), dtype=torch.bool, device=resident.device)
            total += loss_of(said, targets, counted, life_weight).double().cpu()
    summed, count = workers.total([float(total), float(len(ends))])
    return summed / count
