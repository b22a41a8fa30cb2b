"""TDS: the twisted diffusion sampler, particles that are guided by the network and weighed by how far that was right.

Wu et al. 2023, algorithm 1 and section 3.3 (arXiv 2306.17775). The twisting function stands in for p(y | x_t): it is
N(y; x_0(x_t) at seen pixels, variance (1 - alpha_bar) / alpha_bar), the noise of x_t in units of x_0 (the paper's
t sigma^2). Particles move by p(x_s | x_t) with the gradient of its logarithm added to the score, eq. 8, which is x_0
moved by sqrt(alpha_bar) J^T residual, and log-weights gain, eq. 11,

    log twist(x_s) - log twist(x_t) + log p(x_s | x_t) - log q(x_s | x_t),

so that, with more and more particles, the result tends to the posterior of the denoiser's prior. One particle has
nothing to be weighed against: it is reconstruction guidance, drawn from q alone.

At time 0 the twisting function is a point at y: the seen pixels are set to y, and one particle is chosen by its last
weight, that of the earliest noisy level. Preset `paper` is the authors' configuration of their image experiments: 100
steps, the learned variance, 4 particles, systematic resampling at every step. They clip the guided estimate of x_0 to
[-1, 1], which is another, equally valid, q; here it is not clipped. Weights never cross images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser, Prediction
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.diffusion.schedule import Schedule, travel
from pipeline.errors import ConfigError, at_least
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.watch import Watch, ignore


@dataclass(frozen=True)
class Look:
    """What one network evaluation says about particles x_t.

    Attributes:
        x_t, x_0, shift: particles, estimates, and by how much the twist moves these, [B, P, C, H, W].
        v: learned-variance fraction, [B, P, C, H, W], or None.
        log_twist: up to a constant, [B, P] float64.
    """

    x_t: Tensor
    x_0: Tensor
    shift: Tensor
    v: Tensor | None
    log_twist: Tensor

    def refined(self, refine: Refine, schedule: Schedule, t: int) -> Look:
        """The same with guided estimates refined; log-weights account for whatever the particles are moved by."""
        x_t, x_0 = self.x_t.flatten(0, 1), (self.x_0 + self.shift).flatten(0, 1)
        better = refine(Prediction(x_0=x_0, eps=schedule.eps(x_t, x_0, t)), x_t, t).x_0
        return replace(self, shift=better.unflatten(0, self.x_0.shape[:2]) - self.x_0)

    def take(self, parents: Tensor) -> Look:
        """The particles chosen by index [B, n], image by image."""
        row = torch.arange(len(parents), device=parents.device)[:, None]
        v = None if self.v is None else self.v[row, parents]
        return Look(
            self.x_t[row, parents], self.x_0[row, parents], self.shift[row, parents], v, self.log_twist[row, parents]
        )


@dataclass(frozen=True, kw_only=True)
class TDS:
    """Twisted diffusion sampler.

    Attributes:
        steps: number of levels walked.
        particles: particles per image, each of which costs a network evaluation and a gradient per step.
        threshold: resample an image when its effective sample size is at most this share of its particles; 0 = never,
            1 = at every step.
    """

    steps: int = 100
    particles: int = 4
    threshold: float = 1.0

    def __post_init__(self) -> None:
        at_least(1, steps=self.steps, particles=self.particles)
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"threshold must be between 0 and 1, but is {self.threshold}")

    def moves(self) -> list[tuple[int, int]]:
        """Moves between level indices (-1 = clean) in order."""
        return list(travel(self.steps))

    def nfe(self) -> int:
        """Network evaluations per image, of all its particles."""
        return self.particles * self.steps

    def nbe(self) -> int:
        """Gradients per image, one with every evaluation."""
        return self.particles * self.steps

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

        Draws x_T of all particles; per step a number for resampling and, but for the last, z of all particles; at the
        end the choice.
        """
        schedule, shape = denoiser.schedule, denoiser.shape
        x_t = noise.normal((self.particles, *shape))
        log_weights = torch.zeros(x_t.shape[:2], dtype=torch.float64, device=x_t.device)
        for t, s in schedule.steps(self.steps):
            look = twisted(denoiser, problem, x_t, t).refined(refine, schedule, t)
            log_weights = log_weights + look.log_twist
            watch(t, look.take(log_weights.argmax(1, keepdim=True)).x_0[:, 0])
            parents, log_weights = self.resample(log_weights, noise)
            look = look.take(parents)
            if s > 0:
                x_t, log_ratio = propose(schedule, look, t, s, noise.normal((self.particles, *shape)))
                log_weights = log_weights + log_ratio - look.log_twist
        chosen = noise.choice(torch.softmax(log_weights, dim=1), 1)
        look = look.take(chosen)
        return problem.paste((look.x_0 + look.shift)[:, 0]).clamp(-1.0, 1.0)

    def resample(self, log_weights: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Parents [B, P] of the next particles by systematic resampling, and their log-weights [B, P].

        Source: Douc et al. 2005, section 2.4 (arXiv cs/0507025). Images that keep their particles draw as well, so that
        no stream depends on another image.
        """
        weights = torch.softmax(log_weights, dim=1)
        same = torch.arange(self.particles, device=weights.device)
        ends = weights.cumsum(1)
        places = (same + noise.uniform((1,))) / self.particles
        parents = torch.searchsorted(ends, places * ends[:, -1:], right=True).clamp(max=self.particles - 1)
        effective = (1.0 / weights.square().sum(1, keepdim=True)).clamp(max=self.particles)
        now = effective <= self.threshold * self.particles
        return torch.where(now, parents, same), torch.where(now, 0.0, log_weights)


def twisted(denoiser: Denoiser, problem: Problem, x_t: Tensor, t: int) -> Look:
    """Ask about particles [B, P, C, H, W] as one batch, and differentiate the twist; holds on to no graph."""
    axes, a = x_t.shape[:2], float(denoiser.schedule.alpha_bar[t])
    with torch.enable_grad():
        flat = x_t.detach().flatten(0, 1).requires_grad_()
        prediction = denoiser.denoise(flat, t)
        x_0 = prediction.x_0.detach().unflatten(0, axes)
        residual = torch.where(problem.known[:, None], problem.y[:, None] - x_0, 0.0)
        (pull,) = torch.autograd.grad(prediction.x_0, flat, residual.flatten(0, 1))
    v = None if prediction.v is None else prediction.v.detach().unflatten(0, axes)
    log_twist = -0.5 * a / (1.0 - a) * residual.double().square().flatten(2).sum(2)
    return Look(x_t, x_0, math.sqrt(a) * pull.unflatten(0, axes), v, log_twist)


def propose(schedule: Schedule, look: Look, t: int, s: int, z: Tensor) -> tuple[Tensor, Tensor]:
    """Draw x_s from the twisted step q with standard normal `z`; also log p(x_s | x_t) - log q(x_s | x_t), [B, P]."""
    mean = schedule.posterior_mean(look.x_0, look.x_t, t, s)
    move = schedule.posterior_mean(look.x_0 + look.shift, look.x_t, t, s) - mean
    log_variance = schedule.log_variance(t, s, look.v)
    std = torch.exp(0.5 * torch.as_tensor(log_variance, dtype=mean.dtype, device=mean.device))
    away = (move / std).double()
    log_ratio = -(away * (z.double() + 0.5 * away)).flatten(2).sum(2)
    return mean + move + std * z, log_ratio


PRESETS = {"paper": TDS()}
