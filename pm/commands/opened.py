"""What commands open for a while: the records, a model, a progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from forecasting.epochs import Progress
    from forecasting.predict import TransformerForecaster
    from pm.config import Config
    from pm.records import Records


@contextmanager
def opened_records(config: Config) -> Iterator[Records]:
    from pm import edges

    with edges.open_records(config) as records:
        yield records


@contextmanager
def training_progress() -> Iterator[Callable[[Progress], None]]:
    """A bar with loss and ETA on standard error; where that is no terminal, a line an epoch."""
    from rich.console import Console

    from pm.progress import epoch_lines, training_bar

    console = Console(stderr=True)
    with training_bar(console) if console.is_terminal else epoch_lines(console) as report:
        yield report


def opened_forecaster(config: Config, name: str | None) -> TransformerForecaster:
    """A model by folder needs no records database; one by version, or the champion, does."""
    from pm import edges

    if name is not None and Path(name).is_dir():
        return edges.load_folder(Path(name), config.assess.runtime)
    with opened_records(config) as records:
        return edges.load_forecaster(records, name, config.assess.runtime)


@contextmanager
def judging_progress(what: str) -> Iterator[Callable[[float], None]]:
    from rich.console import Console

    from pm.progress import share_bar

    with share_bar(Console(stderr=True), what) as report:
        yield report
