"""The trained VQ-GAN on disk, as a codec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.codec.codec import Codec
from pipeline.codec.vqgan import VQGAN
from pipeline.experiment.params import VQGANBlock
from pipeline.weights import load_weights


def load_codec(folder: Path, block: VQGANBlock, device: torch.device) -> tuple[Codec, dict[str, Any]]:
    """The trained VQ-GAN in `folder`, and its description.

    Raises:
        CheckpointError: it is missing, damaged, or of another shape than params.yaml says.
    """
    vqgan = VQGAN(block.network)
    description = load_weights(folder, vqgan)
    return Codec(vqgan.to(device).eval().requires_grad_(False)), description
