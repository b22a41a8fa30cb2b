"""Langevin dynamics at every level with a score that works both ways, in the manner of LanPaint.

Zheng et al. 2025 (arXiv 2502.03491). At a level t the whole of x_t, seen and hidden pixels, follows Langevin dynamics
before the next step. Hidden pixels follow the denoiser's score s. Seen pixels follow the bidirectional ("BiG") score

    (1 + lambda) grad log q(x_t | y) - lambda s = [sqrt(a) y - x_t + lambda sqrt(a) (y - x_0(x_t))] / (1 - a),

with a = alpha_bar: they stay at the noise of their level around y, and lean over to where the denoiser's estimate of
them is y. lambda = 0 is plain Langevin dynamics given noised seen pixels. Then the estimate of x_0, seen pixels pasted,
makes a DDIM step with eta = 0, eps found anew. It needs no gradient.

From the paper are: the score, the two-fold loop, and 20 steps with 5 or 10 inner ones (LanPaint-5, LanPaint-10) and
lambda = 8. Ours are: overdamped Langevin dynamics with Euler steps, where the authors have underdamped ones with
friction, integrated in closed form (FLD); steps of `step_size` (1 - a) for hidden pixels and 1 / (1 + lambda) of that
for seen ones, whose drift is up to that much steeper; and the DDIM step, where the authors plug into any ODE sampler.
Preset `paper_5` has 5 inner steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.diffusion.schedule import Schedule, Spacing, travel
from pipeline.errors import ConfigError, at_least
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.watch import Watch, ignore


@dataclass(frozen=True, kw_only=True)
class LanPaint:
    """Langevin inpainting with a bidirectional score.

    Attributes:
        steps: number of levels walked.
        spacing: which levels.
        inner_steps: Langevin steps at every level, each of which costs a network evaluation; 0 = none.
        step_size: length of a Langevin step of hidden pixels in units of the level's noise variance.
        strength: the paper's lambda, how far seen pixels lean over to have the denoiser's estimate at y.
    """

    steps: int = 20
    spacing: Spacing = "even"
    inner_steps: int = 10
    step_size: float = 0.2
    strength: float = 8.0

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        at_least(0, inner_steps=self.inner_steps, strength=self.strength)
        if not 0.0 < self.step_size <= 1.0:
            raise ConfigError(f"step_size must be above 0 and at most 1, but is {self.step_size}")
        if not self.strength < math.inf:
            raise ConfigError(f"strength must be finite, but is {self.strength}")

    def moves(self) -> list[tuple[int, int]]:
        """Moves between level indices (-1 = clean) in order; the inner steps stay on their level."""
        return list(travel(self.steps))

    def nfe(self) -> int:
        """Network evaluations per image."""
        return self.steps * (self.inner_steps + 1)

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
        """Sample one completion per problem, [B, C, H, W] in [-1, 1]; draws x_T, then z for every inner step."""
        schedule, shape = denoiser.schedule, denoiser.shape
        x_t = noise.normal(shape)
        for t, s in schedule.steps(self.steps, self.spacing):
            for _ in range(self.inner_steps):
                x_0 = refine(denoiser.denoise(x_t, t), x_t, t).x_0
                x_t = self.langevin(schedule, problem, x_0, x_t, t, noise.normal(shape))
            x_0 = problem.paste(refine(denoiser.denoise(x_t, t), x_t, t).x_0)
            eps = schedule.eps(x_t, x_0, t)
            x_t = schedule.ddim(x_0, eps, t, s, eps, eta=0.0)
            watch(t, x_0)
        return x_t.clamp(-1.0, 1.0)

    def langevin(self, schedule: Schedule, problem: Problem, x_0: Tensor, x_t: Tensor, t: int, z: Tensor) -> Tensor:
        """One step at time t from the estimate x_0 at x_t, with standard normal `z`; all [B, C, H, W]."""
        a = float(schedule.alpha_bar[t])
        aim = x_0 + (1.0 + self.strength) * problem.residual(x_0)  # (1 + lambda) y - lambda x_0 where seen, else x_0
        drift = math.sqrt(a) * aim - x_t  # (1 - a) times the score
        step = torch.where(problem.known, self.step_size / (1.0 + self.strength), self.step_size).to(x_t.dtype)
        return x_t + step * drift + torch.sqrt(2.0 * step * (1.0 - a)) * z


PRESETS = {"paper": LanPaint(), "paper_5": LanPaint(inner_steps=5)}
