"""Commands that save the service and bring it back: backup, restore."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pm.commands.options import config_option, json_option


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@config_option
@json_option
def backup(target: Path, config_path: Path | None, as_json: bool) -> None:
    """Save readings, records, models and configuration in one file, TARGET, while the service runs.

    Where TARGET is a folder, the file in it is named after the time. It holds password hashes and the key that signs
    sessions, but no other secret: keep it as safe as the service itself.

    \b
    Example: pm backup /mnt/backups
    """
    from pm import config, edges
    from pm.backup import back_up
    from pm.config.files import DEFAULT_PATH

    path = config_path or (DEFAULT_PATH if DEFAULT_PATH.is_file() else None)
    made = back_up(config.load(config_path), target, config_path=path, at=edges.wall_now())
    manifest = made.manifest
    if as_json:
        told = {
            "file": str(made.path),
            "bytes": made.bytes,
            "store": manifest.store,
            "records": manifest.records,
            "models": len(manifest.models),
            "not_covered": manifest.not_covered,
        }
        click.echo(json.dumps(told, indent=1))
    else:
        told = {**manifest.store, **manifest.records}
        counted = [f"{told[what]:,} {what}" for what in _COUNTED if what in told]
        click.echo(f"{made.path}: {', '.join([*counted, f'{made.bytes / 1e6:,.1f} MB'])}")
    for lacking in manifest.not_covered:
        click.echo(f"not in it: {lacking}", err=True)


_COUNTED = ("readings", "events", "alerts", "users", "models")


@click.command()
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Where something is in the way, keep it beside under another name.")
@config_option
@json_option
def restore(source: Path, replace: bool, config_path: Path | None, as_json: bool) -> None:
    """Bring back what `pm backup` saved in SOURCE, into the places that the configuration names.

    Every checksum is compared before anything is put into place. Where there is no configuration file yet, that of the
    backup is written, without its secrets. Stop the service before you replace what it works on.

    \b
    Example: pm restore /mnt/backups/pm-20261125T023000Z.zip
    """
    from pm import edges
    from pm.restore import restore as bring_back

    done = bring_back(source, config_path=config_path, replace=replace, at=edges.wall_now())
    manifest = done.manifest
    if as_json:
        told = {
            "made_at": manifest.made_at,
            "restored": [str(place) for place in done.places],
            "aside": [str(place) for place in done.aside],
            "not_covered": manifest.not_covered,
            "secrets_to_set": manifest.secrets,
        }
        click.echo(json.dumps(told, indent=1))
    else:
        click.echo(f"{manifest.plant} as of {manifest.made_at}, made by pm {manifest.pm}:")
        for place in done.places:
            click.echo(f"  {place}")
    for place in done.aside:
        click.echo(f"what was there before is {place}", err=True)
    for lacking in manifest.not_covered:
        click.echo(f"not in the backup: {lacking}", err=True)
    if manifest.secrets:
        click.echo(f"secrets are not in the backup; set again: {', '.join(manifest.secrets)}", err=True)
