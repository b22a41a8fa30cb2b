"""DDNM: the null-space part of the estimate is kept, its range-space part is replaced by what was seen.

Wang et al. 2023, algorithm 1 and section 3.3 (arXiv 2212.00490), with A = the mask, so that rectifying x_0 is pasting.
Preset `paper` is the authors' SVD variant for noise-free problems: 100 steps, eta = .85, no clipping, no time travel.
Preset `copaint_repo` is the row of the published comparison tables: 249 steps that stop at the first level, x_0
clipped, and the noise of every step multiplied by sqrt(1 - alpha_bar_t^2), a factor that belongs to noisy problems
(DDNM+) and is 1 for inpainting; it shrinks the spread of the samples to about .6 of the exact posterior's. Preset
`paper_travel` is the authors' time travel (length 10, 3 repeats).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.diffusion.schedule import Spacing, travel
from pipeline.errors import ConfigError, at_least
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.watch import Watch, ignore


@dataclass(frozen=True, kw_only=True)
class DDNM:
    """Denoising diffusion null-space model.

    Attributes:
        steps: number of levels walked.
        spacing: which levels; the authors' code skips through the training levels ("leading").
        eta: share of fresh noise in the noise of a step, 0 = deterministic, 1 = all fresh.
        travel_length: how many levels a time travel goes back.
        travel_repeats: how often each stretch is walked; 1 = no travel.
        clip: clip the estimate of x_0 to [-1, 1] before it is rectified.
        damping: "none", or the DDNM+ factor sqrt(1 - alpha_bar_t^2) on the noise of every step.
        stop: "clean" ends at time 0; "first_level" ends at the earliest noisy level, one step short.
    """

    steps: int = 100
    spacing: Spacing = "leading"
    eta: float = 0.85
    travel_length: int = 1
    travel_repeats: int = 1
    clip: bool = False
    damping: Literal["none", "ddnm_plus"] = "none"
    stop: Literal["clean", "first_level"] = "clean"

    def __post_init__(self) -> None:
        at_least(2 if self.stop == "first_level" else 1, steps=self.steps)
        at_least(1, travel_length=self.travel_length, travel_repeats=self.travel_repeats)
        if not 0.0 <= self.eta <= 1.0:
            raise ConfigError(f"eta must be between 0 and 1, but is {self.eta}")

    def moves(self) -> list[tuple[int, int]]:
        """Moves between level indices (-1 = clean) in order."""
        moves = list(travel(self.steps, self.travel_length, self.travel_repeats))
        return moves if self.stop == "clean" else moves[:-1]

    def nfe(self) -> int:
        """Network evaluations per image; travelling back needs none."""
        return sum(j < i for i, j in self.moves())

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
        """Sample one completion per problem, [B, C, H, W] in [-1, 1]; draws x_T, then one noise per move."""
        schedule, shape = denoiser.schedule, denoiser.shape
        times = [*reversed(schedule.times(self.steps, self.spacing)), 0]  # index -1 is the clean image
        x_t = estimate = noise.normal(shape)
        for i, j in self.moves():
            t, s, z = times[i], times[j], noise.normal(shape)
            if j > i:
                x_t = schedule.diffuse(estimate, s, z)
                continue
            prediction = denoiser.denoise(x_t, t)
            prediction = refine(prediction.clipped() if self.clip else prediction, x_t, t)
            estimate = prediction.x_0
            x_0 = problem.paste(estimate)
            sigma = math.sqrt(1.0 - schedule.alpha_bar[s])
            if self.damping == "ddnm_plus":
                sigma *= math.sqrt(1.0 - schedule.alpha_bar[t] ** 2)
            fresh = self.eta * z + math.sqrt(1.0 - self.eta**2) * prediction.eps
            x_t = math.sqrt(schedule.alpha_bar[s]) * x_0 + sigma * fresh
            watch(t, x_0)
        return x_t.clamp(-1.0, 1.0)


PRESETS = {
    "paper": DDNM(),
    "paper_travel": DDNM(travel_length=10, travel_repeats=3),
    "copaint_repo": DDNM(steps=250, spacing="even", clip=True, damping="ddnm_plus", stop="first_level"),
}
