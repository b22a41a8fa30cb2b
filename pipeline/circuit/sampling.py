"""Drawing from a circuit, given evidence or none: all tokens of a grid together, never one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.evidence import SparseEvidence, check_evidence
from pipeline.circuit.passes import upward
from pipeline.circuit.queries import possible, read_evidence
from pipeline.errors import InputError


class UniformSource(Protocol):
    """One independent stream of numbers per image."""

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draw numbers in [0, 1), [B, *shape] float64."""
        ...


@torch.no_grad()
def sample_posterior(
    circuit: Circuit, evidence: Tensor | SparseEvidence, noise: UniformSource, draws: int = 1
) -> Tensor:
    """Draw token grids from p(z | w), jointly: first the latents from the root down, then the tokens.

    Args:
        circuit: over N tokens and V codes.
        evidence: log w, [B, N, V], as in `queries.log_evidence`.
        noise: one stream per image; the draws of an image depend on its stream and evidence only.
        draws: grids per image.

    Returns:
        [B, draws, N] int64.

    Raises:
        InputError: as in `queries.log_evidence`; or another number of streams than images.
    """
    check_evidence(evidence, circuit.tokens, circuit.codes)
    latents = len(circuit.graph.latents)
    uniform = noise.uniform((draws, latents + circuit.tokens)).to(circuit.root.device)
    if len(uniform) != len(evidence):
        raise InputError(f"expected one stream of noise for each of {len(evidence)} images, got {len(uniform)}.")
    width = circuit.tokens * ((3 + draws) * circuit.codes + (6 + draws) * circuit.states)
    out = []
    for rows in circuit.turns(len(evidence), width):
        part = evidence[rows]
        reading = read_evidence(circuit, part, first=rows.start)
        if circuit.is_safe:
            products = torch.cat(upward(circuit.sums(), reading.inputs).products).double().log()
        else:
            products = torch.cat(possible(circuit, reading.inputs, rows.start).products)
        states = _draw_states(circuit, products, uniform[rows, :, :latents])
        log_w = part.dense(circuit.codes) if isinstance(part, SparseEvidence) else part
        out.append(_draw_tokens(circuit, log_w, states, uniform[rows, :, latents:]))
    return torch.cat(out)


def sample(circuit: Circuit, noise: UniformSource, images: int, draws: int = 1) -> Tensor:
    """Draw token grids from p(z), [images, draws, N] int64; `noise` has one stream for each of the `images`."""
    nothing = circuit.root.new_zeros(1, 1, 1).expand(images, circuit.tokens, circuit.codes)
    return sample_posterior(circuit, nothing, noise, draws)


def _draw_states(circuit: Circuit, log_products: Tensor, uniform: Tensor) -> Tensor:
    """States [B, draws, R] of all latents given the evidence, by ancestral sampling."""
    states = torch.empty(uniform.shape, dtype=torch.int64, device=uniform.device)
    root = circuit.root.double().log() + log_products[0]
    states[..., 0] = inverse_cdf(root[:, None, None], uniform[..., :1])[..., 0]
    parents = torch.tensor(circuit.graph.parents, device=uniform.device)
    for level in circuit.sums().levels[1:]:
        latents = torch.arange(level.latents.start, level.latents.stop, device=uniform.device)
        above = states[..., parents[latents]]  # [B, draws, latents]
        prior = circuit.weights[latents - 1, above].double().log()  # [B, draws, latents, H]
        below = log_products[level.latents].transpose(0, 1)[:, None]
        states[..., latents] = inverse_cdf(prior + below, uniform[..., latents])
    return states


def _draw_tokens(circuit: Circuit, log_w: Tensor, states: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [B, draws, N] given the states of their latents and their own evidence."""
    tables = circuit.emissions[circuit.inputs().ties.table, :, states[..., circuit.homes]]  # [B, draws, N, K]
    emitted = tables.double() if circuit.vocabulary.whole else tables[..., circuit.compact].double() * circuit.share
    return inverse_cdf(emitted.log() + log_w.double()[:, None], uniform)


def inverse_cdf(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """Invert the distribution function: indices [*] from unnormalised log-weights [*, K] and uniform numbers [*]."""
    weights = (log_weights - log_weights.amax(-1, keepdim=True)).exp()
    cdf = weights.cumsum(-1)
    cdf = cdf.expand(*uniform.shape, -1).contiguous()
    index = torch.searchsorted(cdf, (uniform * cdf[..., -1])[..., None], right=True)[..., 0]
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).to(torch.int8).argmax(-1)  # rounding must not pass the end
    return torch.minimum(index, last.expand_as(index))
