"""The variance-preserving diffusion schedule and the formulas that follow from it.

Time runs from 0 (clean, alpha_bar = 1) to T (noise), as in Ho et al. 2020 (arXiv 2006.11239). A step leads from a time
t to a time s; s < t denoises, s > t goes back. Coefficients are kept in float64 and reach tensors as Python numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ConfigError

Spacing = Literal["leading", "even", "quadratic"]


@dataclass(frozen=True)
class Schedule:
    """A table of alpha_bar.

    Attributes:
        alpha_bar: [T + 1] float64, strictly decreasing from alpha_bar[0] = 1 towards 0.
    """

    alpha_bar: NDArray[np.float64]

    def __post_init__(self) -> None:
        a = self.alpha_bar
        if a.ndim != 1 or a[0] != 1.0 or not (np.all(np.diff(a) < 0) and a[-1] > 0):
            raise ConfigError("A schedule's alpha_bar must fall strictly from exactly 1 and stay above 0.")

    @classmethod
    def linear(cls, T: int = 1000, first: float = 1e-4, last: float = 2e-2) -> Schedule:
        """Betas evenly spaced from `first` to `last` (Ho et al. 2020, section 4)."""
        return cls(np.concatenate([[1.0], np.cumprod(1.0 - np.linspace(first, last, T))]))

    @classmethod
    def cosine(cls, T: int = 1000, offset: float = 0.008, largest_beta: float = 0.999) -> Schedule:
        """Squared-cosine alpha_bar with betas capped (Nichol & Dhariwal 2021, eq. 17, arXiv 2102.09672)."""
        f = np.cos((np.arange(T + 1) / T + offset) / (1 + offset) * math.pi / 2) ** 2
        beta = np.minimum(1.0 - f[1:] / f[:-1], largest_beta)
        return cls(np.concatenate([[1.0], np.cumprod(1.0 - beta)]))

    @property
    def T(self) -> int:  # noqa: N802 - the papers' letter
        """The last time, at which an image is practically noise."""
        return len(self.alpha_bar) - 1

    def times(self, steps: int, spacing: Spacing = "even") -> list[int]:
        """Choose `steps` of the times 1..T, from late to early.

        "even" includes 1 and T (guided-diffusion's respacing "N"); "leading" takes every (T // steps)-th time from 1 on
        and so starts below T (DDIM and DDNM's "skip"); "quadratic" goes from T to 1 in steps that become ever smaller,
        T - T sqrt(k / (steps - 1)) (DiffPIR's "quad").

        Raises:
            ConfigError: `steps` is not in 1..T.
        """
        if not 1 <= steps <= self.T:
            raise ConfigError(f"steps must be between 1 and the schedule's {self.T} times, but is {steps}.")
        if spacing == "leading":
            return [1 + k * (self.T // steps) for k in reversed(range(steps))]
        if spacing == "quadratic" and steps > 1:
            roots = [math.floor(self.T * math.sqrt(k / (steps - 1))) for k in range(steps)]
            return [max(self.T - root, steps - k) for k, root in enumerate(roots)]
        return [self.T] if steps == 1 else [1 + round(k * (self.T - 1) / (steps - 1)) for k in reversed(range(steps))]

    def steps(self, steps: int, spacing: Spacing = "even") -> list[tuple[int, int]]:
        """The plain walk from the latest chosen time to 0, as pairs (t, s)."""
        times = [*self.times(steps, spacing), 0]
        return list(pairwise(times))

    def diffuse(self, x_0: Tensor, t: int, z: Tensor) -> Tensor:
        """Draw x_t ~ q(x_t | x_0) = N(sqrt(alpha_bar) x_0, 1 - alpha_bar) with the standard normal `z`."""
        a = float(self.alpha_bar[t])
        return math.sqrt(a) * x_0 + math.sqrt(1.0 - a) * z

    def eps(self, x_t: Tensor, x_0: Tensor, t: int) -> Tensor:
        """The noise that leads from `x_0` to `x_t`."""
        a = float(self.alpha_bar[t])
        return (x_t - math.sqrt(a) * x_0) / math.sqrt(1.0 - a)

    def x_0(self, x_t: Tensor, eps: Tensor, t: int) -> Tensor:
        """The image from which `eps` leads to `x_t`."""
        a = float(self.alpha_bar[t])
        return (x_t - math.sqrt(1.0 - a) * eps) / math.sqrt(a)

    def ddim(self, x_0: Tensor, eps: Tensor, t: int, s: int, z: Tensor, eta: float) -> Tensor:
        """Step from t to s < t (Song et al. 2021, eqs. 12 and 16, arXiv 2010.02502); eta = 0 ignores `z`."""
        a, b = float(self.alpha_bar[t]), float(self.alpha_bar[s])
        sigma = eta * math.sqrt((1.0 - b) / (1.0 - a) * (1.0 - a / b))
        return math.sqrt(b) * x_0 + math.sqrt(max(1.0 - b - sigma**2, 0.0)) * eps + sigma * z

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: int, s: int) -> Tensor:
        """Mean of q(x_s | x_t, x_0) for s < t (Ho et al. 2020, eq. 7, for a step of any length)."""
        a, b = float(self.alpha_bar[t]), float(self.alpha_bar[s])
        ratio = a / b
        return math.sqrt(b) * (1.0 - ratio) / (1.0 - a) * x_0 + math.sqrt(ratio) * (1.0 - b) / (1.0 - a) * x_t

    def log_variances(self, t: int, s: int) -> tuple[float, float]:
        """Logs of the smallest and largest sensible variance of p(x_s | x_t): beta tilde and beta of the step.

        At s = 0 beta tilde is 0; the logarithm of the next step's takes its place, as in guided-diffusion.
        """
        high = math.log(1.0 - float(self.alpha_bar[t] / self.alpha_bar[s]))
        if s == 0:
            t, s = min(2 * t, self.T), t
        a, b = float(self.alpha_bar[t]), float(self.alpha_bar[s])
        return math.log((1.0 - a / b) * (1.0 - b) / (1.0 - a)), high

    def log_variance(self, t: int, s: int, v: Tensor | None) -> Tensor | float:
        """Log-variance of p(x_s | x_t): interpolated by the learned fraction v in [0, 1], or beta tilde without one.

        Source: Nichol & Dhariwal 2021, eq. 15.
        """
        low, high = self.log_variances(t, s)
        return low if v is None else v * high + (1.0 - v) * low

    def ancestral(self, x_0: Tensor, x_t: Tensor, t: int, s: int, z: Tensor, v: Tensor | None = None) -> Tensor:
        """Draw x_s ~ p(x_s | x_t) with the variance of `log_variance`; at s = 0 this is the mean, without noise."""
        mean = self.posterior_mean(x_0, x_t, t, s)
        if s == 0:
            return mean
        log_variance = self.log_variance(t, s, v)
        std = torch.exp(0.5 * log_variance) if isinstance(log_variance, Tensor) else math.exp(0.5 * log_variance)
        return mean + std * z

    def ascend(self, x_s: Tensor, s: int, t: int, z: Tensor) -> Tensor:
        """Draw x_t ~ q(x_t | x_s) for t > s: one forward step of any length."""
        ratio = float(self.alpha_bar[t] / self.alpha_bar[s])
        return math.sqrt(ratio) * x_s + math.sqrt(1.0 - ratio) * z


def travel(levels: int, jump: int = 1, repeats: int = 1) -> Iterator[tuple[int, int]]:
    """Moves (i, j) between level indices from `levels` - 1 down to -1, going back `jump` levels `repeats` - 1 times.

    Going back starts on reaching each of the levels 0, jump, 2 jump, ... below `levels` - jump, and every move is one
    level long. With `repeats` = 1 this is the plain walk. Source: Lugmayr et al. 2022, appendix B (arXiv 2201.09865).
    """
    left = dict.fromkeys(range(0, levels - jump, jump), repeats - 1)
    level = levels - 1
    while level >= 0:
        if left.get(level, 0) > 0:
            left[level] -= 1
            for _ in range(jump):
                yield level, level + 1
                level += 1
        yield level, level - 1
        level -= 1


@dataclass(frozen=True, kw_only=True)
class ScheduleParams:
    """Which schedule a diffusion model is trained with.

    Attributes:
        kind: "linear" (Ho et al. 2020) or "cosine" (Nichol & Dhariwal 2021).
        T: number of noisy times.
    """

    kind: Literal["linear", "cosine"] = "linear"
    T: int = 1000

    def build(self) -> Schedule:
        """Make the table."""
        return Schedule.linear(self.T) if self.kind == "linear" else Schedule.cosine(self.T)
