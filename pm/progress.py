"""Progress on the console: a bar with rate and ETA on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from forecasting.epochs import Progress as Training


def _text(told: Training) -> str:
    validation = "" if told.validation is None else f", validation {told.validation:.4f}"
    return f"epoch {told.epoch}/{told.epochs}, loss {told.loss:.4f}{validation}, {told.rate:.0f} windows/s"


@contextmanager
def training_bar(console: Console) -> Iterator[Callable[[Training], None]]:
    """A bar for training; ETA as the trainer reckons it."""
    columns = (TextColumn("Training"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("train", total=1.0, told="")

        def report(told: Training) -> None:
            bar.update(task, completed=told.fraction, told=f"{_text(told)}, {told.eta_seconds:.0f} s left")

        yield report
        bar.update(task, completed=1.0)


@contextmanager
def epoch_lines(console: Console) -> Iterator[Callable[[Training], None]]:
    """One line when an epoch begins, for logs."""
    last = 0

    def report(told: Training) -> None:
        nonlocal last
        if told.epoch != last:
            last = told.epoch
            console.print(f"training: {_text(told)}, {told.fraction:.0%} done, {told.eta_seconds:.0f} s left")

    yield report


@contextmanager
def share_bar(console: Console, what: str) -> Iterator[Callable[[float], None]]:
    """A bar for work whose share done is known; silent where the console is no terminal."""
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)
