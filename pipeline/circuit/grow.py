"""More states from a trained circuit: every state becomes two, almost alike, which training then tells apart."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.errors import at_least


@torch.no_grad()
def split_states(circuit: Circuit, *, noise: float, seed: int) -> Circuit:
    """A circuit with twice the states, on the CPU; without noise it is the same distribution.

    Args:
        circuit: stays as it is.
        noise: standard deviation of the logs of the factors that tell the copies apart.
        seed: of the noise.

    Raises:
        ConfigError: negative noise.
    """
    at_least(0.0, noise=noise)
    made = Circuit(circuit.graph, states=2 * circuit.states, vocabulary=circuit.vocabulary, ties=circuit.table)
    made.to(circuit.root.dtype)
    generator = torch.Generator().manual_seed(seed)

    def jitter(values: Tensor, axis: int) -> Tensor:
        drawn = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        noisy = values.double().cpu() * (noise * drawn).exp()
        return noisy / noisy.sum(axis, keepdim=True)

    made.root.copy_(jitter(circuit.root.repeat(2), 0))
    made.weights.copy_(jitter(circuit.weights.repeat(1, 2, 2), 2))
    made.emissions.copy_(jitter(circuit.emissions.repeat(1, 1, 2), 1))
    return made
