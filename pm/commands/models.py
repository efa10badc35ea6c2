"""Commands for the models on record: models, retrain."""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

import click

from pm.commands.opened import opened_records, training_progress
from pm.commands.options import Moment, config_option, json_option


@click.group()
def models() -> None:
    """List, show, promote, roll back models.

    \b
    Example: pm models list
    """


@models.command("list")
@config_option
@json_option
def list_models(config_path: Path | None, as_json: bool) -> None:
    """The models and what became of them, newest first.

    \b
    Example: pm models list
    """
    from pm import config

    with opened_records(config.load(config_path)) as records:
        found = records.models()
    if as_json:
        rows = [
            {"version": m.version, "stage": m.stage.value, "trained_until": m.trained_until.isoformat()} for m in found
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    for model in found:
        click.echo(f"{model.version:<40} {model.stage.value:<10} {model.verdict}")
    if not found:
        click.echo("No models yet; 'pm train' makes one.")


@models.command("show")
@click.argument("version")
@config_option
def show_model(version: str, config_path: Path | None) -> None:
    """One model: where it is, what it learned from, its scores and thresholds, and its life.

    \b
    Example: pm models show 20261123T030000Z
    """
    from pm import config

    with opened_records(config.load(config_path)) as records:
        model = records.model(version)
        journal = records.model_journal(model.version)
    shown = {
        "version": model.version,
        "stage": model.stage.value,
        "folder": model.path,
        "created_at": model.created_at.isoformat(),
        "trained_until": model.trained_until.isoformat(),
        "fingerprint": model.fingerprint,
        "verdict": model.verdict,
        "metrics": dict(model.metrics),
        "journal": [{"at": c.at.isoformat(), "to": c.to_stage.value, "why": c.why} for c in journal],
    }
    click.echo(json.dumps(shown, indent=1))


@models.command("promote")
@click.argument("version")
@click.option("--because", default="promoted by hand", show_default=True, help="Why; it stays in the journal.")
@config_option
def promote_model(version: str, because: str, config_path: Path | None) -> None:
    """Make VERSION the champion; a running service takes it at its next assessment.

    VERSION may be the folder of a model that was trained elsewhere; it is put on record first.

    \b
    Example: pm models promote 20261123T030000Z --because "better on line 2"
             pm models promote models/azure
    """
    from pm import config, edges
    from pm.retrain import model_row

    with opened_records(config.load(config_path)) as records:
        if Path(version).is_dir():
            row = model_row(edges.load_folder(Path(version)).artefact, Path(version), created_at=edges.wall_now())
            records.add_model(row)
            version = row.version
        model = records.model(version)
        records.promote(model.version, at=edges.wall_now(), why=because)
    click.echo(f"{model.version} is champion")


@models.command("rollback")
@config_option
def rollback_model(config_path: Path | None) -> None:
    """Make the previous champion the champion again.

    \b
    Example: pm models rollback
    """
    from pm import config, edges

    with opened_records(config.load(config_path)) as records:
        model = records.rollback(at=edges.wall_now())
    click.echo(f"{model.version} is champion again")


@click.command()
@click.option("--at", type=Moment(), default="now", show_default=True, help="Plant time that counts as now.")
@click.option("--shuffle-labels", is_flag=True, help="Negative control: the challenger learns from shuffled failures.")
@click.option("--warm", is_flag=True, help="Go on from the champion, with what came since it was trained alone.")
@click.option("--quiet", is_flag=True, help="No progress; the service asks for that.")
@config_option
@json_option
def retrain(
    at: datetime | str, shuffle_labels: bool, warm: bool, quiet: bool, config_path: Path | None, as_json: bool
) -> None:
    """Train a challenger on the store's history, judge it beside the champion, promote it if it is better.

    The service starts this by itself, as retrain.cron says.

    \b
    Example: pm retrain
    """
    from pm import config, edges, logs
    from pm.retrain import retrain_once

    configuration = config.load(config_path)
    logs.configure(configuration.log)
    with opened_records(configuration) as records:
        store = edges.open_store(configuration)
        try:
            moment = at if isinstance(at, datetime) else edges.present(configuration, records)
            with nullcontext(None) if quiet else training_progress() as report:
                verdict = retrain_once(
                    moment,
                    store=store,
                    records=records,
                    config=configuration,
                    shuffle_labels=shuffle_labels,
                    warm=warm or configuration.retrain.warm,
                    progress=report,
                )
        finally:
            store.close()
    if as_json:
        click.echo(json.dumps({"promoted": verdict.promote, "challenger": verdict.challenger, "verdict": verdict.text}))
    else:
        click.echo(f"{verdict.challenger} {verdict.text}")
