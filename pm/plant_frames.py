"""Lives and feeds of a simulated plant as the frames of a history, and the truth about them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.typing import NaTType

from pm.domain import Asset
from pm.plant import POINTS, SIGNATURES
from pm.plant_feed import Feed
from pm.plant_life import Floats, Life
from pm.plant_streams import Streams

FALSE_ERRORS_PER_HOUR = 1.0 / (24.0 * 100.0)
"""Errors that mean nothing, by asset and code."""
ERRORS_PER_DEGRADATION = 1.3
"""Mean number of errors of its own code from onset to failure; about three in ten stay silent."""


def readings(assets: list[Asset], feeds: list[Feed], times: pd.DatetimeIndex) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frame of `History.readings` and, row by row with it, when each is published."""
    sent = [np.flatnonzero(f.sent) for f in feeds]
    absent = np.full(len(times), np.nan)
    columns: dict[str, object] = {
        "time": times[np.concatenate(sent)],
        "asset": pd.array(np.repeat([a.name for a in assets], [len(s) for s in sent]), dtype="str"),
    }
    for point in POINTS:
        columns[point.name] = np.concatenate(
            [f.values.get(point.name, absent)[s] for f, s in zip(feeds, sent, strict=True)]
        )
    frame = pd.DataFrame(columns)
    delay = np.concatenate([f.delay_hours[s] for f, s in zip(feeds, sent, strict=True)])
    again = np.concatenate([f.doubled_after_hours[s] for f, s in zip(feeds, sent, strict=True)])
    published = frame["time"] + _lengths(delay)
    return frame, pd.DataFrame({"published": published, "doubled": published + _lengths(again)})


def _lengths(hours: Floats) -> pd.Series:
    return pd.Series(pd.to_timedelta(np.round(hours * 3600.0), unit="s")).astype("timedelta64[us]")


def events(
    assets: list[Asset], lives: list[Life], times: pd.DatetimeIndex, hours: float, streams: Streams
) -> pd.DataFrame:
    """The plant's log: failures, maintenance, and errors that sometimes come before one and sometimes cry wolf."""
    rows: list[tuple[int, str, str, str]] = []
    for asset, life in zip(assets, lives, strict=True):
        rows += [(step, asset.name, kind, code) for step, kind, code in life.events if step < len(times)]
        own = streams.within("errors").within(asset.name)
        for mode, signature in SIGNATURES.items():
            rate = np.full(len(times), FALSE_ERRORS_PER_HOUR)
            if mode in life.severity and signature.lead[1]:
                rate = rate + ERRORS_PER_DEGRADATION * 2.0 * life.severity[mode] / np.mean(signature.lead)
            fired = (own.of(mode.value).random(len(times)) < rate * hours) & life.up
            rows += [(int(step), asset.name, "error", signature.error) for step in np.flatnonzero(fired)]
    rows.sort(key=lambda row: (row[0], *row[1:]))
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    return pd.DataFrame(
        {
            "time": times[np.array(columns[0], dtype=int)],
            **{name: pd.array(columns[i], dtype="str") for i, name in enumerate(("asset", "kind", "code"), start=1)},
        }
    )


def truth(
    assets: list[Asset], lives: list[Life], times: pd.DatetimeIndex, hours: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Failures, and degradations that came to nothing: `SimulatedPlant.truth` and `.averted`."""
    rows = [
        {
            "asset": asset.name,
            "failure_mode": found.mode.value,
            "onset": _time(times, found.onset),
            "visible": _time(times, found.visible),
            "end": times[min(found.end, len(times) - 1)],
            "outcome": found.outcome,
            "lead_hours": 0.0 if found.onset is None else (found.end - found.onset) * hours,
            "amplitude": found.amplitude,
        }
        for asset, life in zip(assets, lives, strict=True)
        for found in life.degradations
    ]
    columns = ["asset", "failure_mode", "onset", "visible", "end", "outcome", "lead_hours", "amplitude"]
    table = pd.DataFrame(rows, columns=columns)
    for column in ("onset", "visible", "end"):
        table[column] = pd.to_datetime(table[column], utc=True).astype("datetime64[us, UTC]")
    failed = table[table["outcome"] == "failure"].rename(columns={"end": "failure"}).drop(columns="outcome")
    averted = table[table["outcome"] != "failure"].drop(columns="lead_hours")
    return (
        failed.sort_values(["failure", "asset"], kind="stable").reset_index(drop=True),
        averted.sort_values(["onset", "asset"], kind="stable").reset_index(drop=True),
    )


def _time(times: pd.DatetimeIndex, step: int | None) -> pd.Timestamp | NaTType:
    return pd.NaT if step is None else times[step]


def microseconds(times: pd.Series) -> NDArray[np.int64]:
    """Times as microseconds since the epoch."""
    return np.asarray(times.astype("datetime64[us, UTC]").astype("int64"), dtype=np.int64)
