"""Forecasting: latency of one window and windows per second in batches, by what runs the network; features apart.

    python -m benchmarks.inference [--seconds 3] [--patch 12]

16 points × 168 h and the sizes of `pm train`, with weights as they are before training: the arithmetic is the same.
What is timed is the service's own predictor from inputs to numbers, calibration included, for one window and for 512.
"Of a core" is processor time, which other work on the machine changes less; a plain product of matrices on all threads
says what the processor gave meanwhile.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.training import START, Case
from forecasting.batches import Resident, Windows
from forecasting.calibrate import Calibration
from forecasting.checkpoint import Artefact
from forecasting.export import int8_of, onnx_of_artefact
from forecasting.features import features_of, fit_normaliser
from forecasting.model import HazardTransformer
from forecasting.predict import TransformerForecaster
from forecasting.split import Split
from forecasting.windows import Ints, grid_before
from pm.config import TrainSection

BATCHES = 512


def latencies(act: Callable[[], object], seconds: float) -> np.ndarray:
    """[2, n] milliseconds of each call, on the clock and of the processor, after some that warm up."""
    for _ in range(20):
        act()
    found, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        began, busy = time.perf_counter(), time.process_time()
        act()
        found.append((time.perf_counter() - began, time.process_time() - busy))
    return 1000 * np.array(found).T


def product(size: int = 1024) -> float:
    """GFLOP/s of a product of matrices on all threads: what the processor gives now, to read the others by."""
    one = torch.ones(size, size)
    return 2 * size**3 / float(np.median(latencies(lambda: one @ one, 0.5)[0])) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--patch", type=int, default=TrainSection().patch)
    arguments = parser.parse_args()
    seconds = arguments.seconds
    case = Case(TrainSection(patch=arguments.patch), torch.device("cpu"))
    torch.manual_seed(0)
    network = HazardTransformer(case.sizes, case.base)
    normaliser = fit_normaliser(case.grid)
    artefact = Artefact(
        name="benchmark",
        schema=case.grid.schema,
        normaliser=normaliser,
        architecture=case.sizes,
        weights=network.state_dict(),
        calibration=Calibration.none(case.sizes.modes),
        split=Split((), (), ()),
        trained_until=START,
    )
    ends = np.linspace(400, len(case.grid) - 1, BATCHES).astype(np.int64)
    rows = case.resident.windows(ends, last=True)
    samples = {name: tensor[:32].numpy() for name, tensor in vars(rows).items()}
    fp32 = onnx_of_artefact(artefact)
    forecasters = {
        "torch": TransformerForecaster(artefact),
        "ONNX Runtime, fp32": TransformerForecaster(replace(artefact, onnx=fp32)),
        "ONNX Runtime, int8": TransformerForecaster(replace(artefact, onnx=int8_of(fp32, samples))),
    }

    def picked(wanted: Ints) -> Windows:
        return replace(rows, **{name: tensor[wanted] for name, tensor in vars(rows).items()})

    one = picked(np.zeros(1, np.int64))

    def single(wanted: Ints) -> Windows:
        """The first window, made already; as many of it as a runtime asks for that fills up its batch."""
        return one if len(wanted) == 1 else picked(wanted)

    count, threads = sum(p.numel() for p in network.parameters()), torch.get_num_threads()
    print(f"{count:,} parameters, {arguments.patch} h a token, {threads} threads")
    print("\n| runtime | one window: p50 ms | p99 ms | of a core | windows/s | per core | a product, GFLOP/s |")
    print("|---|---|---|---|---|---|---|")
    for name, forecaster in forecasters.items():
        peak = product()
        alone, busy = latencies(lambda f=forecaster: f.numbers(single, 1), seconds)  # type: ignore[misc]
        many, cores = latencies(lambda f=forecaster: f.numbers(picked, BATCHES), seconds)  # type: ignore[misc]
        low, high = np.quantile(alone, [0.5, 0.99])
        rate, each = 1000 * BATCHES / np.median(many), 1000 * BATCHES / np.median(cores)
        print(
            f"| {name} | {low:.2f} | {high:.2f} | {np.median(busy):.2f} | {rate:,.0f} | {each:,.0f} | {peak:.0f} |",
            flush=True,
        )

    history = case.history.only(["asset-00"])
    at = START + 1000 * history.interval

    def features() -> None:
        grid = grid_before(history, case.grid.schema, at, case.grid.schema.lookback_steps)
        last = grid.offsets[1:] - 1
        Resident(grid, features_of(grid, normaliser, last)).windows(last, last=True)

    took, busy = latencies(features, seconds)
    low, high = np.quantile(took, [0.5, 0.99])
    print(
        f"\nFeatures of one asset, from its history as a frame: p50 {low:.2f} ms, p99 {high:.2f} ms, "
        f"{np.median(busy):.2f} ms of a core"
    )


if __name__ == "__main__":
    main()
