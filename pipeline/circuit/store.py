"""Circuits on disk: safetensors beside a JSON that holds structure, ties and vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.regions import RegionGraph
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.errors import CheckpointError, ConfigError
from pipeline.weights import load_weights, read_description, save_weights


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
        CheckpointError: files are missing or damaged, describe something else, or do not fit together.
    """
    description = read_description(folder)
    try:
        if description["kind"] != "circuit":
            raise KeyError(f"kind {description['kind']!r} is not 'circuit'")
        circuit = Circuit(
            RegionGraph.from_json(description["graph"]),
            states=int(description["states"]),
            vocabulary=Vocabulary.from_lists(**description["vocabulary"]),
            ties=description["ties"],
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = str(error) if isinstance(error, ConfigError) else repr(error)
        raise CheckpointError(
            f"{folder / 'model.json'}: expected the description of a circuit, but {reason}; train the circuit again."
        ) from error
    load_weights(folder, circuit)
    return circuit, description
