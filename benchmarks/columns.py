"""What is timed of our own circuit, and what it takes in theory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.circuit import flows, queries
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary

SIDE = 16


def make(states: int, codes: int, device: str = "cpu") -> Circuit:
    """A random circuit over 16x16 tokens, the same at every call."""
    circuit = Circuit(quadtree(SIDE), states=states, vocabulary=Vocabulary.full(codes))
    circuit.randomize(torch.Generator().manual_seed(states + codes))
    return circuit.to(device)


def batch(circuit: Circuit, images: int) -> tuple[Tensor, Tensor]:
    """Random tokens [B, N] and log-evidence [B, N, V], the same at every call."""
    generator = torch.Generator().manual_seed(images)
    tokens = torch.randint(circuit.codes, (images, circuit.tokens), generator=generator)
    log_w = torch.randn(images, circuit.tokens, circuit.codes, generator=generator)
    return tokens.to(circuit.root.device), log_w.to(circuit.root.device)


def own(circuit: Circuit, tokens: Tensor, log_w: Tensor) -> dict[str, Callable[[], object]]:
    """Our columns; statistics are added to counts that exist already, as in training."""
    counted = flows.Statistics.empty(circuit)
    return {
        "forward": torch.no_grad()(lambda: queries.log_prob(circuit, tokens)),
        "soft forward": torch.no_grad()(lambda: queries.log_evidence(circuit, log_w)),
        "posterior": lambda: queries.posterior(circuit, log_w),
        "statistics": lambda: flows.count(circuit, tokens, counted),
    }


def flops(circuit: Circuit, images: int) -> dict[str, int]:
    """Floating-point operations of each column's matrix products, 2 for a multiply-add.

    A pass over the R - 1 = 84 sum layers takes 2 (R - 1) H^2 for an image, one over the input layer 2 N H K: from codes
    to states on the way up, from states to codes on the way down. With known tokens the input layer only copies rows.
    Statistics take a third product of the size of a pass, which counts pairs of states.
    """
    sums = 2 * images * circuit.weights.numel()
    inputs = 2 * images * circuit.emissions.numel()
    return {
        "forward": sums,
        "soft forward": sums + inputs,
        "posterior": 2 * (sums + inputs),
        "statistics": 3 * sums,
    }


def least_bytes(circuit: Circuit, images: int) -> dict[str, int]:
    """Bytes that each column must move if nothing is moved twice within a pass.

    Each pass reads its parameters once; evidence is read and results are written once; counts are read and written,
    emission rows only where a token points at them.
    """
    number = circuit.root.element_size()
    sums, inputs = circuit.weights.numel(), circuit.emissions.numel()
    rows, evidence = images * circuit.tokens * circuit.states, images * circuit.tokens * circuit.codes
    return {
        "forward": number * (sums + rows),
        "soft forward": number * (sums + inputs + evidence),
        "posterior": number * (2 * (sums + inputs) + 3 * evidence),
        "statistics": number * (4 * sums + 3 * rows),
    }
