"""The interface between samplers and whatever estimates a clean image from a noisy one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.diffusion.schedule import Schedule

Target = Literal["eps", "v", "x_0"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a denoiser says about x_t.

    Attributes:
        x_0: estimate of E[x_0 | x_t], [B, C, H, W]; not clipped.
        eps: estimate of the noise in x_t, [B, C, H, W].
        v: learned-variance fraction in [0, 1] for `Schedule.log_variance`, [B, C, H, W], or None.
    """

    x_0: Tensor
    eps: Tensor
    v: Tensor | None = None

    def clipped(self) -> Prediction:
        """The same prediction with x_0 clipped to [-1, 1].

        eps stays as it was, which is what guided-diffusion's samplers do.
        """
        return Prediction(x_0=self.x_0.clamp(-1.0, 1.0), eps=self.eps, v=self.v)


class Denoiser(Protocol):
    """A diffusion prior as samplers see it."""

    @property
    def schedule(self) -> Schedule:
        """The schedule the denoiser was trained for."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        ...

    def denoise(self, x_t: Tensor, t: int) -> Prediction:
        """Estimate clean image and noise of `x_t` [B, C, H, W] at time t in 1..T; differentiable in x_t."""
        ...


class NetworkDenoiser:
    """A trained network as a `Denoiser`.

    The network maps (x_t [B, C, H, W], zero-based time index [B]) to C or 2C channels: its target, and with 2C channels
    the raw variance fraction in [-1, 1] of Nichol & Dhariwal 2021 (arXiv 2102.09672).
    """

    def __init__(self, network: nn.Module, schedule: Schedule, shape: tuple[int, int, int], target: Target) -> None:
        self.network, self.target = network, target
        self.schedule, self.shape = schedule, shape

    def denoise(self, x_t: Tensor, t: int) -> Prediction:
        """Call the network once and express its answer as x_0 and eps."""
        index = torch.full((x_t.shape[0],), t - 1, device=x_t.device)
        out = self.network(x_t, index).to(x_t.dtype)
        channels = self.shape[0]
        answer, raw = out[:, :channels], out[:, channels:]
        x_0, eps = self._convert(x_t, answer, t)
        return Prediction(x_0=x_0, eps=eps, v=(raw + 1.0) / 2.0 if raw.shape[1] else None)

    def _convert(self, x_t: Tensor, answer: Tensor, t: int) -> tuple[Tensor, Tensor]:
        if self.target == "eps":
            return self.schedule.x_0(x_t, answer, t), answer
        if self.target == "x_0":
            return answer, self.schedule.eps(x_t, answer, t)
        a = float(
            self.schedule.alpha_bar[t]
        )  # v = sqrt(a) eps - sqrt(1 - a) x_0 (Salimans & Ho 2022, arXiv 2202.00512)
        x_0 = math.sqrt(a) * x_t - math.sqrt(1.0 - a) * answer
        return x_0, math.sqrt(1.0 - a) * x_t + math.sqrt(a) * answer


class Counted:
    """A denoiser that counts its evaluations, in images: a call with a batch of 8 counts 8."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.schedule, self.shape = inner.schedule, inner.shape
        self.forwards = self.backwards = 0

    def denoise(self, x_t: Tensor, t: int) -> Prediction:
        """Ask the denoiser within, and count."""
        images = x_t.shape[0]
        self.forwards += images
        entrance = x_t.view_as(x_t)  # every gradient passes here, once, whichever part of the prediction it comes from
        if entrance.requires_grad:

            def count(_: Tensor) -> None:
                self.backwards += images

            entrance.register_hook(count)
        return self.inner.denoise(entrance, t)
