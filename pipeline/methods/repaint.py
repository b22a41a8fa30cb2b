"""RePaint: replacement sampling that goes back and forth, so that hidden and seen pixels come to agree.

Lugmayr et al. 2022, algorithm 1 and appendix B (arXiv 2201.09865). Before the network looks, the seen pixels are noised
to the current level with fresh noise (eq. 8a) and pasted; a step down draws from p(x_s | x_t) with the learned variance
(eq. 8b). On reaching every `jump`-th level the walk goes `jump` levels back up by q(x_t | x_s) and down again,
`repeats` - 1 times. With `repeats` = 1 this is replacement (Blended with its ancestral kernel).

Preset `paper` is the authors' setting and code (T = 250, j = 10, r = 10: 2410 steps down, 2160 up): where code and
algorithm 1 differ, the code is followed. It pastes before the network instead of after the step, so that nothing is
seen at the first level, and the last step's seen pixels are the network's; and it noises the seen pixels anew after a
step up, where the algorithm carries them along. `copaint_repo`, the row of the published comparison tables, is the same
algorithm; its final clamp changes nothing, because the last step gives the clipped estimate. Preset `fast` repeats
each stretch three times, at 30% of the evaluations.
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
class RePaint:
    """Replacement sampling with jumps back.

    Attributes:
        steps: number of levels walked.
        jump: how many levels a jump goes back (the paper's j).
        repeats: how often each stretch is walked (the paper's r); 1 = no jumps.
        jump_share: the part of the levels, counted from the clean end, in which jumps happen; 1 = everywhere.
        kernel: "ancestral" draws from p(x_s | x_t) with the learned variance; "ddim" uses `eta`.
        eta: stochasticity of the DDIM kernel, 0 = deterministic.
        clip: clip the estimate of x_0 to [-1, 1] before every step.
    """

    steps: int = 250
    jump: int = 10
    repeats: int = 10
    jump_share: float = 1.0
    kernel: Literal["ancestral", "ddim"] = "ancestral"
    eta: float = 0.0
    clip: bool = True

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, jump=self.jump, repeats=self.repeats)
        for name, value in {"eta": self.eta, "jump_share": self.jump_share}.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} must be between 0 and 1, but is {value}")
        if self.repeats > 1 and self.jump >= self._levels():
            raise ConfigError(
                f"jump must be below the {self._levels()} levels among which it goes back (steps x jump_share), but is "
                f"{self.jump}; for a walk without jumps set repeats to 1"
            )

    def _levels(self) -> int:
        return round(self.jump_share * self.steps)

    def moves(self) -> list[tuple[int, int]]:
        """Moves between level indices (-1 = clean) in order."""
        before = [(i, i - 1) for i in range(self.steps - 1, self._levels() - 1, -1)]
        return [*before, *travel(self._levels(), self.jump, self.repeats)]

    def nfe(self) -> int:
        """Network evaluations per image; going back needs none."""
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
        """Sample one completion per problem, [B, C, H, W] in [-1, 1].

        Draws x_T, then z for every move, followed by the seen noise if the move goes down and is not the first.
        """
        schedule, shape = denoiser.schedule, denoiser.shape
        times = [*reversed(schedule.times(self.steps)), 0]  # index -1 is the clean image
        x_t = noise.normal(shape)
        for count, (i, j) in enumerate(self.moves()):
            t, s, z = times[i], times[j], noise.normal(shape)
            if j > i:
                x_t = schedule.ascend(x_t, t, s, z)
                continue
            if count > 0:
                x_t = torch.where(problem.known, schedule.diffuse(problem.y, t, noise.normal(shape)), x_t)
            prediction = denoiser.denoise(x_t, t)
            prediction = refine(prediction.clipped() if self.clip else prediction, x_t, t)
            if self.kernel == "ancestral":
                x_t = schedule.ancestral(prediction.x_0, x_t, t, s, z, prediction.v)
            else:
                x_t = schedule.ddim(prediction.x_0, prediction.eps, t, s, z, self.eta)
            watch(t, prediction.x_0)
        return x_t.clamp(-1.0, 1.0)


PRESETS = {"paper": RePaint(), "copaint_repo": RePaint(), "fast": RePaint(repeats=3)}
