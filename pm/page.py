"""Reports as single pages: a template with its figures and plotly.js inside, so that it opens without a network."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pm import charts

NOT_KNOWN = "not known"


def render(template: str, *, figures: Mapping[str, charts.Figure], **values: Any) -> str:
    """The page of `pm/templates/<template>`: drawn where it has `<div data-figure="name">`, with `values` filled in."""
    environment = Environment(loader=PackageLoader("pm"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": percent, "number": number, "range": interval, "hours": hours}
    # A "<" in a name must not end the script element that carries the figures.
    drawn = json.dumps({"figures": figures, "config": charts.CONFIG}, allow_nan=False).replace("<", "\\u003c")
    return environment.get_template(template).render(
        figures=frozenset(figures), figures_json=drawn, plotly=_plotly(), **values
    )


def write(text: str, path: Path) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def percent(share: float | None, digits: int = 0) -> str:
    """0.382 as `38 %`; shares that would read as 0 or 100 without being so keep a digit more."""
    if share is None:
        return NOT_KNOWN
    if digits == 0 and (0 < share < 0.005 or 0.995 < share < 1):
        digits = 1
    return f"{100 * share:.{digits}f} %"


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many digits after the point, or that it is not known."""
    return NOT_KNOWN if value is None else f"{value:,.{digits}f}"


def hours(value: float | None) -> str:
    """`46 h`, with a digit after the point where it matters."""
    if value is None:
        return NOT_KNOWN
    return f"{value:.0f} h" if value >= 10 or value == int(value) else f"{value:.1f} h"


def interval(score: Mapping[str, Any], digits: int = 2, *, share: bool = False) -> str:
    """`0.62 to 0.81` of a score's `low` and `high`; empty where there is none."""
    low, high = score.get("low"), score.get("high")
    if low is None or high is None:
        return ""
    if share:
        return f"{100 * low:.0f} to {percent(high)}"
    return f"{number(low, digits)} to {number(high, digits)}"


def _plotly() -> str:
    """plotly.js out of the plotly package, found without importing it."""
    spec = find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("plotly is not installed; install pm with its dependencies")
    return (Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
