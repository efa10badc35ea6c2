"""Commands for judging: replay, evaluate."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pm.commands.opened import judging_progress, opened_forecaster
from pm.commands.options import EXISTING_FOLDER, FOLDER, config_option, json_option

if TYPE_CHECKING:
    from forecasting.predict import TransformerForecaster
    from pm.config import Config
    from pm.domain import Recording

ASSETS_HELP = "held-out (assets that the model never saw; all when it saw every one), trained, all, or names."


def _chosen_assets(recording: Recording, forecaster: TransformerForecaster, which: str) -> list[str]:
    """Names behind `--assets`: held-out (or never seen where none was held out, all where all were), trained, all, or
    a list."""
    names = [asset.name for asset in recording.history.assets]
    split = forecaster.artefact.split
    if which == "all":
        return names
    if which == "held-out":
        return split.judging(names) or names
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


def _step(every: str | None) -> timedelta | None:
    from pm.domain import parse_interval

    try:
        return parse_interval(every) if every else None
    except ValueError as error:
        raise click.UsageError(f"--every: {error}") from None


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
    from pm.replay import replay as play

    forecaster = opened_forecaster(configuration, model)
    step = _step(every)
    with judging_progress(f"Replaying {loaded.name}") as progress:
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
        names = _chosen_assets(loaded, opened_forecaster(configuration, model), which)
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
    from pm.evaluate import evaluate as judge

    configuration = config.load(config_path)
    forecaster = opened_forecaster(configuration, model)
    loaded = recordings.read(recording)
    step = _step(every)
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
