"""Forecasts on demand: of the store's assets or a recording's, now, as of a time, or at each asset's last reading."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from pm import archive, edges, quality
from pm.config import Config
from pm.domain import REPORTED_HOURS, Explanation, Forecast, History, Silence
from pm.errors import RecordingError, StoreError
from pm.ports import Forecaster

Issued = tuple[Forecast, Explanation | None]
"""A forecast, and why it is what it is where that was asked for."""


def of_store(forecaster: Forecaster, config: Config, *, at: datetime | str, asset: str | None) -> list[Issued]:
    """Forecasts of the plant's assets. at: a time, `now` (plant time), or `last`."""
    with edges.open_records(config) as records:
        store = edges.open_store(config)
        try:
            moment = edges.present(config, records) if at == "now" else at
            end = moment if isinstance(moment, datetime) else edges.present(config, records)
            start = end - forecaster.lookback - config.plant.interval
            if moment == "last":
                first = min((last for _, last in store.span().values()), default=end)
                start = first - forecaster.lookback - config.plant.interval
            names = None if asset is None else [asset]
            history = archive.plant_history(store, records, config.plant.interval, assets=names, start=start, end=end)
            if asset is not None and not history.assets:
                raise StoreError(f"asset {asset!r} is not known; 'pm forecast' without --asset names them all")
            # The first reading decides whether there is history enough, and may lie before what was read here.
            spans = {name: first for name, (first, _) in store.span().items()}
            return _issue(
                history,
                forecaster,
                config,
                at=moment,
                first=spans,
                explained=asset is not None,
                silences=records.silences(),
            )
        finally:
            store.close()


def of_history(
    history: History, forecaster: Forecaster, config: Config, *, at: datetime | str, asset: str | None
) -> list[Issued]:
    """Forecasts of a recording's assets. at: a time; `last` or `now`, each asset's own last reading."""
    if asset is not None:
        history = history.only([asset])
        if not history.assets:
            raise RecordingError(f"asset {asset!r} is not in the recording; name one of its assets.csv")
    moment = "last" if at == "now" else at
    first = {str(name): time.to_pydatetime() for name, time in history.readings.groupby("asset")["time"].min().items()}
    return _issue(history, forecaster, config, at=moment, first=first, explained=asset is not None)


def write_csv(forecasts: Sequence[Forecast], path: Path) -> None:
    """`asset,rul_hours,p24,p48,p72`, a row an asset; empty where the forecast abstained."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["asset", "rul_hours", *(f"p{hours}" for hours in REPORTED_HOURS)])
        for forecast in forecasts:
            numbers = [forecast.rul_hours, *(forecast.probability(hours) for hours in REPORTED_HOURS)]
            writer.writerow([forecast.asset, *("" if n is None else f"{n:.6g}" for n in numbers)])


def _issue(
    history: History,
    forecaster: Forecaster,
    config: Config,
    *,
    at: datetime | str,
    first: Mapping[str, datetime],
    explained: bool,
    silences: Mapping[str, Silence] | None = None,
) -> list[Issued]:
    """Forecasts by the rules of the service: what it would abstain from is abstained from here."""
    if isinstance(at, datetime):
        groups: dict[datetime, list[str]] = {at: [asset.name for asset in history.assets]}
    else:
        groups = {}
        for name, time in history.readings.groupby("asset")["time"].max().items():
            groups.setdefault(time.to_pydatetime(), []).append(str(name))
    issued: dict[str, Issued] = {}
    for moment, names in groups.items():
        part = history.only(names)
        silent = quality.abstentions(part, moment, first=first, rules=config.assess, silences=silences or {})
        able = part.only([name for name in names if name not in silent])
        for forecast in forecaster.forecast(able, moment) if able.assets else []:
            why = forecaster.explain(able, moment, forecast.asset) if explained and not forecast.abstained else None
            issued[forecast.asset] = forecast, why
        for name, abstained in silent.items():
            issued[name] = Forecast(asset=name, time=moment, model=forecaster.version, abstained=abstained), None
    return [issued[asset.name] for asset in history.assets if asset.name in issued]
