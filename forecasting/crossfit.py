"""Training assets as service will meet the next asset: normalised by what other assets taught.

The level of an asset model, and what its points should read given each other, come from a handful of assets, and sit
closer to these than to any asset of the model that comes later: units differ by more than their own scatter. A network
that has only seen assets which these were fitted on takes the next unit's own level for wear. So the training assets
are dealt into folds, and each is centred and expected by what was fitted on the others (cross-fitting; Chernozhukov et
al., "Double/debiased machine learning", 2018). Scales, conditions and which points tell of which stay those of all
training assets. Whoever was not trained on, and service, uses what was fitted on all of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from forecasting.conditions import ENOUGH_ROWS, NormalBehaviour, fit_expectations, thinned
from forecasting.features import Ints, Normaliser, model_index, normalised, scale_of, sound_rows
from forecasting.windows import Grid

FOLDS = 4
"""An asset's level comes of at least three quarters of the others, of all others where a model has four or fewer."""


def cross_fitted(grid: Grid, normaliser: Normaliser, fitted_on: Collection[str] | None = None) -> Normaliser:
    """`normaliser` with further groups for the assets it was fitted on, each of which leaves its own assets out.

    fitted_on: those assets, where `grid` holds others, too; all of it when None. Where the other assets of a model
    hold too few rows (or there are none), what was fitted on all stays: service will use that for the next asset.
    """
    schema, models = grid.schema, model_index(grid)
    known = np.array([fitted_on is None or asset.name in fitted_on for asset in grid.assets], dtype=bool)
    fold = _dealt(models, known & (np.diff(grid.offsets) > 0))
    count, block = fold.max(initial=0), len(schema.asset_models) + 1
    behaviour = normaliser.behaviour
    centre, scale, weights = (
        np.tile(part, (count + 1, 1, 1)) for part in (normaliser.centre, normaliser.scale, behaviour.weights)
    )
    model, own, condition = models[grid.asset_of], fold[grid.asset_of], normaliser.regimes.of(grid.values)
    usable, sound = known[grid.asset_of], sound_rows(grid)
    for number, group in np.unique(np.stack([fold, models], axis=1)[fold > 0], axis=0).tolist():
        others = np.flatnonzero(usable & (model == group) & (own != number))
        place = number * block + group
        for c in range(max(normaliser.regimes.count, 1)):
            here = others[condition[others] == c]
            centre[place, c], _ = scale_of(grid.values, here, centre[place, c], scale[place, c])
        far = thinned(others[sound[others]])
        if len(far) < ENOUGH_ROWS:
            continue
        normal, present = normalised(grid.values[far], centre, scale, np.full(len(far), place), condition[far])
        for point, found in enumerate(fit_expectations(normal, present, behaviour.inputs, ENOUGH_ROWS)):
            if found is not None:
                weights[place, point] = found[0]
    return replace(
        normaliser,
        centre=centre,
        scale=scale,
        behaviour=NormalBehaviour(behaviour.inputs, weights, np.tile(behaviour.scale, (count + 1, 1))),
        fold_of={asset.name: int(fold[a]) for a, asset in enumerate(grid.assets) if fold[a]},
    )


def _dealt(models: Ints, chosen: np.ndarray) -> Ints:
    """[A] fold of each chosen asset from 1, those of a model in turn; 0 for others, and for the only one of its
    model."""
    fold = np.zeros(len(models), dtype=np.int64)
    for model in np.unique(models):
        alike = np.flatnonzero((models == model) & chosen)
        if len(alike) > 1:
            fold[alike] = 1 + np.arange(len(alike)) % FOLDS
    return fold
