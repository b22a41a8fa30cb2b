"""Denoisers that are exact, because the distribution of the images is known.

They are oracles for samplers, and toys for tests.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Prediction
from pipeline.diffusion.schedule import Schedule


class MixtureDenoiser:
    """E[x_0 | x_t] for images from a Gaussian mixture whose components share one low-rank covariance.

    p(x_0) = sum_k weights[k] N(means[k], basis diag(scales^2) basis^T + floor^2 I), with orthonormal columns in
    `basis`. One component with zero rank is the isotropic Gaussian. Everything follows from Gaussian conditioning in
    the basis and its complement, where the covariance of x_t is diagonal.
    """

    def __init__(
        self,
        schedule: Schedule,
        shape: tuple[int, int, int],
        *,
        weights: Tensor,
        means: Tensor,
        basis: Tensor,
        scales: Tensor,
        floor: float,
        v: float | None = None,
    ) -> None:
        """Hold weights [K], means [K, D], basis [D, R] and scales [R], with D = C H W; `v` is reported as is."""
        self.weights, self.means, self.basis, self.scales = weights, means, basis, scales
        self.floor, self.v = floor, v
        self.schedule, self.shape = schedule, shape

    def denoise(self, x_t: Tensor, t: int) -> Prediction:
        """Return the exact posterior mean; float64 in gives float64 out."""
        a = float(self.schedule.alpha_bar[t])
        means, basis = self.means.to(x_t), self.basis.to(x_t)
        variance, rest = self.scales.to(x_t) ** 2 + self.floor**2, self.floor**2
        r = x_t.flatten(1)[:, None, :] - math.sqrt(a) * means  # [B, K, D]
        u = r @ basis  # [B, K, R]
        total, total_rest = a * variance + 1.0 - a, a * rest + 1.0 - a
        gain, gain_rest = math.sqrt(a) * variance / total, math.sqrt(a) * rest / total_rest
        square = (u**2 / total).sum(-1) + ((r**2).sum(-1) - (u**2).sum(-1)) / total_rest
        log_weights = torch.log(self.weights.to(x_t)) - 0.5 * square  # the determinant is the same for every component
        responsibility = torch.softmax(log_weights, dim=1)
        estimate = means + gain_rest * r + (u * (gain - gain_rest)) @ basis.T
        x_0 = (responsibility[:, :, None] * estimate).sum(1).view_as(x_t)
        eps = self.schedule.eps(x_t, x_0, t)
        return Prediction(x_0=x_0, eps=eps, v=None if self.v is None else torch.full_like(x_0, self.v))
