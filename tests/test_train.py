from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from forecasting import epochs, train
from forecasting.batches import Resident
from forecasting.epochs import Progress, batches
from forecasting.features import features_of, fit_normaliser
from forecasting.labels import labels_of
from forecasting.losses import counts
from forecasting.model import Architecture, HazardTransformer
from forecasting.precision import Precision, choose_device
from forecasting.train import Execution, base_hazard, failures_in, fit
from forecasting.trainer import MIN_PATCHES, Trainer, rate_at
from forecasting.windows import grid_of, schema_of
from pm.errors import TrainingError
from tests.forecasting_cases import START, TINY, event_frame, worn_plant

TRAIN, VALIDATION = ("pump-0", "pump-1", "pump-2", "pump-3"), ("pump-4", "pump-5")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plant():
    return worn_plant()


def trained(plant, settings=TINY, **options):
    return fit(plant, TRAIN, VALIDATION, schema_of(plant, settings), settings, **options)


def test_training_beats_the_base_rate(plant):
    result = trained(plant, TINY.model_copy(update={"epochs": 25, "patience": 25, "learning_rate": 3e-3}))
    metrics = result.artefact.metrics
    assert metrics["validation_nll"] < 0.8 * metrics["base_nll"]
    assert result.epochs[-1].loss < result.epochs[0].loss
    assert metrics["training_failures"] >= 6


def test_the_same_seed_gives_the_same_bits_and_another_does_not(plant):
    first, second = trained(plant), trained(plant)
    assert first.artefact.version == second.artefact.version
    other = trained(plant, TINY.model_copy(update={"seed": 1}))
    assert other.artefact.version.split("@")[1] != first.artefact.version.split("@")[1]


def test_training_leaves_the_random_state_alone(plant):
    before = torch.get_rng_state()
    trained(plant, TINY.model_copy(update={"epochs": 1}))
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_after_the_end_is_seen(plant):
    until = START + timedelta(days=30)
    cut = replace(
        plant,
        readings=plant.readings[plant.readings["time"] <= until].reset_index(drop=True),
        events=plant.events[plant.events["time"] <= until].reset_index(drop=True),
    )
    schema = schema_of(plant, TINY)
    whole = fit(plant, TRAIN, VALIDATION, schema, TINY, until=until)
    assert whole.artefact.version == fit(cut, TRAIN, VALIDATION, schema, TINY, until=until).artefact.version
    assert whole.artefact.trained_until == until


def test_training_assets_end_where_validation_begins(plant):
    start = START + timedelta(days=25)
    late = (plant.readings["time"] > start) & plant.readings["asset"].isin(TRAIN)
    spoilt = plant.readings.copy()
    spoilt.loc[late, "heat"] = 1e6
    schema = schema_of(plant, TINY)
    options = {"validation_from": start}
    as_is = fit(plant, TRAIN, VALIDATION, schema, TINY, **options).artefact
    changed = fit(replace(plant, readings=spoilt), TRAIN, VALIDATION, schema, TINY, **options).artefact
    # What came later calibrates, and nothing else.
    assert all(torch.equal(tensor, changed.weights[name]) for name, tensor in as_is.weights.items())
    assert as_is.normaliser.as_json() == changed.normaliser.as_json()
    assert as_is.metrics["validation_nll"] == changed.metrics["validation_nll"]


def test_accumulated_parts_equal_the_batch_in_one_piece(plant):
    grid = grid_of(plant, schema_of(plant, TINY))
    features, labels = features_of(grid, fit_normaliser(grid)), labels_of(grid)
    resident = Resident(grid, features, labels)
    ends = next(batches(grid, 12, np.random.default_rng(0)))
    weights = []
    for parts in (1, 3):
        settings = TINY.model_copy(update={"accumulate": parts, "point_dropout": 0.0})
        torch.manual_seed(0)
        sizes = Architecture(
            2, features.steps.shape[1], features.slow.shape[1], features.static.shape[1], 4, 72, 2, 16, 1, 2, 0.0
        )
        network = HazardTransformer(sizes, base_hazard(labels))
        trainer = Trainer(network, settings, Precision("fp32", "test"), 2, 10)
        trainer.step(resident, ends)
        weights.append(torch.cat([p.flatten() for p in network.parameters()]).detach())
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-4)


def test_every_step_is_in_a_window_of_an_epoch(plant):
    grid = grid_of(plant, schema_of(plant, TINY))
    starts = np.repeat(grid.offsets[:-1], np.diff(grid.offsets))
    covered = np.zeros(len(grid), dtype=bool)
    for ends in batches(grid, 16, np.random.default_rng(5)):
        for row, beyond in ends:
            covered[max(row + beyond - TINY.context + 1, starts[row]) : row + 1] = True
    assert covered.mean() > 0.99


def test_every_hour_before_the_end_of_a_record_is_learned_from_alike(plant):
    """Where records end in failure, hours left that were shown more often would look more dangerous than they are."""
    grid = grid_of(plant, schema_of(plant, TINY))
    resident = Resident(grid, features_of(grid, fit_normaliser(grid)), labels_of(grid))
    last = np.repeat(grid.offsets[1:] - 1, np.diff(grid.offsets))
    tokens = np.arange(TINY.context - TINY.patch, -1, -TINY.patch)
    shown, places = np.zeros(200), np.zeros((2, len(tokens)))
    for number in range(150):
        for ends in batches(grid, 16, np.random.default_rng(number)):
            rows = ends.sum(axis=1)[:, None] - tokens
            counted = counts(resident.targets(ends), resident.alive(ends), MIN_PATCHES).numpy()
            left = last[ends[:, 0]][:, None] - rows
            assert (left[counted] >= 0).all()
            shown += np.bincount(left[counted & (left < 200)], minlength=200)
            for row, found in enumerate((counted & (left > 100), counted & (left < 24))):
                places[row] += found.sum(axis=0)
    often = shown[1:]  # of the last row nothing is known
    assert often.min() > 0.8 * often.mean() and often.max() < 1.2 * often.mean()
    far, near = places / places.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(near, far, atol=0.03)


@pytest.mark.parametrize("hours", [1, 8])
def test_few_new_hours_of_a_single_asset_fill_every_epoch(plant, hours):
    grid = grid_of(plant.only(["pump-0"]), schema_of(plant, TINY))
    eligible = np.arange(len(grid) - hours, len(grid))
    for number in range(20):
        ends = np.concatenate(list(batches(grid, 16, np.random.default_rng(number), eligible)))
        assert len(ends) >= epochs.MIN_STEPS * 16
        assert np.isin(ends[:, 0], eligible).all()


def test_no_window_is_chosen_by_what_followed(plant):
    """What the likelihood of an unweighted sample needs: a history without its failures gives the same windows."""
    schema = schema_of(plant, TINY)
    events = plant.events
    healthy = replace(plant, events=events[(events["kind"] != "failure").to_numpy()].reset_index(drop=True))
    chosen = [list(batches(grid_of(h, schema), 16, np.random.default_rng(5))) for h in (plant, healthy)]
    for ends, without in zip(*chosen, strict=True):
        assert np.array_equal(ends, without)


def test_windows_without_a_point_are_those_of_a_lost_sensor(plant):
    """Its values, presence and time since a reading, its summaries, and what the other reads beyond it."""
    schema = schema_of(plant, TINY)
    grid = grid_of(plant, schema)
    normaliser = fit_normaliser(grid)
    ends = np.arange(100, 164)
    whole = Resident(grid, features_of(grid, normaliser))
    windows, kept = whole.windows(ends), torch.tensor([False, True]).repeat(64, 1)
    values = grid.values.copy()
    values[:, 0] = np.nan
    lost = Resident(grid, features_of(replace(grid, values=values), normaliser)).windows(ends)
    hidden = whole.without(windows, ends, kept)
    assert (windows.steps[..., 3] != 0).any()
    assert (hidden.steps[..., 3] == 0).all()
    torch.testing.assert_close(hidden.steps, lost.steps, rtol=0, atol=0)
    torch.testing.assert_close(hidden.slow, lost.slow, rtol=0, atol=0)
    torch.testing.assert_close(hidden.summary, lost.summary, rtol=0, atol=0)
    assert not torch.equal(hidden.summary, windows.summary)
    untouched = whole.without(windows, ends, torch.ones_like(kept))
    torch.testing.assert_close(untouched.steps, windows.steps, rtol=0, atol=0)
    torch.testing.assert_close(untouched.slow, windows.slow, rtol=0, atol=0)
    torch.testing.assert_close(untouched.summary, windows.summary, rtol=0, atol=0)


def test_progress_is_told(plant):
    told: list[Progress] = []
    trained(plant, execution=Execution(progress=told.append))
    assert told
    assert all(0 < p.fraction <= 1 and p.eta_seconds >= 0 and p.epochs == 2 for p in told)
    assert told[-1].epoch == 2
    assert told[-1].validation is not None


def test_time_is_kept(plant):
    result = trained(plant, TINY.model_copy(update={"epochs": 500, "patience": 500, "max_minutes": 0.03}))
    assert result.seconds < 20
    assert len(result.epochs) < 500


def test_later_failures_of_training_assets_calibrate_and_teach_nothing(plant):
    start = START + timedelta(days=30)
    events = plant.events
    later = (events["kind"] == "failure") & events["asset"].isin(TRAIN) & (events["time"] > start)
    assert later.sum() >= 3
    silent = replace(plant, events=events[~later.to_numpy()].reset_index(drop=True))
    whole, without = (
        fit(history, TRAIN, VALIDATION, schema_of(plant, TINY), TINY, validation_from=start).artefact
        for history in (plant, silent)
    )
    assert all(torch.equal(tensor, without.weights[name]) for name, tensor in whole.weights.items())
    assert whole.calibration != without.calibration
    assert whole.validation_from == without.validation_from == start


def test_an_asset_alone_trains_validates_and_calibrates(plant):
    settings = TINY.model_copy(update={"epochs": 1, "memory": "mapped"})
    alone = ("pump-0",)
    result = fit(plant, alone, alone, schema_of(plant, settings), settings, validation_from=START + timedelta(days=25))
    assert result.artefact.split.train == result.artefact.split.validation == alone


def test_a_slow_moment_costs_no_epochs_that_still_fit(plant, monkeypatch, caplog):
    now = 0.0

    def clock() -> float:
        """A machine that is busy at first: a second passes between looks, later next to nothing."""
        nonlocal now
        now += 1.0 if now < 200 else 0.01
        return now

    for module in (epochs, train):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    caplog.set_level(logging.INFO, logger="forecasting.epochs")
    result = trained(plant, TINY.model_copy(update={"epochs": 8, "patience": 8, "max_minutes": 5.0}))
    assert any("fit into train.max_minutes" in record.message for record in caplog.records)
    assert len(result.epochs) == 8


def test_without_failures_there_is_nothing_to_learn(plant):
    with pytest.raises(TrainingError, match="no failure"):
        trained(replace(plant, events=event_frame([])))


def test_without_validation_assets_there_is_nothing_to_stop_by(plant):
    with pytest.raises(TrainingError, match="validation"):
        fit(plant, TRAIN, (), schema_of(plant, TINY), TINY)


def test_failures_are_counted_once_each():
    plant = worn_plant(assets=4)
    labels = labels_of(grid_of(plant, schema_of(plant, TINY)))
    failures = plant.events[plant.events["kind"] == "failure"]
    assert failures_in(labels) == len(failures)


def test_the_base_hazard_is_failures_per_step(plant):
    labels = labels_of(grid_of(plant, schema_of(plant, TINY)))
    failures = (plant.events["kind"] == "failure").sum()
    assert base_hazard(labels).sum() == pytest.approx(failures / (6 * 40 * 24), rel=0.25)


def test_the_learning_rate_rises_and_falls():
    rates = [rate_at(share) for share in np.linspace(0, 1, 101)]
    assert np.argmax(rates) == 5
    assert rates[0] < 0.05
    assert rates[-1] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("name", "major", "minor", "chosen"),
    [
        ("H100", 9, 0, "bf16"),
        ("A100", 8, 0, "bf16"),
        ("T4", 7, 5, "fp16"),
        ("V100", 7, 0, "fp16"),
        ("P100", 6, 0, "fp32"),
    ],
)
def test_precision_follows_the_gpu(name, major, minor, chosen):
    precision = Precision.for_cuda(name, major, minor)
    assert (precision.name, precision.scaled) == (chosen, chosen == "fp16")
    assert name in precision.why


def test_precision_follows_the_processor_and_the_wish(plant, caplog):
    assert Precision.for_cpu(True, 256).name == "bf16"
    assert Precision.for_cpu(True, 128).name == "fp32"
    assert "train.width of 256" in Precision.for_cpu(True, 128).why
    assert Precision.for_cpu(False, 256).name == "fp32"
    assert Precision.choose(torch.device("cpu"), "fp16", 128).name == "fp16"
    with caplog.at_level(logging.INFO, "forecasting.train"):
        trained(plant, TINY.model_copy(update={"epochs": 1}))
    assert "in fp32: this processor" in caplog.text or "in bf16: this processor" in caplog.text


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_learns_as_well(plant, precision):
    longer = TINY.model_copy(update={"epochs": 6, "learning_rate": 3e-3})
    full = trained(plant, longer.model_copy(update={"precision": "fp32"})).artefact.metrics["validation_nll"]
    reduced = trained(plant, longer.model_copy(update={"precision": precision})).artefact
    assert reduced.precision == precision
    assert reduced.metrics["validation_nll"] == pytest.approx(full, rel=0.05)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(TrainingError, match="not on this machine"):
        choose_device("cuda:7")
    assert choose_device("cpu").type == "cpu"
