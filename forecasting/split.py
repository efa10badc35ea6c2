"""Which assets a forecaster learns from, which stop and calibrate it, and which only judge it; and from when on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from pm.domain import EventKind, History

LATER_SHARE = 0.25
"""Share of the record, its latest, that validates."""
MIN_LATER_FAILURES = 20
"""With fewer failures in that part, too few to stop by, validation takes the whole record of its assets."""


@dataclass(frozen=True, slots=True)
class Split:
    """Names of assets, each in exactly one part, in the history's order."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]

    def judging(self, names: Sequence[str]) -> list[str]:
        """Those of these assets that can judge: held out, or, where none of them was, never seen; none where all were
        trained on or validated by."""
        kept = [name for name in names if name in self.held_out]
        return kept or [name for name in names if name not in self.train and name not in self.validation]


def split_assets(history: History, hold_out: float, validation: float, seed: int) -> Split:
    """Deal the assets into parts, alike in asset model and in having failed.

    hold_out: share of all assets kept for judging; 0 keeps none. validation: share of the others. With two assets or
    more neither training nor validation is empty; a single asset trains and validates.
    """
    failed = set(history.events["asset"][history.events["kind"] == EventKind.FAILURE.value])
    models = {asset.name: asset.model for asset in history.assets}
    rng = np.random.default_rng(seed)
    names = list(models)
    held = _deal(names, hold_out, len(names) - 2, failed, models, rng)
    rest = [name for name in names if name not in held]
    if len(rest) < 2:
        return Split(tuple(rest), tuple(rest), tuple(name for name in names if name in held))
    validating = _deal(rest, validation, len(rest) - 1, failed, models, rng, least=1)
    return Split(
        train=tuple(name for name in rest if name not in validating),
        validation=tuple(name for name in rest if name in validating),
        held_out=tuple(name for name in names if name in held),
    )


def with_new_assets(split: Split, history: History) -> Split:
    """The same parts for the assets that are still there; assets that are new train."""
    names = [asset.name for asset in history.assets]
    validation, held_out = set(split.validation), set(split.held_out)
    return Split(
        train=tuple(name for name in names if name in split.train or name not in validation | held_out),
        validation=tuple(name for name in names if name in validation),
        held_out=tuple(name for name in names if name in held_out),
    )


def validation_start(history: History, validation_assets: Sequence[str]) -> datetime | None:
    """From when the validation assets validate, and until when the others train; None when the split is by asset only.

    None where records end in failure (run-to-failure has no later time to speak of) or where the latest quarter holds
    too few failures to judge by.
    """
    failures = history.events[history.events["kind"] == EventKind.FAILURE.value]
    last_failure = failures.groupby("asset")["time"].max()
    last_reading = history.readings.groupby("asset")["time"].max()
    ended = (last_failure.reindex(last_reading.index) >= last_reading - history.interval).mean()
    if not len(last_reading) or ended > 0.5:
        return None
    begin, end = history.readings["time"].min(), history.readings["time"].max()
    start = (end - (end - begin) * LATER_SHARE).floor("s")
    later = failures[failures["asset"].isin(list(validation_assets)) & (failures["time"] > start)]
    return start.to_pydatetime() if len(later) >= MIN_LATER_FAILURES else None


def _deal(
    names: Sequence[str],
    share: float,
    most: int,
    failed: set[str],
    models: dict[str, str],
    rng: np.random.Generator,
    least: int = 0,
) -> set[str]:
    """About `share` of the names, spread evenly over strata of asset model and having failed.

    The names are shuffled, sorted by stratum and taken at even distances, so that a stratum too small for a whole
    asset of its own still counts towards its neighbour's.
    """
    count = min(max(round(share * len(names)), least, 1 if share > 0 and len(names) > 2 else 0), max(most, 0))
    if count == 0:
        return set()
    shuffled = [names[i] for i in rng.permutation(len(names))]
    ordered = sorted(shuffled, key=lambda name: (name not in failed, models[name]))
    places = np.floor((np.arange(count) + rng.random()) * len(names) / count).astype(int)
    return {ordered[i] for i in places}
