"""Training assets as service will meet the next asset: scaled by what other assets taught, never by themselves.

An asset model's scales and expectations come from a handful of assets, and sit closer to these than to any asset of
the same model that comes later: units differ by more than their own scatter. A network that has only seen assets
which the scales were fitted on takes the next unit's own level for wear. So the training assets are dealt into folds,
and each is normalised by what was fitted on the others (cross-fitting; Chernozhukov et al., "Double/debiased machine
learning", 2018). Whoever was not trained on, and service, uses what was fitted on all of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forecasting.conditions import NormalBehaviour, fit_behaviour
from forecasting.features import Ints, Normaliser, fleet_scale, model_index, normalised, sound_rows
from forecasting.windows import Grid

FOLDS = 4
"""An asset's scales come of at least three quarters of the others, of all others where a model has four or fewer."""


def cross_fitted(grid: Grid, normaliser: Normaliser) -> Normaliser:
    """`normaliser`, which was fitted on the assets of `grid`, with groups for these assets that leave them out.

    An asset that is the only one of its model keeps what was fitted on it: service will use that for the next one.
    """
    schema, models = grid.schema, model_index(grid)
    fold = _dealt(models)
    groups, regimes = len(schema.asset_models), normaliser.regimes
    group, condition, sound = models[grid.asset_of], regimes.of(grid.values), sound_rows(grid)
    own = fold[grid.asset_of]
    centres, scales, behaviours = [normaliser.centre], [normaliser.scale], [normaliser.behaviour]
    for number in range(1, fold.max(initial=0) + 1):
        rows = np.flatnonzero(own != number)
        values = grid.values[rows]
        centre, scale = fleet_scale(values, group[rows], condition[rows], groups, regimes.count)
        normal, present = normalised(values, centre, scale, group[rows], condition[rows])
        far = sound[rows]
        inputs = normaliser.behaviour.inputs
        behaviours.append(fit_behaviour(normal[far], present[far], group[rows][far], groups, inputs))
        centres.append(centre)
        scales.append(scale)
    behaviour = NormalBehaviour(
        normaliser.behaviour.inputs,
        np.concatenate([one.weights for one in behaviours]),
        np.concatenate([one.scale for one in behaviours]),
    )
    return replace(
        normaliser,
        centre=np.concatenate(centres),
        scale=np.concatenate(scales),
        behaviour=behaviour,
        fold_of={asset.name: int(fold[a]) for a, asset in enumerate(grid.assets) if fold[a]},
    )


def _dealt(models: Ints) -> Ints:
    """[A] fold of each asset from 1, the assets of a model in turn; 0 for the only one of its model."""
    fold = np.zeros(len(models), dtype=np.int64)
    for model in np.unique(models):
        alike = np.flatnonzero(models == model)
        if len(alike) > 1:
            fold[alike] = 1 + np.arange(len(alike)) % FOLDS
    return fold
