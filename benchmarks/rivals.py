"""Other libraries' samplers with our network behind them, as loops of network calls and nothing else.

diffusers' RePaint is its scheduler in the loop of its pipeline; deepinv's DPS is its class as it comes, in float32.
Neither is an oracle for results (see docs/methods.md): what is compared is what a step costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.stopwatch import TimedNetwork
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import InputError
from pipeline.methods.repaint import RePaint
from pipeline.problem import Problem


def diffusers_repaint(network: TimedNetwork, problem: Problem, method: RePaint, levels: int) -> Callable[[], Tensor]:
    """`method` with diffusers' scheduler: the same walk on a linear schedule of `levels` times, the same eta."""
    from diffusers import RePaintScheduler

    scheduler = RePaintScheduler(num_train_timesteps=levels, eta=method.eta)
    known, generator = problem.known.to(problem.y), torch.Generator().manual_seed(0)

    @torch.no_grad()
    def sample() -> Tensor:
        scheduler.set_timesteps(method.steps, method.jump, method.repeats)
        image = torch.randn(problem.y.shape, generator=generator)
        last = scheduler.timesteps[0] + 1
        for t in scheduler.timesteps:
            if t < last:
                eps = network(image, t)[:, :3]
                image = scheduler.step(eps, t, image, problem.y, known, generator).prev_sample
            else:
                image = scheduler.undo_step(image, last, generator)
            last = t
        return image

    return sample


def deepinv_dps(network: TimedNetwork, schedule: Schedule, problem: Problem, steps: int) -> Callable[[], Tensor]:
    """DPS of deepinv, with as many steps.

    Raises:
        InputError: deepinv is not installed.
    """
    try:
        import deepinv
    except ImportError as error:
        raise InputError(
            f"expected deepinv for the comparison of DPS, but {error}; install it as docs/benchmarks.md says, or pass "
            "--own-only."
        ) from error
    physics = deepinv.physics.Inpainting(img_size=problem.y.shape[1:], mask=problem.known.to(problem.y))
    sampler = deepinv.sampling.DPS(
        Bridge(network, schedule), num_steps=steps + 1, dtype=torch.float32, rng=torch.Generator().manual_seed(0)
    )
    y = problem.known * (problem.y + 1.0) / 2.0  # its images lie in [0, 1]

    def sample() -> Any:
        return sampler(y, physics)

    return sample


class Bridge(nn.Module):
    """Our network as deepinv's denoiser: images in [0, 1] with noise of standard deviation `sigma` to clean ones."""

    def __init__(self, network: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.network = network
        self.sigmas = 0.5 * np.sqrt(1.0 / schedule.alpha_bar[1:] - 1.0)

    def forward(self, x: Tensor, sigma: Tensor | float, *_: object, **__: object) -> Tensor:
        """Denoise `x` [B, C, H, W] by way of eps at the nearest time."""
        level = float(sigma)
        index = min(int(np.searchsorted(self.sigmas, level)), len(self.sigmas) - 1)
        scale = (1.0 + 4.0 * level**2) ** -0.5
        eps = self.network(scale * (2.0 * x - 1.0), torch.full((len(x),), index))[:, :3]
        return x - level * eps
