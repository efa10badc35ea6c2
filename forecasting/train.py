"""Training: from a history to an artefact."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch

from forecasting.batches import Resident, joined
from forecasting.calibrate import Calibration, fit_calibration
from forecasting.checkpoint import Artefact, installed_versions
from forecasting.crossfit import cross_fitted
from forecasting.epochs import Epoch, EpochLoop, Progress, validation_loss
from forecasting.features import Features, fit_normaliser
from forecasting.inference import outlooks
from forecasting.labels import Labels, labels_of
from forecasting.losses import censored_nll
from forecasting.mapped import features_within
from forecasting.model import (
    Architecture,
    HazardTransformer,
    Network,
    joined_weights,
    member_weights,
    network_of,
    quantile_edges,
)
from forecasting.precision import Precision, choose_device
from forecasting.profiling import profiled
from forecasting.reference import Slice, fit_reference
from forecasting.resume import SnapshotFile
from forecasting.split import Split
from forecasting.windows import FeatureSchema, Grid, Ints, grid_of
from forecasting.workers import ALONE, Workers
from pm.config import TrainSection
from pm.domain import History, from_us, to_us
from pm.errors import TrainingError

log = logging.getLogger(__name__)

CALIBRATION_POSITIONS = 20_000
EDGE_ROWS = 20_000
"""Rows that tell where the summaries are cut."""


@dataclass(frozen=True)
class Trained:
    """What training made, and how it went."""

    artefact: Artefact
    epochs: tuple[Epoch, ...]
    precision: Precision
    seconds: float


@dataclass(frozen=True)
class Execution:
    """How a training is carried out, as against what is learned."""

    progress: Callable[[Progress], None] | None = None
    workers: Workers = ALONE
    """Processes that train together; only the first reports."""
    snapshots: Path | None = None
    """Where training's state is kept and gone on from: for each network a file of this name, a dot and its number."""
    profile: Path | None = None
    """Folder for a trace and a memory timeline."""
    scratch: Path | None = None
    """Folder for features that do not fit into memory; the system's for temporary files when None."""


PLAIN = Execution()
WARM_RATE = 0.3
"""Share of the learning rate that a training from a model's weights peaks at."""


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
    start_from: Artefact | None = None,
    execution: Execution = PLAIN,
) -> Trained:
    """Learn from the training assets, stop by the validation assets, calibrate by these and by later time.

    until: nothing dated later is seen. validation_from: training ends there and validation begins, so that validation
    is on other assets and on later time, and the training assets' later time calibrates as well; without it the assets
    alone tell them apart. held_out: assets kept out of
    both, noted in the artefact. name: first part of the version. Thresholds are left to the caller, who has the alert
    policy. start_from: begin with this model's weights, schema and normaliser (`schema` must be its own) and learn from
    windows alone that end after it was trained; where none of them makes it better, its weights stay.
    Every process of `execution.workers` returns the same. Raises TrainingError when there is nothing to learn from or
    to stop by.
    """
    began = time.monotonic()
    torch.set_num_threads(torch.get_num_threads())  # forecasting.inference leaves MKL at one
    workers = execution.workers
    device = workers.device or choose_device(settings.device)
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    width = settings.width if start_from is None else start_from.architecture.width
    precision = Precision.choose(device, settings.precision, width)
    log.info("training on %s in %s: %s", device, precision.name, precision.why)
    grid = grid_of(_part(history, train_assets), schema, until=validation_from or until)
    labels = labels_of(grid)
    if not len(grid) or not (labels.event_bin >= 0).any():
        raise TrainingError(
            f"the {len(train_assets)} training assets hold no failure after a reading; name failures in events.csv, "
            "train on more assets, or on more time"
        )
    eligible = None if start_from is None else _rows_after(grid, labels, start_from)
    normaliser = fit_normaliser(grid) if start_from is None else start_from.normaliser
    # A model that is gone on from was fitted on its own training assets; those new to it are unseen as they are.
    crossed = cross_fitted(grid, normaliser, None if start_from is None else start_from.split.train)
    base = base_hazard(labels)
    features = features_within(grid, crossed, settings.memory, device, execution.scratch)
    resident = Resident(grid, features, labels, device=device)
    sizes = architecture_of(schema, features, settings)
    if start_from is not None:  # a network keeps its sizes
        sizes = replace(start_from.architecture, dropout=settings.dropout, life_dropout=settings.life_dropout)
    read = np.flatnonzero(grid.observed)
    edges = quantile_edges(features.summary[read[:: max(1, len(read) // EDGE_ROWS)]], sizes.summary_pieces)
    validation_grid = grid_of(_part(history, validation_assets), schema, until=until)
    validation_labels = labels_of(validation_grid)
    seen = features_within(validation_grid, crossed, settings.memory, device, execution.scratch)
    validation = Resident(validation_grid, seen, validation_labels, device=device)
    judged = _judged_rows(validation_grid, validation_labels, validation_from)
    if not len(judged):
        raise TrainingError(
            f"the {len(validation_assets)} validation assets have no readings to validate by; raise train.validation"
        )
    if start_from is not None:
        settings = settings.model_copy(update={"learning_rate": WARM_RATE * settings.learning_rate})

    def trained(member: int) -> tuple[HazardTransformer, list[Epoch]]:
        share = settings.max_minutes * (member + 1) / sizes.members
        own = settings.model_copy(update={"seed": settings.seed + member, "max_minutes": share})
        torch.manual_seed(own.seed)
        network = HazardTransformer(replace(sizes, members=1), base, edges)
        if start_from is not None:
            network.load_state_dict(member_weights(start_from.weights, member, sizes.members))
        state = execution.snapshots and execution.snapshots.with_name(f"{execution.snapshots.name}.{member}")
        with profiled(execution.profile if workers.leads and not member else None, device) as profile:
            return EpochLoop(
                network.to(device),
                grid,
                resident,
                validation,
                judged,
                own,
                precision,
                workers=workers,
                began=began,
                eligible=eligible,
                progress=execution.progress if workers.leads else None,
                snapshots=SnapshotFile(state, own, fingerprint) if state else None,
                profile=profile,
            ).run()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        members = [trained(number) for number in range(sizes.members)]
        best = network_of(sizes).to(device).eval().requires_grad_(False)
    best.load_state_dict(joined_weights([network.state_dict() for network, _ in members]))
    epochs = [epoch for _, own in members for epoch in own]
    calibrating = [Slice(validation_grid, validation, validation_labels, judged)]
    others = _part(history, set(train_assets) - set(validation_assets))
    if validation_from is not None and others.assets:
        later = _since(others, schema, validation_from, until)
        told = labels_of(later)
        known = features_within(later, crossed, settings.memory, device, execution.scratch)
        rows = _judged_rows(later, told, validation_from)
        calibrating.append(Slice(later, Resident(later, known, told, device=device), told, rows))
    calibration = _calibrate(best, calibrating)
    del calibrating  # the later time's features are wanted no longer
    reference, unfamiliar = fit_reference(
        best,
        normaliser,
        Slice(grid, resident, labels, np.flatnonzero(grid.observed)),
        Slice(validation_grid, validation, validation_labels, judged),
        before=None if start_from is None else start_from.reference,
    )
    metrics = {
        "validation_nll": validation_loss(best, validation, judged, precision),
        "base_nll": _base_nll(base, validation, judged),
        "training_failures": float(failures_in(labels)),
        "validation_failures": float(failures_in(validation_labels, judged)),
        "epochs": float(len(epochs)),
        **unfamiliar,
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
        reference=reference,
        split=Split(
            tuple(a for a in assets if a in set(train_assets)),
            tuple(a for a in assets if a in set(validation_assets)),
            tuple(held_out),
        ),
        trained_until=until or from_us(end_us),
        validation_from=validation_from,
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


def architecture_of(schema: FeatureSchema, features: Features, settings: TrainSection) -> Architecture:
    """Sizes of the network that reads these features."""
    return Architecture(
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
        summary_columns=features.summary.shape[1],
        members=settings.members,
        life_dropout=settings.life_dropout,
        own_odds=True,
        told_residuals=True,
        summary_pieces=settings.life_pieces,
    )


def _rows_after(grid: Grid, labels: Labels, model: Artefact) -> Ints:
    """Rows later than what `model` has seen. Raises TrainingError where these hold no failure."""
    rows = np.flatnonzero(grid.times_us > to_us(model.trained_until))
    if not (labels.event_bin[rows] >= 0).any():
        raise TrainingError(
            f"since {model.trained_until:%Y-%m-%d %H:%M}Z, up to which {model.name} was trained, no failure has come: "
            "there is nothing new to learn; wait, or train anew"
        )
    return rows


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


def _calibrate(network: Network, slices: Sequence[Slice]) -> Calibration:
    """The calibration that all these rows together ask for."""
    stride = max(1, sum(len(part.rows) for part in slices) // CALIBRATION_POSITIONS)
    logits, targets, failures, looking = [], [], 0, 0
    for part in slices:
        rows = part.rows[::stride]
        said, _, _ = outlooks(network, part.resident.windows_by_number(rows), len(rows))
        logits.append(torch.from_numpy(said))
        targets.append(part.resident.targets(rows).last().to("cpu"))
        failures += failures_in(part.labels, rows)
        looking += int((part.labels.event_bin[rows] >= 0).sum())
    return fit_calibration(torch.cat(logits), joined(targets), failures, looking / max(failures, 1))


def _since(history: History, schema: FeatureSchema, start: datetime, until: datetime | None) -> Grid:
    """The steps of every asset from `start` on, with as many before them as a forecast looks at."""
    first = start - timedelta(seconds=schema.step_seconds) * schema.lookback_steps
    readings = history.readings
    kept = readings[(readings["time"] > first).to_numpy()].reset_index(drop=True)
    return grid_of(replace(history, readings=kept), schema, until=until)


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
