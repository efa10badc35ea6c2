from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from forecasting.batches import Targets, Windows
from forecasting.losses import censored_nll, counts, loss_of
from forecasting.model import (
    SLOW_KNOTS,
    Architecture,
    Attention,
    HazardTransformer,
    Life,
    Outlook,
    attention_mask,
    drift,
    horizon_basis,
    pieces,
    quantile_edges,
    rotate,
)

SIZES = Architecture(
    1, 5, 3, 2, patch=4, horizon=72, modes=2, width=16, layers=2, heads=2, dropout=0.0, summary_columns=7
)


def windows(batch: int = 3, tokens: int = 6, seed: int = 0) -> Windows:
    generator = torch.Generator().manual_seed(seed)
    return Windows(
        torch.randn(batch, 4 * tokens, 5, generator=generator),
        torch.rand(batch, tokens, 3, generator=generator),
        torch.randn(batch, 2, generator=generator),
        torch.ones(batch, tokens, dtype=torch.bool),
        torch.randn(batch, tokens, 7, generator=generator),
    )


@pytest.fixture
def network() -> HazardTransformer:
    torch.manual_seed(0)
    network = HazardTransformer(SIZES, np.array([0.001, 0.002])).eval()
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    return network


def test_attention_equals_the_plain_formula():
    torch.manual_seed(1)
    attention, x = Attention(16, 2), torch.randn(3, 6, 16)
    alive = torch.tensor([[True] * 6, [False] * 2 + [True] * 4, [False] * 5 + [True]])
    mask = attention_mask(alive)
    angles = torch.arange(6)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
    found = attention(x, mask, angles.cos(), angles.sin(), last=False)
    q, k, v = attention.qkv(x).split(16, dim=-1)
    mixed = torch.zeros(3, 6, 16)
    for b in range(3):
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            turned = [rotate(t[b, :, part], angles.cos(), angles.sin()) for t in (q, k)]
            for i in range(6):
                seen = [j for j in range(i + 1) if alive[b, j] or j == i]
                scores = torch.stack([turned[0][i] @ turned[1][j] / math.sqrt(8) for j in seen]).softmax(0)
                mixed[b, i, part] = sum(s * v[b, j, part] for s, j in zip(scores, seen, strict=True))
    torch.testing.assert_close(found, attention.out(mixed))
    only = attention(x, mask, angles.cos(), angles.sin(), last=True)
    torch.testing.assert_close(only, found[:, -1:])


def test_rotary_products_depend_on_distance_alone():
    torch.manual_seed(2)
    q, k = torch.randn(8), torch.randn(8)
    turns = torch.tensor([1.0, 0.1, 0.01, 0.001])

    def product(at: int, other: int) -> float:
        a, b = at * turns, other * turns
        return float(rotate(q, a.cos(), a.sin()) @ rotate(k, b.cos(), b.sin()))

    assert product(5, 2) == pytest.approx(product(23, 20), abs=1e-5)
    assert product(5, 2) != pytest.approx(product(5, 4), abs=1e-3)


def test_no_token_sees_a_later_one(network):
    before = windows()
    after = windows()
    after.steps[:, 16:] += 5.0
    after.slow[:, 4:] = 1.0
    after.summary[:, 4:] = 1.0
    first, second = network(before), network(after)
    torch.testing.assert_close(first.logits[:, :4], second.logits[:, :4])
    torch.testing.assert_close(first.rul[:, :4], second.rul[:, :4])
    assert (first.logits[:, 4] - second.logits[:, 4]).abs().max() > 1e-3


def test_padding_changes_nothing(network):
    padded, short = windows(), windows()
    padded.alive[:, :2] = False
    padded.steps[:, :8] = 0.0
    short = Windows(short.steps[:, 8:], short.slow[:, 2:], short.static, short.alive[:, 2:], short.summary[:, 2:])
    torch.testing.assert_close(network(padded).logits[:, 2:], network(short).logits, atol=1e-5, rtol=1e-4)


def test_the_last_token_alone_says_the_same(network):
    batch = windows()
    whole, last = network(batch), network(batch, last=True)
    torch.testing.assert_close(last.logits, whole.logits[:, -1:])
    torch.testing.assert_close(last.rul, whole.rul[:, -1:])


@pytest.mark.parametrize("own_odds", [False, True])
def test_training_starts_at_the_base_hazard(own_odds):
    network = HazardTransformer(replace(SIZES, own_odds=own_odds), np.array([0.001, 0.002])).eval()
    nn.init.zeros_(network.hazard.weight)
    logits = network(windows()).logits
    padded = nn.functional.pad(logits, (0, 1)).softmax(dim=-1)
    torch.testing.assert_close(padded[..., 0], torch.full(padded.shape[:-1], 0.001))
    torch.testing.assert_close(padded[..., 1], torch.full(padded.shape[:-1], 0.002))


@pytest.mark.parametrize("horizon", [3, 12, 18, 72])
def test_the_horizon_basis_interpolates(horizon):
    basis = horizon_basis(horizon)
    assert basis.shape == (horizon, min(12, horizon))
    np.testing.assert_allclose(basis.sum(axis=1), 1.0, atol=1e-6)
    assert basis[0, 0] == basis[-1, -1] == 1.0
    assert np.linalg.matrix_rank(basis) == basis.shape[1]


@pytest.mark.parametrize(("own_odds", "reached"), [(False, False), (True, True)])
def test_the_odds_of_one_bin_alone_can_be_raised_where_bins_have_their_own(own_odds, reached):
    torch.manual_seed(0)
    network = HazardTransformer(replace(SIZES, own_odds=own_odds, horizon=72), np.array([0.001, 0.002])).eval()
    spike = torch.zeros(72)
    spike[23] = 5.0
    found = np.linalg.lstsq(network.basis.numpy(), spike.numpy(), rcond=None)[0]
    assert np.allclose(network.basis.numpy() @ found, spike.numpy(), atol=1e-3) == reached
    smooth = horizon_basis(72).shape[1] * SIZES.modes
    assert network.hazard.weight[:smooth].any()
    assert len(network.hazard.weight[smooth:]) == reached * 72 * SIZES.modes
    assert not network.hazard.weight[smooth:].any(), "the spikes are learned, the curve is there from the start"


def test_a_residual_that_is_not_told_has_no_part_in_how_it_moved():
    steps = torch.zeros(1, 3, 4, 3)
    steps[..., 0], steps[..., 2] = 2.0, 1.0
    steps[0, :, :, 1] = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0] * 4, [0.0, 3.0, 0.0, 3.0]])
    moved = drift(steps, 1, told_residuals=True)[0]
    # Of the patch: values, residuals; of the last patches together: the same.
    torch.testing.assert_close(moved[:, 0], torch.zeros(3))
    torch.testing.assert_close(moved[:, 1], torch.tensor([0.0, 0.0, 1.0]))
    before = drift(steps, 1, told_residuals=False)[0]
    torch.testing.assert_close(before[:, 1], torch.tensor([0.0, -0.25, 1.5 - 8 / 12]))


def test_pieces_are_a_thermometer():
    found = pieces(torch.tensor([[0.0, 0.5, 1.0, 0.3125]])).view(4, SLOW_KNOTS)
    assert found[0].tolist() == [0.0] * 8
    assert found[1].tolist() == [1.0] * 4 + [0.0] * 4
    assert found[2].tolist() == [1.0] * 8
    assert found[3].tolist() == [1.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_summaries_are_cut_at_their_quantiles():
    rng = np.random.default_rng(0)
    edges = quantile_edges(np.stack([rng.normal(size=4000), rng.exponential(size=4000), np.ones(4000)], axis=1), 5)
    assert edges.shape == (6, 3)
    assert (np.diff(edges, axis=0) > 0).all(), "a column that says nothing must not divide by nothing"
    life = Life(3, 5, 8, 0.0, 0.5).eval()
    life.edges.copy_(torch.from_numpy(edges))
    given = torch.tensor([[[float(edges[2, 0]), 100.0, 1.0]]])
    pieces_of = torch.zeros(5, 3)
    pieces_of[:2, 0] = 1.0  # the first two pieces are full
    pieces_of[:, 1] = 1.0
    whole = torch.zeros(1, 1, 8)
    whole = whole + life.summary(pieces_of.flatten())
    expected = whole + life.mlp(life.before_mlp(whole))
    torch.testing.assert_close(life(torch.zeros(1, 1, 8), given), expected)


def test_training_hides_the_summaries_of_some_windows():
    torch.manual_seed(4)
    life = Life(2, 4, 8, 0.0, 0.25)
    found = life(torch.zeros(400, 3, 8), torch.ones(400, 3, 2))
    bare = life.mlp(life.before_mlp(torch.zeros(8)))
    hidden = (found - bare).abs().amax(dim=-1) < 1e-6
    assert (hidden.all(dim=1) == hidden.any(dim=1)).all(), "for a whole window or not at all"
    assert hidden.all(dim=1).float().mean() == pytest.approx(0.25, abs=0.08)


def test_remaining_life_costs_half_its_squared_error_where_it_is_known():
    logits, rul = torch.zeros(1, 3, 2, 1), torch.tensor([[0.5, 0.9, 0.1]])
    unknown = torch.full((1, 3), -1), torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3, 1)
    told = Targets(*unknown, torch.tensor([[0.7, 0.9, 0.8]]), torch.tensor([[True, True, False]]))
    counted = torch.tensor([[True, False, True]])
    assert float(loss_of(Outlook(logits, rul, torch.zeros(1, 3, 4)), told, counted, 3.0)) == pytest.approx(
        0.5 * 3.0 * 0.2**2
    )


def targets(event_bin: int, known: int, modes: list[float]) -> Targets:
    return Targets(
        torch.tensor([event_bin]),
        torch.tensor([known]),
        torch.tensor([modes]),
        torch.tensor([0.0]),
        torch.tensor([False]),
    )


@pytest.mark.parametrize(
    ("event_bin", "known", "modes", "chance"),
    [
        (-1, 0, [0.0, 0.0], 1.0),  # nothing known
        (-1, 2, [0.0, 0.0], 0.7 * 0.5),  # censored after two bins
        (-1, 3, [0.0, 0.0], 0.7 * 0.5 * 0.4),  # survived the horizon
        (0, 0, [1.0, 0.0], 0.1),  # failed at once, by the first mode
        (2, 2, [0.0, 1.0], 0.7 * 0.5 * 0.2),  # failed in the third bin, by the second
        (1, 1, [0.5, 0.5], 0.7 * math.sqrt(0.2 * 0.3)),  # both modes at one moment
    ],
)
def test_the_likelihood_by_hand(event_bin, known, modes, chance):
    hazards = torch.tensor([[[0.1, 0.2], [0.2, 0.3], [0.4, 0.2]]])
    logits = (hazards / (1 - hazards.sum(-1, keepdim=True))).log()
    nll = censored_nll(logits, targets(event_bin, known, modes))
    assert float(nll) == pytest.approx(-math.log(chance), abs=1e-6)


def test_the_likelihood_ignores_what_was_not_observed():
    logits = torch.randn(1, 10, 2, requires_grad=True)
    censored_nll(logits, targets(-1, 4, [0.0, 0.0])).sum().backward()
    assert (logits.grad[0, :4] != 0).all()
    assert (logits.grad[0, 4:] == 0).all()


def test_positions_count_when_something_is_known_after_enough_patches():
    known = torch.tensor([[5, 5, 5, 5, 0]])
    labels = Targets(
        torch.full((1, 5), -1), known, torch.zeros(1, 5, 1), torch.zeros(1, 5), torch.zeros(1, 5, dtype=torch.bool)
    )
    alive = torch.tensor([[False, True, True, True, True]])
    assert counts(labels, alive, 2).tolist() == [[False, False, False, True, False]]
