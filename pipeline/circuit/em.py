"""Parameters from expected counts: the M step, its smoothing, and how counts of several batches are put together.

A count of nothing must not become a probability of 0, nor a uniform guess. So every distribution backs off to a simpler
one: emissions of a state to the code frequencies at their tokens, transitions of a state to the frequencies of the
child's states; and codes with similar vectors lend each other counts. (A uniform pseudocount, as in the published code,
overfits: docs/circuit.md.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.flows import Statistics, count, statistics
from pipeline.errors import at_least

Memory = Literal["counts", "model"]

FLOOR = 1e-12
"""No probability gets smaller, so that linear arithmetic stays exact (`passes.SMALLEST`)."""

NEAR = 8
"""To how many similar codes a code lends counts."""


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """How strongly distributions back off, in images.

    Attributes:
        emissions: images' worth of code frequencies added to each state's counts of codes.
        weights: images' worth of state frequencies added to each parent state's counts of states.
        spread: share of a code's counts that it lends to similar codes, on top of keeping them; 0 for none.
    """

    emissions: float = 5.0
    weights: float = 2.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        at_least(0.0, emissions=self.emissions, weights=self.weights, spread=self.spread)


@dataclass(frozen=True)
class Prior:
    """What counts are smoothed with, fixed before EM begins.

    Attributes:
        smoothing: how strongly.
        codes: frequencies of the kept codes at each table's tokens, [T, K]; rows sum to 1.
        near: how a code's lent counts are shared, [K, K]; columns sum to 1.
        states: fixed frequencies [R - 1, H] that transitions back off to; None: those of the counts at hand, which
            works better but is no longer maximum a posteriori estimation.
    """

    smoothing: Smoothing
    codes: Tensor
    near: Tensor
    states: Tensor | None = None

    def to(self, device: torch.device) -> Prior:
        """The same on a device."""
        states = None if self.states is None else self.states.to(device)
        return Prior(self.smoothing, self.codes.to(device), self.near.to(device), states)


def prior(circuit: Circuit, tokens: Tensor, codebook: Tensor, smoothing: Smoothing) -> Prior:
    """The prior that training tokens suggest.

    Args:
        circuit: its ties and vocabulary count.
        tokens: training tokens [M, N] int64 in [0, V).
        codebook: vectors of the codes, [V, D].
        smoothing: how strongly.
    """
    kept, table, codes = circuit.compact[tokens], torch.tensor(circuit.table), len(circuit.vocabulary)
    near = nearness(codebook[circuit.vocabulary.kept.to(codebook.device)])
    counts = torch.zeros(max(circuit.table) + 1, codes, dtype=torch.float64)
    index = table.expand_as(kept) * codes + kept
    counts.view(-1).index_add_(0, index.flatten(), torch.ones(index.numel(), dtype=torch.float64))
    counts = lend(counts[..., None], near.double(), smoothing.spread)[..., 0]
    everywhere = counts.sum(0) + 0.5
    frequencies = counts + everywhere / everywhere.sum() * smoothing.emissions
    return Prior(smoothing, (frequencies / frequencies.sum(1, keepdim=True)).to(circuit.root), near.to(circuit.root))


def nearness(codebook: Tensor) -> Tensor:
    """Shares [K, K] in which each code (column) lends to its NEAR nearest others, falling with squared distance."""
    distances = torch.cdist(codebook.double(), codebook.double()).square()
    distances.fill_diagonal_(float("inf"))
    close = distances.topk(min(NEAR, len(codebook) - 1), dim=0, largest=False)
    if not len(close.values):
        return torch.zeros_like(distances)
    scale = close.values.mean().clamp_min(1e-30)
    return torch.zeros_like(distances).scatter(0, close.indices, torch.softmax(-close.values / scale, 0))


def lend(counts: Tensor, near: Tensor, spread: float) -> Tensor:
    """Counts of codes [T, K, H] with `spread` of each lent to similar codes."""
    return counts if spread == 0 else counts + spread * torch.matmul(near, counts)


@torch.no_grad()
def smoothed(counted: Statistics, prior: Prior) -> Statistics:
    """Counts with lent and backed-off ones added; the counts themselves stay as they are."""
    smoothing, states = prior.smoothing, prior.states
    if states is None:
        uses = counted.weights.sum(1) + 1.0 / counted.weights.shape[-1]
        states = uses / uses.sum(-1, keepdim=True)
    emissions = lend(counted.emissions, prior.near.to(counted.emissions), smoothing.spread)
    return Statistics(
        counted.root + 1.0 / len(counted.root),
        counted.weights + smoothing.weights * states[:, None, :],
        emissions + smoothing.emissions * prior.codes[..., None],
        counted.images,
    )


@torch.no_grad()
def normalise(circuit: Circuit, counted: Statistics) -> None:
    """Set the parameters to the ratios of counts, in place; none below FLOOR."""
    for name, axis in (("root", 0), ("weights", 2), ("emissions", 1)):
        counts: Tensor = getattr(counted, name)
        total = counts.sum(axis, keepdim=True).clamp_min(torch.finfo(counts.dtype).tiny)
        getattr(circuit, name).copy_((counts / total).clamp_min_(FLOOR))


def maximise(circuit: Circuit, counted: Statistics, prior: Prior) -> None:
    """Set the parameters to the ratios of smoothed counts, in place."""
    normalise(circuit, smoothed(counted, prior))


@torch.no_grad()
def own_statistics(circuit: Circuit, images: float) -> Statistics:
    """The counts that `images` images drawn from the circuit itself would give in expectation.

    How often each state is reached from the top is its top-down probability (Liu et al. 2025, arXiv 2505.19982).
    """
    reached = [circuit.root]
    for latent, parent in enumerate(circuit.graph.parents[1:]):
        reached.append(reached[parent] @ circuit.weights[latent])
    states = torch.stack(reached)
    above = states[list(circuit.graph.parents[1:])]
    tables = torch.zeros(len(circuit.emissions), circuit.states).to(circuit.root)
    tables.index_add_(0, circuit.inputs().ties.table, states[circuit.homes])
    return Statistics(
        images * circuit.root,
        images * above[..., None] * circuit.weights,
        images * tables[:, None, :] * circuit.emissions,
        float(images),
    )


@torch.no_grad()
def em_step(
    circuit: Circuit, counted: Statistics, tokens: Tensor, *, images: int, step: float, memory: Memory, prior: Prior
) -> float:
    """One step of expectation-maximisation on a batch, in place.

    The batch's expected counts, scaled to all `images`, replace the share `step` of what is remembered. With memory
    "counts" that is the running average of earlier counts (Cappe and Moulines 2009, arXiv 0712.4273). With memory
    "model" it is what the circuit's present parameters imply, so that a state that the batch hardly visits hardly moves
    (the proximal step of Liu et al. 2025, arXiv 2505.19982). A step of 1 over all images is plain EM.

    Args:
        circuit: changed in place.
        counted: the counts remembered, changed in place; memory "model" does not touch them.
        tokens: the batch [B, N].
        images: number of training images.
        step: in (0, 1].
        memory: see above.
        prior: smoothing of the new parameters.

    Returns:
        Mean natural log-probability of the batch's kept codes before the step.
    """
    scale = images / len(tokens)
    if memory == "model":
        batch = statistics(circuit, tokens)
        log_prob = batch.log_prob / len(tokens)
        batch.decay(scale)
        mixed = own_statistics(circuit, (1.0 - step) * images)
        mixed.add(smoothed(batch, prior), step)  # only the batch is smoothed: what is remembered was before
        normalise(circuit, mixed)
        return log_prob
    counted.decay((1.0 - step) / (step * scale))
    counted.log_prob = 0.0
    count(circuit, tokens, counted)
    log_prob = counted.log_prob / len(tokens)
    counted.decay(step * scale)
    maximise(circuit, counted, prior)
    return log_prob
