"""Features that need not fit into memory: laid down in a file that is mapped, asset by asset.

A file without a name in the folder that is given; it is gone when training ends, in whatever way. The system keeps in
memory what is gathered often and lets go of the rest.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from forecasting.features import Features, Normaliser, features_of, lost_summary
from forecasting.windows import Grid
from pm.errors import TrainingError

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 200_000
"""Rows of assets that are computed together, at least one asset."""
RESIDENT_SHARE = 0.5
"""Share of the memory that is free that features may take before "auto" lays them down in a file."""


def features_within(
    grid: Grid,
    normaliser: Normaliser,
    memory: Literal["auto", "resident", "mapped"],
    device: torch.device,
    folder: Path | None = None,
) -> Features:
    """`features_of(grid, normaliser)`, in memory or mapped from a file in `folder` (the system's for temporary files).

    memory: "auto" maps them where they would take more than half of what is free on the device.
    Raises TrainingError where the file cannot be written.
    """
    mapped = memory == "mapped"
    if memory == "auto" and len(grid):
        needed, free = _bytes(grid, normaliser), _free(device)
        mapped = free is not None and needed > RESIDENT_SHARE * free
        if mapped:
            log.info("features take %.1f GB, more than half of the memory: they are mapped from disk", needed / 1e9)
    if not mapped:
        return features_of(grid, normaliser)
    try:
        return _on_disk(grid, normaliser, folder)
    except OSError as error:
        raise TrainingError(
            f"{folder or tempfile.gettempdir()}: no room for {_bytes(grid, normaliser) / 1e9:.1f} GB of features "
            f"({error.strerror}); free space there, or write the model to another disk"
        ) from None


def _on_disk(grid: Grid, normaliser: Normaliser, folder: Path | None) -> Features:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    tables: list[npt.NDArray[np.float32]] = []
    statics = []
    for first, after in grid.groups(ROWS_AT_ONCE):
        part = features_of(grid.part(first, after), normaliser)
        if not tables:
            widths = [table.shape[1] for table in (part.steps, part.slow, part.summary)]
            tables = [_table(len(grid), width, folder) for width in widths]
        place = slice(int(grid.offsets[first]), int(grid.offsets[after]))
        for table, rows in zip(tables, (part.steps, part.slow, part.summary), strict=True):
            table[place] = rows
        statics.append(part.static)
    steps, slow, summary = tables
    lost = lost_summary(grid.schema, normaliser)
    group, needs = normaliser.group_of(grid), normaliser.behaviour.needs
    return Features(steps, slow, np.concatenate(statics), grid.observed, lost, summary, group, needs)


def _table(rows: int, columns: int, folder: Path | None) -> npt.NDArray[np.float32]:
    if not rows * columns:
        return np.zeros((rows, columns), dtype=np.float32)
    with tempfile.TemporaryFile(dir=folder, prefix="features-") as file:
        return np.memmap(file, np.float32, "w+", shape=(rows, columns))


def _bytes(grid: Grid, normaliser: Normaliser) -> int:
    """What the features take: the width of one asset's, for all rows."""
    sample = grid.part(0, 1) if grid.offsets[1] else grid
    one = features_of(sample, normaliser, np.arange(min(1, len(sample)), dtype=np.int64))
    return int(4 * len(grid) * (one.steps.shape[1] + one.slow.shape[1] + one.summary.shape[1]))


def _free(device: torch.device) -> int | None:
    """Bytes that may be taken on the device; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return 1024 * int(kilobytes)
