"""Forecasting: latency of one window and windows per second in batches, by what runs the network; features apart.

    python -m benchmarks.inference [--seconds 3]

16 points × 168 h and the sizes of `pm train`, with weights as they are before training: the arithmetic is the same.
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
from forecasting.export import blank_windows, int8_of, onnx_of
from forecasting.features import features_of, fit_normaliser
from forecasting.inference import MICRO_BATCH
from forecasting.model import HazardTransformer
from forecasting.runtimes import OnnxRuntime, Runtime, TorchRuntime
from forecasting.windows import Ints, grid_before
from pm.config import TrainSection

BATCHES = 512


def latencies(act: Callable[[], object], seconds: float) -> np.ndarray:
    """[n] milliseconds of each call, after some that warm up."""
    for _ in range(20):
        act()
    found, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        act()
        found.append(1000 * (time.perf_counter() - began))
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    seconds = parser.parse_args().seconds
    case = Case(TrainSection(), torch.device("cpu"))
    torch.manual_seed(0)
    network = HazardTransformer(case.sizes, case.base).eval().requires_grad_(False)
    normaliser = fit_normaliser(case.grid)
    ends = np.linspace(400, len(case.grid) - 1, BATCHES).astype(np.int64)
    rows = case.resident.windows(ends, last=True)
    samples = {name: tensor[:32].numpy() for name, tensor in vars(rows).items()}
    fp32 = onnx_of(network, blank_windows(case.grid.schema, normaliser))
    runtimes: dict[str, Runtime] = {
        "torch": TorchRuntime(network),
        "ONNX Runtime, fp32": OnnxRuntime(fp32),
        "ONNX Runtime, int8": OnnxRuntime(int8_of(fp32, samples)),
    }

    def picked(wanted: Ints) -> Windows:
        return replace(rows, **{name: tensor[wanted] for name, tensor in vars(rows).items()})

    threads = torch.get_num_threads()
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {threads} threads; torch runs {MICRO_BATCH}\n")
    print("| runtime | one window: p50 ms | p99 ms | windows/s, 512 at a time | against torch |\n|---|---|---|---|---|")
    first = 0.0
    for name, runtime in runtimes.items():
        alone = latencies(lambda r=runtime: r.answer(picked, 1), seconds)  # type: ignore[misc]
        many = latencies(lambda r=runtime: r.answer(picked, BATCHES), seconds)  # type: ignore[misc]
        rate = 1000 * BATCHES / np.median(many)
        first = first or rate
        low, high = np.quantile(alone, [0.5, 0.99])
        print(f"| {name} | {low:.2f} | {high:.2f} | {rate:,.0f} | {rate / first:.2f} |", flush=True)

    history = case.history.only(["asset-00"])
    at = START + 1000 * history.interval

    def features() -> None:
        grid = grid_before(history, case.grid.schema, at, case.grid.schema.lookback_steps)
        last = grid.offsets[1:] - 1
        Resident(grid, features_of(grid, normaliser, last)).windows(last, last=True)

    low, high = np.quantile(latencies(features, seconds), [0.5, 0.99])
    print(f"\nFeatures of one asset, from its history as a frame: p50 {low:.2f} ms, p99 {high:.2f} ms")


if __name__ == "__main__":
    main()
