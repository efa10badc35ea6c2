"""The command that takes readings in and does nothing else: ingest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pm.commands.options import config_option

if TYPE_CHECKING:
    from pm.config import Config

_SHOWN = 5
"""Assets in each of the two lists of the live table."""


@click.command()
@click.option(
    "--watch", is_flag=True, help="Show feeds and assets as they are, each second; lines where no terminal is."
)
@click.option("--client-id", help="In place of mqtt.client_id: each process of a shared subscription needs its own.")
@config_option
def ingest(watch: bool, client_id: str | None, config_path: Path | None) -> None:
    """Ingest alone, from the brokers to the store, without assessment and dashboard; until Ctrl-C or SIGTERM.

    Several processes divide the messages among them by a shared subscription (mqtt.share).

    \b
    Example: pm ingest --watch
             pm ingest --client-id pm-ingest-2
    """
    from pm import config, logs, service

    environment = os.environ | ({"PM_MQTT__CLIENT_ID": client_id} if client_id else {})
    configuration = config.load(config_path, environment)
    if client_id:
        configuration = _apart(configuration)
    logs.configure(configuration.log)
    if watch:
        _watch(configuration, config_path)
    else:
        service.run(configuration, config_path=config_path, parts=("ingest",))


def _apart(configuration: Config) -> Config:
    """With a client id of this process's own at the further brokers too."""
    mqtt = configuration.mqtt
    more = tuple(
        broker.model_copy(update={"client_id": f"{mqtt.client_id}-{number}"})
        for number, broker in enumerate(mqtt.more, start=1)
    )
    return configuration.model_copy(update={"mqtt": mqtt.model_copy(update={"more": more})})


def _watch(configuration: Config, config_path: Path | None) -> None:
    import sys
    import time

    from rich.console import Console
    from rich.live import Live

    from pm import edges, logs, service, watch, watch_table

    store = edges.open_store(configuration)
    try:
        heard = watch.AssetsHeard({name: last for name, (_, last) in store.span().items()})
    finally:
        store.close()
    console = Console()
    before: list[watch.FeedNow] = []
    at = time.monotonic()

    def rows(running: service.Service) -> list[watch.FeedRow]:
        nonlocal before, at
        now, seconds = [watch.FeedNow.of(each) for each in running.ingests], time.monotonic() - at
        found, before, at = watch.rows(before, now, seconds), now, at + seconds
        return found

    def tell(running: service.Service) -> None:
        for row in rows(running):
            click.echo(watch_table.line(row, edges.wall_now()))

    if not console.is_terminal:
        service.run(configuration, config_path=config_path, parts=("ingest",), observer=heard, look=tell)
        return
    # The log goes above the table where both are on one terminal.
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=sys.stderr.isatty()) as shown:

        def show(running: service.Service) -> None:
            assets = heard.busiest(_SHOWN), heard.most_silent(_SHOWN)
            shown.update(watch_table.table(rows(running), *assets, edges.wall_now()), refresh=True)

        logs.configure(configuration.log)
        service.run(configuration, config_path=config_path, parts=("ingest",), observer=heard, look=show)
