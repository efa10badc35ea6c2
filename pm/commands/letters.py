"""Commands for messages that could not be read: list, retry, drop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from pm.commands.opened import opened_records
from pm.commands.options import config_option, json_option


@click.group()
def deadletters() -> None:
    """Messages that could not be read or stored: list them, read them again, drop them.

    \b
    Example: pm deadletters list
    """


@deadletters.command("list")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="The newest so many.")
@config_option
@json_option
def list_letters(limit: int, config_path: Path | None, as_json: bool) -> None:
    """Dead letters, newest first, with the reason of each.

    \b
    Example: pm deadletters list --limit 100 --json
    """
    from pm import config
    from pm.domain import from_us

    with opened_records(config.load(config_path)) as records:
        found, count = records.dead_letters(limit), records.dead_letter_count()
    if as_json:
        rows = [
            {
                "number": letter.number,
                "received_at": from_us(letter.reject.received_us).isoformat(),
                "topic": letter.reject.topic,
                "reason": letter.reject.reason,
                "payload": letter.reject.payload.decode("utf-8", "backslashreplace"),
            }
            for letter in found
        ]
        click.echo(json.dumps(rows, indent=1))
        return
    for letter in found:
        at = from_us(letter.reject.received_us)
        click.echo(f"{letter.number:>6}  {at:%Y-%m-%d %H:%M:%SZ}  {letter.reject.topic}  {letter.reject.reason}")
    click.echo(f"{len(found)} of {count} dead letters")


@deadletters.command("retry")
@click.argument("numbers", type=int, nargs=-1)
@config_option
@json_option
def retry_letters(numbers: Sequence[int], config_path: Path | None, as_json: bool) -> None:
    """Read dead letters again, by the templates and mappings of now; all of them when no NUMBERS are named.

    What can be read is stored, and only then forgotten. What still cannot be read is kept, with its new reason.

    \b
    Example: pm deadletters retry
    """
    from pm import config, edges
    from pm.record_letters import LetterStep

    configuration = config.load(config_path)
    with opened_records(configuration) as records:
        store = edges.open_store(configuration)
        try:
            told = edges.retry_dead_letters(configuration, records, store, numbers)
        finally:
            store.close()
        stored = told.messages - told.rejects
        at = edges.present(configuration, records)
        records.note_letters(LetterStep(at, None, "read again", told.messages, stored))
    if as_json:
        click.echo(json.dumps({"stored": stored, "kept": told.rejects}))
    else:
        click.echo(f"{stored} stored, {told.rejects} still cannot be read")


@deadletters.command("drop")
@click.argument("numbers", type=int, nargs=-1, required=True)
@config_option
def drop_letters(numbers: Sequence[int], config_path: Path | None) -> None:
    """Delete the dead letters of these NUMBERS for good.

    \b
    Example: pm deadletters drop 17 18
    """
    from pm import config, edges
    from pm.record_letters import LetterStep

    configuration = config.load(config_path)
    with opened_records(configuration) as records:
        gone = records.delete_dead_letters(list(numbers))
        records.note_letters(LetterStep(edges.present(configuration, records), None, "dropped", len(numbers), gone))
    click.echo(f"{gone} of {len(numbers)} dropped")
