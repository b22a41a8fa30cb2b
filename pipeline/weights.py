"""Network weights on disk: safetensors beside a JSON that says what they are, checked against each other when read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline.errors import CheckpointError


def save_weights(folder: Path, network: nn.Module, description: Mapping[str, Any], *, half: bool = False) -> str:
    """Write `model.safetensors` and `model.json` ({"sha256", **description}) into `folder`.

    With `half`, floating-point tensors are stored in float16. Returns the hash of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in network.state_dict().items()
    }
    draft = folder / f".model.safetensors.{os.getpid()}.tmp"
    save_file(tensors, draft)
    sha256 = hashlib.sha256(draft.read_bytes()).hexdigest()
    draft.replace(folder / "model.safetensors")
    text = json.dumps({"sha256": sha256, **description}, indent=1, sort_keys=True)
    (folder / "model.json").write_text(text + "\n")
    return sha256


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
    fill(network, tensors, str(path))
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
