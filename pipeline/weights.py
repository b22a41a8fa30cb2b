"""Network weights on disk: safetensors beside a JSON that says what they are, checked against each other when read."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from pipeline.errors import CheckpointError, misfit, reason
from pipeline.files import replacing

RECIPE = (
    'python -c "import sys, torch; from safetensors.torch import save_file; '
    "c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "save_file({k: v.contiguous().clone() for k, v in c.get('state_dict', c).items()}, sys.argv[2])\" "
    "OLD.ckpt NEW.safetensors"
)
"""Runs whatever the file brings along, so for files one trusts only; never run here."""

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


def from_eight_bits(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Undo `in_eight_bits` wherever it was applied; `name` is what errors call the file.

    Raises:
        CheckpointError: step sizes are not one for each row of a tensor in eight bits.
    """
    plain = {key: value for key, value in tensors.items() if not key.endswith(STEP)}
    for key in (key.removesuffix(STEP) for key in tensors if key.endswith(STEP)):
        value, step = plain.get(key), tensors[key + STEP]
        if value is None or value.dtype != torch.int8 or not step.is_floating_point() or step.shape != value.shape[:1]:
            raise CheckpointError(
                f"{name}: {key + STEP!r} should hold a step size for each row of {key!r} in eight bits, but is "
                f"{step.dtype} {list(step.shape)}; train it again or restore the file."
            )
        plain[key] = (value.float().flatten(1) * step[:, None]).view(value.shape)
    return plain


def read_description(folder: Path) -> dict[str, Any]:
    """Read `model.json`.

    Raises:
        CheckpointError: it is missing or unreadable, or names no hash.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: expected the description of a trained network, but found none; train it first.")
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected the description of a trained network, but {reason(error)}; train it again."
        ) from error
    if wrong := misfit(value, {"sha256": str}):
        raise CheckpointError(
            f"{path}: expected the description of a trained network, but {wrong}; train it again or restore the file."
        )
    return {**value}


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in `folder` and their description, held to each other.

    Raises:
        CheckpointError: files are missing or damaged, or the hash does not fit.
    """
    description, path = read_description(folder), folder / "model.safetensors"
    check_hash(path, description["sha256"], "model.json")
    return from_eight_bits(read_tensors(path), str(path)), description


def check_hash(path: Path, expected: str, record: str) -> None:
    """Hold a file to the SHA-256 that `record` beside it gives.

    Raises:
        CheckpointError: it is missing, or another file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected trained weights, but found none; train it first.")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{path}: its SHA-256 is {found[:16]}..., but {record} beside it records {expected[:16]}...; the file is "
            "damaged or was exchanged: train it again or restore both."
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises:
        CheckpointError: it is none, or a damaged one.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:  # the last two: unknown dtypes
        raise CheckpointError(f"{path}: not a whole safetensors file ({reason(error)}); restore it.") from error


def load_weights(folder: Path, network: nn.Module) -> dict[str, Any]:
    """Fill `network` with the weights in `folder` and return their description.

    Raises:
        CheckpointError: files are missing or damaged, or names, shapes, kinds of numbers or the hash do not fit.
    """
    tensors, description = read_weights(folder)
    fill(network, tensors, str(folder / "model.safetensors"))
    return description


def fill(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy `tensors` into `network`, all of them and nothing else, whatever their floating-point width.

    Raises:
        CheckpointError: see `check_fit`.
    """
    check_fit(network, tensors, name)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            value.copy_(tensors[key])


def check_fit(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Hold `tensors`, of a file called `name`, to a network, which may be on the meta device.

    Raises:
        CheckpointError: names, shapes or kinds of numbers differ, or a number is not finite; the message gives the
            first.
    """
    own = network.state_dict()
    for key in [*own, *tensors]:
        if key not in tensors or key not in own:
            where = f"lacks {key!r}" if key not in tensors else f"holds {key!r}, which the network has not"
            raise CheckpointError(
                f"{name}: holds {len(tensors)} tensors, the network it is for expects {len(own)}; it {where}."
            )
        if tensors[key].shape != own[key].shape:
            raise CheckpointError(
                f"{name}: {key!r} has shape {tuple(tensors[key].shape)}, the network it is for expects "
                f"{tuple(own[key].shape)}; give params.yaml the shape it was trained with, or train it again."
            )
        check_numbers(key, tensors[key], own[key].is_floating_point(), name)


def check_numbers(key: str, value: Tensor, real: bool, name: str) -> None:
    """Refuse a tensor that does not hold finite numbers: `real` ones, or whole ones.

    Raises:
        CheckpointError: see above; `name` is what it calls the file.
    """
    whole = not value.is_floating_point() and not value.is_complex() and value.dtype != torch.bool
    if value.is_floating_point() != real or whole == real:
        kind = "floating-point numbers" if real else "whole numbers"
        raise CheckpointError(f"{name}: {key!r} should hold {kind}, but holds {value.dtype}; train it again.")
    if real and not value.isfinite().all():
        raise CheckpointError(
            f"{name}: {key!r} holds values that are not finite numbers; its training diverged or the file is damaged: "
            "train it again."
        )


def read_published(path: Path) -> dict[str, Tensor]:
    """The tensors in somebody's checkpoint by name, those under `state_dict` if it has such a part.

    No code in the file is run.

    Raises:
        CheckpointError: the file is missing, damaged, holds objects of foreign classes, or something besides tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint, but there is no such file; download it first.")
    content = read_tensors(path) if path.suffix == ".safetensors" else _load(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        found = "none" if content is None or content == {} else f"something of type {type(content).__name__}"
        raise CheckpointError(f"{path}: expected tensors by name, but found {found}; give another checkpoint.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: expected tensors by name, but {name!r} is {type(value).__name__}; keep the weights only."
            )
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise CheckpointError(
                f"{path}: expected plain tensors, but {name!r} is sparse, quantised or without numbers; give another "
                "checkpoint."
            )
    return dict(content)


def _load(path: Path) -> Any:
    """What `torch.save` wrote, as far as it is plain containers and tensors."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", str(error))
        if foreign:
            raise CheckpointError(
                f"{path}: holds an object of {foreign[1]} beside its tensors, and reading it could run code that the "
                f"file brings along; where you trust the file, convert it with `{RECIPE}` and import the result."
            ) from error
        raise CheckpointError(f"{path}: not a checkpoint written by torch.save; download it again.") from error
    except Exception as error:  # an arbitrary file can make torch fail in any way
        said = reason(error).partition(". ")[0]
        raise CheckpointError(f"{path}: not a whole checkpoint of tensors ({said}); download it again.") from error
