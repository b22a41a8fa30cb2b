"""The trained parts that steer: codec, circuit, and how far they can be trusted."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.store import load_circuit
from pipeline.codec.codec import Codec
from pipeline.errors import CheckpointError
from pipeline.experiment.codecs import load_codec
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import Params
from pipeline.experiment.provenance import file_digest
from pipeline.experiment.record import read_json
from pipeline.steering.calibration import Calibration
from pipeline.steering.prior import TokenPrior


def load_guides(
    params: Params, layout: Layout, dataset: str, device: torch.device
) -> tuple[Codec, Circuit, dict[str, Any]]:
    """Codec and circuit of `dataset`, and the digests of both.

    Raises:
        CheckpointError: one is missing or damaged, or the circuit was trained on another codec's tokens.
    """
    codec, vqgan = load_codec(layout.vqgan(dataset), params.vqgan, device)
    circuit, description = load_circuit(layout.circuit(dataset))
    if (circuit.tokens, circuit.codes) != (codec.side**2, codec.codes):
        raise CheckpointError(
            f"{layout.circuit(dataset)}: the codec writes {codec.side**2} tokens of {codec.codes} codes, but the "
            f"circuit is over {circuit.tokens} of {circuit.codes}; train the circuit again."
        )
    return codec, circuit.to(device).eval(), {"vqgan": vqgan["sha256"], "circuit": description["sha256"]}


def load_prior(params: Params, layout: Layout, dataset: str, device: torch.device) -> tuple[TokenPrior, dict[str, Any]]:
    """What steers the methods of `dataset`, and the digests of its parts.

    Raises:
        CheckpointError: a part is missing or damaged, or does not go with the others.
        InputError: the calibration is no JSON.
    """
    codec, circuit, inputs = load_guides(params, layout, dataset, device)
    path = layout.steering(dataset) / "calibration.json"
    if not path.exists():
        raise CheckpointError(f"{path} is missing; run the stage fit_steering (dvc repro fit_steering@{dataset}).")
    try:
        calibration = Calibration.from_json(read_json(path)).to(device)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    prior = TokenPrior(codec=codec, circuit=circuit, calibration=calibration)
    return prior, inputs | {"calibration": file_digest(path)}
