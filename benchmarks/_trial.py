"""One training, judged and replayed, as the benchmarks of whole recordings repeat it over seeds and settings."""

from __future__ import annotations

import argparse
import json
import logging
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from rich.logging import RichHandler

from forecasting.split import split_assets
from pm.alert_scores import Floats
from pm.baselines import BOOSTING
from pm.config import AlertsSection, TrainSection
from pm.domain import Recording, parse_interval
from pm.evaluate import FORECASTER, evaluate
from pm.evaluation_page import write_html
from pm.replay import replay
from pm.training import TrainedModel, train

BUDGET = f"{AlertsSection().budget:g}"
LABELS = ("24h", "48h", "72h", "24h to 72h")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Trial:
    """What one training came to."""

    setting: str
    seed: int
    model: TrainedModel
    train_seconds: float
    """The whole of it: features, epochs, calibration, ONNX, thresholds."""
    memory_mib: float
    """The most that training held beyond what the process held with the data before it."""
    evaluation: Mapping[str, Any]
    replay: Mapping[str, Any] | None


@dataclass(frozen=True)
class Plan:
    """How every trial is done."""

    every: timedelta
    """Between the forecasts that are judged."""
    replay_every: timedelta | None
    """Between the assessments of a replay; no replay when None."""
    replay_assets: int
    """Held-out assets that are replayed, the first by name; all of them when 0."""
    out: Path
    threads: int = 1
    """Of gradient boosting."""
    split_seed: int | None = None
    """Deals the assets alike for every training; each training's own seed does when None."""

    def run(self, recording: Recording, setting: str, settings: TrainSection) -> Trial:
        name = f"{setting}-{settings.seed}"
        before = _peak(reset=True)
        began = time.perf_counter()
        split = None
        if self.split_seed is not None:
            split = split_assets(recording.history, settings.hold_out, settings.validation, self.split_seed)
        model = train(recording.history, out=self.out / name, settings=settings, split=split, name=name)
        seconds, memory = time.perf_counter() - began, _peak() - before
        said = evaluate(
            recording,
            model.forecaster,
            rng=np.random.default_rng(0),
            every=self.every,
            threads=self.threads,
        )
        (self.out / f"{name}.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
        write_html(said, self.out / f"{name}.html")
        played = None
        if self.replay_every is not None:
            held_out = sorted(model.split.held_out)
            played = replay(
                recording,
                model.forecaster,
                out=self.out / f"{name}-replay",
                assets=held_out[: self.replay_assets] if self.replay_assets else held_out,
                every=self.replay_every,
            )
        trial = Trial(setting, settings.seed, model, seconds, memory, said, played)
        print(_line(trial), flush=True)
        return trial


def arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--seeds", default="1,2,3", help="of splits, weights and batches: one training each")
    parser.add_argument("--split-seed", type=int, help="deal the assets by this seed alike for every training")
    parser.add_argument("--every", default="6h", help="between the forecasts that are judged")
    parser.add_argument("--replay-every", default="6h", help="between the assessments of a replay; none for no replay")
    parser.add_argument("--replay-assets", type=int, default=0, help="replay so many held-out assets; 0: all")
    parser.add_argument("--max-minutes", type=float, default=TrainSection().max_minutes, help="of each training")
    parser.add_argument("--epochs", type=int, default=TrainSection().epochs, help="of each training at most")
    parser.add_argument("--members", type=int, default=TrainSection().members, help="networks of each training")
    parser.add_argument("--threads", type=int, default=1, help="of gradient boosting")
    parser.add_argument("--out", type=Path, help="keep models, evaluations and replays here")
    return parser


def plan_of(given: argparse.Namespace) -> Plan:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_path=False)])
    for told in ("forecasting", "pm.training"):
        logging.getLogger(told).setLevel(logging.INFO)
    out = given.out or Path(tempfile.mkdtemp(prefix="pm-trials-"))
    out.mkdir(parents=True, exist_ok=True)
    step = None if given.replay_every == "none" else parse_interval(given.replay_every)
    return Plan(parse_interval(given.every), step, given.replay_assets, out, given.threads, given.split_seed)


def seeds_of(told: str) -> list[int]:
    return [int(seed) for seed in told.split(",")]


def settings_of(given: argparse.Namespace, seed: int, **own: Any) -> TrainSection:
    """How a training of this seed is done."""
    return TrainSection(seed=seed, max_minutes=given.max_minutes, epochs=given.epochs, members=given.members, **own)


def figures(trial: Trial) -> dict[str, dict[str, float | None]]:
    """By row of the table: by forecaster or column, its figure."""
    scores, later = trial.evaluation["scores"], trial.evaluation["later"]
    rows: dict[str, dict[str, float | None]] = {}
    for label in LABELS:
        rows[f"PR-AUC, {label}"] = _by(scores, lambda s, at=label: s["horizons"][at]["pr_auc"]["value"])
    for label in LABELS[:3]:
        rows[f"calibration error, {label}"] = _by(
            scores, lambda s, at=label: s["horizons"][at]["calibration_error"]["value"]
        )
        rows[f"… of a perfect forecaster, {label}"] = _by(
            scores, lambda s, at=label: s["horizons"][at]["calibration_floor"]["value"]
        )
    if later is not None:
        for label in LABELS[2:]:
            rows[f"later time alone: PR-AUC, {label}"] = _by(
                later["scores"], lambda s, at=label: s[at]["pr_auc"]["value"]
            )
        rows["later time alone: calibration error, 72h"] = _by(
            later["scores"], lambda s: s["72h"]["calibration_error"]["value"]
        )
    rows["integrated Brier"] = _by(scores, lambda s: s["integrated_brier"]["value"])
    rows["dynamic AUC, 72h"] = _by(scores, lambda s: s["dynamic_auc"]["72h"]["value"])
    rows["remaining life RMSE, steps"] = _by(scores, lambda s: s["remaining_life"]["rmse_steps"]["value"])
    for budget in ("0.05", "0.2", "1"):
        for what, value in (
            ("recall", lambda a: a["recall"]["value"]),
            ("recall, 24 h ahead", lambda a: a["recall_at_lead"]["24h"]["value"]),
            ("recall, 48 h ahead", lambda a: a["recall_at_lead"]["48h"]["value"]),
            ("median lead, hours", lambda a: a["lead_hours"]["median"]),
            ("false alerts per asset-month", lambda a: a["false_alerts_per_asset_month"]["value"]),
        ):
            rows[f"budget {budget}: {what}"] = _by(
                scores, lambda s, at=budget, of=value: of(s["alerts"][at]) if s["alerts"] else None
            )
    return rows


def table(trials: Sequence[Trial], title: str) -> None:
    """Mean over the trials, and the least and the most of them, of each forecaster."""
    every = [figures(trial) for trial in trials]
    count = f"{len(trials)} training{'s' if len(trials) > 1 else ''}"
    later = sum(trial.evaluation["later"] is not None for trial in trials)
    if 0 < later < len(trials):
        print(f"\n{later} of {len(trials)} trainings were validated on later time, {later} have figures of it alone.")
    print(f"\n### {title}, {count}: mean (least to most)\n")
    print(f"| | {FORECASTER} | {BOOSTING} | hazard by age | {FORECASTER} above {BOOSTING} |\n|---|---|---|---|---|")
    # Only some trainings may have been validated on later time: their rows are of those alone.
    for row in max(every, key=len):
        having = [found[row] for found in every if row in found]
        cells = [_spread([one.get(name) for one in having]) for name in (FORECASTER, BOOSTING, "hazard by age")]
        gaps = [_gap(one) for one in having]
        print(f"| {row} | " + " | ".join([*cells, _spread(gaps, signed=True)]) + " |")
    print(f"\n| training | {count} |\n|---|---|")
    print(f"| wall time, s | {_spread([t.train_seconds for t in trials], 0)} |")
    print(f"| memory beyond the data, MiB | {_spread([t.memory_mib for t in trials], 0)} |")
    played = [trial.replay for trial in trials if trial.replay is not None]
    if played:
        print(f"\n| replay, budget {BUDGET} | |\n|---|---|")
        for name, value in (
            ("asset-months", lambda r: r["asset_months"]),
            ("failures", lambda r: r["failures"]["total"]),
            ("recall", lambda r: r["recall"]["value"]),
            ("recall, 24 h ahead", lambda r: r["recall"]["at_lead"]["24h"]),
            ("recall, 48 h ahead", lambda r: r["recall"]["at_lead"]["48h"]),
            ("median lead, hours", lambda r: r["lead_hours"]["median"]),
            ("precision", lambda r: r["precision"]["value"]),
            ("false alerts per asset-month", lambda r: r["false_alerts_per_asset_month"]["value"]),
        ):
            print(f"| {name} | {_spread([value(report) for report in played])} |")


def _by(scores: Mapping[str, Any], value: Any) -> dict[str, float | None]:
    return {name: value(found) for name, found in scores.items()}


def _gap(found: Mapping[str, float | None]) -> float | None:
    ours, theirs = found.get(FORECASTER), found.get(BOOSTING)
    return None if ours is None or theirs is None else ours - theirs


def _spread(values: Sequence[float | None], digits: int = 4, signed: bool = False) -> str:
    known: Floats = np.array([value for value in values if value is not None], np.float64)
    if not known.size:
        return "–"
    sign = "+" if signed else ""
    mean, low, high = (f"{value:{sign}.{digits}f}" for value in (known.mean(), known.min(), known.max()))
    return mean if known.size == 1 else f"{mean} ({low} to {high})"


def _line(trial: Trial) -> str:
    gap = trial.evaluation["pr_auc_above"].get(BOOSTING, {}).get("72h", {})
    alerts = (trial.evaluation["scores"][FORECASTER]["alerts"] or {}).get(BUDGET)
    words = [f"{trial.setting}, seed {trial.seed}: trained in {trial.train_seconds:.0f} s"]
    if gap.get("value") is not None and gap["low"] is not None:
        words.append(
            f"PR-AUC at 72 h {gap['value']:+.4f} against {BOOSTING} "
            f"({gap['low']:+.4f} to {gap['high']:+.4f} over assets)"
        )
    later = (trial.evaluation["later"] or {"pr_auc_above": {}})["pr_auc_above"].get(BOOSTING, {}).get("72h", {})
    if later.get("low") is not None:
        words.append(f"on later time alone {later['value']:+.4f} ({later['low']:+.4f} to {later['high']:+.4f})")
    if alerts:
        ahead = alerts["recall_at_lead"]["24h"]
        words.append(f"recall 24 h ahead {ahead['value']:.3f} ({ahead['low']:.3f} to {ahead['high']:.3f})")
    return "; ".join(words)


def _peak(*, reset: bool = False) -> float:
    """The most memory that this process has held, MiB; since the last reset, where the system lets it be reset."""
    if reset and _CLEAR.exists():
        _CLEAR.write_text("5")
    if _STATUS.exists():
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
