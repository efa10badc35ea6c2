"""The files of a replay: `forecasts.parquet` and `alerts.csv`, as `docs/replay.md` lays them out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forecasting.survival import probability_within
from pm import page
from pm.domain import REPORTED_HOURS, Alert, Forecast, to_us
from pm.scorecard import FailureTime, lead_hours, spans

_ALERT_COLUMNS = (
    *("alert", "asset", "failure_mode", "raised_at", "state", "acknowledged_at", "cleared_at", "closed_at"),
    *("cause", "probability_at_raise", "lead_hours"),
)
_ROWS = 50_000
"""Forecasts held before they are written as one row group."""


class ForecastFile:
    """Writes forecasts as they are issued, so that a long replay holds few of them; whole or not at all.

    A context manager; the file stands under its name once the block has ended without an error.
    """

    def __init__(self, path: Path, failure_modes: Sequence[str]) -> None:
        """failure_modes: those of the recording; the forecaster's own are added."""
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._modes = list(failure_modes)
        self._held: list[Forecast] = []
        self._writer: pq.ParquetWriter | None = None

    def add(self, forecasts: Sequence[Forecast]) -> None:
        self._held += forecasts
        if len(self._held) >= _ROWS:
            self._write()

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write()
        finally:
            if self._writer is not None:
                self._writer.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)

    def _write(self) -> None:
        if self._writer is None:
            known = dict.fromkeys(self._modes)
            self._modes = list(known | dict.fromkeys(mode for f in self._held for mode in f.mode_probability))
        table = forecast_table(self._held, self._modes)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._partial, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._held = []


def forecast_table(forecasts: Sequence[Forecast], failure_modes: Sequence[str]) -> pa.Table:
    """One row per forecast, in the columns of `forecasts.parquet`; an abstention has nulls."""
    known = np.array([forecast.abstained is None for forecast in forecasts], np.bool_)
    issued = [forecast for forecast in forecasts if forecast.abstained is None]
    within = {hours: np.empty(len(issued)) for hours in REPORTED_HOURS}
    # Forecasts of one length at a time; in practice there is but one, the forecaster's.
    for size, step in {(len(f.hazard), f.step_hours) for f in issued}:
        rows = [i for i, f in enumerate(issued) if (len(f.hazard), f.step_hours) == (size, step)]
        hazard = np.array([issued[i].hazard for i in rows], np.float64).reshape(len(rows), size)
        for hours, probability in within.items():
            probability[rows] = probability_within(hazard, hours, step)
    lengths = np.where(known, 0, 0)
    lengths[known] = [len(f.hazard) for f in issued]
    flat = np.array([value for f in issued for value in f.hazard], np.float64)
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())

    def column(values: NDArray[np.float64] | Sequence[float | None]) -> pa.Array:
        spread = np.full(len(forecasts), np.nan)
        spread[known] = np.array(values, np.float64)
        return pa.array(spread, pa.float64(), mask=np.isnan(spread))

    columns = {
        "time": pa.array([to_us(f.time) for f in forecasts], pa.timestamp("us", tz="UTC")),
        "asset": pa.array([f.asset for f in forecasts], pa.string()),
        **{f"p{hours}": column(values) for hours, values in within.items()},
        "hazard": pa.ListArray.from_arrays(offsets, pa.array(flat, pa.float64()), mask=pa.array(~known)),
        "step_hours": column([f.step_hours for f in issued]),
        **{f"p72_{mode}": column([f.mode_probability.get(mode, 0.0) for f in issued]) for mode in failure_modes},
        "rul_hours": column([f.rul_hours for f in issued]),
        "abstained": pa.array([None if f.abstained is None else f.abstained.value for f in forecasts], pa.string()),
        "because": pa.array([f.because or None for f in forecasts], pa.string()),
        "model": pa.array([f.model for f in forecasts], pa.string()),
    }
    return pa.table(columns)


def read_forecasts(path: Path) -> pd.DataFrame:
    """`forecasts.parquet` without its hazards, which nobody who scores forecasts needs and which are most of it."""
    columns = [name for name in pq.read_schema(path).names if name != "hazard"]
    return pd.read_parquet(path, columns=columns)


def write_alerts(path: Path, alerts: Sequence[Alert], failures: Sequence[FailureTime]) -> None:
    """`alerts.csv`: one row per alert; `lead_hours` runs to the failure that it is matched with."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_ALERT_COLUMNS)
    for alert, span in zip(alerts, spans(alerts), strict=True):
        lead = lead_hours(span, failures)
        moments = (alert.acknowledged_at, alert.cleared_at, alert.closed_at)
        rows.writerow(
            (
                *(alert.id, alert.asset, alert.failure_mode, _text(alert.raised_at), alert.state.value),
                *(_text(moment) for moment in moments),
                *(alert.cause, repr(alert.probability_at_raise), "" if lead is None else f"{lead:g}"),
            )
        )
    page.write(text.getvalue(), path)


def _text(time: datetime | None) -> str:
    return "" if time is None else time.astimezone(UTC).isoformat().replace("+00:00", "Z")
