"""Training: windows per second by arithmetic and by number of processes, and what the data path alone takes.

    python -m benchmarks.training [--seconds 8] [--width 128] [--batch 16] [--device cpu]

Sizes are those of `pm train` unless said otherwise: 16 points, 168 hours. On a GPU give a size that fills the chip
(--width 512 --batch 2048); the arithmetics are then fp32, TF32, bf16 and fp16, else fp32, bf16 and fp16 as the
processor emulates or has them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import torch

from forecasting.batches import Resident
from forecasting.epochs import batches
from forecasting.features import features_of, fit_normaliser
from forecasting.labels import labels_of
from forecasting.model import HazardTransformer
from forecasting.precision import Precision, choose_device
from forecasting.train import architecture_of, base_hazard
from forecasting.trainer import Trainer
from forecasting.windows import Grid, grid_of, schema_of
from forecasting.workers import ALONE, Workers, joined
from pm.config import TrainSection
from pm.domain import Asset, FailureMode, History, Point

START = datetime(2025, 1, 1, tzinfo=UTC)
POINTS, ASSETS, HOURS = 16, 24, 60 * 24
TF32 = "tf32"


@dataclass(frozen=True)
class Rate:
    windows: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.windows / self.seconds


def plant(seed: int = 0) -> History:
    """Noise on 16 points of 24 assets over 60 days, three failures each: what is in it does not matter here."""
    rng = np.random.default_rng(seed)
    times = pd.date_range(START, periods=HOURS, freq="h").as_unit("us")
    names = [f"asset-{number:02d}" for number in range(ASSETS)]
    values = rng.normal(size=(ASSETS * HOURS, POINTS))
    readings = pd.DataFrame(values, columns=[f"p{number}" for number in range(POINTS)])
    readings.insert(0, "time", times.take(np.tile(np.arange(HOURS), ASSETS)))
    readings.insert(1, "asset", np.repeat(np.array(names, dtype=object), HOURS))
    failed = [
        (times[int(hour)], name, "failure", f"mode-{number % 2}")
        for name in names
        for number, hour in enumerate(sorted(rng.choice(np.arange(200, HOURS), 3, replace=False)))
    ]
    events = pd.DataFrame(failed, columns=["time", "asset", "kind", "code"]).sort_values("time", ignore_index=True)
    events["time"] = pd.DatetimeIndex(events["time"]).as_unit("us")
    text = {"asset": "str", "kind": "str", "code": "str"}
    points = tuple(Point(f"p{number}") for number in range(POINTS))
    modes = (FailureMode("mode-0"), FailureMode("mode-1"))
    assets = tuple(Asset(name, "pump", {}) for name in names)
    return History(timedelta(hours=1), points, modes, assets, readings.astype({"asset": "str"}), events.astype(text))


class Case:
    """A plant's features on a device, and trainers over them."""

    def __init__(self, settings: TrainSection, device: torch.device) -> None:
        self.history = history = plant()
        self.settings, self.device = settings, device
        self.grid: Grid = grid_of(history, schema_of(history, settings))
        features, labels = features_of(self.grid, fit_normaliser(self.grid)), labels_of(self.grid)
        self.base = base_hazard(labels)
        self.sizes = architecture_of(self.grid.schema, features, settings)
        self.resident = Resident(self.grid, features, labels, device=device)

    def trainer(self, precision: str, workers: Workers = ALONE) -> Trainer:
        torch.manual_seed(0)
        network = HazardTransformer(self.sizes, self.base).to(self.device)
        return Trainer(network, self.settings, Precision(precision, "benchmark"), POINTS, 1_000_000, workers)

    def windows(self) -> Iterator[np.ndarray]:
        number = 0
        while True:
            number += 1
            yield from batches(self.grid, self.settings.batch, np.random.default_rng(number))


def paced(case: Case, act: Callable[[np.ndarray], object], seconds: float, warm: int = 3) -> Rate:
    """How many windows `act` gets through, after a few calls that warm up."""
    source = case.windows()
    for _ in range(warm):
        act(next(source))
    _wait(case.device)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        ends = next(source)
        act(ends)
        count += len(ends)
    _wait(case.device)
    return Rate(count, time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def by_arithmetic(case: Case, seconds: float) -> None:
    print("| arithmetic | compiled | windows/s | against fp32 |\n|---|---|---|---|")
    on_gpu, first = case.device.type == "cuda", 0.0
    for name in ("fp32", *((TF32,) if on_gpu else ()), "bf16", "fp16"):
        torch.backends.cuda.matmul.allow_tf32 = name != "fp32"
        trainer = case.trainer("fp32" if name == TF32 else name)
        rate = paced(case, lambda ends, t=trainer: t.step(case.resident, ends), seconds).per_second  # type: ignore[misc]
        first = first or rate
        compiled = "yes" if on_gpu and case.settings.compile != "off" else "no"
        print(f"| {name} | {compiled} | {rate:,.0f} | {rate / first:.2f} |", flush=True)


def data_path(case: Case, seconds: float) -> None:
    rate = paced(case, lambda ends: (case.resident.windows(ends), case.resident.targets(ends)), seconds).per_second
    print(f"\nGathering windows and targets alone: {rate:,.0f} windows/s")


def by_processes(arguments: argparse.Namespace) -> None:
    print("\n| processes × threads | windows/s | against 1 × 1 |\n|---|---|---|")
    first = 0.0
    for processes, threads in ((1, 1), (1, 2), (2, 1)):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command += ["-m", "benchmarks.training", "--lend", f"--seconds={arguments.seconds}"]
        command += [f"--width={arguments.width}", f"--batch={arguments.batch}", "--device=cpu"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        rate = float(done.stdout.split()[-1])
        first = first or rate
        print(f"| {processes} × {threads} | {rate:,.0f} | {rate / first:.2f} |", flush=True)


def lend(case: Case, seconds: float) -> None:
    """One process of several: a fixed number of steps, so that all make the same."""
    with joined("cpu") as workers:
        trainer, source = case.trainer("fp32", workers), case.windows()
        for _ in range(3):
            trainer.step(case.resident, next(source))
        began, count, more = time.perf_counter(), 0, 1.0
        while more:
            ends = next(source)
            trainer.step(case.resident, ends)
            count += len(ends)
            more = workers.agreed(float(time.perf_counter() - began < seconds))
        if workers.leads:
            print(count / (time.perf_counter() - began))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--width", type=int, default=TrainSection().width)
    parser.add_argument("--batch", type=int, default=TrainSection().batch)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--lend", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    case = Case(TrainSection(width=arguments.width, batch=arguments.batch), device)
    if arguments.lend:
        lend(case, arguments.seconds)
        return
    count = sum(p.numel() for p in HazardTransformer(case.sizes).parameters())
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{POINTS} points × {case.settings.context} h, {count:,} parameters, batch {arguments.batch}, {where}\n")
    by_arithmetic(case, arguments.seconds)
    data_path(case, arguments.seconds)
    if device.type == "cpu":
        by_processes(arguments)


if __name__ == "__main__":
    main()
