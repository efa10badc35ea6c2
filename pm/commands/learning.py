"""Commands for learning and judging: train, forecast, replay, evaluate."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pm.commands.opened import opened_records, training_progress
from pm.commands.options import EXISTING_FOLDER, FILE, FOLDER, Moment, config_option, json_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from forecasting.predict import TransformerForecaster
    from forecasting.workers import Workers
    from pm import training
    from pm.config import Config
    from pm.domain import History, Recording


@contextmanager
def _share_bar(what: str) -> Iterator[Callable[[float], None]]:
    from rich.console import Console

    from pm.progress import share_bar

    with share_bar(Console(stderr=True), what) as report:
        yield report


def _forecaster(config: Config, name: str | None) -> TransformerForecaster:
    """A model by folder needs no records database; one by version, or the champion, does."""
    from pm import edges

    if name is not None and Path(name).is_dir():
        return edges.load_folder(Path(name), config.assess.runtime)
    with opened_records(config) as records:
        return edges.load_forecaster(records, name, config.assess.runtime)


def _chosen_assets(recording: Recording, forecaster: TransformerForecaster, which: str) -> list[str]:
    """Names behind `--assets`: held-out (where the model held any of these out), trained, all, or a list."""
    names = [asset.name for asset in recording.history.assets]
    split = forecaster.artefact.split
    held_out = [name for name in names if name in set(split.held_out)]
    if which == "all" or (which == "held-out" and not held_out):
        return names
    if which == "held-out":
        return held_out
    if which == "trained":
        return [name for name in names if name in {*split.train, *split.validation}]
    wanted = [part.strip() for part in which.split(",") if part.strip()]
    unknown = sorted(set(wanted) - set(names))
    if unknown or not wanted:
        raise click.UsageError(
            f"--assets {which}: {unknown[0] if unknown else 'nothing'} is no asset of {recording.name}; "
            "write held-out, trained, all, or names with commas between"
        )
    return wanted


ASSETS_HELP = "held-out (assets that the model never saw; all when it saw none of these), trained, all, or names."


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
            lines.append(f"  PR-AUC at {hours} h on the validation slice: {score:.3f} (chance: {base:.3f})")
    return "\n".join(lines)


@click.command()
@click.option("--asset", help="This asset only, with the reasons.")
@click.option("--at", "at", type=Moment(), default="now", show_default=True, help="As of this time; now; last reading.")
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
    forecaster = _forecaster(configuration, model)
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


@click.command()
@click.argument("recording", type=EXISTING_FOLDER)
@click.option("--model", help="Folder or version; the champion when left out.")
@click.option("--out", type=FOLDER, help="Folder for forecasts.parquet, alerts.csv, report.json, report.html.")
@click.option("--assets", "which", default="held-out", show_default=True, help=ASSETS_HELP)
@click.option("--every", help="Time between forecasts (6h); the recording's interval when left out.")
@click.option("--publish", is_flag=True, help="Publish it through the MQTT broker to a running service instead.")
@click.option(
    "--speed", type=click.FloatRange(min=0, min_open=True), help="Times real speed (--publish); else as fast as can be."
)
@config_option
@json_option
def replay(
    recording: Path,
    model: str | None,
    out: Path | None,
    which: str,
    every: str | None,
    publish: bool,
    speed: float | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Recorded data through the whole pipeline at its own time, scored.

    \b
    Example: pm replay recordings/azure-pdm --model models/azure --out replays/azure
             pm replay recordings/azure-pdm --publish --speed 3600
    """
    from connectors import recordings
    from pm import config

    configuration = config.load(config_path)
    loaded = recordings.read(recording)
    if publish:
        _publish(loaded, configuration, which, model, speed)
        return
    if out is None:
        raise click.UsageError("say --out DIR for a report, or --publish to play the recording through the broker")
    from pm.domain import parse_interval
    from pm.replay import replay as play

    forecaster = _forecaster(configuration, model)
    try:
        step = parse_interval(every) if every else None
    except ValueError as error:
        raise click.UsageError(f"--every: {error}") from None
    with _share_bar(f"Replaying {loaded.name}") as progress:
        report = play(
            loaded,
            forecaster,
            out=out,
            assets=_chosen_assets(loaded, forecaster, which),
            plant=configuration.plant,
            assess=configuration.assess,
            alerts=configuration.alerts,
            every=step,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        from pm.report_page import headline

        click.echo(f"{headline(report)}\n{out}/report.html")


def _publish(loaded: Recording, configuration: Config, which: str, model: str | None, speed: float | None) -> None:
    import threading

    from pm import live

    names = [asset.name for asset in loaded.history.assets]
    if which != "all":
        names = _chosen_assets(loaded, _forecaster(configuration, model), which)
    with live.until_interrupted(threading.Event()) as stop:
        played = live.publish_recording(loaded, configuration, assets=names, speed=speed, stop=stop)
    click.echo(f"{played.readings:,} readings and {played.events:,} events of {played.steps:,} steps published")


@click.command()
@click.option("--recording", type=EXISTING_FOLDER, required=True, help="Recording to judge on.")
@click.option("--model", help="Folder or version; the champion when left out.")
@click.option("--assets", "which", default="held-out", show_default=True, help=ASSETS_HELP)
@click.option("--every", help="Time between forecasts (6h); the model's step when left out.")
@click.option(
    "--baseline/--no-baseline", default=True, show_default=True, help="Gradient boosting and hazard by age beside it."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--out", type=FOLDER, help="Folder for evaluation.json and evaluation.html.")
@config_option
@json_option
def evaluate(
    recording: Path,
    model: str | None,
    which: str,
    every: str | None,
    baseline: bool,
    seed: int,
    out: Path | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """Forecast quality alone, with 95 % intervals over assets, beside the baselines.

    \b
    Example: pm evaluate --recording recordings/azure-pdm --model models/azure --every 6h
    """
    import numpy as np
    from rich.console import Console

    from connectors import recordings
    from pm import config, evaluation_page
    from pm.domain import parse_interval
    from pm.evaluate import evaluate as judge

    configuration = config.load(config_path)
    forecaster = _forecaster(configuration, model)
    loaded = recordings.read(recording)
    try:
        step = parse_interval(every) if every else None
    except ValueError as error:
        raise click.UsageError(f"--every: {error}") from None
    found = judge(
        loaded,
        forecaster,
        rng=np.random.default_rng(seed),
        assets=_chosen_assets(loaded, forecaster, which),
        every=step,
        baseline=baseline,
        alerts=configuration.alerts,
        assess=configuration.assess,
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        evaluation_page.write_html(found, out / "evaluation.html")
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    console.print(evaluation_page.table(found))
    console.print(evaluation_page.alert_table(found))
    for sentence in evaluation_page.sentences(found):
        console.print(sentence)
