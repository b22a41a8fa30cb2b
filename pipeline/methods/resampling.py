"""Resampling: SMC-Diff, replacement sampling with particles that are weighed by how well they foresee the seen pixels.

Trippe et al. 2023 (arXiv 2206.04119, "SMCDiff"). One forward trajectory of the seen pixels is drawn
per image and pasted into all its particles before the network looks; a particle's weight is multiplied by the density
p(seen pixels at s | particle at t) of its reverse step. Particles with little weight are replaced by copies of others
when the effective sample size falls too low, and at the end one particle is chosen by weight. With more and more
particles this tends to the posterior of the denoiser's prior, where reverse steps match the forward process. Weights
never cross images.

The trajectory is drawn backwards, x_T ~ q(x_T | y) and then x_s ~ q(x_s | x_t, y), which is the same distribution as
forwards and needs no memory. Preset `paper` has the posterior variance for steps and weights, and, like the authors'
code, no weight for the last step, which has no density, and residual resampling. That code resamples when
sum_k |P w_k - 1| exceeds .75 P, here the effective sample size decides; it leaves the number of particles to the caller
and reports particles whatever their last weights, here one is chosen by weight; and it clips no coordinates, while an
image's x_0 is clipped.

Preset `copaint_repo` is the row of the published comparison tables: a deterministic DDIM step, seen pixels noised
independently per level, weights softmax(100 / relative squared error), residual resampling without replacement at
every step, 249 steps that stop at the first level (alpha_bar = .9999). As released the reverse step's result was used
for the weights only and never became the state (`advance` = "lost"), so the hidden pixels returned are the initial
noise of some particle. There two of ten particles were kept; here, as everywhere, one is returned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser, Prediction
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.diffusion.schedule import Schedule, travel
from pipeline.errors import ConfigError, at_least
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.watch import Watch, ignore


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Sequential Monte Carlo over replacement sampling.

    Attributes:
        steps: number of levels walked.
        particles: particles per image (the paper's K), each of which costs a network evaluation per step.
        kernel: "ancestral" draws from p(x_s | x_t) with the posterior variance; "ddim" is deterministic.
        path: the seen pixels over time: one "ancestral" trajectory, or noised afresh at every level ("independent").
        weighting: "likelihood" of the seen pixels at the next level, or softmax of 100 / relative "inverse_mse".
        scheme: how copies are drawn: "systematic", "residual" (the surplus copied, the rest drawn), or
            "residual_distinct" (the rest drawn without replacement).
        threshold: resample an image when its effective sample size is at most this share of its particles; 0 = never,
            1 = at every step.
        clip: clip the estimate of x_0 to [-1, 1] before every step.
        advance: whether the reverse step's result is "assigned" to the particles, or "lost" as in the released code.
        stop: "clean" ends at time 0; "first_level" ends at the earliest noisy level, one step short.
    """

    steps: int = 250
    particles: int = 10
    kernel: Literal["ancestral", "ddim"] = "ancestral"
    path: Literal["ancestral", "independent"] = "ancestral"
    weighting: Literal["likelihood", "inverse_mse"] = "likelihood"
    scheme: Literal["systematic", "residual", "residual_distinct"] = "residual"
    threshold: float = 0.5
    clip: bool = True
    advance: Literal["assigned", "lost"] = "assigned"
    stop: Literal["clean", "first_level"] = "clean"

    def __post_init__(self) -> None:
        at_least(2 if self.stop == "first_level" else 1, steps=self.steps)
        at_least(1, particles=self.particles)
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"threshold must be between 0 and 1, but is {self.threshold}")
        if self.weighting == "likelihood" and self.kernel == "ddim":
            raise ConfigError(
                "weighting 'likelihood' needs kernel 'ancestral', because kernel 'ddim' is deterministic and has no "
                "density; set kernel to 'ancestral' or weighting to 'inverse_mse'"
            )

    def moves(self) -> list[tuple[int, int]]:
        """Moves between level indices (-1 = clean) in order."""
        moves = list(travel(self.steps))
        return moves if self.stop == "clean" else moves[:-1]

    def nfe(self) -> int:
        """Network evaluations per image, of all its particles."""
        return self.particles * len(self.moves())

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

        Draws x_T of all particles and the seen noise; per step the seen noise, what `scheme` needs and, unless the step
        is lost, z of all particles; at the end the choice.
        """
        schedule, shape = denoiser.schedule, denoiser.shape
        y, known = problem.y[:, None], problem.known[:, None]  # a second axis for the particles
        walk = schedule.steps(self.steps)[: len(self.moves())]
        x_t = noise.normal((self.particles, *shape))
        path = schedule.diffuse(y, walk[0][0], noise.normal((1, *shape)))
        log_weights = torch.zeros(x_t.shape[:2], dtype=torch.float64, device=x_t.device)
        for t, s in walk:
            x_t = torch.where(known, path, x_t)
            prediction = self._ask(denoiser, refine, x_t, t)
            path = self._next(schedule, y, path, t, s, noise.normal((1, *shape)))
            mean, variance = self._reverse(schedule, prediction, x_t, t, s)
            log_weights = log_weights + self._log_weights(_square((path - mean) * known), variance)
            watch(t, take(prediction.x_0, log_weights.argmax(1, keepdim=True))[:, 0])
            index, log_weights = self._resample(log_weights, noise)
            if self.advance == "assigned":
                x_t = take(mean, index) + math.sqrt(variance) * noise.normal((self.particles, *shape))
            else:
                x_t = take(x_t, index)
        if self.weighting == "inverse_mse":
            log_weights = self._log_weights(_square((y - x_t) * known), 0.0)
        chosen = noise.choice(torch.softmax(log_weights, dim=1), 1)
        return take(x_t, chosen)[:, 0].clamp(-1.0, 1.0)

    def _ask(self, denoiser: Denoiser, refine: Refine, x_t: Tensor, t: int) -> Prediction:
        """Ask about particles [B, P, C, H, W] as one batch."""
        flat, axes = x_t.flatten(0, 1), x_t.shape[:2]
        prediction = denoiser.denoise(flat, t)
        prediction = refine(prediction.clipped() if self.clip else prediction, flat, t)
        return Prediction(x_0=prediction.x_0.unflatten(0, axes), eps=prediction.eps.unflatten(0, axes))

    def _next(self, schedule: Schedule, y: Tensor, path: Tensor, t: int, s: int, z: Tensor) -> Tensor:
        """The seen pixels at time s, [B, 1, C, H, W], given those at time t."""
        return schedule.ancestral(y, path, t, s, z) if self.path == "ancestral" else schedule.diffuse(y, s, z)

    def _reverse(self, schedule: Schedule, prediction: Prediction, x_t: Tensor, t: int, s: int) -> tuple[Tensor, float]:
        """Mean [B, P, C, H, W] and variance of p(x_s | x_t); the variance is 0 where there is no noise."""
        if self.kernel == "ddim":
            return schedule.ddim(prediction.x_0, prediction.eps, t, s, prediction.eps, eta=0.0), 0.0
        variance = math.exp(schedule.log_variances(t, s)[0]) if s > 0 else 0.0
        return schedule.posterior_mean(prediction.x_0, x_t, t, s), variance

    def _log_weights(self, square: Tensor, variance: float) -> Tensor:
        """Log-weights [B, P], up to a constant per image, from summed squared errors [B, P] at the seen pixels."""
        if self.weighting == "likelihood":
            return -0.5 * square / variance if variance > 0 else torch.zeros_like(square)
        scores = 100.0 * square.mean(1, keepdim=True) / square
        return torch.where(scores.isfinite().all(1, keepdim=True), scores, 0.0)

    def _resample(self, log_weights: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Parents [B, P] of the next particles, and their log-weights [B, P].

        Images that keep their particles draw as well, so that no stream depends on another image.
        """
        weights, count = torch.softmax(log_weights, dim=1), self.particles
        if self.scheme == "systematic":
            index = systematic(weights, noise.uniform((1,)))
        else:
            index = residual(weights, noise.uniform((count,)), distinct=self.scheme == "residual_distinct")
        effective = (1.0 / weights.square().sum(1, keepdim=True)).clamp(max=count)
        now = effective <= self.threshold * count
        same = torch.arange(count, device=index.device)
        return torch.where(now, index, same), torch.where(now, 0.0, log_weights)


def _square(error: Tensor) -> Tensor:
    """Squared norm per particle, [B, P] float64, of errors [B, P, C, H, W]."""
    return error.double().square().flatten(2).sum(2)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Choose particles [B, n, C, H, W] of [B, P, C, H, W] by index [B, n], image by image."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def systematic(weights: Tensor, uniform: Tensor) -> Tensor:
    """Parents [B, P] at evenly spaced quantiles of weights [B, P], all moved by one number [B, 1] in [0, 1).

    Source: Douc et al. 2005 (arXiv cs/0507025).
    """
    count = weights.shape[1]
    return _invert(weights, (torch.arange(count, device=weights.device) + uniform) / count)


def residual(weights: Tensor, uniform: Tensor, *, distinct: bool) -> Tensor:
    """Parents [B, P]: floor(P w_k) copies of each particle, the rest drawn from what is left of P w [B, P].

    `uniform` [B, P] in [0, 1) holds a number per draw, of which the first are used; with `distinct` no particle is
    drawn twice. Source: Douc et al. 2005 (arXiv cs/0507025).
    """
    count = weights.shape[1]
    copies = torch.floor(count * weights)
    rest, draws = count * weights - copies, []
    for number in uniform.split(1, dim=1):
        draws.append(_invert(rest, number))
        rest = rest.scatter(1, draws[-1], 0.0) if distinct else rest
    slot, ends = torch.arange(count, device=weights.device).expand_as(copies), copies.cumsum(1)
    copied = torch.searchsorted(ends, slot.to(ends), right=True).clamp(max=count - 1)
    drawn = torch.cat(draws, dim=1).gather(1, (slot - ends[:, -1:].long()).clamp(min=0))
    return torch.where(slot < ends[:, -1:], copied, drawn)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Invert the distribution function of unnormalised weights [B, P] at numbers [B, n] in [0, 1)."""
    ends = weights.cumsum(1)
    return torch.searchsorted(ends, uniform * ends[:, -1:], right=True).clamp(max=weights.shape[1] - 1)


PRESETS = {
    "paper": Resampling(),
    "copaint_repo": Resampling(
        kernel="ddim",
        path="independent",
        weighting="inverse_mse",
        scheme="residual_distinct",
        threshold=1.0,
        advance="lost",
        stop="first_level",
    ),
}
