"""DPS: every step is followed by a step down the distance between what was seen and the estimate of it.

Chung et al. 2023, algorithm 1 (arXiv 2209.14687): x_s = draw from p(x_s | x_t) - zeta grad_{x_t} d, with
d = ||y - A x_0(x_t)||_2, A = the mask, and the gradient taken through the network. (The paper writes d squared and
divides the step size by d, which is twice this; this is the authors' code.) As d is not squared, the pull on all pixels
together has a length of about zeta however many are seen, so the zeta that suits depends on resolution and mask.

Preset `paper` is the authors' configuration for inpainting: ancestral DDPM with the learned variance, T = 1000,
zeta = .5, measurement noise .05. Preset `copaint_repo` is the row of the published comparison tables: DDIM with
eta = 1, 249 steps that stop at the first level, zeta = 1, measurement noise 1e-4. Both clip x_0 inside the gradient,
and both add the measurement noise to the hidden pixels too, where it cannot be explained: a constant under the root of
d that weakens the pull (`noisy`). Preset `small` is for images of 16 to 64 pixels a side: zeta = .25, the best of
{1, 1/4, 1/16} at 16x16 on a prior with known posterior, and noise-free problems stay noise-free.

In the published code d runs over the whole batch, so that an image is pulled the less the more others travel with it.
Here every image has its own d; for a batch of one there is no difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser, Prediction
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.diffusion.schedule import Spacing, travel
from pipeline.errors import ConfigError, at_least
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.watch import Watch, ignore


@dataclass(frozen=True, kw_only=True)
class DPS:
    """Diffusion posterior sampling.

    Attributes:
        steps: number of levels walked.
        spacing: which levels.
        kernel: "ancestral" draws from p(x_s | x_t) with the learned variance; "ddim" uses `eta`.
        eta: stochasticity of the DDIM kernel, 0 = deterministic, 1 = ancestral with the smallest variance.
        zeta: length of the pull towards what was seen; 0 = the unconditional sampler.
        clip: clip the estimate of x_0 to [-1, 1], for the step and inside the gradient.
        sigma_y: standard deviation of the measurement noise added to y before anything else; 0 = none.
        noisy: which pixels of y get the measurement noise, "seen" or "everywhere".
        stop: "clean" ends at time 0; "first_level" ends at the earliest noisy level, one step short.
    """

    steps: int = 1000
    spacing: Spacing = "even"
    kernel: Literal["ancestral", "ddim"] = "ancestral"
    eta: float = 1.0
    zeta: float = 0.5
    clip: bool = True
    sigma_y: float = 0.05
    noisy: Literal["seen", "everywhere"] = "everywhere"
    stop: Literal["clean", "first_level"] = "clean"

    def __post_init__(self) -> None:
        at_least(2 if self.stop == "first_level" else 1, steps=self.steps)
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(f"eta must be between 0 and 1, but is {self.eta}")
        for name, value in (("zeta", self.zeta), ("sigma_y", self.sigma_y)):
            if not 0.0 <= value < math.inf:
                raise ConfigError(f"{name} must be at least 0 and finite, but is {value}")

    def moves(self) -> list[tuple[int, int]]:
        """Moves between level indices (-1 = clean) in order."""
        moves = list(travel(self.steps))
        return moves if self.stop == "clean" else moves[:-1]

    def nfe(self) -> int:
        """Network evaluations per image."""
        return len(self.moves())

    def nbe(self) -> int:
        """Network differentiations per image: one per step."""
        return len(self.moves())

    def __call__(
        self,
        denoiser: Denoiser,
        problem: Problem,
        noise: NoiseSource,
        *,
        refine: Refine = unchanged,
        watch: Watch = ignore,
    ) -> Tensor:
        """Sample one completion per problem, [B, C, H, W] in [-1, 1].

        Draws x_T, the measurement noise (if there is any), then z for every step.
        """
        schedule, shape = denoiser.schedule, denoiser.shape
        times = [*reversed(schedule.times(self.steps, self.spacing)), 0]  # index -1 is the clean image
        x_t, y = noise.normal(shape), problem.y
        if self.sigma_y > 0.0:
            n = self.sigma_y * noise.normal(shape)
            y = y + (n if self.noisy == "everywhere" else torch.where(problem.known, n, 0.0))
        for i, j in self.moves():
            t, s, z = times[i], times[j], noise.normal(shape)
            prediction, gradient = self.differentiate(denoiser, y, problem.known, x_t, t)
            prediction = refine(prediction, x_t, t)
            if self.kernel == "ancestral":
                x_s = schedule.ancestral(prediction.x_0, x_t, t, s, z, prediction.v)
            else:
                x_s = schedule.ddim(prediction.x_0, prediction.eps, t, s, z, self.eta)
            x_t = x_s - self.zeta * gradient
            watch(t, prediction.x_0)
        return x_t.clamp(-1.0, 1.0)

    def differentiate(
        self, denoiser: Denoiser, y: Tensor, known: Tensor, x_t: Tensor, t: int
    ) -> tuple[Prediction, Tensor]:
        """Predict at `x_t` and return the gradient of every image's own distance to `y`, [B, C, H, W].

        Nothing returned holds on to the graph. Images do not meet: the gradient of the sum of distances with respect
        to one image is that of its own distance.
        """
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            prediction = denoiser.denoise(x_t, t)
            x_0 = prediction.x_0.clamp(-1.0, 1.0) if self.clip else prediction.x_0
            distance = (y - torch.where(known, x_0, 0.0)).flatten(1).norm(dim=1)
            (gradient,) = torch.autograd.grad(distance.sum(), x_t)
        v = None if prediction.v is None else prediction.v.detach()
        return Prediction(x_0=x_0.detach(), eps=prediction.eps.detach(), v=v), gradient


PRESETS = {
    "paper": DPS(),
    "copaint_repo": DPS(steps=250, kernel="ddim", zeta=1.0, sigma_y=1e-4, stop="first_level"),
    "small": DPS(steps=250, kernel="ddim", zeta=0.25, sigma_y=0.0),
}
"""Settings by where they come from."""
