"""A look inside training: a trace with named ranges, and the memory in use at every step."""

from __future__ import annotations

import csv
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from pm.errors import TrainingError

STEPS: Final = 12
"""Optimiser steps that are traced, after `SKIPPED` that warm up."""
SKIPPED: Final = 4
TRACE: Final = "trace.json"
MEMORY: Final = "memory.csv"
RANGES: Final = "ranges.txt"


class Profile:
    """Told of every optimiser step; the trace covers the first few, the memory timeline all."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self._cuda = device.type == "cuda"
        self._device = device
        self._memory: list[tuple[int, int, int, int]] = []
        self._count = 0
        self._traced = self._peak = 0
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler: Any = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=SKIPPED - 1, warmup=1, active=STEPS, repeat=1),
            on_trace_ready=self._write_trace,
            profile_memory=True,
        )

    def step(self) -> None:
        """One optimiser step is done."""
        self._count += 1
        allocated = torch.cuda.memory_allocated(self._device) if self._cuda else 0
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        held = _resident_bytes() or most
        self._peak = max(self._peak, held, most)  # the system notes the most late
        self._memory.append((self._count, allocated, held, self._peak))
        self._profiler.step()

    def start(self) -> None:
        self._profiler.start()

    def finish(self) -> None:
        """Write what was gathered. Raises TrainingError where training was too short for a trace."""
        self._profiler.stop()
        with (self.folder / MEMORY).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("step", "device_bytes", "process_bytes", "process_peak_bytes"))
            writer.writerows(self._memory)
        if not self._traced:
            raise TrainingError(
                f"{self.folder}: no trace, since training had {self._count} steps and a trace needs "
                f"{SKIPPED + STEPS}; train on more history, or for more epochs"
            )

    def _write_trace(self, profiler: Any) -> None:
        self._traced += 1
        profiler.export_chrome_trace(str(self.folder / TRACE))
        order = "self_device_time_total" if self._cuda else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=40)
        (self.folder / RANGES).write_text(table, encoding="utf-8")


def _resident_bytes() -> int:
    """Memory that the process holds now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return 0


@contextmanager
def profiled(folder: Path | None, device: torch.device) -> Iterator[Profile | None]:
    """A profile written into `folder` when the block ends: trace.json (for a trace viewer), ranges.txt, memory.csv."""
    if folder is None:
        yield None
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made ({error.strerror}); name another folder for --profile") from None
    profile = Profile(folder, device)
    profile.start()
    try:
        yield profile
    finally:
        profile.finish()
