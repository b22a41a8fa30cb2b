"""The exact posterior of inpainting when images come from a Gaussian mixture.

An image of component k is x_0 = means[k] + S a + floor n with S = basis diag(scales) and a, n standard normal. Pixels
that were observed with independent Gaussian noise, some exactly and some not at all, are one linear regression on the R
numbers `a`, so that nothing larger than R x R is ever solved. Known pixels pin `means + S a` up to the variance
floor^2; pixels of x_t / sqrt(alpha_bar) up to floor^2 + (1 - alpha_bar) / alpha_bar.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.diffusion.analytic import MixtureDenoiser
from pipeline.diffusion.denoiser import Prediction
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError, InputError
from pipeline.noise import Noise
from pipeline.problem import Problem


@dataclass(frozen=True)
class Regression:
    """What observed pixels say about component and latent numbers.

    Attributes:
        weights: p(component | pixels), [B, K].
        latents: E[a | pixels, component], [B, K, R].
        root: lower Cholesky factor of the precision of `a`, the same for every component, [B, R, R].
    """

    weights: Tensor
    latents: Tensor
    root: Tensor


def loadings(prior: MixtureDenoiser, like: Tensor) -> Tensor:
    """S [D, R], in the format of `like`."""
    return prior.basis.to(like) * prior.scales.to(like)


def regress(prior: MixtureDenoiser, values: Tensor, precision: Tensor) -> Regression:
    """Condition on pixels.

    Args:
        prior: the mixture.
        values: observed pixels, [B, D]; where the precision is 0 they do not matter.
        precision: 1 / variance of each pixel given component and latents, [B, D]; 0 = not observed.
    """
    S, means = loadings(prior, values), prior.means.to(values)
    eye = torch.eye(S.shape[1], dtype=values.dtype, device=values.device)
    root: Tensor = torch.linalg.cholesky(eye + S.T @ (precision[:, :, None] * S))
    rest = values[:, None] - means  # [B, K, D]
    pull = (rest * precision[:, None]) @ S  # [B, K, R]
    latents = torch.cholesky_solve(pull.mT, root).mT
    square = (precision[:, None] * rest**2).sum(-1) - (pull * latents).sum(-1)
    log_weights = prior.weights.to(values).log() - 0.5 * square  # the determinant is the same for every component
    return Regression(log_weights.softmax(1), latents, root)


class MixturePosterior:
    """p(x_0 | known pixels) of each of a batch of problems, and the exact denoiser of that distribution.

    It is a mixture again: p(x_0 | y) = sum_k modes[k] N(centres[k], S precision^-1 S^T + floor^2 I) over the hidden
    pixels, and the known pixels as they are.

    Attributes:
        modes: p(component | known pixels), [B, K].
        centres: E[x_0 | known pixels, component], [B, K, D].
    """

    def __init__(self, prior: MixtureDenoiser, problem: Problem) -> None:
        """Condition `prior` on what is seen, in the format of `problem.y`.

        Raises:
            ConfigError: the mixture's floor is 0, so that known pixels could contradict it.
            InputError: images of another shape than the mixture's.
        """
        if not prior.floor > 0:
            raise ConfigError(f"an exact posterior needs a mixture with a floor above 0, but it is {prior.floor}")
        if problem.y.shape[1:] != prior.shape:
            raise InputError(f"expected images {prior.shape} as the mixture's, got {tuple(problem.y.shape[1:])}.")
        self.prior, self.problem = prior, problem
        self._y = problem.y.flatten(1)
        self._known = problem.known.expand_as(problem.y).flatten(1)
        self._found = regress(prior, self._y, self._known.to(self._y) / prior.floor**2)
        self.modes = self._found.weights
        means = prior.means.to(self._y) + self._found.latents @ loadings(prior, self._y).T
        self.centres = torch.where(self._known[:, None], self._y[:, None], means)

    @property
    def schedule(self) -> Schedule:
        """The prior's schedule."""
        return self.prior.schedule

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return self.prior.shape

    @property
    def mean(self) -> Tensor:
        """E[x_0 | known pixels], [B, C, H, W]."""
        return self.problem.paste((self.modes[..., None] * self.centres).sum(1).view_as(self.problem.y))

    @property
    def variance(self) -> Tensor:
        """Variance of each pixel, [B, C, H, W]; 0 where known."""
        S = loadings(self.prior, self._y)
        within = torch.linalg.solve_triangular(self._found.root, S.T, upper=False).square().sum(1)
        mean = self.mean.flatten(1)
        between = (self.modes[..., None] * (self.centres - mean[:, None]) ** 2).sum(1)
        spread: Tensor = between + (within + self.prior.floor**2).masked_fill(self._known, 0.0)
        return spread.view_as(self.problem.y)

    def draw(self, noise: Noise, draws: int) -> Tensor:
        """Draw x_0 exactly, [B, draws, C, H, W]; `noise` has one stream per problem."""
        component = noise.choice(self.modes, draws)  # [B, draws]
        a, n = noise.normal((draws, self.prior.scales.numel())), noise.normal((draws, self._y.shape[1]))
        a = torch.linalg.solve_triangular(self._found.root.mT, a.to(self._y).mT, upper=True).mT
        centre = self.centres.gather(1, component[..., None].expand(-1, -1, self._y.shape[1]))
        x = centre + a @ loadings(self.prior, self._y).T + self.prior.floor * n.to(self._y)
        return torch.where(self._known[:, None], self._y[:, None], x).view(len(x), draws, *self.shape)

    def recognise(self, x: Tensor) -> Tensor:
        """p(component | image), [n, K], of whole images [n, C, H, W]."""
        flat = x.flatten(1)
        return regress(self.prior, flat, torch.full_like(flat, self.prior.floor**-2)).weights

    def denoise(self, x_t: Tensor, t: int) -> Prediction:
        """E[x_0 | x_t, known pixels] of each problem; differentiable in x_t."""
        a, floor = float(self.schedule.alpha_bar[t]), self.prior.floor**2
        blur = floor + (1.0 - a) / a
        flat = x_t.flatten(1) / a**0.5
        seen = self._known.to(flat)
        precision = seen / floor + (1.0 - seen) / blur
        found = regress(self.prior, torch.where(self._known, self._y.to(flat), flat), precision)
        latents = (found.weights[..., None] * found.latents).sum(1)
        smooth = found.weights @ self.prior.means.to(flat) + latents @ loadings(self.prior, flat).T
        x_0 = self.problem.paste((smooth + floor / blur * (flat - smooth)).view_as(x_t)).to(x_t)
        v = None if self.prior.v is None else torch.full_like(x_0, self.prior.v)
        return Prediction(x_0=x_0, eps=self.schedule.eps(x_t, x_0, t), v=v)
