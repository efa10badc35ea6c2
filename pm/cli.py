"""The console script. Commands live in `pm.commands`; nothing heavy is imported before a command needs it."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from pm.errors import PmError

_ROOMS = {
    "demo": "running",
    "init": "running",
    "doctor": "running",
    "run": "running",
    "ingest": "ingesting",
    "simulate": "plant",
    "import": "plant",
    "export-history": "plant",
    "record": "plant",
    "train": "learning",
    "forecast": "learning",
    "replay": "judging",
    "evaluate": "judging",
    "export": "export",
    "models": "models",
    "retrain": "models",
    "deadletters": "letters",
    "backup": "backups",
    "restore": "backups",
    "alerts": "people",
    "users": "people",
}


class Commands(click.Group):
    """Finds a command's module by name, so that one command does not pay for the imports of the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in _ROOMS if (command := self.get_command(ctx, name)) and not command.hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ROOMS:
            return None
        module = importlib.import_module(f"pm.commands.{_ROOMS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_") + ("_" if cmd_name == "import" else ""))
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pm")
def pm() -> None:
    """Seventy-two hours of warning: predictive maintenance from MQTT to alerts.

    \b
    pm demo                    the whole service on a simulated plant
    pm init && pm run          the service on your plant
    """


def main(argv: list[str] | None = None) -> None:
    """Run a command. Exit status 0 done, 1 failed, 2 used wrongly; a failure is one line, a traceback with --debug."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        result: Any = pm.main(args=[a for a in arguments if a != "--debug"], prog_name="pm", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PmError as error:
        if debug:
            raise
        click.echo(f"pm: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        click.echo(f"pm: unexpected {type(error).__name__}: {error}; run again with --debug and report it", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
