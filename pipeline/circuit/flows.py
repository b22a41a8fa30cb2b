"""Flows: how often each parameter is used by given tokens, in expectation over the latents.

The flow of a parameter is the parameter times the derivative of the log-likelihood (Darwiche 2003); summed over images
these are the expected counts of the E step of expectation-maximisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.circuit import exact
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.passes import downward, upward
from pipeline.circuit.queries import hard_inputs, possible


@dataclass
class Statistics:
    """Expected counts over images, of the shapes of the parameters they count.

    Attributes:
        root: uses of each state of the root, [H].
        weights: uses of each pair of states, [R - 1, H, H].
        emissions: uses of each code in each state, [T, K, H].
        images: how many images were counted.
        log_prob: sum of their natural log-probabilities (of kept codes).
    """

    root: Tensor
    weights: Tensor
    emissions: Tensor
    images: float = 0.0
    log_prob: float = 0.0

    @classmethod
    def empty(cls, circuit: Circuit) -> Statistics:
        """Nothing counted yet; in float64 where the circuit has zeros."""
        dtype = circuit.root.dtype if circuit.is_safe else torch.float64
        root, weights, emissions = (
            torch.zeros(b.shape, dtype=dtype, device=b.device)
            for b in (circuit.root, circuit.weights, circuit.emissions)
        )
        return cls(root, weights, emissions)

    def decay(self, factor: float) -> None:
        """Multiply all counts by `factor`."""
        for counts in (self.root, self.weights, self.emissions):
            counts.mul_(factor)
        self.images *= factor
        self.log_prob *= factor

    def add(self, other: Statistics, factor: float = 1.0) -> None:
        """Add `factor` times the counts of others."""
        self.root.add_(other.root, alpha=factor)
        self.weights.add_(other.weights, alpha=factor)
        self.emissions.add_(other.emissions, alpha=factor)
        self.images += factor * other.images
        self.log_prob += factor * other.log_prob


def statistics(circuit: Circuit, tokens: Tensor) -> Statistics:
    """Expected counts over `tokens` [B, N] int64 in [0, V).

    Raises:
        InputError: wrong shape or type, a token outside the vocabulary, or tokens that the circuit rules out.
    """
    counted = Statistics.empty(circuit)
    count(circuit, tokens, counted)
    return counted


@torch.no_grad()
def count(circuit: Circuit, tokens: Tensor, counted: Statistics) -> None:
    """Add the expected counts over `tokens` to `counted`, in place. Errors are those of `statistics`."""
    kept, _, _ = circuit.read(tokens)
    for rows in circuit.turns(len(kept), 6 * circuit.tokens * circuit.states):
        inputs = hard_inputs(circuit, kept[rows])
        run = _count if circuit.is_safe else _count_exactly
        latents, log_z = run(circuit, inputs, counted, rows.start)
        latents = latents.to(counted.root.dtype)
        counted.root += latents[0].sum(0)
        places = circuit.inputs().indices(kept[rows]).flatten()
        counted.emissions.flatten(0, 1).index_add_(0, places, latents.index_select(0, circuit.homes).flatten(0, 1))
        counted.images += len(kept[rows])
        counted.log_prob += float(log_z.sum())


def _count(circuit: Circuit, inputs: Tensor, counted: Statistics, first: int) -> tuple[Tensor, Tensor]:
    sums = circuit.sums()
    up = upward(sums, inputs)
    posteriors, ratios = downward(sums, up)
    for depth, ratio in enumerate(ratios, start=1):
        latents = sums.levels[depth].latents
        uses = torch.bmm(ratio.transpose(1, 2), up.products[depth])
        counted.weights[latents.start - 1 : latents.stop - 1].addcmul_(uses, sums.at(depth))
    return torch.cat(posteriors), up.log_z


def _count_exactly(circuit: Circuit, inputs: Tensor, counted: Statistics, first: int) -> tuple[Tensor, Tensor]:
    found = possible(circuit, inputs, first)
    uses, latents = exact.counts(circuit.sums(), found)
    counted.weights += uses
    return latents, found.log_z
