"""Network weights on disk: safetensors beside a JSON that says what they are, checked against each other when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.errors import CheckpointError
from pipeline.files import replacing

STEP = "@step"
"""What the name of a tensor's step sizes ends with, where the tensor is stored in eight bits."""


def save_weights(
    folder: Path, network: nn.Module, description: Mapping[str, Any], *, bits: Literal[32, 16, 8] = 32
) -> str:
    """Write `model.safetensors` and `model.json` ({"sha256", **description}) into `folder`.

    With 16 `bits` a floating-point number is stored as float16; with 8, matrices and kernels are stored as int8 with a
    scale for each row, the rest as float16. Returns the hash of the weights.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if bits == 8 and value.is_floating_point() and value.ndim > 1:
            tensors |= in_eight_bits(name, value)
        else:
            tensors[name] = value.half() if bits < 32 and value.is_floating_point() else value
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    content = save(tensors)
    sha256 = hashlib.sha256(content).hexdigest()
    with replacing(folder / "model.safetensors") as draft:
        draft.write_bytes(content)
    with replacing(folder / "model.json") as draft:
        draft.write_text(json.dumps({**description, "sha256": sha256}, indent=1, sort_keys=True) + "\n")
    return sha256


def in_eight_bits(name: str, value: Tensor) -> dict[str, Tensor]:
    """Round each row to 255 levels between plus and minus its largest entry: the levels, and the size of a step."""
    rows = value.detach().flatten(1).float()
    step = rows.abs().amax(1).clamp_min(1e-12) / 127.0
    return {name: (rows / step[:, None]).round().to(torch.int8).view(value.shape), name + STEP: step}


def from_eight_bits(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `in_eight_bits` wherever it was applied."""
    plain = {name: value for name, value in tensors.items() if not name.endswith(STEP)}
    for name in (name.removesuffix(STEP) for name in tensors if name.endswith(STEP)):
        if name in plain:
            plain[name] = (plain[name].float().flatten(1) * tensors[name + STEP][:, None]).view(plain[name].shape)
    return plain


def read_description(folder: Path) -> dict[str, Any]:
    """Read `model.json`.

    Raises:
        CheckpointError: it is missing or unreadable.
    """
    path = folder / "model.json"
    try:
        value = json.loads(path.read_text())
        return {**value, "sha256": str(value["sha256"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected the description of a trained network, but {error!r}; train it first."
        ) from error


def load_weights(folder: Path, network: nn.Module) -> dict[str, Any]:
    """Fill `network` with the weights in `folder` and return their description.

    Raises:
        CheckpointError: files are missing or damaged, or names, shapes or the hash do not fit.
    """
    description, path = read_description(folder), folder / "model.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: expected trained weights, but {error}.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != description["sha256"]:
        raise CheckpointError(
            f"{path}: its SHA-256 is {found[:16]}..., but model.json beside it records "
            f"{description['sha256'][:16]}...; the file is damaged or was exchanged: train it again or restore both."
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}).") from error
    fill(network, from_eight_bits(tensors), str(path))
    return description


def fill(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy `tensors` into `network`, all of them and nothing else, whatever their floating-point width.

    Raises:
        CheckpointError: names or shapes differ; the message gives the first.
    """
    own = network.state_dict()
    for key in [*own, *tensors]:
        if key not in tensors or key not in own:
            where = f"lacks {key!r}" if key not in tensors else f"holds {key!r}, which the network has not"
            raise CheckpointError(
                f"{name}: holds {len(tensors)} tensors, the network of params.yaml expects {len(own)}; it {where}."
            )
        if tensors[key].shape != own[key].shape:
            raise CheckpointError(
                f"{name}: {key!r} has shape {tuple(tensors[key].shape)}, the network of params.yaml expects "
                f"{tuple(own[key].shape)}."
            )
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(tensors[key])
