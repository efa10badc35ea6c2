"""Options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


class Moment(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """An aware time in ISO 8601, or `now`; kept as None for `last` and `now`, which the command gives its own sense."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | str:
        if isinstance(value, datetime) or value in {"now", "last"}:
            return value  # type: ignore[no-any-return]
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time; write it as 2026-11-23T10:00:00Z", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no time zone; end it with Z for UTC", param, ctx)
        return moment.astimezone(UTC)


def config_option(function: F) -> F:
    """`--config pm.toml`, as every command has it; `--debug` is taken by `pm.cli.main` before click sees it."""
    return click.option(
        "--config", "config_path", type=FILE, default=None, help="Configuration file; pm.toml when it is there."
    )(function)


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")(function)
