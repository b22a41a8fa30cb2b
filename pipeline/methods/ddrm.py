"""DDRM: what was seen is put in at the noise level that it has, and diffused above it.

Kawar et al. 2022, section 3 (arXiv 2201.11793). The paper works in the singular vectors of the degradation;
those of a mask are the pixels themselves, with singular values 1 (seen) and 0 (hidden), so that no decomposition is
needed. With sigma = sqrt(1 / alpha_bar - 1), the noise level beside an unscaled image, a step to the level sigma draws

    hidden                  x_0 + sigma (sqrt(1 - eta^2) eps + eta z)
    seen, sigma > sigma_y   (1 - eta_b) x_0 + eta_b y + sqrt(sigma^2 - eta_b^2 sigma_y^2) z
    seen, sigma < sigma_y   x_0 + sqrt(1 - eta^2) sigma (y - x_0) / sigma_y + eta sigma z

and scales it by sqrt(alpha_bar). Two things are as in the authors' code and not as in the paper. Seen pixels at a level
of exactly sigma_y are treated as hidden (`ties`); without measurement noise that is the last step, so the seen pixels
of the result are the network's estimate of them and not y. And the first state is divided by sigma instead of
sqrt(1 + sigma^2), which makes its seen pixels larger by the factor 1 / sqrt(1 - alpha_bar), nearly 1 at the last time.

Preset `paper` is the authors' default: 20 steps, eta = .85, eta_b = 1; `paper_100` walks 100 steps. Preset
`copaint_repo` is the row of the published comparison tables: 249 steps that stop at the first level, with eta = 0, at
which DDRM is replacement sampling with the deterministic DDIM kernel and without clipping.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

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
class DDRM:
    """Denoising diffusion restoration model.

    Attributes:
        steps: number of levels walked.
        spacing: which levels; the authors' code skips through the training levels ("leading").
        eta: share of fresh noise at hidden pixels, and at seen ones below the level sigma_y.
        eta_b: weight of y against the estimate at seen pixels above the level sigma_y.
        sigma_y: standard deviation of the measurement noise, which is added to y and allowed for; 0 = none.
        ties: what becomes of seen pixels in a step to the level sigma_y itself: "hidden" treats them as hidden, as the
            authors' code does; "seen" counts the level among those above, as the paper does.
        stop: "clean" ends at time 0; "first_level" ends at the earliest noisy level, one step short.
    """

    steps: int = 20
    spacing: Spacing = "leading"
    eta: float = 0.85
    eta_b: float = 1.0
    sigma_y: float = 0.0
    ties: Literal["hidden", "seen"] = "hidden"
    stop: Literal["clean", "first_level"] = "clean"

    def __post_init__(self) -> None:
        at_least(2 if self.stop == "first_level" else 1, steps=self.steps)
        for name, share in (("eta", self.eta), ("eta_b", self.eta_b)):
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"{name} must be between 0 and 1, but is {share}")
        if not 0.0 <= self.sigma_y < math.inf:
            raise ConfigError(f"sigma_y must be at least 0 and finite, but is {self.sigma_y}")

    def moves(self) -> list[tuple[int, int]]:
        """Moves between level indices (-1 = clean) in order."""
        moves = list(travel(self.steps))
        return moves if self.stop == "clean" else moves[:-1]

    def nfe(self) -> int:
        """Network evaluations per image."""
        return len(self.moves())

    def nbe(self) -> int:
        """Network differentiations per image: none."""
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
        """Sample one completion per problem, [B, C, H, W] in [-1, 1].

        Draws the measurement noise (if there is any), x_T, then z for every step.
        """
        schedule, shape, known = denoiser.schedule, denoiser.shape, problem.known
        times = [*reversed(schedule.times(self.steps, self.spacing)), 0]  # index -1 is the clean image
        y = problem.y + self.sigma_y * noise.normal(shape) if self.sigma_y > 0.0 else problem.y
        x_t = noise.normal(shape)
        sigma = noise_level(schedule, times[self.steps - 1])
        if sigma > self.sigma_y:
            x_t = torch.where(known, (y + math.sqrt(sigma**2 - self.sigma_y**2) * x_t) / sigma, x_t)
        for i, j in self.moves():
            t, s, z = times[i], times[j], noise.normal(shape)
            prediction, sigma = refine(denoiser.denoise(x_t, t), x_t, t), noise_level(schedule, s)
            fresh = math.sqrt(1.0 - self.eta**2) * prediction.eps + self.eta * z
            hidden = prediction.x_0 + sigma * fresh
            seen = self.seen(prediction.x_0, y, sigma, z)
            x = hidden if seen is None else torch.where(known, seen, hidden)
            x_t = math.sqrt(schedule.alpha_bar[s]) * x
            watch(t, prediction.x_0)
        return x_t.clamp(-1.0, 1.0)

    def seen(self, x_0: Tensor, y: Tensor, sigma: float, z: Tensor) -> Tensor | None:
        """Draw seen pixels at the level `sigma`, [B, C, H, W]; None where they are treated as hidden ones."""
        if sigma > self.sigma_y or (sigma == self.sigma_y and self.ties == "seen"):
            mean = (1.0 - self.eta_b) * x_0 + self.eta_b * y
            return mean + math.sqrt(sigma**2 - (self.eta_b * self.sigma_y) ** 2) * z
        if sigma < self.sigma_y:
            return x_0 + math.sqrt(1.0 - self.eta**2) * sigma * (y - x_0) / self.sigma_y + self.eta * sigma * z
        return None


def noise_level(schedule: Schedule, t: int) -> float:
    """Standard deviation of the noise at time t beside an image that is not scaled down, sqrt(1 / alpha_bar - 1)."""
    return math.sqrt(1.0 / float(schedule.alpha_bar[t]) - 1.0)


PRESETS = {
    "paper": DDRM(),
    "paper_100": DDRM(steps=100),
    "copaint_repo": DDRM(steps=250, spacing="even", eta=0.0, stop="first_level"),
}
"""Settings by where they come from."""
