"""Circuits on disk: safetensors beside a JSON that holds structure, ties and vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.evidence import check_ties
from pipeline.circuit.regions import RegionGraph
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.errors import CheckpointError, ConfigError, misfit
from pipeline.weights import fill, read_weights, save_weights

TOLERANCE = 1e-3
"""How far from 1 sums of probabilities may be that were rounded."""

FORM = {
    "kind": str,
    "states": int,
    "graph": {"parents": [int], "homes": [int]},
    "ties": [int],
    "vocabulary": {"kept": [int], "compact": [int], "log_share": [float]},
}
"""What `save_circuit` writes into `model.json` beside the hash."""


def save_circuit(folder: Path, circuit: Circuit, description: Mapping[str, Any]) -> str:
    """Write `model.safetensors` and `model.json` into `folder`; returns the hash of the parameters."""
    structure = {
        "kind": "circuit",
        "states": circuit.states,
        "graph": circuit.graph.to_json(),
        "ties": list(circuit.table),
        "vocabulary": {
            "kept": circuit.vocabulary.kept.tolist(),
            "compact": circuit.vocabulary.compact.tolist(),
            "log_share": circuit.vocabulary.log_share.tolist(),
        },
    }
    return save_weights(folder, circuit, {**description, **structure})


def load_circuit(folder: Path) -> tuple[Circuit, dict[str, Any]]:
    """Read what `save_circuit` wrote, float32 numbers bit for bit, on the CPU; and its description.

    Raises:
        CheckpointError: files are missing or damaged, describe something else, do not fit together, or hold numbers
            that are no probabilities.
    """
    tensors, description = read_weights(folder)
    path, weights = folder / "model.json", folder / "model.safetensors"
    if wrong := misfit(description, FORM):
        raise _damaged(path, wrong)
    if description["kind"] != "circuit":
        raise _damaged(path, f"kind {description['kind']!r} is not 'circuit'")
    try:
        graph = RegionGraph.from_json(description["graph"])
        vocabulary = Vocabulary.from_lists(**description["vocabulary"])
        check_ties(description["ties"], graph.variables)
    except ConfigError as error:
        raise _damaged(path, str(error).rstrip(".")) from error
    states, tables = description["states"], max(description["ties"]) + 1
    shapes = {
        "root": (states,),
        "weights": (len(graph.latents) - 1, states, states),
        "emissions": (tables, len(vocabulary), states),
    }
    for name, shape in shapes.items():  # before a circuit of that size is made
        if states < 1 or (name in tensors and tuple(tensors[name].shape) != shape):
            found = tuple(tensors[name].shape) if name in tensors else "none"
            raise _damaged(path, f"by it {name!r} has shape {shape}, while in {weights.name} it is {found}")
    circuit = Circuit(graph, states=states, vocabulary=vocabulary, ties=description["ties"])
    fill(circuit, tensors, str(weights))
    _check_normalised(circuit, weights)
    return circuit, description


def _damaged(path: Path, found: str) -> CheckpointError:
    return CheckpointError(f"{path}: expected the description of a circuit, but {found}; train the circuit again.")


def _check_normalised(circuit: Circuit, path: Path) -> None:
    """Refuse numbers that are negative, or do not sum to 1 where they should."""
    for name, axis in (("root", 0), ("weights", 2), ("emissions", 1)):
        values = circuit.get_buffer(name)
        sums = values.sum(axis, dtype=torch.float64)
        if values.numel() and (float(values.min()) < 0.0 or float((sums - 1.0).abs().max()) > TOLERANCE):
            raise CheckpointError(
                f"{path}: {name!r} should hold probabilities that sum to 1, but the least is {float(values.min()):.3g} "
                f"and sums reach from {float(sums.min()):.6g} to {float(sums.max()):.6g}; train the circuit again."
            )
