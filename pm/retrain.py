"""Retraining: a challenger learns from the store, is judged beside the champion, and is promoted or kept out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from forecasting import predict
from forecasting.checkpoint import Artefact
from forecasting.epochs import Progress
from forecasting.precision import choose_device
from forecasting.train import Execution
from pm.archive import plant_history
from pm.config import Config
from pm.judging import Verdict, judge
from pm.ports import ReadingStore
from pm.record_models import ModelRow
from pm.training import facts, train

if TYPE_CHECKING:
    from pm.records import Records

log = logging.getLogger(__name__)


def retrain_once(
    at: datetime,
    *,
    store: ReadingStore,
    records: Records,
    config: Config,
    shuffle_labels: bool = False,
    warm: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Verdict:
    """Train a challenger on the store's history as of `at`, judge it, and promote it or keep it out.

    The challenger learns from `retrain.history` up to `retrain.judge` before `at`; both are judged on what came after
    that and after whatever the champion saw. warm: the challenger goes on from the champion's weights, and learns from
    what came since alone; quick enough for every hour. A challenger that was trained is on record whatever the verdict.
    Raises TrainingError when the history cannot be learned from, ModelError when the champion cannot be loaded, and
    what store and records raise.
    """
    history = plant_history(store, records, config.plant.interval, start=at - config.retrain.history, end=at)
    device = str(choose_device(config.train.device))
    row = records.champion()
    champion = None if row is None else predict.load(Path(row.path), device=device)
    learn_until = at - config.retrain.judge
    name = f"{at:%Y%m%dT%H%MZ}"
    trained = train(
        history,
        out=_free(config.models.dir / name),
        # No assets are held out: the time ahead judges, and a plant has none to spare.
        settings=config.train.model_copy(update={"hold_out": 0.0}),
        alerts=config.alerts,
        assess=config.assess,
        until=learn_until,
        name=name,
        shuffle_labels=shuffle_labels,
        start_from=champion.artefact if warm and champion is not None else None,
        execution=Execution(progress=progress),
    )
    records.add_model(model_row(trained.forecaster.artefact, trained.folder, created_at=at))
    start = learn_until if champion is None else max(learn_until, champion.artefact.trained_until)
    verdict = judge(champion, trained.forecaster, history, start=start, end=at, settings=config.retrain)
    if verdict.promote:
        records.promote(trained.version, at=at, why=verdict.text)
    else:
        records.set_verdict(trained.version, verdict.text)
    log.info("challenger %s: %s", trained.version, verdict.text)
    return verdict


def model_row(artefact: Artefact, folder: Path, *, created_at: datetime) -> ModelRow:
    """A model that stands in `folder`, as the records keep it."""
    return ModelRow(
        version=artefact.version,
        path=str(folder.resolve()),
        created_at=created_at,
        trained_until=artefact.trained_until,
        fingerprint=artefact.fingerprint,
        metrics=facts(artefact),
    )


def _free(folder: Path) -> Path:
    """The folder, or with a number behind where an earlier run at the same time left one."""
    candidate, number = folder, 2
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return candidate
