"""Commands for learning and forecasting: train, forecast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pm.commands.opened import opened_forecaster, opened_records, training_progress
from pm.commands.options import EXISTING_FOLDER, FILE, FOLDER, Moment, config_option, json_option

if TYPE_CHECKING:
    from forecasting.workers import Workers
    from pm import training
    from pm.domain import History


@click.command()
@click.option("--recording", "recordings_", type=EXISTING_FOLDER, multiple=True, help="Train on this; may be repeated.")
@click.option("--out", type=FOLDER, help="Folder for the model; a new one in models.dir when left out.")
@click.option("--hold-out", type=click.FloatRange(0, 0.9), help="Share of assets never trained on, for scoring.")
@click.option("--validation", type=click.FloatRange(0.01, 0.9), help="Share of the others that stops and calibrates.")
@click.option("--seed", type=int, help="Seed of the split, the initial weights and the batches.")
@click.option("--until", type=Moment(), help="Learn from nothing dated later.")
@click.option("--max-minutes", type=click.FloatRange(min=0, min_open=True), help="Stop after so long at most.")
@click.option("--warm-start", type=EXISTING_FOLDER, help="Go on from this model, with what came since alone.")
@click.option("--resume", is_flag=True, help="Go on from where a training into the same folder was cut off.")
@click.option("--profile", type=FOLDER, help="Write a trace and a memory timeline of training into this folder.")
@click.option("--shuffle-labels", is_flag=True, help="Negative control: give the failures to other assets and times.")
@config_option
@json_option
def train(
    recordings_: Sequence[Path],
    out: Path | None,
    hold_out: float | None,
    validation: float | None,
    seed: int | None,
    until: datetime | None,
    max_minutes: float | None,
    warm_start: Path | None,
    resume: bool,
    profile: Path | None,
    shuffle_labels: bool,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Train a forecaster, from the store when no recording is named.

    A model trained from the store is registered, and becomes champion when there is none. The options override the
    section [train] of the configuration; PM_TRAIN__WIDTH and the like do so for every key of it. Under torchrun
    several processes train together, one for each GPU.

    \b
    Example: pm train --recording recordings/azure-pdm --hold-out 0.3 --out models/azure
             torchrun --nproc-per-node 2 -m pm.cli train --recording recordings/azure-pdm --out models/azure
    """
    from forecasting import workers
    from forecasting.resume import remove
    from forecasting.train import Execution
    from pm import archive, config, edges, training
    from pm.retrain import model_row

    configuration = config.load(config_path)
    given = {"hold_out": hold_out, "validation": validation, "seed": seed, "max_minutes": max_minutes}
    settings = config.TrainSection.model_validate(
        configuration.train.model_dump() | {key: value for key, value in given.items() if value is not None}
    )
    now = edges.wall_now()
    name = out.name if out is not None else f"{now:%Y%m%dT%H%M%SZ}"
    folder = out or configuration.models.dir / name

    state = folder.with_name(f".{folder.name}.training")
    if not resume:
        remove(state)
    start_from = edges.load_folder(warm_start).artefact if warm_start is not None else None

    def learn(history: History, team: Workers) -> training.TrainedModel:
        with training_progress() as report:
            trained = training.train(
                history,
                out=folder,
                settings=settings,
                alerts=configuration.alerts,
                assess=configuration.assess,
                until=until,
                name=name,
                shuffle_labels=shuffle_labels,
                start_from=start_from,
                execution=Execution(report, team, snapshots=state, profile=profile, scratch=folder.parent),
            )
        if team.leads:
            remove(state)
        return trained

    with workers.joined(settings.device) as team:
        if recordings_:
            from connectors import recordings

            trained = learn(archive.merged([recordings.read(path).history for path in recordings_]), team)
        else:
            with opened_records(configuration) as records:
                store = edges.open_store(configuration)
                try:
                    trained = learn(archive.plant_history(store, records, configuration.plant.interval), team)
                finally:
                    store.close()
                if team.leads:
                    records.add_model(model_row(trained.forecaster.artefact, folder, created_at=now))
                    if records.champion() is None and not shuffle_labels:
                        records.promote(trained.version, at=now, why="the first model")
        if not team.leads:
            return
    told = training.facts(trained.forecaster.artefact)
    summary = {"model": trained.version, "folder": str(folder), "seconds": round(trained.seconds, 1)} | told
    click.echo(json.dumps(summary, indent=1) if as_json else _trained_text(summary))


def _trained_text(summary: dict[str, Any]) -> str:
    counts = summary["assets"]
    lines = [
        f"{summary['model']} in {summary['folder']}: trained on {counts['train']} assets in "
        f"{summary['seconds']:.0f} s, validated on {counts['validation']}, {counts['held_out']} held out"
    ]
    for hours in (24, 48, 72):
        if (score := summary.get(f"validation_pr_auc_{hours}h")) is not None:
            base = summary[f"validation_base_rate_{hours}h"]
            low, high = (summary.get(f"validation_pr_auc_{hours}h_{end}") for end in ("low", "high"))
            within = f"{low:.3f} to {high:.3f} over assets; " if low is not None and high is not None else ""
            lines.append(f"  PR-AUC at {hours} h on the validation slice: {score:.3f} ({within}chance: {base:.3f})")
    return "\n".join(lines)


@click.command()
@click.option("--asset", help="This asset only, with the reasons.")
@click.option(
    "--at",
    "at",
    type=Moment(),
    default="now",
    show_default=True,
    help="As of this time; now; last, which is each asset's last reading.",
)
@click.option("--recording", type=EXISTING_FOLDER, help="Forecast a recording's assets instead of the store's.")
@click.option("--model", help="Folder or version; the champion when left out.")
@click.option("--out", type=FILE, help="Write a CSV with asset, rul_hours, p24, p48, p72.")
@config_option
@json_option
def forecast(
    asset: str | None,
    at: datetime | str,
    recording: Path | None,
    model: str | None,
    out: Path | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Forecasts now, or as of a time, with the reasons.

    \b
    Example: pm forecast --asset pump-003
             pm forecast --recording recordings/cmapss-fd001-test --model models/fd001 --at last --out fd001.csv
    """
    from pm import config, forecasts
    from pm.notices import explanation_json, forecast_json, reasons_json

    configuration = config.load(config_path)
    forecaster = opened_forecaster(configuration, model)
    if recording is not None:
        from connectors import recordings

        issued = forecasts.of_history(recordings.read(recording).history, forecaster, configuration, at=at, asset=asset)
    else:
        issued = forecasts.of_store(forecaster, configuration, at=at, asset=asset)
    rows = [
        forecast_json(f)
        | ({"reasons": reasons_json(why.reasons), "explanation": explanation_json(why)} if why is not None else {})
        for f, why in issued
    ]
    if out is not None:
        forecasts.write_csv([f for f, _ in issued], out)
        click.echo(f"{out}: {len(rows)} assets written", err=True)
    elif as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            click.echo(_forecast_text(row))


def _forecast_text(row: dict[str, Any]) -> str:
    head = f"{row['asset']:<18} {row['time'][:16]}Z"
    if row["abstained"]:
        return f"{head}  no forecast: {row['abstained']}" + (f" ({row['because']})" if row["because"] else "")
    text = (
        f"{head}  24 h {row['p24']:6.1%}  48 h {row['p48']:6.1%}  72 h {row['p72']:6.1%}  {row['failure_mode'] or ''}"
    )
    reasons = ", ".join(f"{r['feature']} {r['contribution']:+.2f}" for r in row.get("reasons", []))
    lines = [f"{text}  because of {reasons}" if reasons else text]
    if (why := row.get("explanation")) is not None:
        lines.append(
            f"  log-hazard {why['change']:+.2f} against the fleet's average ({why['average_p72']:.1%} within 72 h), "
            f"of which all other inputs {why['rest']:+.2f}"
        )
        if why["began"]:
            lines.append(f"  changed since {why['began'][:16]}Z{' or earlier' if why['earlier'] else ''}")
        lines += [
            f"  like {one['asset']} {one['hours_left']:.0f} h before its {one['failure_mode']} failure of "
            f"{one['failed_at'][:16]}Z (likeness {one['likeness']:.2f})"
            for one in why["precedents"]
        ]
    return "\n".join(lines)
