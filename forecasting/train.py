"""Training: from a history to an artefact."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import torch

from forecasting.batches import Resident
from forecasting.calibrate import Calibration, fit_calibration
from forecasting.checkpoint import Artefact, installed_versions
from forecasting.features import features_of, fit_normaliser
from forecasting.inference import outlooks
from forecasting.labels import Labels, labels_of
from forecasting.losses import censored_nll
from forecasting.model import Architecture, HazardTransformer
from forecasting.precision import Precision, choose_device
from forecasting.split import Split
from forecasting.trainer import MIN_PATCHES, Trainer
from forecasting.windows import FeatureSchema, Grid, Ints, grid_of
from pm.config import TrainSection
from pm.domain import History, from_us, to_us
from pm.errors import TrainingError

log = logging.getLogger(__name__)

MIN_STEPS = 32
"""Optimiser steps in an epoch at least; a short history is passed over several times."""
STOPPING_POSITIONS = 3_000
"""Positions of the validation slice that are forecast after every epoch at most."""
CALIBRATION_POSITIONS = 20_000


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
    """Censored negative log-likelihood of the validation slice after the last whole epoch."""
    eta_seconds: float


@dataclass(frozen=True)
class Epoch:
    loss: float
    validation: float


@dataclass(frozen=True)
class Trained:
    """What training made, and how it went."""

    artefact: Artefact
    epochs: tuple[Epoch, ...]
    precision: Precision
    seconds: float


def fit(
    history: History,
    train_assets: Collection[str],
    validation_assets: Collection[str],
    schema: FeatureSchema,
    settings: TrainSection,
    *,
    until: datetime | None = None,
    validation_from: datetime | None = None,
    held_out: Sequence[str] = (),
    name: str = "model",
    fingerprint: str = "",
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Learn from the training assets, stop and calibrate by the validation assets.

    until: nothing dated later is seen. validation_from: training ends there and validation begins, so that validation
    is on other assets and on later time; without it the assets alone tell them apart. held_out: assets kept out of
    both, noted in the artefact. name: first part of the version. Thresholds are left to the caller, who has the alert
    policy. Raises TrainingError when there is nothing to learn from or to stop by.
    """
    began = time.monotonic()
    torch.set_num_threads(torch.get_num_threads())  # forecasting.inference leaves MKL at one
    device = choose_device(settings.device)
    precision = Precision.choose(device, settings.precision)
    log.info("training on %s in %s: %s", device, precision.name, precision.why)
    grid = grid_of(_part(history, train_assets), schema, until=validation_from or until)
    labels = labels_of(grid)
    if not len(grid) or not (labels.event_bin >= 0).any():
        raise TrainingError(
            f"the {len(train_assets)} training assets hold no failure after a reading; name failures in events.csv, "
            "train on more assets, or on more time"
        )
    normaliser = fit_normaliser(grid)
    base = base_hazard(labels)
    features = features_of(grid, normaliser)
    resident = Resident(grid, features, labels, device=device)
    sizes = Architecture(
        points=len(schema.points),
        step_columns=features.steps.shape[1],
        slow_columns=features.slow.shape[1],
        static_columns=features.static.shape[1],
        patch=schema.patch,
        horizon=schema.horizon_steps,
        modes=len(schema.failure_modes),
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        dropout=settings.dropout,
    )
    validation_grid = grid_of(_part(history, validation_assets), schema, until=until)
    validation_labels = labels_of(validation_grid)
    validation = Resident(validation_grid, features_of(validation_grid, normaliser), validation_labels, device=device)
    judged = _judged_rows(validation_grid, validation_labels, validation_from)
    if not len(judged):
        raise TrainingError(
            f"the {len(validation_assets)} validation assets have no readings to validate by; raise train.validation"
        )
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        network = HazardTransformer(sizes, base).to(device)
        best, epochs = _train(network, grid, resident, validation, judged, settings, precision, began, progress)
    calibration = _calibrate(best, validation, validation_labels, judged)
    metrics = {
        "validation_nll": validation_nll(best, validation, judged, precision),
        "base_nll": _base_nll(base, validation, judged),
        "training_failures": float(failures_in(labels)),
        "validation_failures": float(failures_in(validation_labels, judged)),
        "epochs": float(len(epochs)),
    }
    assets = [asset.name for asset in history.assets]
    end_us = max(int(grid.end_us.max()), int(validation_grid.end_us.max()))
    artefact = Artefact(
        name=name,
        schema=schema,
        normaliser=normaliser,
        architecture=sizes,
        weights={key: tensor.detach().cpu().clone() for key, tensor in best.state_dict().items()},
        calibration=calibration,
        split=Split(
            tuple(a for a in assets if a in set(train_assets)),
            tuple(a for a in assets if a in set(validation_assets)),
            tuple(held_out),
        ),
        trained_until=until or from_us(end_us),
        fingerprint=fingerprint,
        precision=precision.name,
        seed=settings.seed,
        metrics=metrics,
        versions=installed_versions(),
    )
    if metrics["validation_nll"] >= metrics["base_nll"]:
        log.warning(
            "the model is no better on the validation assets than the fleet's failure rates (%.4f against %.4f nats); "
            "it needs more failures or more assets",
            metrics["validation_nll"],
            metrics["base_nll"],
        )
    seconds = time.monotonic() - began
    log.info("trained %s in %.0f s, %d epochs: %s", artefact.version, seconds, len(epochs), metrics)
    return Trained(artefact, tuple(epochs), precision, seconds)


def _train(
    network: HazardTransformer,
    grid: Grid,
    resident: Resident,
    validation: Resident,
    judged: Ints,
    settings: TrainSection,
    precision: Precision,
    began: float,
    progress: Callable[[Progress], None] | None,
) -> tuple[HazardTransformer, list[Epoch]]:
    """Epochs until the validation slice stops improving; the averaged network of the best one."""
    rng = np.random.default_rng(settings.seed)
    steps = len(list(batches(grid, settings.batch, np.random.default_rng(settings.seed))))
    trainer = Trainer(network, settings, precision, len(grid.schema.points), steps * settings.epochs)
    planned, limit = settings.epochs, began + 60 * settings.max_minutes
    epochs: list[Epoch] = []
    stopping = judged[:: max(1, len(judged) // STOPPING_POSITIONS)]
    best, best_score, best_epoch = copy.deepcopy(trainer.averaged.network), math.inf, 0
    started = time.monotonic()
    for number in range(1, planned + 1):
        if number > planned:
            break
        total, positions, told = 0.0, 0, 0.0
        for batch, ends in enumerate(batches(grid, settings.batch, rng), start=1):
            loss, counted = trainer.step(resident, ends)
            total, positions, now = total + loss, positions + counted, time.monotonic()
            if progress is not None and (now - told > 0.5):
                share = min((number - 1 + batch / max(batch, steps)) / planned, 1.0)
                eta = (now - started) * (1 - share) / share
                last = epochs[-1].validation if epochs else None
                progress(Progress(number, planned, share, total / max(positions, 1), last, eta))
                told = now
            if now > limit:
                break
        score = validation_nll(trainer.averaged.network, validation, stopping, precision)
        if not math.isfinite(score):
            raise TrainingError("training diverged: the loss is no number; lower train.learning_rate")
        epochs.append(Epoch(total / max(positions, 1), score))
        log.info("epoch %d of %d: loss %.4f, validation %.4f", number, planned, epochs[-1].loss, score)
        if score < best_score:
            best, best_score, best_epoch = copy.deepcopy(trainer.averaged.network), score, number
        if number - best_epoch >= settings.patience or time.monotonic() > limit:
            break
        planned = _affordable(planned, number, time.monotonic() - started, limit - started)
        trainer.planned = steps * planned
    return best, epochs


def _affordable(planned: int, done: int, spent: float, allowed: float) -> int:
    """Epochs that end within the time allowed at the rate so far, so that the learning rate falls in time."""
    fitting = max(done, int(allowed / (spent / done)))
    if fitting < planned:
        log.info("%d epochs instead of %d fit into train.max_minutes", fitting, planned)
    return min(planned, fitting)


def batches(grid: Grid, size: int, rng: np.random.Generator) -> Iterator[Ints]:
    """One epoch: the last rows of windows that tile every asset's life from a random start, in random order.

    Every step of every asset is in a window; the last window of an asset ends with its last row.
    """
    context, least = grid.schema.context, (MIN_PATCHES + 1) * grid.schema.patch
    ends: list[Ints] = []
    while sum(map(len, ends)) < MIN_STEPS * size:
        for first, after in zip(grid.offsets[:-1], grid.offsets[1:], strict=True):
            if after > first:
                tiles = np.minimum(np.arange(first + rng.integers(context), after + context, context), after - 1)
                tiles = np.unique(tiles)
                ends.append(tiles[(tiles - first + 1 >= least) | (tiles == after - 1)])
    order = rng.permutation(np.concatenate(ends))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]


def validation_nll(network: HazardTransformer, resident: Resident, ends: Ints, precision: Precision) -> float:
    """Mean censored negative log-likelihood in nats at the ends of these windows, each with its whole context."""
    total = torch.zeros((), dtype=torch.float64)
    with torch.inference_mode():
        for begin in range(0, len(ends), 256):
            part = ends[begin : begin + 256]
            with torch.autocast(resident.device.type, precision.dtype, enabled=precision.autocast):
                outlook = network(resident.windows(part), last=True)
            total += censored_nll(outlook.logits[:, 0], resident.targets(part).last()).sum().double().cpu()
    return float(total) / len(ends)


def base_hazard(labels: Labels) -> np.ndarray:
    """[K] chance of failing by each mode in one step, over all steps observed; never quite nothing."""
    now = labels.event_bin == 0
    exposed = int(((labels.known_bins > 0) | now).sum())
    return np.asarray((labels.modes[now].sum(axis=0) + 0.5) / (exposed + labels.modes.shape[1]))


def failures_in(labels: Labels, rows: Ints | None = None) -> int:
    """Failures that these rows (all of them by default) look ahead to within one horizon: runs of falling bins."""
    bins = labels.event_bin if rows is None else labels.event_bin[rows]
    failing = bins >= 0
    begun = failing & np.concatenate([[True], ~failing[:-1] | (bins[1:] >= bins[:-1])])
    return int(begun.sum())


def _base_nll(base: np.ndarray, validation: Resident, judged: Ints) -> float:
    """What a forecaster scores that knows the fleet's failure rates and nothing else."""
    odds = torch.from_numpy(np.log(base / (1.0 - base.sum())))
    total = 0.0
    for begin in range(0, len(judged), 1024):
        targets = validation.targets(judged[begin : begin + 1024]).last()
        logits = odds.to(validation.device).expand(*targets.event_bin.shape, validation.schema.horizon_steps, -1)
        total += float(censored_nll(logits, targets).sum())
    return total / len(judged)


def _calibrate(network: HazardTransformer, validation: Resident, labels: Labels, judged: Ints) -> Calibration:
    rows = judged[:: max(1, len(judged) // CALIBRATION_POSITIONS)]
    logits, _ = outlooks(network, lambda chosen: validation.windows(rows[chosen]), len(rows))
    failures = failures_in(labels, rows)
    looking = int((labels.event_bin[rows] >= 0).sum())
    targets = validation.targets(rows).last().to("cpu")
    return fit_calibration(torch.from_numpy(logits), targets, failures, looking / max(failures, 1))


def _judged_rows(grid: Grid, labels: Labels, start: datetime | None) -> Ints:
    """Rows of the validation slice: about every other patch end, where something is known of what followed."""
    known = (labels.event_bin >= 0) | (labels.known_bins > 0)
    later = np.ones(len(grid), dtype=bool) if start is None else grid.times_us > to_us(start)
    read = np.concatenate([[0], np.cumsum(grid.observed)])
    begin = np.maximum(
        np.arange(len(grid)) - grid.schema.context + 1, np.repeat(grid.offsets[:-1], np.diff(grid.offsets))
    )
    seen = read[1:] > read[begin]
    spaced = grid.step_of % max(1, grid.schema.patch - 1) == 0
    return np.flatnonzero(known & later & seen & spaced)


def _part(history: History, names: Collection[str]) -> History:
    wanted = set(names)
    return replace(history, assets=tuple(asset for asset in history.assets if asset.name in wanted))
