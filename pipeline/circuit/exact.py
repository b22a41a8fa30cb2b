"""The two passes in log space and float64: for circuits with zeros or numbers too small for linear arithmetic.

Slower by orders of magnitude, and right whatever the parameters: nothing is divided, so that 0 / 0 cannot occur. What
all *other* parts say about a state is a sum over the others (`others`), not a quotient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.circuit.layers import Children, Level, Ties
from pipeline.circuit.passes import Sums


@dataclass(frozen=True)
class LogPasses:
    """Everything in natural logarithms, float64; lists are per depth from the root.

    Attributes:
        log_z: log-probability of the evidence, [B]; -inf where it is impossible.
        products: what the parts of each latent say about its states, [latents, B, H] each.
        above: log of p(state of the latent) times what all but its own parts say, [latents, B, H] each.
        beside: what all but the latent's own parts say about its *parent's* states, [latents, B, H] each, from depth 1.
        outside: what all but the token itself says about the states of its latent, [N, B, H].
    """

    log_z: Tensor
    products: list[Tensor]
    above: list[Tensor]
    beside: list[Tensor]
    outside: Tensor


def log_mass(x: Tensor) -> Tensor:
    """Logarithm of numbers >= 0: -inf at 0, where the derivative is given as 0."""
    return torch.where(x == 0, 1.0, x).log().masked_fill(x == 0, float("-inf"))


def log_sum(x: Tensor, axis: int) -> Tensor:
    """Log of a sum of exponentials; where all are 0 the derivative is given as 0 (torch's own gives NaN)."""
    largest = x.detach().amax(axis, keepdim=True).nan_to_num(neginf=0.0)
    return log_mass((x - largest).exp().sum(axis)) + largest.squeeze(axis)


def soft_inputs(log_w: Tensor, emissions: Tensor, ties: Ties) -> Tensor:
    """Log-likelihood [N, B, H] of each state from evidence `log_w` [B, N, K]."""
    tables = log_mass(emissions.double())
    return torch.stack([log_sum(log_w[:, i, :, None].double() + tables[int(t)], 1) for i, t in enumerate(ties.table)])


def log_passes(sums: Sums, inputs: Tensor) -> LogPasses:
    """Both passes, for log-likelihoods `inputs` [N, B, H] of the states from each token."""
    weights, root, inputs = log_mass(sums.weights.double()), log_mass(sums.root.double()), inputs.double()
    sums = Sums(sums.levels, root, weights)
    products, messages = _up(sums, inputs)
    above, beside = [root.expand_as(products[0])], []
    outside = torch.empty_like(inputs)
    for depth, level in enumerate(sums.levels):
        parts = [(level.inputs, level.of_tokens(inputs))] if len(level.tokens) else []
        parts += [(level.sums, messages[depth])] if depth < len(messages) else []
        spared = others(parts, above[depth])
        if len(level.tokens):
            outside[level.tokens] = spared[0]
        if depth < len(messages):
            beside.append(spared[-1])
            above.append(log_sum(spared[-1][..., None] + sums.at(depth + 1)[:, None], 2))
    return LogPasses(log_sum(products[0][0] + root, -1), products, above, beside, outside)


def _up(sums: Sums, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    products: list[Tensor] = []
    messages: list[Tensor] = []
    for depth in reversed(range(len(sums.levels))):
        level = sums.levels[depth]
        parts = [level.inputs.gather(level.of_tokens(inputs))] if len(level.tokens) else []
        parts += [level.sums.gather(messages[0])] if messages else []
        products.insert(0, torch.stack(parts).sum(0))
        if depth:
            messages.insert(0, log_sum(products[0][:, :, None, :] + sums.at(depth)[:, None], -1))
    return products, messages


def others(parts: list[tuple[Children, Tensor]], start: Tensor) -> list[Tensor]:
    """For every part, `start` [latents, B, H] plus what the owner's other parts say, all in logs.

    An impossible part is taken out by counting: what is left is possible if no other is impossible.
    """
    finite = [(children, values.nan_to_num(neginf=0.0), values.isneginf().double()) for children, values in parts]
    total, impossible = start.clone(), torch.zeros_like(start)
    for children, value, flag in finite:
        total += children.gather(value)
        impossible += children.gather(flag)
    return [
        torch.where(
            children.spread(impossible) - flag > 0.5,
            torch.full_like(value, float("-inf")),
            children.spread(total) - value,
        )
        for children, value, flag in finite
    ]


def soft_marginals(log_w: Tensor, found: LogPasses, emissions: Tensor, ties: Ties) -> tuple[Tensor, Tensor]:
    """Marginals and cavity distributions [B, N, K] under evidence `log_w` [B, N, K], float64."""
    tables = log_mass(emissions.double())
    cavity = torch.stack(
        [log_sum(found.outside[i, :, None, :] + tables[int(t)], -1) for i, t in enumerate(ties.table)], 1
    )
    return torch.softmax(log_w.double() + cavity, -1), torch.softmax(cavity, -1)


def counts(sums: Sums, found: LogPasses) -> tuple[Tensor, Tensor]:
    """Expected uses of the sum weights [R - 1, H, H] over a batch, and p(state | evidence) [R, B, H]."""
    weights = []
    for depth in range(1, len(sums.levels)):
        beside, below = found.beside[depth - 1], found.products[depth]
        joint = beside[..., None] + log_mass(sums.at(depth).double())[:, None] + below[:, :, None, :]
        weights.append((joint - found.log_z[:, None, None]).exp().sum(1))
    empty = [sums.weights.new_zeros(0, *sums.weights.shape[1:]).double()]
    latents = torch.cat(found.products) + torch.cat(found.above) - found.log_z[:, None]
    return torch.cat(empty + weights), latents.exp()


def conflicts(levels: tuple[Level, ...], products: list[Tensor]) -> list[list[int]]:
    """For each image, the latents, deepest first, whose parts together rule out every state, [] if none does."""
    dead = [torch.nonzero((level == float("-inf")).all(-1)).tolist() for level in products]
    found: list[list[int]] = [[] for _ in range(products[0].shape[1])]
    for level, pairs in zip(reversed(levels), reversed(dead), strict=True):
        for latent, image in pairs:
            found[image].append(level.latents.start + latent)
    return found
