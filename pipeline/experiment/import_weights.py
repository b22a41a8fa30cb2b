"""Weights that others published, as a folder that `ddpm.init` or `vqgan.init` of params.yaml can name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.codec import published as taming
from pipeline.codec.vqgan import VQGAN
from pipeline.diffusion import published as guided
from pipeline.diffusion.unet import UNet
from pipeline.errors import CheckpointError, ConfigError
from pipeline.experiment.params import Params
from pipeline.experiment.provenance import file_digest
from pipeline.weights import read_published, save_weights

log = logging.getLogger(__name__)

Kind = Literal["unet", "vqgan"]


def import_weights(kind: Kind, checkpoint: Path, out: Path, params: Params, order: guided.Order = "legacy") -> None:
    """Convert a published checkpoint for the network of `params` and write model.safetensors and model.json to `out`.

    Args:
        kind: "unet" for a diffusion model in guided-diffusion's layout, "vqgan" for one in taming-transformers'.
        checkpoint: a .safetensors file, or one written by `torch.save`, which is read without running what it holds.
        out: the folder to write.
        params: its `ddpm.unet` or `vqgan.network` says what the network is.
        order: of queries, keys and values in a U-Net's attention; see `pipeline.diffusion.published.Order`.

    Raises:
        CheckpointError: the file cannot be read safely, or a tensor in it does not fit; the message names the first.
        ConfigError: the U-Net of `params` folds pixels, which no published one does.
    """
    network = empty_network(kind, params)
    tensors = read_published(checkpoint)
    source: dict[str, Any] = {"file": checkpoint.name, "sha256": file_digest(checkpoint)}
    if isinstance(network, UNet):
        description = {"kind": "ddpm", "unet": asdict(params.ddpm.unet)}
        source |= {"layout": "guided-diffusion", "attention_order": order}
    else:
        description = {"kind": "vqgan", "network": asdict(params.vqgan.network)}
        source |= {"layout": "taming-transformers"}
    network.load_state_dict(convert(tensors, network, str(checkpoint), order), assign=True)
    sha256 = save_weights(out, network, {**description, "image_size": params.image_size, "source": source})
    parameters = sum(value.numel() for value in network.state_dict().values()) / 1e6
    log.info("%s: %.1f million parameters from %s, sha256 %s...", out, parameters, checkpoint, sha256[:16])


def empty_network(kind: Kind, params: Params) -> UNet | VQGAN:
    """The network of `params` on the meta device: names and shapes, no weights.

    Raises:
        ConfigError: the U-Net folds pixels.
    """
    if kind == "unet" and params.ddpm.unet.patch != 1:
        raise ConfigError(
            f"ddpm.unet.patch: published U-Nets see single pixels, so it must be 1, but is {params.ddpm.unet.patch}; "
            "give a profile that has it so, such as --profile paper."
        )
    with torch.device("meta"):
        return UNet(params.ddpm.unet, params.image_size) if kind == "unet" else VQGAN(params.vqgan.network)


def convert(
    tensors: Mapping[str, Tensor], network: UNet | VQGAN, name: str, order: guided.Order = "legacy"
) -> dict[str, Tensor]:
    """A published checkpoint as the state of `network`, in float32; the network may be on the meta device.

    Args:
        tensors: by published name.
        network: decides what is expected.
        name: what errors call the checkpoint.
        order: see `import_weights`.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or not finite; the message names the first.
    """
    if isinstance(network, UNet):
        sources = guided.sources(network, order)
        check(tensors, sources, lambda key: guided.describe(key, network), f"{name}: as a U-Net of ddpm.unet, it")
    else:
        tensors, sources = taming.own_part(tensors), taming.sources(network)
        check(tensors, sources, lambda key: taming.describe(key, network), f"{name}: as a VQ-GAN of vqgan.network, it")
    return {ours: take(tensors[theirs].float()) for ours, (theirs, _, take) in sources.items()}


def check(
    tensors: Mapping[str, Tensor], sources: Mapping[str, guided.Source], describe: Callable[[str], str], name: str
) -> None:
    """Hold the names, shapes and values of published tensors to what is expected.

    Raises:
        CheckpointError: the first that does not fit, and what it belongs to.
    """
    expected = {theirs: shape for theirs, shape, _ in sources.values()}
    if not expected.keys() & tensors.keys():
        first = next(iter(tensors), "nothing")
        raise CheckpointError(
            f"{name} should hold {next(iter(expected))!r} and {len(expected) - 1} more, but has none of them; "
            f"its first is {first!r}: give another checkpoint or another --kind."
        )
    for key, shape in expected.items():
        if key not in tensors:
            raise CheckpointError(f"{name} lacks {key!r} ({describe(key)}); {_remedy(len(tensors), len(expected))}")
        if tuple(tensors[key].shape) != shape:
            raise CheckpointError(
                f"{name} should hold {key!r} ({describe(key)}) with shape {shape}, but its shape is "
                f"{tuple(tensors[key].shape)}; {_remedy(len(tensors), len(expected))}"
            )
        if not tensors[key].is_floating_point() or not tensors[key].isfinite().all():
            raise CheckpointError(
                f"{name} holds {key!r} ({describe(key)}) with values that are not finite numbers; download it again."
            )
    for key in tensors:
        if key not in expected:
            raise CheckpointError(
                f"{name} holds {key!r} ({describe(key)}), for which the network has no place; "
                f"{_remedy(len(tensors), len(expected))}"
            )


def _remedy(held: int, expected: int) -> str:
    return f"give params.yaml the checkpoint's shape ({held} tensors; expected {expected}), or give another checkpoint."
