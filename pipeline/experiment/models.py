"""What lies on disk, as the objects of the science."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.codec.codec import Codec
from pipeline.codec.vqgan import VQGAN
from pipeline.diffusion.denoiser import NetworkDenoiser
from pipeline.diffusion.unet import UNet
from pipeline.experiment.params import DDPMBlock, VQGANBlock
from pipeline.weights import load_weights


class InPrecision(nn.Module):
    """A network evaluated in another number format; float32 goes in and comes out."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Evaluate under autocast."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out: Tensor = self.network(x, time)
        return out.float()


def load_denoiser(
    folder: Path, block: DDPMBlock, image_size: int, device: torch.device, precision: str = "float32"
) -> tuple[NetworkDenoiser, dict[str, Any]]:
    """The trained diffusion model in `folder`, and its description.

    Raises:
        CheckpointError: it is missing, damaged, or of another shape than params.yaml says.
    """
    network = UNet(block.unet, image_size)
    description = load_weights(folder, network)
    network.to(device).eval().requires_grad_(False)
    wrapped = InPrecision(network, getattr(torch, precision))
    denoiser = NetworkDenoiser(wrapped, block.schedule.build(), (3, image_size, image_size), block.target)
    return denoiser, description


def load_codec(folder: Path, block: VQGANBlock, device: torch.device) -> tuple[Codec, dict[str, Any]]:
    """The trained VQ-GAN in `folder`, and its description.

    Raises:
        CheckpointError: it is missing, damaged, or of another shape than params.yaml says.
    """
    vqgan = VQGAN(block.network)
    description = load_weights(folder, vqgan)
    return Codec(vqgan.to(device).eval().requires_grad_(False)), description
