"""Whether an asset's readings carry a forecast at all. Where they do not, the forecast abstains and says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pm.config import AssessSection
from pm.domain import Abstention, History, Silence, to_us

if TYPE_CHECKING:
    import pandas as pd

LEAST_INTERVALS = 2
"""A limit shorter than so many reading intervals counts as so many: daily readings are not stale after six hours."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of `[assess]` as they apply to readings of one interval."""

    stale_after: timedelta
    min_history: timedelta
    off_after: timedelta

    @classmethod
    def of(cls, rules: AssessSection, interval: timedelta) -> Limits:
        least = LEAST_INTERVALS * interval
        return cls(
            stale_after=max(rules.stale_after, least),
            min_history=max(rules.min_history, least),
            off_after=max(rules.off_after, least),
        )


def abstentions(
    history: History,
    at: datetime,
    *,
    first: Mapping[str, datetime],
    rules: AssessSection,
    silences: Mapping[str, Silence] = MappingProxyType({}),
) -> dict[str, Abstention]:
    """The assets whose forecast at `at` must abstain, and why; an asset that may be forecast is absent.

    history: its readings must reach back over `Limits.stale_after` and `off_after`; none dated after `at` is used.
        Off points that no reading has are unknown, and an unknown point is not off.
    first: first reading of each asset; one never read is absent.
    silences: assets whose source has said that it is silent. That is known at once, where a reading that does not come
        is only missed after `stale_after`; it must have lasted a reading interval, so that a connection that is lost
        and found again does not take a forecast away.
    Stale goes before off, and off before too little history: what the readings of now say before what is missing.
    """
    limits = Limits.of(rules, history.interval)
    readings = history.readings
    times = readings["time"]
    recent = np.flatnonzero((times >= at - limits.stale_after) & (times <= at))
    # A row without a single value says that nothing was read.
    values = readings.iloc[recent].drop(columns=["time", "asset"]).to_numpy(np.float64)
    read = ~np.isnan(values).all(axis=1)
    fresh = set(readings["asset"].array[recent[read]])
    off: frozenset[str] = frozenset()
    if rules.off_points:
        off = _switched_off(at, readings, history.interval, limits.off_after, rules)
    found: dict[str, Abstention] = {}
    for asset in history.assets:
        since = first.get(asset.name)
        if since is None or since > at:
            found[asset.name] = Abstention.TOO_LITTLE_HISTORY
        elif asset.name not in fresh or _silent(silences.get(asset.name), at - history.interval):
            found[asset.name] = Abstention.STALE
        elif asset.name in off:
            found[asset.name] = Abstention.OFF
        elif at - since < limits.min_history:
            found[asset.name] = Abstention.TOO_LITTLE_HISTORY
    return found


def _silent(silence: Silence | None, since: datetime) -> bool:
    return silence is not None and silence.since_us is not None and silence.since_us <= to_us(since)


def _switched_off(
    at: datetime, readings: pd.DataFrame, interval: timedelta, off_after: timedelta, rules: AssessSection
) -> frozenset[str]:
    """Assets all of whose off points read off, as far as they were read, from the beginning of `off_after` to `at`.

    They must have been read from its beginning on (one missing interval is borne): a gap says nothing about the asset.
    """
    points = list(rules.off_points)
    if any(point not in readings.columns for point in points):
        return frozenset()
    start = at - off_after
    recent = readings.iloc[np.flatnonzero((readings["time"] > start) & (readings["time"] <= at))]
    values = recent[points].to_numpy(np.float64)
    known = ~np.isnan(values)
    early = (recent["time"] <= start + LEAST_INTERVALS * interval).to_numpy()
    names, row = np.unique(recent["asset"].to_numpy(object).astype(str), return_inverse=True)

    def of_asset(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[assets]: whether any of the asset's rows is in the mask."""
        return np.bincount(row, mask, len(names)) > 0

    off = of_asset(known.any(1) & early) & ~of_asset((known & (values > rules.off_below)).any(1))
    for column in known.T:
        off &= of_asset(column)
    return frozenset(names[off].tolist())
