"""Blended: plain replacement, the seen pixels are noised to the current level and pasted before every step.

Song et al. 2021, appendix I.2 (arXiv 2011.13456); used for editing by Avrahami et al. 2022 (arXiv 2111.14818), whose
name the comparison tables carry. Preset `paper` samples ancestrally with the learned variance and fresh noise for the
seen pixels at every step, and ends at the clean image. Preset `copaint_repo` is the row of the published tables: DDIM
with eta = 0, x_0 clipped but eps left as it was, 249 steps that stop at the first level (alpha_bar = .9999) without a
last denoising. There the noise of the seen pixels was drawn once for the first image of a batch and shared by all; here
every image draws its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.diffusion.schedule import travel
from pipeline.errors import ConfigError, at_least
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.watch import Watch, ignore


@dataclass(frozen=True, kw_only=True)
class Blended:
    """Replacement sampling.

    Attributes:
        steps: number of levels walked.
        kernel: "ancestral" draws from p(x_s | x_t) with the learned variance; "ddim" uses `eta`.
        eta: stochasticity of the DDIM kernel, 0 = deterministic.
        stop: "clean" ends at time 0; "first_level" ends at the earliest noisy level, one step short.
    """

    steps: int = 250
    kernel: Literal["ancestral", "ddim"] = "ancestral"
    eta: float = 0.0
    stop: Literal["clean", "first_level"] = "clean"

    def __post_init__(self) -> None:
        at_least(2 if self.stop == "first_level" else 1, steps=self.steps)
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(f"eta must be between 0 and 1, but is {self.eta}")

    def nfe(self) -> int:
        """Network evaluations per image."""
        return self.steps - (self.stop == "first_level")

    def nbe(self) -> int:
        """Gradients per image: none."""
        return 0

    def moves(self) -> list[tuple[int, int]]:
        """Moves between level indices (-1 = clean) in order."""
        return list(travel(self.steps))[: self.nfe()]

    def __call__(
        self,
        denoiser: Denoiser,
        problem: Problem,
        noise: NoiseSource,
        *,
        refine: Refine = unchanged,
        watch: Watch = ignore,
    ) -> Tensor:
        """Sample one completion per problem, [B, C, H, W] in [-1, 1]; draws x_T, then per step the seen noise and z."""
        schedule, shape = denoiser.schedule, denoiser.shape
        x_t = noise.normal(shape)
        for t, s in schedule.steps(self.steps)[: self.nfe()]:
            x_t = torch.where(problem.known, schedule.diffuse(problem.y, t, noise.normal(shape)), x_t)
            prediction = refine(denoiser.denoise(x_t, t).clipped(), x_t, t)
            z = noise.normal(shape)
            if self.kernel == "ancestral":
                x_t = schedule.ancestral(prediction.x_0, x_t, t, s, z, prediction.v)
            else:
                x_t = schedule.ddim(prediction.x_0, prediction.eps, t, s, z, self.eta)
            watch(t, prediction.x_0)
        return x_t.clamp(-1.0, 1.0)


PRESETS = {"paper": Blended(), "copaint_repo": Blended(kernel="ddim", stop="first_level")}
