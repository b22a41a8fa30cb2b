"""Patches of pixels that are normal given their token: p(x_0 | z) = prod_i N(patch i; mean of z_i, variance of z_i).

With independent pixels given the tokens, what the circuit needs to know has a closed form, and nobody has to be asked
for an estimate of x_0. A pixel of x_t is N(sqrt(a) mean, a variance + 1 - a) with a = alpha_bar_t, a seen pixel of x_0
is N(mean, variance), and the noise that x_t carries there says nothing more. So the evidence w_i(c) = q(x_t, y of patch
i | c) (Liu et al. 2024, arXiv 2401.03349, eq. 5) is a sum over the pixels of a patch, which may be seen in part; and
x_0 given x_t, the seen pixels and the posterior of its token is a mixture over codes of normals.

All sums over pixels or codes are matrix products: nothing of size [B, N, V, D] is made. Where images are made of such
patches, steering with them is exact (`pipeline.oracles`). A codec's decoder looks beyond a patch, and for it this is an
approximation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.codec.grid import cut, put
from pipeline.errors import ConfigError, InputError
from pipeline.problem import Problem
from pipeline.steering.fusion import LEAST_VARIANCE, Normal

SHARED = 10.0
"""Patches' worth of the variance of all codes together that is in the fitted variance of each."""


@dataclass(frozen=True, kw_only=True)
class PatchModel:
    """A normal law of the pixels of a patch for each code.

    Attributes:
        mean: of x_0 given the code, [V, D] for all tokens or [N, V, D] for each, D = C p p; floating-point.
        variance: likewise, above 0, of the mean's shape and type.
        side: tokens per side of the grid; N = side^2, in row-major order.
        channels: C.

    Raises:
        ConfigError: shapes or types that do not fit, or variances that are not above 0.
    """

    mean: Tensor
    variance: Tensor
    side: int
    channels: int = 3

    def __post_init__(self) -> None:
        mean, variance, N = self.mean, self.variance, self.side**2
        if mean.ndim not in (2, 3) or (mean.ndim == 3 and len(mean) != N) or not mean.is_floating_point():
            raise ConfigError(
                f"expected floating-point means [V, D] or [{N}, V, D], got {mean.dtype} {tuple(mean.shape)}"
            )
        if variance.shape != mean.shape or variance.dtype != mean.dtype:
            raise ConfigError(
                f"expected variances like the means, {mean.dtype} {tuple(mean.shape)}, got {variance.dtype} "
                f"{tuple(variance.shape)}"
            )
        if self.channels * self.patch**2 != mean.shape[-1]:
            raise ConfigError(f"{mean.shape[-1]} numbers are no square patch of {self.channels} channels")
        if not bool((variance > 0).all()):
            raise ConfigError(f"variances of patches must be above 0, but the least is {float(variance.min())}")

    @property
    def codes(self) -> int:
        """Number V of codes."""
        return self.mean.shape[-2]

    @property
    def patch(self) -> int:
        """Pixels p per side of a patch."""
        return math.isqrt(self.mean.shape[-1] // self.channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return (self.channels, self.side * self.patch, self.side * self.patch)

    @classmethod
    def fit(cls, x_0: Tensor, tokens: Tensor, codes: int) -> PatchModel:
        """Estimate mean and variance of every code from images [M, C, S, S] and their tokens [M, N].

        The variance of a code shares in that of all codes around their means by `SHARED` patches; a code that does not
        occur has the mean of all patches and that variance.
        """
        side, channels = math.isqrt(tokens.shape[1]), x_0.shape[1]
        patches, used = cut(x_0, side).flatten(0, 1).double(), tokens.flatten()
        count = torch.bincount(used, minlength=codes).double()[:, None]
        sums = patches.new_zeros(codes, patches.shape[1]).index_add(0, used, patches)
        mean = torch.where(count > 0, sums / count.clamp_min(1.0), patches.mean(0))
        square = torch.zeros_like(sums).index_add(0, used, (patches - mean[used]).square())
        free = (count - 1.0).clamp_min(0.0)
        pooled = square.sum(0) / free.sum().clamp_min(1.0)
        variance = ((square + SHARED * pooled) / (free + SHARED)).clamp_min(LEAST_VARIANCE)
        return cls(mean=mean.to(x_0), variance=variance.to(x_0), side=side, channels=channels)

    def log_density(self, x: Tensor, counted: Tensor, alpha_bar: float) -> Tensor:
        """Log of N(patch; sqrt(a) mean, a variance + 1 - a) under every code, [B, N, V].

        Args:
            x: images [B, C, H, W] at the time of `alpha_bar`.
            counted: which pixels count, [B, 1, H, W] bool.
            alpha_bar: a, 1 = clean.
        """
        mean, variance = math.sqrt(alpha_bar) * self.mean, alpha_bar * self.variance + (1.0 - alpha_bar)
        pixels, weight = self._cut(x), self._cut(counted.expand_as(x))
        square = over_pixels(weight * pixels.square(), 1.0 / variance)
        product = over_pixels(weight * pixels, mean / variance)
        rest = over_pixels(weight, mean.square() / variance + (2.0 * math.pi * variance).log())
        return product - 0.5 * (square + rest)

    def log_evidence(self, x_t: Tensor, alpha_bar: float, problem: Problem) -> Tensor:
        """What x_t [B, C, H, W] and the seen pixels say about the tokens: log w_i(c), [B, N, V].

        Raises:
            InputError: images of another shape than this model's.
        """
        seen = self.log_density(problem.y, problem.known, 1.0)
        return seen + self.log_density(x_t, ~problem.known, alpha_bar)

    def estimate(self, x_t: Tensor, alpha_bar: float, marginals: Tensor, problem: Problem) -> Normal:
        """Mean and variance of every pixel of x_0 given x_t, the seen pixels, and what both say about its token.

        Given a code, a pixel's mean is mean + gain (x_t - sqrt(a) mean) with gain = sqrt(a) variance / (a variance
        + 1 - a), and its variance is variance (1 - a) / (a variance + 1 - a). Seen pixels are where they were seen,
        with the least variance that counts.

        Args:
            x_t: [B, C, H, W].
            alpha_bar: a at its time, below 1.
            marginals: p(z_i = c | x_t, seen pixels), [B, N, V].
            problem: what was seen.

        Raises:
            InputError: images of another shape than this model's.
        """
        a, pixels, p = alpha_bar, self._cut(x_t), marginals.to(self.mean)
        noisy = a * self.variance + (1.0 - a)
        gain = math.sqrt(a) * self.variance / noisy
        offset = (1.0 - a) / noisy * self.mean
        mean = over_codes(p, offset) + over_codes(p, gain) * pixels
        square = over_codes(p, offset.square()) + over_codes(p, gain.square()) * pixels.square()
        square = square + 2.0 * over_codes(p, offset * gain) * pixels
        variance = over_codes(p, (1.0 - a) / noisy * self.variance) + (square - mean.square()).clamp_min(0.0)
        mean, variance = (put(values, self.channels).to(x_t) for values in (mean, variance))
        return Normal(mean=problem.paste(mean), variance=variance.masked_fill(problem.known, LEAST_VARIANCE))

    def _cut(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.shape:
            raise InputError(f"expected images {self.shape} as the patch model's, got {tuple(x.shape[1:])}.")
        return cut(x, self.side).to(self.mean)


def over_pixels(x: Tensor, table: Tensor) -> Tensor:
    """Products of patches [B, N, D] with a table [V, D] or [N, V, D], summed over the pixels, [B, N, V]."""
    return torch.einsum("bnd,vd->bnv" if table.ndim == 2 else "bnd,nvd->bnv", x, table)


def over_codes(p: Tensor, table: Tensor) -> Tensor:
    """Means of a table [V, D] or [N, V, D] under laws of the codes [B, N, V], [B, N, D]."""
    return torch.einsum("bnv,vd->bnd" if table.ndim == 2 else "bnv,nvd->bnd", p, table)
