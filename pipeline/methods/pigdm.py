"""Pseudoinverse guidance: what was seen pulls the estimate of x_0 through the network's Jacobian.

Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems" (ICLR), PiGDM. Eq. 7 and 8: with
p(x_0 | x_t) taken as N(x_0(x_t), r_t^2 I), grad log p(y | x_t) is J^T A^T (A A^T)^-1 (y - A x_0(x_t)) / r_t^2 for
noise-free y, J the Jacobian of x_0(x_t). With A = the mask, A A^T = I and the pseudoinverse of A is A^T, so the vector
g = J^T (residual at seen pixels) takes one backward pass and nothing is inverted. r_t^2 = 1 - alpha_bar is the variance
of x_0 given x_t when pixels are independent with variance 1.

`guidance` = "weighted" is algorithm 1: x_0 moves by sqrt(alpha_bar) g and eps stays, that is, the gradient is weighted
by about r_t^2 (the paper's adaptive weights). "score" adds eq. 8 to the score as it stands, so that x_0 moves by
g / sqrt(alpha_bar) and eps with it. For Gaussian images with independent pixels of variance 1 that is the exact
conditional score, and known pixels are reached at once.

Preset `paper` is algorithm 1 with 100 even steps and eta = 1. x_T is plain noise, where the algorithm noises the
pseudoinverse of y. The residual is a constant for the gradient, as in the paper; seen pixels are not pasted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser, Prediction
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.diffusion.schedule import travel
from pipeline.errors import ConfigError, at_least
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.watch import Watch, ignore


@dataclass(frozen=True, kw_only=True)
class PiGDM:
    """Pseudoinverse-guided diffusion.

    Attributes:
        steps: number of levels walked.
        eta: stochasticity of the DDIM kernel, 0 = deterministic, 1 = ancestral.
        guidance: "weighted" moves x_0 only, by sqrt(alpha_bar) g; "score" moves x_0 by g / sqrt(alpha_bar), and eps.
    """

    steps: int = 100
    eta: float = 1.0
    guidance: Literal["weighted", "score"] = "weighted"

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps)
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(f"eta must be between 0 and 1, but is {self.eta}")

    def moves(self) -> list[tuple[int, int]]:
        """Moves between level indices (-1 = clean) in order."""
        return list(travel(self.steps))

    def nfe(self) -> int:
        """Network evaluations per image."""
        return self.steps

    def nbe(self) -> int:
        """Gradients per image: one per step."""
        return self.steps

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
        for t, s in schedule.steps(self.steps):
            guided = refine(self.guide(denoiser, problem, x_t, t), x_t, t)
            x_t = schedule.ddim(guided.x_0, guided.eps, t, s, noise.normal(shape), self.eta)
            watch(t, guided.x_0)
        return x_t.clamp(-1.0, 1.0)

    def guide(self, denoiser: Denoiser, problem: Problem, x_t: Tensor, t: int) -> Prediction:
        """What the denoiser says about `x_t` [B, C, H, W], moved by what was seen; holds on to no graph."""
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            prediction = denoiser.denoise(x_t, t)
            residual = problem.residual(prediction.x_0.detach())
            (g,) = torch.autograd.grad(prediction.x_0, x_t, residual)
        root = math.sqrt(denoiser.schedule.alpha_bar[t])
        if self.guidance == "weighted":
            return Prediction(x_0=prediction.x_0.detach() + root * g, eps=prediction.eps.detach())
        x_0 = prediction.x_0.detach() + g / root
        return Prediction(x_0=x_0, eps=denoiser.schedule.eps(x_t.detach(), x_0, t))


PRESETS = {"paper": PiGDM()}
