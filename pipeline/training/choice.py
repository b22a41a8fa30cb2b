"""Which circuit to train: candidates are distilled, trained for a moment, and compared on validation tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.circuit.chow_liu import hclt
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.em import Prior, Smoothing, em_step, maximise, own_statistics, prior
from pipeline.circuit.flows import Statistics
from pipeline.circuit.lvd import assign, count_labels, regions
from pipeline.circuit.queries import bits_per_token
from pipeline.circuit.regions import RegionGraph
from pipeline.circuit.structures import Tie, quadtree, ties
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.noise import stream_seed
from pipeline.training.settings import CircuitParams, EMParams

Teacher = Callable[[Sequence[tuple[int, ...]]], list[Tensor]]
"""Features [M, D_r] of the training images for each of some regions of tokens."""


@dataclass(frozen=True)
class Candidate:
    """A choice of structure, ties and spread."""

    structure: str
    tie: Tie
    spread: float


@dataclass(frozen=True)
class Start:
    """A circuit ready for training.

    Attributes:
        circuit: with its first parameters.
        counted: the counts they were made from.
        prior: what they were smoothed with.
    """

    circuit: Circuit
    counted: Statistics
    prior: Prior


@dataclass(frozen=True)
class Corpus:
    """What circuits are learned from.

    Attributes:
        train: tokens [M, N] int64.
        val: tokens [M', N].
        codebook: vectors of the codes, [V, D].
    """

    train: Tensor
    val: Tensor
    codebook: Tensor

    @property
    def side(self) -> int:
        """Tokens per side of the grid."""
        return math.isqrt(self.train.shape[1])


def structure(name: str, corpus: Corpus, params: CircuitParams, seed: int) -> RegionGraph:
    """The region graph `name` for a corpus."""
    if name == "quadtree":
        return quadtree(corpus.side)
    return hclt(corpus.train, corpus.codebook, groups=params.groups, seed=seed)


def empty_circuit(graph: RegionGraph, tie: Tie, corpus: Corpus, params: CircuitParams) -> Circuit:
    """A uniform circuit over the codes that occur often enough."""
    counts = torch.bincount(corpus.train.flatten(), minlength=len(corpus.codebook))
    vocabulary = Vocabulary.pruned(counts, corpus.codebook, params.least_uses)
    return Circuit(graph, states=params.states, vocabulary=vocabulary, ties=ties(tie, corpus.side))


def first_counts(circuit: Circuit, corpus: Corpus, features: list[Tensor] | None, seed: int) -> Statistics:
    """Counts from a teacher's features, or of a random circuit if there is none."""
    if features is None:
        circuit.randomize(torch.Generator().manual_seed(seed))
        return own_statistics(circuit, len(corpus.train))
    return count_labels(circuit, corpus.train, assign(circuit, features, seed=seed))


def choose(
    corpus: Corpus,
    teacher: Teacher | None,
    params: CircuitParams,
    em: EMParams,
    *,
    seed: int,
    device: torch.device,
    tell: Callable[[Candidate, float], None],
) -> tuple[Candidate, Start]:
    """Start all candidates, train each for `params.probe` passes, and keep the one with the best validation likelihood.

    Args:
        corpus: on the CPU.
        teacher: of latent variable distillation; None: random first parameters.
        params: candidates, size, smoothing.
        em: batch and first step.
        seed: of clustering, random parameters and the order of images.
        device: where candidates are trained.
        tell: receives every candidate and its validation bits per token.
    """
    best: tuple[float, Candidate, Start] | None = None
    for name in params.structures:
        graph = structure(name, corpus, params, seed)
        features = teacher(regions(graph)) if teacher else None
        for tie in params.ties:
            counts = first_counts(empty_circuit(graph, tie, corpus, params), corpus, features, seed)
            for spread in params.spreads:
                start = begin(graph, tie, spread, counts, corpus, params)
                probe(start, corpus.train, em, params.probe, seed, device)
                bits = bits_per_token(start.circuit, corpus.val.to(device))
                tell(Candidate(name, tie, spread), bits)
                if best is None or bits < best[0]:
                    best = bits, Candidate(name, tie, spread), start
    assert best is not None  # there is at least one of each
    return best[1], best[2]


def learned_prior(circuit: Circuit, spread: float, corpus: Corpus, params: CircuitParams) -> Prior:
    """What counts of `circuit` are smoothed with."""
    smoothing = Smoothing(emissions=params.emission_backoff, weights=params.weight_backoff, spread=spread)
    return prior(circuit, corpus.train, corpus.codebook, smoothing)


def begin(
    graph: RegionGraph, tie: Tie, spread: float, counts: Statistics, corpus: Corpus, params: CircuitParams
) -> Start:
    """A circuit with parameters from `counts`, which are copied."""
    circuit = empty_circuit(graph, tie, corpus, params)
    learned = learned_prior(circuit, spread, corpus, params)
    counted = Statistics(counts.root.clone(), counts.weights.clone(), counts.emissions.clone())
    maximise(circuit, counted, learned)
    return Start(circuit, counted, learned)


def probe(start: Start, tokens: Tensor, em: EMParams, passes: int, seed: int, device: torch.device) -> None:
    """Train a little, with the first step size; the start is changed in place."""
    start.circuit.to(device)
    for name in ("root", "weights", "emissions"):
        setattr(start.counted, name, getattr(start.counted, name).to(device))
    learned = start.prior.to(device)
    for number in range(passes):
        order = np.random.default_rng((stream_seed(seed, "probe"), number)).permutation(len(tokens))
        for rows in np.array_split(order, max(len(tokens) // em.batch, 1)):
            em_step(
                start.circuit,
                start.counted,
                tokens[torch.from_numpy(rows)].to(device),
                images=len(tokens),
                step=em.step(0.0) if em.kind != "full" else len(rows) / len(tokens),
                memory=em.memory,
                prior=learned,
            )


def snapshot(start: Start) -> dict[str, Any]:
    """A start as plain values and tensors, which `restore` reads."""
    return {
        "graph": start.circuit.graph.to_json(),
        "circuit": {name: value.cpu() for name, value in start.circuit.state_dict().items()},
        "counted": [x.cpu() for x in (start.counted.root, start.counted.weights, start.counted.emissions)],
    }


def restore(kept: Mapping[str, Any], candidate: Candidate, corpus: Corpus, params: CircuitParams) -> Start:
    """The start that `snapshot` kept, on the CPU."""
    circuit = empty_circuit(RegionGraph.from_json(kept["graph"]), candidate.tie, corpus, params)
    circuit.load_state_dict(kept["circuit"])
    return Start(circuit, Statistics(*kept["counted"]), learned_prior(circuit, candidate.spread, corpus, params))
