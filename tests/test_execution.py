"""How training is carried out: cut off and gone on, in parts, by several processes, from a model, under a profile."""

from __future__ import annotations

import csv
import functools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from connectors import recordings
from forecasting import checkpoint, mapped
from forecasting.batches import Resident
from forecasting.calibrate import Calibration
from forecasting.epochs import batches
from forecasting.features import features_of, fit_normaliser
from forecasting.labels import labels_of
from forecasting.model import Architecture, HazardTransformer, member_weights
from forecasting.precision import Precision
from forecasting.predict import TransformerForecaster
from forecasting.resume import Snapshot, SnapshotFile, remove
from forecasting.split import Split, with_new_assets
from forecasting.train import Execution, fit
from forecasting.trainer import Trainer
from forecasting.windows import grid_of, schema_of
from forecasting.workers import ALONE, Workers
from pm.domain import Recording
from pm.errors import TrainingError
from tests.forecasting_cases import START, TINY, worn_plant
from tests.servers.programs import free_port

ROOT = Path(__file__).parents[1]

TRAIN, VALIDATION = ("pump-0", "pump-1", "pump-2", "pump-3"), ("pump-4", "pump-5")
STILL = TINY.model_copy(update={"point_dropout": 0.0, "epochs": 3, "snapshot": timedelta(0)})


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plant():
    return worn_plant()


@pytest.fixture(scope="module")
def recording(plant, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("plant") / "worn"
    events = plant.events.drop_duplicates(ignore_index=True)
    plant = replace(plant, events=events)
    recordings.write(Recording("worn", "1h", "a test's plant", "made", "CC0", plant), folder)
    return folder


def trained(plant, settings=STILL, **options):
    return fit(plant, TRAIN, VALIDATION, schema_of(plant, settings), settings, **options).artefact


def command(recording: Path, out: Path, *options: str) -> list[str]:
    return ["-m", "pm.cli", "train", "--recording", str(recording), "--out", str(out), "--json", *options]


def environment(**settings: object) -> dict[str, str]:
    wanted = STILL.model_dump(mode="json") | {"snapshot": "1h"} | settings
    given = {key.upper(): str(value) for key, value in wanted.items() if value != []}
    return os.environ | {f"PM_TRAIN__{key}": value for key, value in given.items()} | {"OMP_NUM_THREADS": "1"}


def run(arguments: list[str], **settings: object) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=environment(**settings), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class CutOff(Exception):
    pass


SHAKEN = STILL.model_copy(update={"dropout": 0.2, "point_dropout": 0.2, "life_dropout": 0.2})


@pytest.fixture(scope="module")
def uninterrupted(plant, one_thread):
    """What training without a break gives, and its optimiser steps."""
    with pytest.MonkeyPatch.context() as patch:
        counted = count_steps(patch)
        return trained(plant, SHAKEN), len(counted)


def count_steps(monkeypatch, most: int | None = None) -> list[int]:
    """A list that grows with every optimiser step; the one after `most` is cut off."""
    real, counted = Trainer.step, []

    def step(self, *args):
        if len(counted) == most:
            raise CutOff
        counted.append(len(counted))
        return real(self, *args)

    monkeypatch.setattr(Trainer, "step", step)
    return counted


@pytest.mark.parametrize("share", [0.01, 0.2, 1 / 3, 0.9])
def test_training_that_was_cut_off_ends_in_the_same_bits(plant, uninterrupted, tmp_path, monkeypatch, share):
    whole, steps = uninterrupted
    at, execution = round(share * steps), Execution(snapshots=tmp_path / "state")
    with monkeypatch.context() as patch:
        count_steps(patch, at)
        with pytest.raises(CutOff):
            trained(plant, SHAKEN, execution=execution)
    rest = count_steps(monkeypatch)
    assert trained(plant, SHAKEN, execution=execution).version == whole.version
    assert len(rest) == steps - at  # what was done is not done again


def test_a_killed_training_command_goes_on(recording, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(command(recording, whole), epochs=4)
    state = tmp_path / ".cut.training.0"
    arguments = [sys.executable, *command(recording, cut)]
    process = subprocess.Popen(arguments, env=environment(epochs=4), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not state.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not cut.exists()
    run(command(recording, cut, "--resume"), epochs=4)
    weights = [(folder / checkpoint.WEIGHTS).read_bytes() for folder in (whole, cut)]
    assert weights[0] == weights[1]
    assert not state.exists()


def test_a_state_of_another_training_is_refused(plant, tmp_path):
    state = tmp_path / "state"
    trained(plant, execution=Execution(snapshots=state))
    other = STILL.model_copy(update={"width": 24})
    with pytest.raises(TrainingError, match="other settings"):
        trained(plant, other, execution=Execution(snapshots=state))
    file = tmp_path / "state.0"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(TrainingError, match="damaged"):
        trained(plant, execution=Execution(snapshots=state))


def test_a_state_that_one_of_two_nodes_lacks_is_refused(recording, tmp_path):
    """Two nodes without a shared disk: one would begin anew, and the other would wait for it for ever."""
    homes = [tmp_path / "first", tmp_path / "second"]
    for home in homes:
        home.mkdir()

    def nodes(*options: str) -> list[subprocess.Popen[str]]:
        # As torchrun starts them; by itself, so that they can be killed.
        met = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return [
            subprocess.Popen(
                [sys.executable, *command(recording, Path("model"), *options)],
                cwd=home,
                env=environment(epochs=500, patience=500) | met | {"RANK": str(rank), "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, home in enumerate(homes)
        ]

    begun = nodes()
    try:
        deadline = time.monotonic() + 120
        while not (homes[0] / ".model.training.0").exists():
            assert all(node.poll() is None for node in begun) and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for node in begun:
            node.kill()
            node.communicate()
    assert not (homes[1] / ".model.training.0").exists()
    again = nodes("--resume")
    try:
        said = [node.communicate(timeout=120)[1] for node in again]
    finally:
        for node in again:
            node.kill()
    assert all(node.returncode != 0 for node in again)
    assert all("1 of 2 processes find the state" in text for text in said)
    assert (homes[0] / ".model.training.0").exists()  # it can still be gone on from


def test_a_state_is_kept_whole_or_not_at_all(tmp_path):
    file = SnapshotFile(tmp_path / "no" / "state", STILL, "x")
    assert file.load() is None
    (tmp_path / "no").write_text("a file where the folder should be")
    with pytest.raises(TrainingError, match="cannot be written"):
        file.save(Snapshot({"a": torch.zeros(1)}, {}))


def test_two_processes_equal_one_within_rounding(recording, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run(command(recording, one), batch=15)  # not divisible by two: no window is counted twice
    run(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command(recording, two)], batch=15)
    alone, together = checkpoint.load(one), checkpoint.load(two)
    assert alone.metrics["epochs"] == together.metrics["epochs"] == 3
    for name, tensor in alone.weights.items():
        torch.testing.assert_close(together.weights[name], tensor, atol=2e-4, rtol=2e-3, msg=name)
    assert together.metrics["validation_nll"] == pytest.approx(alone.metrics["validation_nll"], abs=1e-4)


def test_the_shares_of_the_processes_are_the_batch_once():
    ends = np.arange(17)
    shares = [Workers(rank, 4).share(ends) for rank in range(4)]
    assert sorted(np.concatenate(shares).tolist()) == ends.tolist()
    assert ALONE.share(ends) is not None and ALONE.leads and ALONE.most(3) == 3


@pytest.fixture
def small(plant):
    grid = grid_of(plant, schema_of(plant, TINY))
    features, labels = features_of(grid, fit_normaliser(grid)), labels_of(grid)
    return grid, features, labels


def test_a_batch_that_memory_cannot_take_is_cut_into_parts(plant, small, monkeypatch):
    grid, features, labels = small
    resident = Resident(grid, features, labels)
    ends = next(batches(grid, 16, np.random.default_rng(0)))
    weights, parts = [], []
    start = trained(plant, STILL.model_copy(update={"epochs": 1}))
    for most in (16, 5):
        torch.manual_seed(0)
        network = HazardTransformer(start.architecture)
        real = network.forward

        def forward(windows, last=False, real=real, most=most):
            if len(windows) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(windows, last)

        monkeypatch.setattr(network, "forward", forward)
        trainer = Trainer(network, STILL, Precision("fp32", "test"), len(grid.schema.points), 10)
        trainer.step(resident, ends)
        parts.append(trainer.parts)
        weights.append(torch.cat([p.flatten() for p in network.parameters()]).detach())
    assert parts == [1, 4]
    torch.testing.assert_close(*weights, atol=1e-6, rtol=1e-4)


def test_memory_for_not_even_one_window_is_told(plant, small, monkeypatch):
    grid, features, labels = small
    start = trained(plant, STILL.model_copy(update={"epochs": 1}))
    network = HazardTransformer(start.architecture)

    def forward(windows, last=False):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(network, "forward", forward)
    trainer = Trainer(network, STILL, Precision("fp32", "test"), len(grid.schema.points), 10)
    with pytest.raises(TrainingError, match="single window"):
        trainer.step(Resident(grid, features, labels), np.arange(40, 44))


def test_a_warm_start_learns_from_what_is_new_and_never_gets_worse(plant):
    until = START + timedelta(days=25)
    settings = STILL.model_copy(update={"epochs": 6, "learning_rate": 1e-2})
    before = trained(plant, settings.model_copy(update={"epochs": 1, "learning_rate": 1e-3}), until=until)
    after = fit(plant, TRAIN, VALIDATION, before.schema, settings, start_from=before).artefact
    assert after.trained_until > before.trained_until
    assert after.normaliser is before.normaliser
    assert any(not torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
    # A rate that can only do harm: then the weights stay as they were.
    harmful = settings.model_copy(update={"learning_rate": 10.0, "epochs": 1})
    kept = fit(plant, TRAIN, VALIDATION, after.schema, harmful, start_from=replace(after, trained_until=until)).artefact
    assert all(torch.equal(kept.weights[name], after.weights[name]) for name in after.weights)


def test_a_warm_start_keeps_the_network_that_it_finds(plant):
    """A model from before bins had odds of their own, with other sizes than the settings now say."""
    until = START + timedelta(days=25)
    before = trained(plant, STILL.model_copy(update={"epochs": 1, "layers": 2, "life_pieces": 8}), until=until)
    sizes = replace(before.architecture, own_odds=False)
    network = HazardTransformer(sizes, np.full(sizes.modes, 0.001))
    old = replace(before, architecture=sizes, weights=dict(network.state_dict()))
    after = fit(plant, TRAIN, VALIDATION, old.schema, STILL.model_copy(update={"epochs": 1}), start_from=old).artefact
    assert after.architecture == replace(sizes, dropout=STILL.dropout, life_dropout=STILL.life_dropout)


def test_a_model_from_before_is_read_as_it_was():
    sizes = Architecture(2, 8, 5, 3, patch=4, horizon=72, modes=3, width=64, layers=2, heads=4, dropout=0.1)
    kept = {name: value for name, value in sizes.as_json().items() if name not in ("own_odds", "summary_pieces")}
    assert Architecture(**kept) == replace(sizes, own_odds=False, summary_pieces=8)


def test_a_warm_start_without_anything_new_says_so(plant):
    before = trained(plant)
    with pytest.raises(TrainingError, match="nothing new"):
        fit(plant, TRAIN, VALIDATION, before.schema, STILL, start_from=before)


def test_new_assets_train(plant):
    old = Split(("pump-0", "gone"), ("pump-1",), ("pump-2",))
    assert with_new_assets(old, plant) == Split(("pump-0", "pump-3", "pump-4", "pump-5"), ("pump-1",), ("pump-2",))


def test_the_profile_has_ranges_and_memory(recording, tmp_path):
    folder = tmp_path / "profile"
    run(command(recording, tmp_path / "model", "--profile", str(folder)), epochs=1)
    names = {event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert {"gather", "forward", "loss", "backward", "optimiser"} <= names
    rows = list(csv.DictReader((folder / "memory.csv").open()))
    assert len(rows) >= 32
    held = np.array([int(row["process_bytes"]) for row in rows])
    assert held.min() > 1e7
    assert held.max() <= int(rows[-1]["process_peak_bytes"])
    assert len(set(held)) > 1
    assert "backward" in (folder / "ranges.txt").read_text()


def test_a_compiled_network_learns_the_same(plant, monkeypatch):
    # The whole of torch.compile but the C++ compiler, which takes minutes on a processor.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    settings = STILL.model_copy(update={"epochs": 1})
    plain, compiled = trained(plant, settings), trained(plant, settings.model_copy(update={"compile": "on"}))
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(compiled.weights[name], tensor, atol=1e-4, rtol=1e-3)


def test_training_of_a_changed_history_is_another(plant, tmp_path):
    state = tmp_path / "state"
    trained(plant, execution=Execution(snapshots=state), fingerprint="a")
    shorter = replace(plant, readings=plant.readings.iloc[:-50].reset_index(drop=True))
    with pytest.raises(TrainingError, match="other data"):
        trained(shorter, execution=Execution(snapshots=state), fingerprint="b")


def test_mapped_features_are_the_same_bits(plant, monkeypatch, tmp_path):
    grid = grid_of(plant, schema_of(plant, TINY))
    normaliser = fit_normaliser(grid)
    monkeypatch.setattr(mapped, "ROWS_AT_ONCE", 1500)  # two assets at most
    held, laid = (
        features_of(grid, normaliser),
        mapped.features_within(grid, normaliser, "mapped", torch.device("cpu"), tmp_path),
    )
    assert isinstance(laid.summary, np.memmap)
    for name in ("steps", "slow", "static", "observed", "lost", "summary", "group", "needs"):
        np.testing.assert_array_equal(getattr(held, name), getattr(laid, name), err_msg=name)
    assert not list(tmp_path.iterdir())  # nothing to clean up after a crash
    assert trained(plant).version == trained(plant, STILL.model_copy(update={"memory": "mapped"})).version


def test_features_too_large_for_memory_are_mapped(plant, monkeypatch, tmp_path):
    grid = grid_of(plant, schema_of(plant, TINY))
    normaliser = fit_normaliser(grid)
    monkeypatch.setattr(mapped, "_free", lambda device: 1_000_000)
    assert isinstance(mapped.features_within(grid, normaliser, "auto", torch.device("cpu"), tmp_path).steps, np.memmap)
    with pytest.raises(TrainingError, match="no room"):
        monkeypatch.setattr(np, "memmap", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left")))
        mapped.features_within(grid, normaliser, "auto", torch.device("cpu"), tmp_path)


def test_an_ensemble_averages_its_members(plant, tmp_path):
    both = trained(plant, STILL.model_copy(update={"members": 2}))
    alone = [trained(plant, STILL.model_copy(update={"seed": seed})) for seed in (0, 1)]
    for number, member in enumerate(alone):
        for name, tensor in member_weights(both.weights, number, 2).items():
            assert torch.equal(tensor, member.weights[name])
    checkpoint.save(both, tmp_path / "both")
    assert checkpoint.load(tmp_path / "both").version == both.version

    def logits(artefact):
        table = TransformerForecaster(replace(artefact, calibration=Calibration.none(2))).forecast_grid(plant, TRAIN)
        assert 0 < np.nanmean(table.probability(72)) < 1
        return table.hazard

    def odds(hazard):
        return np.log(hazard / (1 - hazard))

    of_both, of_each = odds(logits(both)), [odds(logits(one)) for one in alone]
    # With two modes the total hazard's log odds lie between the members' own.
    assert (of_both <= np.fmax(*of_each) + 1e-6).mean() > 0.99
    assert (of_both >= np.fmin(*of_each) - 1e-2).mean() > 0.95


def test_an_ensemble_that_was_cut_off_ends_in_the_same_bits(plant, tmp_path, monkeypatch):
    settings = SHAKEN.model_copy(update={"members": 2, "epochs": 1})
    whole, execution = trained(plant, settings), Execution(snapshots=tmp_path / "state")
    with monkeypatch.context() as patch:
        count_steps(patch, 50)
        with pytest.raises(CutOff):
            trained(plant, settings, execution=execution)
    assert trained(plant, settings, execution=execution).version == whole.version
    remove(tmp_path / "state")
    assert not list(tmp_path.iterdir())
