"""Windows of a grid as tensors: features and labels resident on the device, gathered there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from forecasting.features import Features, gap_columns, layout_of
from forecasting.labels import Labels
from forecasting.windows import Grid, Ints


@dataclass(frozen=True)
class Windows:
    """A batch of B windows of T steps, cut into T / patch tokens each."""

    steps: Tensor
    """[B, T, C] step features; zero before the first reading of the window."""
    slow: Tensor
    """[B, tokens, L] slow features at the end of each patch; zero in patches that are padding."""
    static: Tensor
    """[B, S]"""
    alive: Tensor
    """[B, tokens] bool; false where a patch ends before the first reading of the window or after the end of its
    asset's record, which is padding."""
    summary: Tensor
    """[B, tokens, M] summaries of the life up to the end of each patch, or [B, 1, M] up to the end of the last."""

    def __len__(self) -> int:
        return self.steps.shape[0]


@dataclass(frozen=True)
class Targets:
    """Labels at the end of each patch of B windows."""

    event_bin: Tensor
    """[B, tokens] bin of the next failure, -1 for none."""
    known_bins: Tensor
    """[B, tokens]"""
    modes: Tensor
    """[B, tokens, K]"""
    rul: Tensor
    """[B, tokens] share of the cap, 0 to 1."""
    rul_known: Tensor
    """[B, tokens] bool"""

    def last(self) -> Targets:
        """Labels [B, ...] of the last token alone."""
        return Targets(
            self.event_bin[:, -1], self.known_bins[:, -1], self.modes[:, -1], self.rul[:, -1], self.rul_known[:, -1]
        )

    def to(self, device: torch.device | str) -> Targets:
        return Targets(
            *(part.to(device) for part in (self.event_bin, self.known_bins, self.modes, self.rul, self.rul_known))
        )


def joined(parts: Sequence[Targets]) -> Targets:
    """Targets of the last token of several batches, one batch after another."""
    return Targets(*(torch.cat([getattr(part, column.name) for part in parts]) for column in fields(Targets)))


class Resident:
    """The features (and labels) of a grid on a device.

    A window is named by the grid's row that it ends with; one that goes on after its asset's last row, by that row and
    the steps beyond it. So `ends` are [B] rows or [B, 2] rows and steps.
    """

    def __init__(
        self, grid: Grid, features: Features, labels: Labels | None = None, *, device: torch.device | str = "cpu"
    ) -> None:
        schema = grid.schema
        self.schema = schema
        self.device = torch.device(device)
        self._steps = self._held(features.steps)
        self._slow = self._held(features.slow)
        self._static = self._put(features.static)
        self._observed = self._put(features.observed)
        self._summary = self._held(features.summary)
        self._place = None
        if features.summarised is not None:
            place = np.full(len(grid), -1, dtype=np.int64)
            place[features.summarised] = np.arange(len(features.summarised))
            self._place = self._put(place)
        self._group, self._needs = self._put(features.group), self._put(features.needs)
        self._gaps, self._lost = gap_columns(schema), self._put(features.lost)
        self._point_columns = layout_of(schema).blocks * len(schema.points)
        self._asset = self._put(grid.asset_of)
        self._start = self._put(np.repeat(grid.offsets[:-1], np.diff(grid.offsets)))
        self._ago = torch.arange(1 - schema.context, 1, device=self.device)
        if labels is not None:
            self._event_bin = self._put(labels.event_bin)
            self._known_bins = self._put(labels.known_bins)
            self._modes = self._put(labels.modes)
            self._rul = self._put(labels.rul / np.float32(schema.rul_cap))
            self._rul_known = self._put(labels.rul_known)

    def _put(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _held(self, values: np.ndarray) -> Tensor:
        """On the device, but for what is mapped from a file: that stays where it is, and is gathered there."""
        return torch.from_numpy(values) if isinstance(values, np.memmap) else self._put(values)

    def _gather(self, table: Tensor, rows: Tensor) -> Tensor:
        return table[rows.to(table.device)].to(self.device)

    def windows(self, ends: Ints, last: bool = False) -> Windows:
        """These windows. Rows before the asset's first, or its first reading, and after its last are padding.

        last: with the summary of the last token alone, all that the network's `last` reads; it is all that there is
        where the features were summarised at some rows only.
        """
        rows, begun = self._rows(ends)
        steps = torch.where(begun[..., None], self._gather(self._steps, rows), 0.0)
        closing = slice(self.schema.patch - 1, None, self.schema.patch)
        alive = begun[:, closing]
        slow = torch.where(alive[..., None], self._gather(self._slow, rows[:, closing]), 0.0)
        if last or self._place is not None:
            end = rows[:, -1] if self._place is None else self._place[rows[:, -1]]
            summary = self._gather(self._summary, end)[:, None]
        else:
            summary = self._gather(self._summary, rows[:, closing])
        return Windows(steps, slow, self._static[self._asset[rows[:, -1]]], alive, summary)

    def windows_by_number(self, ends: Ints) -> Callable[[Ints], Windows]:
        """What gives the windows that end with these rows by their number, with the last token's summary alone."""
        return lambda chosen: self.windows(ends[chosen], last=True)

    def without(self, windows: Windows, ends: Ints, kept: Tensor) -> Windows:
        """These windows as if sensors had never been: kept [B, P] says which are spared.

        What other points read beyond an expectation that heeds a lost one goes with it, as in service.
        """
        points = kept.shape[1]
        if not points:
            return windows
        share = kept.to(windows.steps.dtype)
        last = self._stretch(ends, self._ago[:1])[0]
        needs = self._needs[self._group[self._asset[last]]]
        told = share * ((needs @ (1.0 - share)[..., None])[..., 0] == 0.0)
        steps, slow, summary = windows.steps.clone(), windows.slow.clone(), windows.summary.clone()
        steps[..., : 3 * points] *= torch.cat([share, told, share], dim=1)[:, None]
        for point, column in self._gaps.items():
            slow[..., column] = torch.where(kept[:, point, None] | ~windows.alive, slow[..., column], 1.0)
        of_points = slice(0, self._point_columns)
        spared = kept.repeat(1, self._point_columns // points)[:, None]
        summary[..., of_points] = torch.where(spared, summary[..., of_points], self._lost[of_points])
        return replace(windows, steps=steps, slow=slow, summary=summary)

    def alive(self, ends: Ints) -> Tensor:
        """`Windows.alive` of the same windows."""
        return self._rows(ends)[1][:, self.schema.patch - 1 :: self.schema.patch]

    def _rows(self, ends: Ints) -> tuple[Tensor, Tensor]:
        """[B, T] rows of these windows, and whether each stands in the record, after the window's first reading."""
        last, rows = self._stretch(ends, self._ago)
        inside = rows >= self._start[last][:, None]
        over = rows > last[:, None]
        rows = _within(rows, last)
        # A forecast at serving time is given only the window, so what came before its first reading must not show.
        return rows, (self._observed[rows] & inside).cummax(dim=1).values & ~over

    def _stretch(self, ends: Ints, ago: Tensor) -> tuple[Tensor, Tensor]:
        """[B] the last row of each window's asset that it may reach, and [B, T] its rows, which may go beyond."""
        named = self._put(ends)
        if named.ndim == 1:
            return named, named[:, None] + ago
        return named[:, 0], named.sum(dim=1)[:, None] + ago

    def targets(self, ends: Ints) -> Targets:
        """Labels of the same windows' patch ends; padding is told by `Windows.alive`."""
        last, rows = self._stretch(ends, self._ago[self.schema.patch - 1 :: self.schema.patch])
        rows = _within(rows, last)
        return Targets(
            self._event_bin[rows], self._known_bins[rows], self._modes[rows], self._rul[rows], self._rul_known[rows]
        )


def _within(rows: Tensor, last: Tensor) -> Tensor:
    """[B, T] rows that can be looked up, where padding stands too."""
    return torch.minimum(rows.clamp_min(0), last[:, None])
