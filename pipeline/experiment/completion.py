"""Completing images: the part of a sweep cell that decides its pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.images import to_float
from pipeline.diffusion.denoiser import Denoiser
from pipeline.methods import Method
from pipeline.noise import Noise, stream_seed
from pipeline.problem import Problem
from pipeline.watch import Watch, ignore


def image_seed(seed: int, dataset: str, image_id: str, sample: int) -> int:
    """Seed of an image's random stream: not of method or mask, so that all methods are compared on the same draws."""
    return stream_seed(seed, dataset, image_id, sample)


@torch.no_grad()
def complete(
    method: Method,
    denoiser: Denoiser,
    images: NDArray[np.uint8],
    known: NDArray[np.bool_],
    seeds: Sequence[int],
    device: torch.device,
    *,
    watch: Watch = ignore,
) -> Tensor:
    """Complete images uint8 [B, S, S, 3] seen where `known` [B, S, S].

    Returns:
        The raw result [B, 3, S, S] in [-1, 1].
    """
    seen = torch.from_numpy(known).unsqueeze(1).to(device)
    problem = Problem.observe(to_float(images).to(device), seen)
    return method(denoiser, problem, Noise(seeds, device), watch=watch)
