"""The command line: quick help, documented commands, exit statuses, one-line failures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from pm.cli import pm

DOCS = Path(__file__).parents[1] / "docs"


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pm.cli", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )


def commands(group: click.Group, path: str = "pm") -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            found += commands(command, f"{path} {name}")
        else:
            found.append((f"{path} {name}", command))
    return found


def test_help_imports_neither_torch_nor_pandas() -> None:
    program = (
        "import sys; sys.argv = ['pm', '--help']\n"
        "from pm.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'pandas', 'numpy', 'flask', 'sqlalchemy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Seventy-two hours of warning" in done.stdout


@pytest.mark.parametrize(("path", "command"), commands(pm), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_has_help_with_an_example_and_its_place_in_the_docs(path: str, command: click.Command) -> None:
    assert command.help
    assert "Example: pm" in command.help
    assert any(parameter.name == "config_path" for parameter in command.params) or path in {"pm init", "pm demo"}
    assert f"`{path}" in (DOCS / "commands.md").read_text(encoding="utf-8")


def test_used_wrongly_is_2_failed_is_1_and_a_failure_is_one_line(tmp_path: Path) -> None:
    assert run("no-such-command").returncode == 2
    assert run("import").returncode == 2
    failed = run("alerts", "list", "--config", "absent.toml", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.strip().count("\n") == 0
    assert "pm init" in failed.stderr
    assert "Traceback" in run("alerts", "list", "--config", "absent.toml", "--debug", cwd=tmp_path).stderr


def test_init_writes_a_valid_configuration_and_never_over_another(tmp_path: Path) -> None:
    assert run("init", cwd=tmp_path).returncode == 0
    listed = run("alerts", "list", "--json", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout) == []
    again = run("init", cwd=tmp_path)
    assert again.returncode == 1
    assert "pm.toml" in again.stderr


def test_a_damaged_recording_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    made = run("simulate", "--out", "plant", "--assets", "3", "--days", "20", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    events = tmp_path / "plant/events.csv"
    events.write_text(events.read_text() + "2026-01-05T00:00:00Z,nobody,error,x\n")
    refused = run("import", "plant", cwd=tmp_path)
    assert refused.returncode == 1
    assert "events.csv" in refused.stderr and "nobody" in refused.stderr
    listed = run("export-history", "--out", "back", cwd=tmp_path)
    assert listed.returncode == 2
    assert "none" in listed.stderr


def test_a_simulated_recording_goes_in_and_comes_out_equal(tmp_path: Path) -> None:
    assert run("simulate", "--out", "plant", "--assets", "3", "--days", "20", cwd=tmp_path).returncode == 0
    for _ in range(2):  # a repeated import changes nothing
        done = run("import", "plant", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    out = run("export-history", "--out", "back", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    for name in ("assets.csv", "events.csv", "recording.toml", "readings.parquet"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "plant" / name).read_bytes(), name
