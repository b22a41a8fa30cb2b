"""Tiramisu: a sampler whose estimates of x_0 a circuit steers at early times.

Liu, Niepert & Van den Broeck 2024 (arXiv 2401.03349). On CoPaint it is the paper's method; on any other method that
estimates x_0 it is that method, steered. The base draws from the same streams whether it is steered or not, so that the
two can be compared pair by pair.

With a warm start the circuit answers in the network's place at the first times: one joint draw z ~ p(z | seen pixels)
is decoded and pasted, and stands for the network's estimate until time `warm` T, where the base goes on with the
network. It is steered like any estimate. That takes away the network evaluations of these times, but for one, whose
estimate is evidence for the draw.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser, Prediction
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.errors import ConfigError
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.steering.meter import Meter
from pipeline.steering.prior import TokenPrior
from pipeline.steering.settings import Steering
from pipeline.steering.steer import Guide
from pipeline.watch import Watch, ignore


class Base(Protocol):
    """A method that can be steered."""

    def nfe(self) -> int: ...  # noqa: D102 - see pipeline.methods.Method

    def nbe(self) -> int: ...  # noqa: D102

    def moves(self) -> list[tuple[int, int]]: ...  # noqa: D102

    def __call__(  # noqa: D102
        self, denoiser: Denoiser, problem: Problem, noise: NoiseSource, *, refine: Refine, watch: Watch
    ) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Steered:
    """A method, steered.

    Attributes:
        base: what is steered.
        steering: how.
        prior: by what.
        warm: share of T above which the circuit's completion stands in for the network; 1 = the network from the start.
        meter: counts what steering asks for.
    """

    base: Base
    steering: Steering
    prior: TokenPrior
    warm: float = 1.0
    meter: Meter = field(default_factory=Meter, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.warm <= 1.0:
            raise ConfigError(f"warm must be above 0 and at most 1, but is {self.warm}")
        self.prior.check(self.steering)
        if self.warm < 1.0 and self.prior.codec is None:
            raise ConfigError(f"a warm start asks for a codec, which decodes it, but warm is {self.warm} without one")

    def nfe(self) -> int:
        """Network evaluations per image; a warm start spares some of them."""
        return self.base.nfe()

    def nbe(self) -> int:
        """Gradients per image, likewise."""
        return self.base.nbe()

    def moves(self) -> list[tuple[int, int]]:
        """The base's walk."""
        return self.base.moves()

    def __call__(
        self,
        denoiser: Denoiser,
        problem: Problem,
        noise: NoiseSource,
        *,
        refine: Refine = unchanged,
        watch: Watch = ignore,
    ) -> Tensor:
        """Sample one completion per problem, [B, C, H, W] in [-1, 1]; what steering draws comes from other streams.

        `refine` comes after steering.
        """
        guide = Guide(self.steering, self.prior, problem, denoiser.schedule, noise.fork("steering"), self.meter)
        if self.warm < 1.0:
            denoiser = WarmStart(denoiser, guide, self.warm * denoiser.schedule.T)

        def steer(prediction: Prediction, x_t: Tensor, t: int) -> Prediction:
            return refine(guide(prediction, x_t, t), x_t, t)

        return self.base(denoiser, problem, noise, refine=steer, watch=watch)


class WarmStart:
    """A denoiser whose place the circuit takes at times above `until`, after one look of the network."""

    def __init__(self, inner: Denoiser, guide: Guide, until: float) -> None:
        self.inner, self.guide, self.until = inner, guide, until
        self.schedule, self.shape = inner.schedule, inner.shape
        self._x_0: Tensor | None = None

    def denoise(self, x_t: Tensor, t: int) -> Prediction:
        """Say what the circuit's completion says of x_t, a constant; below, what the denoiser says."""
        if t <= self.until:
            return self.inner.denoise(x_t, t)
        if self._x_0 is None:
            with torch.no_grad():
                self._x_0 = self.guide.complete(self.inner.denoise(x_t.detach(), t).x_0, t, x_t.detach())
        x_0 = self._x_0 + 0.0 * x_t  # a derivative, which is 0
        return Prediction(x_0=x_0, eps=self.schedule.eps(x_t, x_0, t))
