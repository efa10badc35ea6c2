"""The network in its serving form: the same weights and numbers, written in fewer, larger operators.

At batch 1 an operator costs as much as its arithmetic. So what follows from the weights alone is worked out once
(positions of the last query, values and output of the last layer, knots of the hazard), what comes together is
multiplied together, and nothing is computed for a token that nobody looks at.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forecasting.batches import Windows
from forecasting.model import RECENT, SLOW_KNOTS, Block, HazardTransformer, Life, Network

MASKED = -1e9


class Served(nn.Module):
    """A network in its serving form: the tensors of `Windows` in, those of `Answer` out."""

    def __init__(self, network: Network, tokens: int) -> None:
        """tokens: of the windows that will be served."""
        super().__init__()
        members = [network] if isinstance(network, HazardTransformer) else list(network.members)
        self.members = nn.ModuleList(ServedMember(member, tokens) for member in members)  # type: ignore[arg-type]
        self.bins, self.modes = network.sizes.horizon, network.sizes.modes
        self.float().eval().requires_grad_(False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        windows = Windows(*tensors)
        said, embedding = zip(*(member(windows) for member in self.members), strict=True)
        mean = said[0] if len(said) == 1 else torch.stack(said).mean(dim=0)
        whole = embedding[0] if len(said) == 1 else torch.cat(embedding, dim=-1)
        return mean[:, :-1].reshape(-1, self.bins, self.modes), mean[:, -1:].flatten(), whole


class ServedMember(nn.Module):
    """One network at the last token: [B, H * K + 1] log odds and remaining life, and [B, W] what they are read from."""

    causal: Tensor
    own: Tensor
    spans: Tensor
    lows: Tensor

    def __init__(self, network: HazardTransformer, tokens: int) -> None:
        super().__init__()
        sizes, self.tokens = network.sizes, tokens
        self.points, self.patch, self.width = sizes.points, sizes.patch, sizes.width
        self.told_residuals = sizes.told_residuals
        embedding = [network.from_steps, network.from_drift]
        if network.from_slow is not None:
            embedding.append(network.from_slow)
        weights = [linear.weight.detach().cpu().double() for linear in embedding]
        if network.from_slow is not None:
            # The pieces are taken in eighths, so that no product stretches them.
            weights[-1] = weights[-1] * SLOW_KNOTS
        self.embed = _linear(torch.cat(weights, dim=1))
        self.static = _linear(network.from_static.weight, network.from_steps.bias)
        blocks: list[Block] = list(network.blocks)  # type: ignore[arg-type]
        turns = _turns(network.turns.cpu(), tokens)
        self.blocks = nn.ModuleList(ServedBlock(block, tokens, turns) for block in blocks[:-1])
        self.last = LastBlock(blocks[-1], tokens, turns)
        self.norm = _norm(network.norm)
        self.life = None if network.life is None else ServedLife(network.life, self.norm)
        self.head = _head_of(network)
        step = torch.arange(tokens)
        ago = step[:, None] - step
        # [T * 3, T] which patches make, for each token, its own patch, the recent ones, the window so far.
        reach = [(ago >= 0) & (ago < most) for most in (1, RECENT, tokens)]
        self._hold("spans", torch.stack(reach, dim=1).flatten(0, 1).float())
        self._hold("lows", torch.arange(SLOW_KNOTS) / SLOW_KNOTS)
        self._hold("causal", torch.where(ago >= 0, 0.0, MASKED))
        self._hold("own", torch.where(ago == 0, 0.0, MASKED))

    def _hold(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values, persistent=False)

    def forward(self, windows: Windows) -> tuple[Tensor, Tensor]:
        tokens = windows.steps.reshape(-1, self.tokens, self.patch, windows.steps.shape[-1])
        parts = [tokens.flatten(2), self._drift(tokens)]
        if windows.slow.shape[-1]:
            parts.append((windows.slow[..., None] - self.lows).clamp(0.0, 1.0 / SLOW_KNOTS).flatten(2))
        x = (self.embed(torch.cat(parts, dim=-1)) + self.static(windows.static)[:, None]).reshape(-1, self.width)
        # A living token is looked at by itself and whoever follows; one that is padding only by itself.
        mask = torch.where(windows.alive[:, None, None], self.causal, self.own)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(self.last(x, mask[:, :, -1]))
        if self.life is not None:
            x = self.life(x, windows.summary)
        return self.head(x), x

    def _drift(self, tokens: Tensor) -> Tensor:
        """`forecasting.model.drift`, all spans in one product."""
        points = self.points
        counted = tokens[..., : 3 * points]
        if self.told_residuals:
            told = (tokens[..., points : 2 * points] != 0).float()
            counted = torch.cat([counted, told], dim=-1)
        total = (self.spans @ counted.sum(dim=2)).reshape(-1, self.tokens, 3, counted.shape[-1] // points, points)
        values, count = total[..., :2, :], total[..., 2:, :]
        level = values / count.clamp_min(1.0)
        moved = (level[:, :, :2] - level[:, :, 2:]) * count[:, :, :2].clamp_max(1.0)
        return moved.flatten(2)


class ServedBlock(nn.Module):
    """`Block` over all tokens [B * T, W], with the scale folded into the query's weights."""

    def __init__(self, block: Block, tokens: int, turns: Tensor) -> None:
        super().__init__()
        attention = block.attention
        self.tokens, self.heads = tokens, attention.heads
        self.width = attention.out.in_features
        self.size = self.width // self.heads
        q, k, v = torch.split(attention.qkv.weight.detach().cpu().double(), self.width)
        self.before_attention, self.before_mlp = _norm(block.before_attention), _norm(block.before_mlp)
        self.qkv = _linear(torch.cat([q * self.size**-0.5, k, v]))
        self.out = _linear(attention.out.weight, attention.out.bias)
        self.mlp = _mlp(block.mlp)
        self.turn = Turn(turns)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """mask: [B, 1, T, T] to be added to the scores."""
        qkv = self.qkv(self.before_attention(x)).reshape(-1, self.tokens, 3 * self.heads, self.size).transpose(1, 2)
        turned, v = torch.split(qkv, [2 * self.heads, self.heads], dim=1)
        q, k = torch.split(self.turn(turned), self.heads, dim=1)
        mixed = (q @ k.transpose(2, 3) + mask).softmax(dim=-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(-1, self.width))
        return x + self.mlp(self.before_mlp(x))  # type: ignore[no-any-return]


class LastBlock(nn.Module):
    """The last `Block`, for the last token alone: [B * T, W] -> [B, W].

    Its query stands at one place, whose turn is folded into the weights. Of the others only keys are made: values are
    linear, so that the tokens themselves are mixed, and value and output are one product.
    """

    def __init__(self, block: Block, tokens: int, turns: Tensor) -> None:
        super().__init__()
        attention = block.attention
        self.tokens, self.heads = tokens, attention.heads
        self.width = attention.out.in_features
        self.size = self.width // self.heads
        q, k, v = (
            part.reshape(self.heads, self.size, self.width)
            for part in torch.split(attention.qkv.weight.detach().cpu().double(), self.width)
        )
        self.before_attention, self.before_mlp = _norm(block.before_attention), _norm(block.before_mlp)
        at_last = Turn(turns[:, -1:].double())
        q = at_last(q.transpose(1, 2)).transpose(1, 2) * self.size**-0.5
        self.query, self.key = _linear(q.flatten(0, 1)), _linear(k.flatten(0, 1))
        out = attention.out.weight.detach().cpu().double().reshape(self.width, self.heads, self.size)
        self.value_out = _linear(torch.einsum("ohd,hdi->ohi", out, v).flatten(1), attention.out.bias)
        self.mlp = _mlp(block.mlp)
        self.turn = Turn(turns)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """mask: [B, 1, T] to be added to the scores."""
        flat = self.before_attention(x)
        by_token = flat.reshape(-1, self.tokens, self.width)
        q = self.query(by_token[:, -1]).reshape(-1, self.heads, 1, self.size)
        k = self.turn(self.key(flat).reshape(-1, self.tokens, self.heads, self.size).transpose(1, 2))
        scores = (q @ k.transpose(2, 3)).reshape(-1, self.heads, self.tokens) + mask
        mixed = scores.softmax(dim=-1) @ by_token
        x = x.reshape(-1, self.tokens, self.width)[:, -1] + self.value_out(mixed.flatten(1))
        return x + self.mlp(self.before_mlp(x))  # type: ignore[no-any-return]


class ServedLife(nn.Module):
    """`Life` of the last token, with the bias of what it adds first borne by the norm before it."""

    lows: Tensor
    slopes: Tensor

    def __init__(self, life: Life, norm: nn.LayerNorm) -> None:
        super().__init__()
        first, second = _linears(life.summary)
        self.summary = nn.Sequential(_linear(first.weight, first.bias), Gelu())
        norm.bias = _fixed(norm.bias + second.bias.detach().cpu())
        self.before_mlp = _norm(life.before_mlp)
        self.mlp = _mlp(life.mlp)
        self.joined = _fixed(second.weight.T)
        edges = life.edges.detach().cpu()
        self.register_buffer("lows", edges[:-1].clone(), persistent=False)
        self.register_buffer("slopes", 1.0 / (edges[1:] - edges[:-1]), persistent=False)

    def forward(self, x: Tensor, summary: Tensor) -> Tensor:
        """summary: [B, 1, M]."""
        pieces = ((summary - self.lows) * self.slopes).clamp(0.0, 1.0).flatten(1)
        x = torch.addmm(x, self.summary(pieces), self.joined)
        return x + self.mlp(self.before_mlp(x))  # type: ignore[no-any-return]


class Turn(nn.Module):
    """Rotary positions on [..., T, D]."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, turns: Tensor) -> None:
        super().__init__()
        self.register_buffer("cosine", turns[0], persistent=False)
        self.register_buffer("sine", turns[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * self.cosine + torch.cat([second, first], dim=-1) * self.sine


class Gelu(nn.Module):
    """The exact GELU in the order of operators that ONNX Runtime knows as one."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.erf(x / 2.0**0.5) + 1.0) * 0.5


def _turns(frequencies: Tensor, tokens: int) -> Tensor:
    """[2, T, D] by what a feature and its partner are multiplied at every place."""
    angles = torch.arange(tokens)[:, None] * frequencies
    cosine, sine = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)])


def _head_of(network: HazardTransformer) -> nn.Linear:
    """Knots of the hazard, drawn out to bins, with the bins' own odds, and remaining life, as one product."""
    knots, modes = network.basis.shape[1], network.sizes.modes
    basis = network.basis.detach().cpu().double()
    weight = network.hazard.weight.detach().cpu().double().reshape(knots, modes, -1)
    bias = network.hazard.bias.detach().cpu().double().reshape(knots, modes)
    rul = network.rul
    joined = torch.cat([torch.einsum("hk,kmi->hmi", basis, weight).flatten(0, 1), rul.weight.detach().cpu().double()])
    joined_bias = torch.cat([(basis @ bias).flatten(), rul.bias.detach().cpu().double()])
    return _linear(joined, joined_bias)


def _mlp(mlp: nn.Sequential) -> nn.Sequential:
    into, out = _linears(mlp)
    return nn.Sequential(_linear(into.weight, into.bias), Gelu(), _linear(out.weight, out.bias))


def _linears(layers: nn.Sequential) -> tuple[nn.Linear, nn.Linear]:
    """The two linear layers of a perceptron, whatever of training alone stands between them."""
    first, second = (layer for layer in layers if isinstance(layer, nn.Linear))
    return first, second


def _norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    copied = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
    copied.load_state_dict({name: values.detach().cpu() for name, values in norm.state_dict().items()})
    return copied


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().cpu().float().clone().contiguous(), requires_grad=False)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = _fixed(weight)
    if bias is not None:
        linear.bias = _fixed(bias)
    return linear
