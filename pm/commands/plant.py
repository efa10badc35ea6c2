"""Commands around recordings and the simulated plant."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from pm.commands.options import EXISTING_FOLDER, FOLDER, Moment, config_option, json_option


@click.command()
@click.option("--out", type=FOLDER, help="Write a recording here, and the hidden truth as OUT.truth.csv beside it.")
@click.option("--publish", is_flag=True, help="Play the plant live over the configured MQTT broker.")
@click.option(
    "--speed", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="Times real speed."
)
@click.option("--assets", type=click.IntRange(1), default=40, show_default=True, help="Number of assets.")
@click.option("--days", type=click.IntRange(1), default=365, show_default=True, help="Length.")
@click.option("--start", type=Moment(), default="2026-01-01T00:00:00Z", show_default=True, help="First reading.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same plant.")
@config_option
@json_option
def simulate(
    out: Path | None,
    publish: bool,
    speed: float,
    assets: int,
    days: int,
    start: datetime,
    seed: int,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """A simulated plant, as a recording or live over MQTT.

    \b
    Example: pm simulate --out plant --assets 100 --days 365
             pm simulate --publish --speed 3600 --assets 20
    """
    from pm import simulate as plant

    if (out is None) == (not publish):
        raise click.UsageError("say --out DIR for a recording or --publish for a live plant")
    made = plant.simulate(plant.PlantSettings(assets=assets, days=days, start=start, seed=seed))
    if out is not None:
        from connectors import recordings

        recordings.write(made.recording, out)
        truth = out.with_name(out.name + ".truth.csv")
        plant.write_truth(made, truth)
        ceiling = plant.ceiling(made.truth)
        summary = {
            "recording": str(out),
            "truth": str(truth),
            "readings": len(made.recording.history.readings),
            "failures": len(made.truth),
            "recall_ceiling": ceiling,
        }
        if as_json:
            click.echo(json.dumps(summary, indent=1))
        else:
            leads = ", ".join(f"{share:.0%} at {lead}" for lead, share in ceiling.items())
            click.echo(
                f"{out}: {summary['readings']:,} readings of {assets} assets over {days} days, "
                f"{summary['failures']} failures\n"
                f"{truth}: when each failure began to show. No forecaster can warn of more than {leads}."
            )
        return
    import threading

    from pm import config, live

    with live.until_interrupted(threading.Event()) as stop:
        played = live.publish_plant(made, config.load(config_path), speed=speed, stop=stop)
    click.echo(f"{played.readings:,} readings and {played.events:,} events of {played.steps:,} steps published")


@click.command("import")
@click.argument("recording", type=EXISTING_FOLDER)
@click.option(
    "--register-only", is_flag=True, help="Only its assets, points and failure modes; readings come over MQTT."
)
@config_option
@json_option
def import_(recording: Path, register_only: bool, config_path: Path | None, as_json: bool) -> None:
    """Put RECORDING into the store: history to train on.

    \b
    Example: pm import recordings/azure-pdm
    """
    from connectors import recordings
    from pm import archive, config, edges

    loaded = recordings.read(recording)
    configuration = config.load(config_path)
    records = edges.open_records(configuration)
    store = edges.open_store(configuration)
    try:
        archive.import_recording(loaded, store, records, readings=not register_only)
    finally:
        store.close()
    summary: dict[str, Any] = {
        "recording": loaded.name,
        "assets": len(loaded.history.assets),
        "points": len(loaded.history.points),
        "readings": 0 if register_only else len(loaded.history.readings),
        "events": 0 if register_only else len(loaded.history.events),
    }
    if as_json:
        click.echo(json.dumps(summary))
    else:
        click.echo(
            "{recording}: {assets} assets, {points} points, {readings:,} readings, {events:,} events imported".format(
                **summary
            )
        )


@click.command("export-history")
@click.option("--out", type=FOLDER, required=True, help="Folder to write; it must not exist or be empty.")
@click.option("--recording", "name", help="Which imported recording; may be left out when there is only one.")
@config_option
def export_history(out: Path, name: str | None, config_path: Path | None) -> None:
    """A recording out of the store.

    \b
    Example: pm export-history --recording azure-pdm --out backup/azure-pdm
    """
    from connectors import recordings
    from pm import archive, config, edges

    configuration = config.load(config_path)
    records = edges.open_records(configuration)
    if name is None:
        known = records.recordings()
        if len(known) != 1:
            raise click.UsageError(f"say which with --recording; known are: {', '.join(known) or 'none'}")
        name = known[0]
    store = edges.open_store(configuration)
    try:
        exported = archive.export_recording(store, records, name)
    finally:
        store.close()
    recordings.write(exported, out)
    click.echo(f"{out}: {len(exported.history.readings):,} readings of {len(exported.history.assets)} assets written")


@click.command()
@click.option("--out", type=FOLDER, required=True, help="Folder to write; it must not exist or be empty.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help="Stop after so long; else at Ctrl-C.")
@config_option
def record(out: Path, hours: float | None, config_path: Path | None) -> None:
    """A recording from the live feed, until Ctrl-C.

    The recording listens under a client id of its own, so that a running service goes on undisturbed.

    \b
    Example: pm record --out friday --hours 8
    """
    import threading

    from connectors import recordings
    from pm import config, live

    configuration = config.load(config_path)
    with live.until_interrupted(threading.Event()) as stop:
        recorded = live.record_feed(configuration, name=out.name, stop=stop, seconds=hours * 3600 if hours else None)
    recordings.write(recorded, out)
    click.echo(f"{out}: {len(recorded.history.readings):,} readings of {len(recorded.history.assets)} assets recorded")
