"""DiffPIR: half-quadratic splitting, the estimate of x_0 is moved towards what was seen, and the noise found anew.

Zhu et al. 2023, algorithm 1 (arXiv 2305.08995). The data step minimises ||y - A x||^2 + rho ||x - x_0(x_t)||^2 with
rho = lambda sigma_n^2 / sigma_t^2. With A = the mask its solution is (y + rho x_0) / (1 + rho) at seen pixels; the
problems here are noise-free, so sigma_n and rho are 0 and it is pasting, whatever lambda. The noise is then taken from
x_t and the pasted image, and a step keeps sqrt(1 - zeta) of it and draws sqrt(zeta) afresh. So this is DDNM with
zeta = eta^2 and the noise of the seen pixels found anew. Like DDNM with eta > 0, it draws more fresh noise than a step
takes away, so that samples are narrower than the posterior: the more so, the larger zeta and the fewer steps.

Preset `paper` is the authors' configuration for inpainting (configs/inpaint.yaml): 20 steps, shorter and shorter
("quadratic"), zeta = 1, all noise fresh, and x_0 clipped. There rho is kept above 0 by a sigma_n of .001, which leaves
1 % of the network's estimate in the seen pixels where alpha_bar = .9999 and less before; x_T is noised y, not plain
noise; and the seen pixels are pasted at the end, as here by the last step. Preset `fine` has 250 even steps with
zeta = .3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.diffusion.schedule import Spacing, travel
from pipeline.errors import ConfigError, at_least
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.watch import Watch, ignore


@dataclass(frozen=True, kw_only=True)
class DiffPIR:
    """Denoising diffusion models for plug-and-play image restoration.

    Attributes:
        steps: number of levels walked.
        spacing: which levels; the authors' are ever closer to each other towards the clean image ("quadratic").
        zeta: share of fresh noise in the variance of a step's noise, 0 = deterministic, 1 = all fresh.
        clip: clip the estimate of x_0 to [-1, 1] before the data step.
    """

    steps: int = 20
    spacing: Spacing = "quadratic"
    zeta: float = 1.0
    clip: bool = True

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        if not 0.0 <= self.zeta <= 1.0:
            raise ConfigError(f"zeta must be between 0 and 1, but is {self.zeta}")

    def moves(self) -> list[tuple[int, int]]:
        """Moves between level indices (-1 = clean) in order."""
        return list(travel(self.steps))

    def nfe(self) -> int:
        """Network evaluations per image."""
        return self.steps

    def nbe(self) -> int:
        """Gradients per image: none."""
        return 0

    def __call__(
        self,
        denoiser: Denoiser,
        problem: Problem,
        noise: NoiseSource,
        *,
        refine: Refine = unchanged,
        watch: Watch = ignore,
    ) -> Tensor:
        """Sample one completion per problem, [B, C, H, W] in [-1, 1]; draws x_T, then z for every step."""
        schedule, shape = denoiser.schedule, denoiser.shape
        x_t = noise.normal(shape)
        for t, s in schedule.steps(self.steps, self.spacing):
            prediction = denoiser.denoise(x_t, t)
            prediction = refine(prediction.clipped() if self.clip else prediction, x_t, t)
            x_0 = problem.paste(prediction.x_0)
            eps = schedule.eps(x_t, x_0, t)
            eps = math.sqrt(1.0 - self.zeta) * eps + math.sqrt(self.zeta) * noise.normal(shape)
            x_t = schedule.diffuse(x_0, s, eps)
            watch(t, x_0)
        return x_t.clamp(-1.0, 1.0)


PRESETS = {"paper": DiffPIR(), "fine": DiffPIR(steps=250, spacing="even", zeta=0.3)}
