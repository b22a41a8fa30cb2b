"""The two passes behind every query: likelihoods up the tree, posteriors down it.

What a product layer says about the states of its latent is kept as exp(x - shift), at most 1, with the shifts added up
in float64, so that numbers stay near 1 however unlikely the evidence. A sum layer is then a plain matrix product. That
is exact as long as no parameter is 0 or nearly so (`is_safe`): then a state that underflows is beaten by others
whatever the rest of the evidence says. Circuits with zeros are computed by `pipeline.circuit.exact`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.circuit.layers import Level, product

SMALLEST = {torch.float32: 1e-20, torch.float64: 1e-150}
"""Parameters at least this large keep linear arithmetic within rounding error: what is lost is relatively smaller than
the smallest representable number divided by this."""


@dataclass(frozen=True)
class Sums:
    """The sum layers.

    Attributes:
        levels: the latents of each depth, from the root.
        root: p(state of the root), [H].
        weights: p(state | state of the parent) of latents 1..R-1, [R - 1, H, H].
        dtype: to which the factors of matrix products are rounded; None: not.
    """

    levels: tuple[Level, ...]
    root: Tensor
    weights: Tensor
    dtype: torch.dtype | None = None

    def at(self, depth: int) -> Tensor:
        """Weights [latents, H, H] between the latents of `depth` and their parents; `depth` >= 1."""
        latents = self.levels[depth].latents
        return self.weights[latents.start - 1 : latents.stop - 1]


@dataclass(frozen=True)
class Upward:
    """What was computed on the way up, per depth from the root.

    Attributes:
        products: what the parts of each latent say about its states, the largest 1, [latents, B, H] each.
        messages: what each latent says about its parent's states, [latents, B, H] each, from depth 1.
        z: what is left at the root, [B].
        log_z: log-probability of the evidence [B], float64.
    """

    products: list[Tensor]
    messages: list[Tensor]
    z: Tensor
    log_z: Tensor


def upward(sums: Sums, inputs: Tensor) -> Upward:
    """Likelihoods from the tokens to the root; differentiable.

    Args:
        sums: the sum layers, safe.
        inputs: log-likelihood of the states from each token, [N, B, H].
    """
    products: list[Tensor] = []
    messages: list[Tensor] = []
    total = torch.zeros(inputs.shape[1], dtype=torch.float64, device=inputs.device)
    for depth in reversed(range(len(sums.levels))):
        level = sums.levels[depth]
        parts = []
        if len(level.tokens):
            parts.append(level.inputs.gather(level.of_tokens(inputs)))
        if messages:
            parts.append(level.sums.gather(messages[-1].log()))
        x = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        shift = x.detach().amax(-1, keepdim=True)
        total = total + shift.sum((0, 2), dtype=torch.float64)
        products.append((x - shift).exp())
        if depth:
            messages.append(product(products[-1], sums.at(depth).transpose(1, 2), sums.dtype))
    z = products[-1][0] @ sums.root
    return Upward(products[::-1], messages[::-1], z, z.double().log() + total)


def downward(sums: Sums, up: Upward) -> tuple[list[Tensor], list[Tensor]]:
    """Posteriors from the root down.

    Returns:
        p(state | evidence) of the latents of each depth, [latents, B, H] each; and, from depth 1, p(state of the parent
        | evidence) divided by what the latent says about that state.
    """
    posteriors, ratios = [up.products[0] * sums.root / up.z[:, None]], []
    for depth in range(1, len(sums.levels)):
        ratio = sums.levels[depth - 1].sums.spread(posteriors[-1]) / up.messages[depth - 1]
        posteriors.append(product(ratio, sums.at(depth), sums.dtype) * up.products[depth])
        ratios.append(ratio)
    return posteriors, ratios
