"""Commands that set up and run the service: demo, init, doctor, run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pm.commands.options import FILE, FOLDER, config_option, json_option


@click.command()
@click.option(
    "--dir", "folder", type=FOLDER, default=Path("demo-data"), show_default=True, help="Where the demo keeps all."
)
@click.option("--assets", type=click.IntRange(4), default=40, show_default=True, help="Assets of the simulated plant.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same plant.")
@click.option("--speed", type=click.FloatRange(min=1), default=3600.0, show_default=True, help="Times real speed.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port of the dashboard.")
@click.option("--fresh", is_flag=True, help="Begin again instead of going on from what the folder holds.")
def demo(folder: Path, assets: int, seed: int, speed: float, port: int, fresh: bool) -> None:
    """The whole service on a simulated plant, until Ctrl-C.

    Makes a plant's past, trains on it, then plays its future over MQTT at an hour a second and warns of what is to
    fail. Started again it goes on from what it had.

    \b
    Example: pm demo
    """
    from pm import demo as demonstration

    demonstration.run(folder=folder, assets=assets, seed=seed, speed=speed, port=port, fresh=fresh)


@click.command()
@click.option("--out", type=FILE, default=Path("pm.toml"), show_default=True, help="File to write.")
def init(out: Path) -> None:
    """Write a commented pm.toml; valid as written.

    \b
    Example: pm init
    """
    from pm import config
    from pm.errors import ConfigError

    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(config.sample())
    except FileExistsError:
        raise ConfigError(f"{out} exists already and is left as it is; name another file with --out") from None
    click.echo(f"{out} written; 'pm doctor' checks it, 'pm run' starts the service")


@click.command()
@config_option
@json_option
def doctor(config_path: Path | None, as_json: bool) -> int:
    """Check configuration, broker, store, records, accelerator and clock; say what to mend.

    \b
    Example: pm doctor
    """
    from pm import config, doctor

    findings = doctor.examine(config.load(config_path))
    if as_json:
        click.echo(json.dumps([{"what": f.what, "well": f.well, "finding": f.finding} for f in findings], indent=1))
    else:
        for finding in findings:
            click.echo(f"{'ok  ' if finding.well else 'MEND'}  {finding.what:<12} {finding.finding}")
    return 0 if all(finding.well for finding in findings) else 1


@click.command()
@click.option("--only", type=click.Choice(["ingest", "schedule", "dashboard"]), help="One part of the service.")
@config_option
def run(only: str | None, config_path: Path | None) -> None:
    """The service: ingest, scheduled assessment and retraining, dashboard; until Ctrl-C or SIGTERM.

    \b
    Example: pm run --config /srv/pm/pm.toml
    """
    from pm import config, logs, service

    configuration = config.load(config_path)
    logs.configure(configuration.log)
    service.run(configuration, config_path=config_path, parts=(only,) if only else service.PARTS)
