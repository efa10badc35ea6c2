"""The training loss: censored likelihood of competing failure modes in discrete time, and remaining life."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from forecasting.batches import Targets
from forecasting.model import Outlook


def censored_nll(logits: Tensor, targets: Targets) -> Tensor:
    """Negative log-likelihood of each position, in nats.

    logits: [..., H, K] log odds of failing by mode k in bin j against surviving it. With z = logits and
    D_j = log(1 + sum over k of exp z_jk), surviving bin j costs D_j and failing in it by mode k costs D_j - z_jk. A
    position pays for every bin known to be survived, and for the bin of its failure; failures of several modes at one
    moment share it. Bins after the failure or after the end of the record cost nothing (Lee et al., 2018, without the
    ranking term; hazards in place of the probability mass).
    """
    padded = functional.pad(logits, (0, 1))  # survival's own logit is zero
    cost = torch.logsumexp(padded, dim=-1)
    failed = targets.event_bin >= 0
    at_risk = torch.where(failed, targets.event_bin + 1, targets.known_bins)
    bins = torch.arange(logits.shape[-2], device=logits.device)
    survived = (cost * (bins < at_risk[..., None])).sum(dim=-1)
    place = targets.event_bin.clamp_min(0)[..., None, None].expand(*targets.event_bin.shape, 1, logits.shape[-1])
    own = (logits.gather(-2, place).squeeze(-2) * targets.modes).sum(dim=-1)
    return survived - torch.where(failed, own, 0.0)


def counts(targets: Targets, alive: Tensor, history: int) -> Tensor:
    """[B, tokens] bool: positions that are learned from, with something known after and `history` patches before.

    A window that begins with its asset's first reading counts its living patches alone.
    """
    known = (targets.event_bin >= 0) | (targets.known_bins > 0) | targets.rul_known
    return known & alive & (alive.cumsum(dim=1) > history)


def loss_of(outlook: Outlook, targets: Targets, counted: Tensor, life_weight: float) -> Tensor:
    """Sum over the counted positions of the likelihood's part and `life_weight` times that of remaining life.

    That is half the squared error, in shares of the cap squared, where remaining life is known: its best answer is the
    expected remaining life.
    """
    nll = censored_nll(outlook.logits, targets)[counted].sum()
    scored = counted & targets.rul_known
    return nll + 0.5 * life_weight * (outlook.rul[scored] - targets.rul[scored]).square().sum()
