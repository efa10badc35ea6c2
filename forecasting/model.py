"""The network: a causal transformer over patches of the grid with a discrete-time hazard head per failure mode.

A token is one patch: all step features of its steps, the slow features at its end, the static columns. Blocks are
pre-norm (Xiong et al., 2020) with rotary positions (Su et al., 2021), so that only distances between patches matter
and any window length works. Every token predicts, from itself and what came before it in its window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from forecasting.batches import Windows

SLOW_KNOTS = 8
"""Pieces that a slow feature is cut into, so that the first layer can tell "yesterday" from "last month"."""
NARROWEST = 1e-3
"""Least width of a piece, in deviations of its column."""
HORIZON_KNOTS = 12
MLP_FACTOR = 2
RECENT = 4
"""Patches that make the recent past, as against the window so far."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of the network, as stored with the model."""

    points: int
    """Step columns begin with so many values, then as many residuals, then as many presences."""
    step_columns: int
    slow_columns: int
    static_columns: int
    patch: int
    horizon: int
    modes: int
    width: int
    layers: int
    heads: int
    dropout: float
    summary_columns: int = 0
    members: int = 1
    """Networks whose log odds are averaged."""
    life_dropout: float = 0.0
    """Share of windows that training shows without their summaries, so that attention learns to do without."""
    own_odds: bool = False
    """Whether every bin of the horizon has odds of its own beside the knots' (models from before had knots alone)."""
    summary_pieces: int = 8
    """Pieces that a column of the life summaries is cut into, each holding as many of the training rows (models from
    before had eight)."""
    told_residuals: bool = False
    """Whether a residual's mean is over the steps that told it (models from before took those that read its point)."""

    @property
    def embedding(self) -> int:
        """Size of `Outlook.embedding`."""
        return self.width * self.members

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the network says at a token."""

    logits: Tensor
    """[..., H, K] float32: log odds of failing by mode k in bin j against surviving it."""
    rul: Tensor
    """[...] float32: remaining life as a share of the cap."""
    embedding: Tensor
    """[..., E] float32: what the heads read, of every member of an ensemble one after another."""


class Attention(nn.Module):
    """Multi-head scaled dot-product attention with rotary positions, through torch's fused kernel."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, cosine: Tensor, sine: Tensor, last: bool) -> Tensor:
        """x [B, T, W], mask [B, 1, T, T] true where a query may look -> [B, T, W], or [B, 1, W] of the last token."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        if last:
            q, mask = q[:, :, -1:], mask[:, :, -1:]
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions: pairs of features [B, heads, T, D] turned by the angles [T, D / 2] of their token."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_FACTOR * width), nn.GELU(), nn.Linear(MLP_FACTOR * width, width), nn.Dropout(dropout)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, cosine: Tensor, sine: Tensor, last: bool = False) -> Tensor:
        mixed = self.attention(self.before_attention(x), mask, cosine, sine, last)
        x = (x[:, -1:] if last else x) + self.drop(mixed)
        return x + self.mlp(self.before_mlp(x))  # type: ignore[no-any-return]


class Life(nn.Module):
    """Joins what attention found in the window with what the whole life so far looks like.

    Every summary is cut at its quantiles into pieces (Gorishniy et al., "On embeddings for numerical features in
    tabular deep learning", 2022): a plain linear layer cannot tell a level that matters from one that does not, as a
    tree does at its first split.
    """

    edges: Tensor

    def __init__(self, columns: int, pieces: int, width: int, dropout: float, hidden: float) -> None:
        """pieces: that each of the columns is cut into. hidden: share of windows that training shows without their
        summaries."""
        super().__init__()
        self.hidden = hidden
        edges = torch.linspace(-2.0, 2.0, pieces + 1)[:, None].repeat(1, columns)
        self.register_buffer("edges", edges)
        self.summary = nn.Sequential(
            nn.Linear(columns * pieces, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.Dropout(dropout),
        )
        self.before_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_FACTOR * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(MLP_FACTOR * width, width)
        )

    def forward(self, x: Tensor, summary: Tensor) -> Tensor:
        """x [B, T, W], summary [B, T, M] -> [B, T, W]."""
        low, high = self.edges[:-1], self.edges[1:]
        found = self.summary(((summary[..., None, :] - low) / (high - low)).clamp(0.0, 1.0).flatten(-2))
        if self.training and self.hidden > 0.0:
            found = found * (torch.rand(len(x), 1, 1, device=x.device) >= self.hidden)
        x = x + found
        return x + self.mlp(self.before_mlp(x))  # type: ignore[no-any-return]


class HazardTransformer(nn.Module):
    """Windows to outlooks."""

    basis: Tensor
    turns: Tensor

    def __init__(
        self, sizes: Architecture, base_hazard: np.ndarray | None = None, edges: np.ndarray | None = None
    ) -> None:
        """base_hazard: [K] chance of failing by each mode in one bin, whichever the asset: where the head starts.
        edges: where the summaries are cut, of `quantile_edges`."""
        super().__init__()
        self.sizes = sizes
        width = sizes.width
        self.from_steps = nn.Linear(sizes.patch * sizes.step_columns, width)
        self.from_slow = nn.Linear(sizes.slow_columns * SLOW_KNOTS, width, bias=False) if sizes.slow_columns else None
        self.from_drift = nn.Linear(4 * sizes.points, width, bias=False)
        self.from_static = nn.Linear(sizes.static_columns, width, bias=False)
        self.blocks = nn.ModuleList(Block(width, sizes.heads, sizes.dropout) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(width)
        summaries = sizes.summary_columns
        self.life = None
        if summaries:
            self.life = Life(summaries, sizes.summary_pieces, width, sizes.dropout, sizes.life_dropout)
        basis = horizon_basis(sizes.horizon)
        self._knots = basis.shape[1]
        if sizes.own_odds:
            basis = np.concatenate([basis, np.eye(sizes.horizon, dtype=np.float32)], axis=1)
        self.register_buffer("basis", torch.from_numpy(basis), persistent=False)
        half = width // sizes.heads // 2
        self.register_buffer("turns", 10_000.0 ** (-torch.arange(half) / half), persistent=False)
        self.hazard = nn.Linear(width, basis.shape[1] * sizes.modes)
        self.rul = nn.Linear(width, 1)
        self._start_at(base_hazard)
        if self.life is not None and edges is not None:
            self.life.edges.copy_(torch.from_numpy(edges))

    def _start_at(self, base_hazard: np.ndarray | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        smooth = self._knots * self.sizes.modes
        with torch.no_grad():
            self.hazard.weight[smooth:] = 0.0
            if base_hazard is not None:
                odds = np.log(base_hazard / (1.0 - base_hazard.sum())).astype(np.float32)
                self.hazard.bias[:smooth] = torch.from_numpy(odds).repeat(self._knots)
                self.rul.bias.fill_(0.5)

    def forward(self, windows: Windows, last: bool = False) -> Outlook:
        """Outlooks [B, tokens, ...] of every token, or [B, 1, ...] of the last alone: all that serving needs."""
        batch, tokens = windows.alive.shape
        x = self.from_steps(windows.steps.reshape(batch, tokens, -1)) + self.from_static(windows.static)[:, None]
        patches = windows.steps.view(batch, tokens, self.sizes.patch, -1)
        x = x + self.from_drift(drift(patches, self.sizes.points, self.sizes.told_residuals))
        if self.from_slow is not None:
            x = x + self.from_slow(pieces(windows.slow))
        angles = torch.arange(tokens, device=x.device)[:, None] * self.turns
        cosine, sine = angles.cos(), angles.sin()
        mask = attention_mask(windows.alive)
        for depth, block in enumerate(self.blocks):
            x = block(x, mask, cosine, sine, last and depth == len(self.blocks) - 1)
        x = self.norm(x)
        if self.life is not None:
            x = self.life(x, windows.summary[:, -1:] if last else windows.summary)
        return self._head(x)

    def _head(self, x: Tensor) -> Outlook:
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            knots = self.hazard(x).unflatten(-1, (-1, self.sizes.modes))
            logits = functional.linear(knots.transpose(-1, -2), self.basis).transpose(-1, -2)
            return Outlook(logits, self.rul(x).squeeze(-1), x)


class Ensemble(nn.Module):
    """Networks of one architecture that began at different seeds; their log odds and remaining lives averaged.

    The mean of log odds is the log odds of the geometric mean of the members' distributions: a linear pool of opinion
    in log space (Genest & Zidek, 1986), which keeps one hazard curve for all horizons.
    """

    def __init__(self, members: Sequence[HazardTransformer]) -> None:
        super().__init__()
        self.sizes = replace(members[0].sizes, members=len(members))
        self.members = nn.ModuleList(members)

    def forward(self, windows: Windows, last: bool = False) -> Outlook:
        said: list[Outlook] = [member(windows, last) for member in self.members]
        logits = torch.stack([outlook.logits for outlook in said]).mean(dim=0)
        life = torch.stack([outlook.rul for outlook in said]).mean(dim=0)
        return Outlook(logits, life, torch.cat([outlook.embedding for outlook in said], dim=-1))


Network = HazardTransformer | Ensemble


def network_of(sizes: Architecture) -> Network:
    """The network of this architecture, with weights to be loaded."""
    if sizes.members == 1:
        return HazardTransformer(sizes)
    return Ensemble([HazardTransformer(replace(sizes, members=1)) for _ in range(sizes.members)])


def joined_weights(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Weights of the members as those of the network that `network_of` makes."""
    if len(members) == 1:
        return dict(members[0])
    return {f"members.{i}.{name}": tensor for i, one in enumerate(members) for name, tensor in one.items()}


def member_weights(weights: Mapping[str, Tensor], member: int, members: int) -> dict[str, Tensor]:
    """One member's weights out of those of all."""
    prefix = f"members.{member}." if members > 1 else ""
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def attention_mask(alive: Tensor) -> Tensor:
    """[B, T] living tokens to [B, 1, T, T]: each looks at itself and at the living ones before it."""
    length = alive.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=alive.device).tril()
    own = torch.eye(length, dtype=torch.bool, device=alive.device)
    return ((causal & alive[:, None, :]) | own)[:, None]


def drift(steps: Tensor, points: int, told_residuals: bool) -> Tensor:
    """[B, T, patch, C] steps to [B, T, 4P]: how far values and residuals stand from their mean so far in the window.

    Of the patch alone, and of the last `RECENT` patches together. An asset's own level differs from its fleet's, and
    what tells of wear is the move. Zero where there is nothing to compare.
    """
    total = steps[..., : 2 * points].sum(dim=2)
    present = steps[..., 2 * points : 3 * points]
    # A residual is told less often than its point is read, and stands at zero where it is not.
    told = (steps[..., points : 2 * points] != 0).to(steps.dtype) if told_residuals else present
    count = torch.cat([present, told], dim=-1).sum(dim=2)
    totals, counts = total.cumsum(dim=1), count.cumsum(dim=1)
    level = totals / counts.clamp_min(1.0)
    recent = functional.pad(totals, (0, 0, RECENT, 0)), functional.pad(counts, (0, 0, RECENT, 0))
    recent_total, recent_count = totals - recent[0][:, :-RECENT], counts - recent[1][:, :-RECENT]
    now = torch.where(count > 0, total / count.clamp_min(1.0) - level, 0.0)
    lately = torch.where(recent_count > 0, recent_total / recent_count.clamp_min(1.0) - level, 0.0)
    return torch.cat([now, lately], dim=-1)


def pieces(x: Tensor) -> Tensor:
    """[..., L] in [0, 1] to [..., L * SLOW_KNOTS]: piecewise-linear encoding (Gorishniy et al., 2022, equal pieces)."""
    lows = torch.arange(SLOW_KNOTS, device=x.device, dtype=x.dtype)
    return (x[..., None] * SLOW_KNOTS - lows).clamp(0.0, 1.0).flatten(-2)


def quantile_edges(summaries: np.ndarray, pieces: int) -> np.ndarray:
    """[pieces + 1, M] where the columns of [R, M] summaries are cut, rising in each column."""
    edges = np.quantile(summaries, np.linspace(0.0, 1.0, pieces + 1), axis=0)
    # Quantiles that coincide make a step there, not a division by nothing.
    return np.asarray(edges + np.arange(pieces + 1)[:, None] * NARROWEST, dtype=np.float32)


def horizon_basis(horizon: int) -> np.ndarray:
    """[H, knots] float32: linear interpolation over the horizon between knots that stand denser near now.

    A smooth curve is what a few failures can teach. Where an event tells the hour of a failure, the bins' own odds
    (`Architecture.own_odds`) make the spike that no interpolation can.

    Rows sum to 1, so that equal knots make a flat hazard.
    """
    count = min(HORIZON_KNOTS, horizon)
    knots = (horizon - 1) * np.linspace(0.0, 1.0, count) ** 1.5 if count < horizon else np.arange(horizon, dtype=float)
    return np.stack([np.interp(np.arange(horizon), knots, row) for row in np.eye(count)], axis=1).astype(np.float32)
