"""Transformers over token grids: one that reads them in order, one that fills in what is hidden.

Both are the plain transformer (Vaswani et al. 2017, arXiv 1706.03762), normalised before each layer, with learned
positions and a head tied to the embedding. The causal one is a GPT over the grid, row by row: the reference that a
circuit's likelihoods are compared with. The other one is the teacher of latent variable distillation (Liu et al. 2022,
arXiv 2210.04398): what it says about a region that it cannot see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import ConfigError, at_least

BITS = math.log(2.0)
BATCH = 64  # images at a time where nothing is learned
KEPT = 64
"""Dimensions of a region's features at most."""
SAMPLED = 2**16
"""States by which the directions to keep are found."""


@dataclass(frozen=True, kw_only=True)
class TransformerParams:
    """Size of a transformer.

    Attributes:
        width: channels of each token.
        layers: attention and feed-forward in turns, so many of each.
        heads: of attention; they divide the width.
        dropout: share of a layer's output that is dropped in training.
    """

    width: int
    layers: int
    heads: int
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, width=self.width, layers=self.layers, heads=self.heads)
        if self.width % self.heads:
            raise ConfigError(f"heads must divide the width of {self.width}, but is {self.heads}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be at least 0 and below 1, but is {self.dropout}")


class Layer(nn.Module):
    """Attention, then a feed-forward network four times as wide; each adds to its input [B, L, D]."""

    def __init__(self, params: TransformerParams, *, causal: bool) -> None:
        super().__init__()
        width = params.width
        self.heads, self.causal, self.dropout = params.heads, causal, params.dropout
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Let the tokens look at each other (at earlier ones and themselves only, if causal), then each at itself."""
        x = x + F.dropout(self.attend(self.norm_attention(x)), self.dropout, self.training)
        made: Tensor = self.narrow(F.gelu(self.widen(self.norm_feed(x))))
        return x + F.dropout(made, self.dropout, self.training)

    def attend(self, x: Tensor) -> Tensor:
        """Attention in parallel heads, [B, L, D] to the same."""
        query, key, value = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)  # [B, heads, L, D / heads]
        joined: Tensor = self.join(seen.transpose(1, 2).flatten(2))
        return joined


class TokenTransformer(nn.Module):
    """Logits of every token of a sequence.

    There is one symbol more than codes, `blank`: what a causal network sees before the first token, and what stands in
    the place of a hidden token for the other kind.
    """

    def __init__(self, params: TransformerParams, *, codes: int, length: int, causal: bool) -> None:
        """A network for sequences of `length` tokens in [0, codes).

        Causal: the logits of a token depend on earlier tokens only. Else they depend on all that the sequence shows.
        """
        super().__init__()
        self.codes, self.length, self.causal, self.blank = codes, length, causal, codes
        self.dropout = params.dropout
        self.embedding = nn.Embedding(codes + 1, params.width)
        self.position = nn.Parameter(torch.empty(length, params.width))
        self.layers = nn.ModuleList(Layer(params, causal=causal) for _ in range(params.layers))
        self.norm = nn.LayerNorm(params.width)
        self.bias = nn.Parameter(torch.zeros(codes))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draw weights as GPT-2 does (Radford et al. 2019): what adds to the stream less, the more layers there are."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(std=0.02)
            if isinstance(module, nn.Linear):
                module.bias.zero_()
            if isinstance(module, Layer):
                for last in (module.join, module.narrow):
                    last.weight /= math.sqrt(2 * len(self.layers))
        self.position.normal_(std=0.02)

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the head reads, [B, L, D], of tokens [B, L] in [0, codes]."""
        if self.causal:
            tokens = F.pad(tokens[:, :-1], (1, 0), value=self.blank)
        x = F.dropout(self.embedding(tokens) + self.position, self.dropout, self.training)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x)
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, L, codes] of tokens [B, L]."""
        return F.linear(self.hidden(tokens), self.embedding.weight[: self.codes], self.bias)


def bits_per_token(network: TokenTransformer, tokens: Tensor, batch: int = BATCH) -> Tensor:
    """-log2 p(z) / L of each sequence z, [B] float64 on the CPU.

    Args:
        network: a causal one, wherever it is.
        tokens: int64 [B, L].
        batch: sequences at a time.

    Raises:
        ValueError: the network is not causal, so that its logits do not make up a distribution of sequences.
    """
    _require(network, causal=True)
    device, rows = network.position.device, []
    with evaluating(network):
        for part in tokens.split(batch):
            part = part.to(device)
            nats = F.cross_entropy(network(part).float().flatten(0, 1), part.flatten(), reduction="none")
            rows.append(nats.view(part.shape).double().mean(1).cpu() / BITS)
    return torch.cat(rows)


def region_features(
    network: TokenTransformer, tokens: Tensor, regions: Sequence[Sequence[int]], batch: int = BATCH, kept: int = KEPT
) -> Tensor:
    """What the context says about each region: the mean state at its tokens while they, and only they, are hidden.

    One forward pass per region and image; memory beyond the result is that of `batch` sequences. Wider states are
    projected onto the directions in which those of all regions vary most, the same for all, so that regions compare.

    Args:
        network: one that is not causal, wherever it is.
        tokens: int64 [N, L].
        regions: tokens of each, R of them.
        batch: sequences at a time.
        kept: dimensions at most.

    Returns:
        [N, R, min(D, kept)] float32 on the CPU.

    Raises:
        ValueError: the network is causal.
    """
    _require(network, causal=False)
    device = network.position.device
    width, basis = network.position.shape[1], None
    if width > kept:
        few = tokens[: max(1, SAMPLED // len(regions))]
        basis = principal_directions(region_features(network, few, regions, batch, width).flatten(0, 1), kept)
    out = torch.empty(len(tokens), len(regions), min(width, kept))
    with evaluating(network):
        for number, region in enumerate(regions):
            places = torch.tensor(region, device=device)
            for start in range(0, len(tokens), batch):
                seen = tokens[start : start + batch].to(device).index_fill(1, places, network.blank)
                states = network.hidden(seen)[:, places].float().mean(1).cpu()
                out[start : start + batch, number] = states if basis is None else states @ basis
    return out


def principal_directions(points: Tensor, kept: int) -> Tensor:
    """The directions [D, kept] in which points [M, D] vary most, orthonormal; a direction's sign is that of its sum."""
    vectors: Tensor = torch.linalg.eigh(points.double().t().cov()).eigenvectors[:, -kept:].flip(1)
    return (vectors * torch.where(vectors.sum(0) < 0, -1.0, 1.0)).to(points)


def forward_flops(network: TokenTransformer) -> int:
    """Floating-point operations of one forward pass of one sequence, all pairs of tokens counted in attention."""
    tokens = torch.zeros(1, network.length, dtype=torch.int64, device=network.position.device)
    with evaluating(network), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(tokens)
    return int(counter.get_total_flops())


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off, and then put things back."""
    before = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(before)


def _require(network: TokenTransformer, *, causal: bool) -> None:
    if network.causal != causal:
        raise ValueError(f"expected a network with causal={causal}, but it has causal={network.causal}")
