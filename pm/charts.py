"""Figures as plain dicts for plotly.js: one house style for the dashboard and for the pages of reports.

A figure is `{"data": [...], "layout": {...}}` and holds only what JSON holds: NaN becomes null, times become local text
of the zone that the caller names (plotly knows no zones). Backgrounds are transparent and every colour keeps a contrast
of at least 3:1 on white and on the dashboard's dark ground, so that one figure serves light, dark and paper. What a
colour says is always said by a dash, a symbol or a word as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from pm.domain import from_us

Trace = dict[str, Any]
Figure = dict[str, Any]
Values = Sequence[Any] | np.ndarray[Any, Any]

INK = "#5b6773"
GRID = "rgba(127, 140, 153, 0.25)"
BLUE, ORANGE, GREEN, PURPLE, TEAL, BROWN = "#3a7bbf", "#c26a1c", "#3d8b5f", "#8f67b8", "#2b8a94", "#9a7040"
RED = "#d0453a"
GREY = "#7f8a95"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, TEAL, BROWN)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif'

CONFIG = {"displaylogo": False, "displayModeBar": False, "responsive": True}
"""Third argument of `Plotly.newPlot`."""


def colour(order: int) -> str:
    """The series colour at this place in the order of a legend."""
    return PALETTE[order % len(PALETTE)]


def dash(order: int) -> str:
    """The series dash at this place, so that two series differ without their colour."""
    return DASHES[order % len(DASHES)]


def plain(values: Values, zone: tzinfo = UTC) -> list[Any]:
    """Values as JSON holds them: NaN to None, datetimes (aware, or datetime64 in UTC) to local text in `zone`."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        values = [from_us(int(value)) for value in values.astype("datetime64[us]").astype(np.int64)]
    return [_plain(value, zone) for value in values]


def words(text: str) -> str:
    """Text of others (names of assets, codes) for a figure: plotly reads a subset of HTML, so it is escaped."""
    return escape(text, quote=False)


def _plain(value: Any, zone: tzinfo) -> Any:
    if value is None or value != value:  # NaN, and pandas' NaT, which claims to be a datetime
        return None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"time {value} carries no zone; give an aware datetime")
        return value.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def figure(
    traces: Iterable[Trace],
    *,
    title: str | None = None,
    x_title: str = "",
    y_title: str = "",
    y_percent: bool = False,
    x_range: tuple[Any, Any] | None = None,
    y_range: tuple[float, float] | None = None,
    height: int = 300,
    legend: bool | None = None,
    shapes: Iterable[Mapping[str, Any]] = (),
    annotations: Iterable[Mapping[str, Any]] = (),
    **layout: Any,
) -> Figure:
    """Traces in the house style. `y_percent` shows shares 0…1 as percentages; `legend` None shows one when it helps.

    `layout` overrides any top-level key of plotly's layout.
    """
    data = list(traces)
    named = [trace for trace in data if trace.get("showlegend", True) and trace.get("name")]
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": GRID,
        "ticklen": 4,
        "automargin": True,
        "fixedrange": True,
    }
    style: Figure = {
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "height": height,
        "margin": {"l": 52, "r": 14, "t": 40 if title else 14, "b": 40, "pad": 0},
        "hovermode": "x unified",
        "hoverlabel": {"namelength": -1},
        "showlegend": len(named) > 1 if legend is None else legend,
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "xaxis": {**axis, "title": {"text": x_title, "standoff": 8}, "showgrid": False},
        "yaxis": {**axis, "title": {"text": y_title, "standoff": 8}},
        "shapes": [dict(shape) for shape in shapes],
        "annotations": [dict(annotation) for annotation in annotations],
    }
    if title:
        style["title"] = {"text": title, "x": 0, "xref": "paper", "font": {"size": 14}}
    if y_percent:
        style["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    if x_range is not None:
        style["xaxis"]["range"] = plain(x_range)
    if y_range is not None:
        style["yaxis"]["range"] = list(y_range)
    return {"data": data, "layout": style | layout}


def line(
    x: Values,
    y: Values,
    *,
    name: str = "",
    colour: str = BLUE,
    dash: str = "solid",
    width: float = 2.0,
    step: bool = False,
    fill: bool = False,
    zone: tzinfo = UTC,
    **more: Any,
) -> Trace:
    """A line; a NaN in `y` is a gap in it, never a bridge. `step` holds each value until the next."""
    trace: Trace = {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": plain(x, zone),
        "y": plain(y),
        "connectgaps": False,
        "line": {"color": colour, "dash": dash, "width": width, "shape": "hv" if step else "linear"},
    }
    if fill:
        trace |= {"fill": "tozeroy", "fillcolor": faded(colour, 0.12)}
    return trace | more


def marks(
    x: Values, y: Values, *, name: str = "", colour: str = BLUE, symbol: str = "circle", size: float = 8.0,
    text: Sequence[str] = (), zone: tzinfo = UTC, **more: Any,
) -> Trace:  # fmt: skip
    """Single marks; `text` is shown on hovering."""
    trace: Trace = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": plain(x, zone),
        "y": plain(y),
        "marker": {"color": colour, "symbol": symbol, "size": size, "line": {"width": 1, "color": colour}},
    }
    if text:
        trace |= {"text": list(text), "hovertemplate": "%{text}<extra></extra>"}
    return trace | more


def bars(
    x: Values,
    y: Values,
    *,
    name: str = "",
    colour: str = BLUE,
    horizontal: bool = False,
    zone: tzinfo = UTC,
    **more: Any,
) -> Trace:
    """Bars from zero: `x` the categories (or places), `y` the lengths, whichever way they lie."""
    places, lengths = plain(x, zone), plain(y)
    return {
        "type": "bar",
        "name": name,
        "orientation": "h" if horizontal else "v",
        "x": lengths if horizontal else places,
        "y": places if horizontal else lengths,
        "marker": {"color": colour},
    } | more


def level(y: float, text: str, *, colour: str = RED) -> tuple[dict[str, Any], dict[str, Any]]:
    """A horizontal rule over the whole width with its words: a shape and an annotation for `figure`."""
    return (
        {
            "type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": y, "y1": y,
            "line": {"color": colour, "width": 1.5, "dash": "dash"},
        },
        {
            "xref": "paper", "x": 0, "xanchor": "left", "xshift": 4, "yref": "y", "y": y, "yanchor": "bottom",
            "text": text,
            "showarrow": False, "font": {"color": colour, "size": 11},
        },
    )  # fmt: skip


def faded(colour: str, opacity: float) -> str:
    """`#rrggbb` as rgba of this opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity:g})"


def reliability(
    curves: Mapping[str, Sequence[tuple[float, float, float]]], *, title: str | None = None, height: int = 360
) -> Figure:
    """Forecast against observed: per name a curve of (mean forecast, observed share, number of forecasts) per bin."""
    top = max([0.05, *(max(p, o) for curve in curves.values() for p, o, _ in curve if math.isfinite(p + o))])
    end = min(1.0, 1.05 * top)
    traces = [line([0, end], [0, end], name="perfect", colour=GREY, dash="dot", width=1.5, hoverinfo="skip")]
    for order, (name, curve) in enumerate(curves.items()):
        trace = line(
            [p for p, _, _ in curve], [o for _, o, _ in curve], name=name, colour=colour(order), dash=dash(order)
        )
        traces.append(
            trace
            | {
                "mode": "lines+markers",
                "marker": {"size": 7, "symbol": order},
                "text": [f"{name}: forecast {p:.1%}, observed {o:.1%}, {n:,.0f} forecasts" for p, o, n in curve],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    made = figure(
        traces, title=title, x_title="forecast probability", y_title="share that failed", y_percent=True,
        x_range=(0, end), y_range=(0, end), height=height, hovermode="closest",
    )  # fmt: skip
    made["layout"]["xaxis"] |= {"tickformat": ".0%"}
    return made


def precision_recall(
    curves: Mapping[str, tuple[Values, Values]], *, title: str | None = None, height: int = 360
) -> Figure:
    """Per name (recall, precision), both shares."""
    traces = [
        line(recall, precision, name=name, colour=colour(order), dash=dash(order))
        for order, (name, (recall, precision)) in enumerate(curves.items())
    ]
    made = figure(
        traces, title=title, x_title="recall: failures found", y_title="precision: warnings that were right",
        y_percent=True, x_range=(0, 1), y_range=(0, 1.02), height=height, hovermode="closest",
    )  # fmt: skip
    made["layout"]["xaxis"] |= {"tickformat": ".0%"}
    return made


def histogram(
    values: Values,
    edges: Sequence[float],
    *,
    x_title: str,
    y_title: str = "count",
    title: str | None = None,
    height: int = 280,
) -> Figure:
    """How many values lie between each two `edges`; values outside count into the outer bins, NaN not at all."""
    kept = np.asarray([v for v in plain(values) if v is not None], dtype=float)
    counts, _ = np.histogram(np.clip(kept, edges[0], edges[-1]), bins=np.asarray(edges, dtype=float))
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    spans = [f"{a:g} to {b:g}: {n}" for (a, b), n in zip(pairwise(edges), counts, strict=True)]
    trace = bars(middles, counts, text=spans, textposition="none", hovertemplate="%{text}<extra></extra>")
    trace["width"] = [0.92 * (b - a) for a, b in pairwise(edges)]
    made = figure([trace], title=title, x_title=x_title, y_title=y_title, height=height, hovermode="closest")
    made["layout"]["xaxis"]["tickvals"] = list(edges)
    return made


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time in a timeline's row; open-ended ones end where the record ends."""

    row: str
    start: datetime
    end: datetime
    text: str
    kind: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment in a timeline's row."""

    row: str
    time: datetime
    text: str
    kind: str


_KINDS: Mapping[str, tuple[str, str]] = {
    "warned": (GREEN, "circle"),
    "missed": (RED, "x"),
    "true alert": (BLUE, "square"),
    "false alert": (ORANGE, "diamond"),
    "undecided alert": (GREY, "square-open"),
    "alert": (ORANGE, "square"),
    "failure": (RED, "x"),
    "error": (ORANGE, "triangle-up"),
    "maintenance": (TEAL, "star"),
}
"""Colour and symbol by kind of bar or mark; other kinds take the next colour of the palette."""


def kind_style(kind: str, order: int = 0) -> tuple[str, str]:
    """Colour and symbol of a kind of event, alert or failure, the same in every figure."""
    return _KINDS.get(kind, (colour(order), "circle"))


def timeline(
    rows: Sequence[str], alerts: Sequence[Bar] = (), moments: Sequence[Mark] = (), *, title: str | None = None,
    zone: tzinfo = UTC, height: int | None = None,
) -> Figure:  # fmt: skip
    """One row per asset: alerts as bars, failures (and whatever else) as marks, each kind with a legend entry."""
    traces: list[Trace] = []
    for order, kind in enumerate(dict.fromkeys(bar.kind for bar in alerts)):
        these = [bar for bar in alerts if bar.kind == kind]
        x: list[datetime | None] = []
        y: list[str | None] = []
        text: list[str] = []
        for bar in these:
            x += [bar.start, bar.end, None]
            y += [bar.row, bar.row, None]
            text += [bar.text, bar.text, ""]
        trace = line(x, y, name=kind, colour=kind_style(kind, order)[0], width=9, zone=zone, opacity=0.75)
        traces.append(trace | {"text": text, "hovertemplate": "%{text}<extra></extra>"})
    for order, kind in enumerate(dict.fromkeys(mark.kind for mark in moments)):
        marked = [mark for mark in moments if mark.kind == kind]
        shade, symbol = kind_style(kind, order)
        traces.append(
            marks(
                [m.time for m in marked], [m.row for m in marked], name=kind, colour=shade, symbol=symbol, size=10,
                text=[m.text for m in marked], zone=zone,
            )
        )  # fmt: skip
    made = figure(
        traces, title=title, height=height or 90 + 22 * max(3, len(rows)), legend=True, hovermode="closest",
    )  # fmt: skip
    made["layout"]["xaxis"] |= {"type": "date", "showgrid": True}
    made["layout"]["yaxis"] |= {
        "type": "category", "categoryorder": "array", "categoryarray": list(reversed(rows)),
        "range": [-0.6, len(rows) - 0.4], "dtick": 1,
    }  # fmt: skip
    return made
