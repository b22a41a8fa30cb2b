"""Plain sampling from the diffusion prior, without anything known."""

from __future__ import annotations

from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.noise import NoiseSource
from pipeline.watch import Watch, ignore


def sample(
    denoiser: Denoiser, noise: NoiseSource, steps: int, *, refine: Refine = unchanged, watch: Watch = ignore
) -> Tensor:
    """Draw images [B, C, H, W] in [-1, 1] by ancestral sampling over `steps` levels (Ho et al. 2020, algorithm 2)."""
    schedule = denoiser.schedule
    x_t = noise.normal(denoiser.shape)
    for t, s in schedule.steps(steps):
        prediction = refine(denoiser.denoise(x_t, t).clipped(), x_t, t)
        x_t = schedule.ancestral(prediction.x_0, x_t, t, s, noise.normal(denoiser.shape), prediction.v)
        watch(t, prediction.x_0)
    return x_t.clamp(-1.0, 1.0)
