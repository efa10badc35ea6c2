"""From frames of forecasts and failures to the arrays that `forecasting.metrics` judges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forecasting.metrics import Floats, HorizonScore, Ints, Outcomes, conditional, outcomes, score_horizon
from pm.domain import REPORTED_HOURS
from pm.scorecard import FailureTime

if TYPE_CHECKING:
    import pandas as pd

LATER = "24h to 72h"
"""Label of the score on failures more than a day ahead, among assets that live so long."""


def microseconds(times: pd.Series[Any]) -> Ints:
    """[N] microseconds since the epoch of a column of aware times, whatever its resolution."""
    us: Ints = times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64)
    return us


def outcomes_of(
    forecasts: pd.DataFrame, failures: Iterable[FailureTime], observed: Mapping[str, tuple[int, int]]
) -> Outcomes:
    """What followed each row of `forecasts` (columns `time`, `asset`).

    failures: those of assets that were not observed are passed over.
    observed: first and last reading of every asset, in microseconds since the epoch. All of them count in intervals,
        with forecasts or without.
    Raises ValueError for a forecast of an asset that was not observed.
    """
    names = sorted(observed)
    code = {name: index for index, name in enumerate(names)}
    asset = forecasts["asset"].astype(object).map(code)
    if asset.isna().any():
        raise ValueError(
            f"forecast of {forecasts['asset'][asset.isna()].iloc[0]!r}, which was not observed; name its span"
        )
    failed = [(code[f.asset], f.time_us) for f in failures if f.asset in code]
    return outcomes(
        asset.to_numpy(np.int64),
        microseconds(forecasts["time"]),
        [index for index, _ in failed],
        [time for _, time in failed],
        [observed[name][1] for name in names],
    )


def horizon_label(hours: int) -> str:
    return f"{hours}h"


def score_horizons(found: Outcomes, probability: Mapping[int, Floats], multiplicity: Floats) -> dict[str, HorizonScore]:
    """The score at every reported horizon, and on failures between the first and the last of them alone (`LATER`).

    probability: [N] by hours, NaN where none was issued. multiplicity: [R, A] of `forecasting.metrics`.
    """
    scores = {
        horizon_label(hours): score_horizon(found.within(hours), probability[hours], found.asset, multiplicity)
        for hours in REPORTED_HOURS
    }
    first, last = REPORTED_HOURS[0], REPORTED_HOURS[-1]
    later = conditional(probability[first], probability[last])
    scores[LATER] = score_horizon(found.within(last, after=first), later, found.asset, multiplicity)
    return scores


def probabilities(forecasts: pd.DataFrame) -> dict[int, Floats]:
    """[N] by reported hours out of the columns `p24`, `p48`, `p72`; NaN where the forecast abstained."""
    return {hours: _floats(forecasts[f"p{hours}"]) for hours in REPORTED_HOURS}


def _floats(column: pd.Series[Any]) -> NDArray[np.float64]:
    return column.to_numpy(np.float64, na_value=np.nan)
