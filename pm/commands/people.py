"""Commands for people: alerts, users."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pm.commands.options import config_option, json_option

if TYPE_CHECKING:
    from pm.records import Records


def _records(config_path: Path | None) -> Records:
    from pm import config, edges

    return edges.open_records(config.load(config_path))


def _clock(records: Records) -> datetime:
    """Alerts are dated in plant time: a replay's or simulation's is the last assessment's, a plant's the clock's."""
    from pm.edges import wall_now

    return records.last_assessment() or wall_now()


@click.group()
def alerts() -> None:
    """List alerts; acknowledge, shelve or close one.

    \b
    Example: pm alerts ack 3f0c... --by ann
    """


@alerts.command("list")
@click.option("--all", "everything", is_flag=True, help="Closed alerts too.")
@config_option
@json_option
def list_alerts(everything: bool, config_path: Path | None, as_json: bool) -> None:
    """Standing alerts, newest first.

    \b
    Example: pm alerts list --all --json
    """
    from pm.domain import AlertState
    from pm.notices import alert_json

    found = _records(config_path).alerts(None if everything else [s for s in AlertState if s is not AlertState.CLOSED])
    if as_json:
        click.echo(json.dumps([alert_json(alert) for alert in found], indent=1))
        return
    for alert in found:
        click.echo(
            f"{alert.id}  {alert.raised_at:%Y-%m-%d %H:%MZ}  {alert.asset:<16} {alert.failure_mode:<12} "
            f"{alert.probability_at_raise:4.0%}  {alert.state.value:<24} {alert.cause}"
        )
    if not found:
        click.echo("No alerts." if everything else "No standing alerts; --all shows closed ones.")


def _change(alert: str, cause: str, by: str, config_path: Path | None, **more: Any) -> None:
    from pm.alerts import Cause

    records = _records(config_path)
    changed = records.change_alert(alert, Cause[cause], at=_clock(records), by=by, **more)
    click.echo(f"{changed.id} of {changed.asset}: {changed.state.value}")


@alerts.command("ack")
@click.argument("alert")
@click.option("--by", default="command line", help="Who acknowledges.")
@config_option
def acknowledge(alert: str, by: str, config_path: Path | None) -> None:
    """Acknowledge ALERT.

    \b
    Example: pm alerts ack 3f0c... --by ann
    """
    _change(alert, "ACKNOWLEDGE", by, config_path)


@alerts.command("shelve")
@click.argument("alert")
@click.option("--hours", type=click.FloatRange(0.1, 24 * 30), default=8.0, show_default=True, help="For how long.")
@click.option("--by", default="command line", help="Who shelves.")
@config_option
def shelve(alert: str, hours: float, by: str, config_path: Path | None) -> None:
    """Put ALERT aside for some hours.

    \b
    Example: pm alerts shelve 3f0c... --hours 12
    """
    _change(alert, "SHELVE", by, config_path, until=_clock(_records(config_path)) + timedelta(hours=hours))


@alerts.command("close")
@click.argument("alert")
@click.option("--because", required=True, help="Why; it stays in the alert's journal.")
@click.option("--by", default="command line", help="Who closes.")
@config_option
def close(alert: str, because: str, by: str, config_path: Path | None) -> None:
    """Close ALERT.

    \b
    Example: pm alerts close 3f0c... --because "bearing replaced"
    """
    _change(alert, "CLOSE", by, config_path, because=because)


@click.group()
def users() -> None:
    """Add, list, disable the dashboard's users.

    \b
    Example: pm users add ann --role operator
    """


@users.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice(["viewer", "operator", "admin"]), default="operator", show_default=True)
@click.option("--password-file", type=click.File(), help="File that holds the password; - for standard input.")
@config_option
def add_user(name: str, role: str, password_file: Any, config_path: Path | None) -> None:
    """Add user NAME; asks for the password when no file gives it.

    \b
    Example: pm users add ann --role operator
    """
    if password_file is not None:
        password = password_file.read().strip()
    elif sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        raise click.UsageError("no terminal to ask for the password on; give --password-file")
    if len(password) < 8:
        raise click.UsageError("the password is shorter than 8 characters; choose a longer one")
    _records(config_path).add_user(name, password, role=role)
    click.echo(f"user {name} added as {role}")


@users.command("list")
@config_option
@json_option
def list_users(config_path: Path | None, as_json: bool) -> None:
    """Users and their roles.

    \b
    Example: pm users list
    """
    found = _records(config_path).users()
    if as_json:
        click.echo(json.dumps([{"name": u.name, "role": u.role, "disabled": u.disabled} for u in found]))
        return
    for user in found:
        click.echo(f"{user.name:<24} {user.role:<10} {'disabled' if user.disabled else ''}".rstrip())


@users.command("disable")
@click.argument("name")
@config_option
def disable_user(name: str, config_path: Path | None) -> None:
    """Disable user NAME; its sessions end.

    \b
    Example: pm users disable ann
    """
    _records(config_path).set_disabled(name, True)
    click.echo(f"user {name} disabled")
