"""The figures of an asset's page: the hazard ahead, the forecasts behind, the points and the events on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dashboards.wording import percent
from pm import charts
from pm.domain import HORIZON_HOURS, Alert, EventKind, Forecast, Point

if TYPE_CHECKING:
    import pandas as pd

MAX_SAMPLES = 1500
"""More samples than a screen has columns are thinned to their extremes."""
POINT_HEIGHT = 190


def ahead(forecast: Forecast) -> charts.Figure:
    """Hazard per step (bars) and cumulative probability of failure (line) over the horizon after `forecast.time`."""
    steps = len(forecast.hazard)
    ends = [(i + 1) * forecast.step_hours for i in range(steps)]
    starts = [i * forecast.step_hours for i in range(steps)]
    cumulative = [forecast.probability(hours) for hours in [0.0, *ends]]
    bars = charts.bars(
        [(a + b) / 2 for a, b in zip(starts, ends, strict=True)],
        list(forecast.hazard),
        name=f"hazard per {'hour' if forecast.step_hours == 1 else f'{forecast.step_hours:g} h'}",
        colour=charts.ORANGE,
        width=[0.85 * forecast.step_hours] * steps,
        opacity=0.4,
        text=[f"{percent(h)} from {a:g} to {b:g} h" for h, a, b in zip(forecast.hazard, starts, ends, strict=True)],
        textposition="none",
        hovertemplate="hazard %{text}<extra></extra>",
    )
    line = charts.line(
        [0.0, *ends],
        cumulative,
        name="probability of failure by then",
        width=2.5,
        yaxis="y2",
        text=[f"{percent(p)} within {h:g} h" for p, h in zip(cumulative, [0.0, *ends], strict=True)],
        hovertemplate="%{text}<extra></extra>",
    )
    made = charts.figure(
        [bars, line], x_title="hours from the forecast", y_percent=True, x_range=(0, HORIZON_HOURS), height=380,
        hovermode="x",
    )  # fmt: skip
    layout = made["layout"]
    layout["xaxis"] |= {"tickvals": [0, 12, 24, 36, 48, 60, 72]}
    # The line lies over the bars, so its axis must be the one that overlays; the bars keep to the lower half.
    layout["yaxis2"] = layout["yaxis"] | {
        "overlaying": "y",
        "side": "left",
        "tickmode": "auto",
        "title": {"text": "probability", "standoff": 8},
        "range": [0.0, _top(cumulative)],
    }
    layout["yaxis"] |= {
        "side": "right",
        "showgrid": False,
        "title": {"text": "hazard", "standoff": 8},
        "range": [0.0, max(0.002, 2.2 * max(forecast.hazard, default=0.0))],
        "tickformat": ".2~%",
        "nticks": 5,
    }
    layout["margin"] |= {"r": 60}
    return made


def _top(shares: Sequence[float | None]) -> float:
    """Upper end of an axis of shares: room above the highest, at most 1.02, never so low that noise looks large."""
    return min(1.02, max(0.02, 1.15 * max((share for share in shares if share is not None), default=0.0)))


def behind(
    history: Sequence[Forecast],
    alerts: Sequence[Alert],
    failures: Sequence[datetime],
    *,
    threshold: float | None,
    start: datetime,
    end: datetime,
    zone: tzinfo,
    zone_name: str,
) -> charts.Figure:
    """The probabilities as they were forecast, the threshold, and where alerts were raised and failures came.

    An abstention is a gap in the lines; so is a time without assessments.
    """
    times: list[datetime | None] = [forecast.time for forecast in history]
    traces = []
    for hours, shade, dash in ((72, charts.BLUE, "solid"), (24, charts.PURPLE, "dot")):
        shares = [forecast.probability(hours) for forecast in history]
        broken_times, broken = _broken(times, shares)
        traces.append(
            charts.line(
                broken_times, broken, name=f"within {hours} h", colour=shade, dash=dash, fill=hours == 72, zone=zone,
                hovertemplate="%{y:.1%}",
            )
        )  # fmt: skip
    top = max([0.1, *(share for f in history if (share := f.probability()) is not None), threshold or 0.0])
    top = min(1.02, 1.2 * top)
    raised = [alert for alert in alerts if start < alert.raised_at <= end]
    if raised:
        traces.append(
            charts.marks(
                [alert.raised_at for alert in raised], [alert.probability_at_raise for alert in raised],
                name="alert raised", colour=charts.ORANGE, symbol="triangle-down", size=12, zone=zone,
                text=[
                    f"alert: {charts.words(alert.failure_mode)}, {percent(alert.probability_at_raise)}"
                    for alert in raised
                ],
            )
        )  # fmt: skip
    shapes = [_upright(time, charts.kind_style("failure")[0], "solid", zone) for time in failures]
    if failures:
        traces.append(
            charts.marks(
                failures, [0.0] * len(failures), name="failure", colour=charts.RED, symbol="x", size=10, zone=zone,
                text=["failure"] * len(failures), cliponaxis=False,
            )
        )  # fmt: skip
    rules = [charts.level(threshold, "alert threshold")] if threshold is not None else []
    made = charts.figure(
        traces, x_title=zone_name, y_title="probability of failure", y_percent=True, y_range=(0.0, top), height=290,
        shapes=[*shapes, *(shape for shape, _ in rules)], annotations=[words for _, words in rules], legend=True,
    )  # fmt: skip
    made["layout"]["xaxis"] |= {"type": "date", "range": charts.plain([start, end], zone)}
    return made


def _broken(
    times: Sequence[datetime | None], shares: Sequence[float | None]
) -> tuple[list[datetime | None], list[float | None]]:
    """Times and shares with a None put between neighbours much further apart than is usual."""
    known = [time for time in times if time is not None]
    gaps = sorted(b - a for a, b in pairwise(known))
    usual = gaps[len(gaps) // 2] if gaps else timedelta(0)
    x: list[datetime | None] = []
    y: list[float | None] = []
    previous: datetime | None = None
    for time, share in zip(known, shares, strict=True):
        if previous is not None and time - previous > 3 * usual:
            x.append(previous + usual)
            y.append(None)
        x.append(time)
        y.append(share)
        previous = time
    return x, y


def _upright(time: datetime, colour: str, dash: str, zone: tzinfo) -> dict[str, Any]:
    x = charts.plain([time], zone)[0]
    return {
        "type": "line", "xref": "x", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "layer": "below",
        "line": {"color": charts.faded(colour, 0.7), "width": 1.5, "dash": dash},
    }  # fmt: skip


def point_figures(
    points: Sequence[Point],
    readings: pd.DataFrame,
    events: pd.DataFrame,
    *,
    interval: timedelta,
    start: datetime,
    end: datetime,
    zone: tzinfo,
) -> dict[str, charts.Figure]:
    """By point, its readings over time with its limits; events stand as uprights on each."""
    shapes = event_shapes(events, zone)
    return {point.name: _point(point, readings, shapes, interval, start, end, zone) for point in points}


def _point(
    point: Point,
    readings: pd.DataFrame,
    shapes: Sequence[Mapping[str, Any]],
    interval: timedelta,
    start: datetime,
    end: datetime,
    zone: tzinfo,
) -> charts.Figure:
    times_us, values = _samples(readings, point.name)
    times_us, values = gapped(*thinned(times_us, values, MAX_SAMPLES), interval // timedelta(microseconds=1))
    trace = charts.line(
        times_us.astype("datetime64[us]"), values, name=charts.words(point.name), width=1.5, zone=zone,
        hovertemplate="%{y:.4~g} " + charts.words(point.unit),
    )  # fmt: skip
    if len(values) < 60:
        trace |= {"mode": "lines+markers", "marker": {"size": 4, "color": charts.BLUE}}
    return _framed(point, [trace], values, shapes, start, end, zone)


def _framed(
    point: Point,
    traces: Sequence[charts.Trace],
    values: np.ndarray[Any, Any],
    shapes: Sequence[Mapping[str, Any]],
    start: datetime,
    end: datetime,
    zone: tzinfo,
) -> charts.Figure:
    """The figure of a point around its traces: its limits where `values` come near them, the events, the time."""
    limits = [
        charts.level(limit, words, colour=charts.GREY)
        for limit, words in ((point.low, "lowest that is plausible"), (point.high, "highest that is plausible"))
        if limit is not None and _near(limit, values)
    ]
    made = charts.figure(
        traces, y_title=charts.words(point.unit), height=POINT_HEIGHT, legend=False,
        shapes=[*shapes, *(shape for shape, _ in limits)], annotations=[words for _, words in limits],
    )  # fmt: skip
    made["layout"]["xaxis"] |= {"type": "date", "range": charts.plain([start, end], zone)}
    made["layout"]["margin"] |= {"t": 8, "b": 30}
    return made


def summed_figures(
    points: Sequence[Point],
    summaries: pd.DataFrame,
    events: pd.DataFrame,
    *,
    step: timedelta,
    start: datetime,
    end: datetime,
    zone: tzinfo,
) -> dict[str, charts.Figure]:
    """By point, the mean of every stretch of `step` in a band from its lowest to its highest, so that no spike is lost.

    summaries: as `ReadingStore.downsampled` lays out, of one asset.
    """
    shapes = event_shapes(events, zone)
    made = {}
    for point in points:
        own = summaries[summaries["point"] == point.name]
        ends = own["time"].to_numpy(dtype="datetime64[us]").astype(np.int64)
        step_us = step // timedelta(microseconds=1)
        times, mean = gapped(ends - step_us // 2, own["mean"].to_numpy(dtype=float), step_us)
        lowest, highest = (gapped(ends, own[name].to_numpy(dtype=float), step_us)[1] for name in ("lowest", "highest"))
        unit = charts.words(point.unit)
        told = [
            "" if np.isnan(m) else f"{m:.4g} {unit}, from {low:.4g} to {high:.4g}"
            for low, m, high in zip(lowest, mean, highest, strict=True)
        ]
        at = times.astype("datetime64[us]")
        quiet = {"hoverinfo": "skip", "showlegend": False}
        band = quiet | {"fill": "tonexty", "fillcolor": charts.faded(charts.BLUE, 0.18)}
        middle = charts.line(
            at, mean, name=charts.words(point.name), width=1.5, zone=zone, text=told, hovertemplate="%{text}"
        )
        edges = (charts.line(at, edge, width=0, zone=zone) for edge in (lowest, highest))
        traces = [edge | look for edge, look in zip(edges, (quiet, band), strict=True)] + [middle]
        made[point.name] = _framed(point, traces, np.concatenate((lowest, highest)), shapes, start, end, zone)
    return made


def _samples(readings: pd.DataFrame, point: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Times [N] in µs and values [N] of what was read of this point."""
    if point not in readings.columns or readings.empty:
        return np.empty(0, dtype=np.int64), np.empty(0)
    values = readings[point].to_numpy(dtype=float)
    times = readings["time"].to_numpy(dtype="datetime64[us]").astype(np.int64)
    kept = np.isfinite(values)
    return times[kept], values[kept]


def _near(limit: float, values: np.ndarray[Any, Any]) -> bool:
    """Whether a limit is close enough to the values that drawing it does not flatten them."""
    if not len(values) or not np.isfinite(values).any():
        return False
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    room = max(high - low, 1e-9 * max(abs(low), abs(high)))
    return low - room <= limit <= high + room


def thinned(
    times_us: np.ndarray[Any, Any], values: np.ndarray[Any, Any], limit: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """At most about `limit` samples: the lowest and the highest of each stretch, so that no spike is lost.

    times_us, values: [N] without NaN, sorted by time; returned as they are when N <= limit.
    """
    if len(values) <= limit:
        return times_us, values
    stretches = np.array_split(np.arange(len(values)), max(1, limit // 2))
    kept = np.unique([place for s in stretches for place in (s[values[s].argmin()], s[values[s].argmax()])])
    return times_us[kept], values[kept]


def gapped(
    times_us: np.ndarray[Any, Any], values: np.ndarray[Any, Any], interval_us: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The samples with a NaN where more than three intervals (or three usual distances) lie between two of them."""
    if len(values) < 2:
        return times_us, values
    distances = np.diff(times_us)
    wide = np.flatnonzero(distances > 3 * max(interval_us, int(np.median(distances))))
    return np.insert(times_us, wide + 1, times_us[wide] + interval_us), np.insert(values, wide + 1, np.nan)


def event_shapes(events: pd.DataFrame, zone: tzinfo) -> list[dict[str, Any]]:
    """An upright per event: failures solid, maintenance dashed, errors dotted."""
    dashes = {EventKind.FAILURE: "solid", EventKind.MAINTENANCE: "dash", EventKind.ERROR: "dot"}
    return [
        _upright(time.to_pydatetime(), charts.kind_style(kind)[0], dashes[EventKind(kind)], zone)
        for time, kind in zip(events["time"], events["kind"], strict=True)
    ]
