"""The trained diffusion model on disk, as a denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.diffusion.denoiser import NetworkDenoiser
from pipeline.diffusion.precision import InPrecision
from pipeline.diffusion.unet import UNet
from pipeline.experiment.params import DDPMBlock
from pipeline.weights import load_weights


def load_denoiser(
    folder: Path, block: DDPMBlock, image_size: int, device: torch.device, precision: str = "float32"
) -> tuple[NetworkDenoiser, dict[str, Any]]:
    """The trained diffusion model in `folder`, and its description.

    Raises:
        CheckpointError: it is missing, damaged, or of another shape than params.yaml says.
    """
    network = UNet(block.unet, image_size)
    description = load_weights(folder, network)
    return as_denoiser(network, block, image_size, device, precision), description


def as_denoiser(
    network: UNet, block: DDPMBlock, image_size: int, device: torch.device, precision: str
) -> NetworkDenoiser:
    """The network as samplers see it, on `device` and frozen."""
    network.to(device).eval().requires_grad_(False)
    wrapped = InPrecision(network, getattr(torch, precision))
    return NetworkDenoiser(wrapped, block.schedule.build(), (3, image_size, image_size), block.target)
