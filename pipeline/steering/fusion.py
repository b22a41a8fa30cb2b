"""Joining what two models say about the pixels of x_0: p ∝ p_DM^a p_TPM^(1-a) (Liu et al. 2024, eq. 4).

Each side is an independent normal per pixel, and then so is their weighted geometric mean: precisions add with their
weights. Nothing has to be tabulated. Cut to an interval, such as two standard deviations around the diffusion model's
estimate and the range of pixels, it is a truncated normal, whose moments and draws are here too.

The paper's code tabulates both densities at 256 values of every pixel and adds a floor to one of them. `binned_mixture`
computes that, for comparison: apart from the width of bins and a least variance, the floor is all that tells it from
the closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError

LEAST_VARIANCE = (1.0 / 255.0) ** 2
"""The square of half a grey level in [-1, 1]: where decoded draws agree, nobody knows more than that."""

DENSITY_FLOOR = 1e-3
"""What the paper's code adds to the second density, per unit of x_0, before it normalises it."""

_FAR = 5.0 / math.sqrt(2.0)
"""Five standard deviations: farther out an interval lies in a tail, where the error function runs out of digits."""

_LEAST = 2.0**-53
"""The distance of 1 from the number before it: keeps draws finite where there is no end."""

_CUT = 23.0
"""Nats below its largest value from which on a density counts as nothing: e^-23 is 1e-10."""

_NODES = [(float(0.5 + 0.5 * t), float(0.5 * w)) for t, w in zip(*np.polynomial.legendre.leggauss(24), strict=True)]
"""Places in [0, 1] and weights of Gauss-Legendre quadrature."""


@dataclass(frozen=True, kw_only=True)
class Normal:
    """An independent normal distribution of every pixel.

    Attributes:
        mean: any shape, such as [B, C, H, W]; floating-point.
        variance: above 0 and finite, of the mean's type, in a shape that broadcasts to its, such as [B, 1, 1, 1].

    Raises:
        InputError: variances of another type, of a shape that does not fit, or not above 0 and finite.
    """

    mean: Tensor
    variance: Tensor

    def __post_init__(self) -> None:
        mean, variance = self.mean, self.variance
        if not mean.is_floating_point() or variance.dtype != mean.dtype:
            raise InputError(
                f"expected means and variances of one floating-point type, got {mean.dtype} and {variance.dtype}."
            )
        if not _broadcasts(variance, mean.shape):
            raise InputError(
                f"expected variances that broadcast to means {tuple(mean.shape)}, got {tuple(variance.shape)}."
            )
        if not bool(((variance > 0) & (variance < math.inf)).all()):
            raise InputError(
                f"expected finite variances above 0, but they range from {float(variance.min())} to "
                f"{float(variance.max())}; give those of few draws a floor, such as {LEAST_VARIANCE:.1e}."
            )


def geometric_mean(first: Normal, second: Normal, weight: float | Tensor) -> Normal:
    """Weighted geometric mean p ∝ first^a second^(1-a) = N(mu, 1/l).

    l = a/v1 + (1-a)/v2 and mu = (a m1/v1 + (1-a) m2/v2) / l. It is computed as a step from one mean to the
    other, so that a weight of 1 gives `first` and one of 0 gives `second`, to the bit. Differentiable.

    Args:
        first: means m1 and variances v1.
        second: means m2 and variances v2; shapes broadcast.
        weight: a in [0, 1]; a number, or a tensor such as [B, 1, 1, 1] (per image) or [B, C, H, W] (per pixel).

    Raises:
        InputError: a weight outside of [0, 1].
    """
    a = _weight(weight, first.mean)
    v1, v2 = first.variance, second.variance
    total = torch.lerp(v1, v2, a)  # a v2 + (1-a) v1
    gain = v2 / total
    mean = torch.lerp(second.mean, first.mean, a * gain)
    return Normal(mean=mean, variance=torch.where(a < 0.5, v2 * (v1 / total), v1 * gain))


def window(normal: Normal, deviations: float = 2.0) -> tuple[Tensor, Tensor]:
    """Where the paper's code lets x_0 be: ends of mean ± `deviations` standard deviations, within [-1, 1]."""
    half = deviations * normal.variance.sqrt()
    return (normal.mean - half).clamp(-1.0, 1.0), (normal.mean + half).clamp(-1.0, 1.0)


def truncated(normal: Normal, low: float | Tensor, high: float | Tensor) -> Normal:
    """Mean and variance of a normal that is cut to an interval; the result stands for them, its law is no normal.

    The textbook's formulas subtract nearly equal numbers in a tail or a narrow interval. Here the density is integrated
    (Gauss-Legendre) between the ends, or where it has fallen by a factor e^-23, relative to its largest value and by
    distance from that place: all terms are positive. The variance is the mean square of that distance minus the square
    of its mean, which is at most three quarters of it, for mean and mode are no more than sqrt(3) standard deviations
    apart (Johnson & Rogers 1951). Means are exact to 1e-8 of the result's standard deviation, variances to a relative
    1e-7, or to what the type of number can hold. Differentiable.

    Args:
        normal: what is cut.
        low: lower ends, which broadcast to the means; -inf for none.
        high: upper ends, likewise; inf for none.

    Raises:
        InputError: a lower end that is not below the upper one.
    """
    low, high = _ends(low, high, normal.mean)
    mode = torch.minimum(torch.maximum(normal.mean, low), high)
    deviation = normal.variance.sqrt()
    slope = (normal.mean - mode) / deviation
    reach = deviation * (2.0 * _CUT / (slope.abs() + (slope.square() + 2.0 * _CUT).sqrt()))
    begin = torch.maximum(low - mode, -reach) / deviation
    width = torch.minimum(high - mode, reach) / deviation - begin
    mass, offset, square = torch.zeros_like(begin), torch.zeros_like(begin), torch.zeros_like(begin)
    for place, share in _NODES:
        z = torch.add(begin, width, alpha=place)
        density = torch.exp(z * torch.sub(slope, z, alpha=0.5))
        moment = z * density
        mass = torch.add(mass, density, alpha=share)
        offset = torch.add(offset, moment, alpha=share)
        square = torch.addcmul(square, z, moment, value=share)
    offset = offset / mass
    return Normal(mean=mode + deviation * offset, variance=normal.variance * (square / mass - offset.square()))


@torch.no_grad()
def draw_truncated(normal: Normal, low: float | Tensor, high: float | Tensor, uniform: Tensor) -> Tensor:
    """Draw from a normal that is cut to an interval, by inverting its distribution function; not differentiable.

    Computed in float64, where one inverse error function serves all intervals but those that lie 5 standard deviations
    or more away from the mean; these are inverted on the scale of the tail's logarithm.

    Args:
        normal: what is cut.
        low: lower ends, which broadcast to the means; -inf for none.
        high: upper ends, likewise; inf for none.
        uniform: numbers in [0, 1), one for each mean, such as `noise.uniform((C, H, W))`; draws increase with them.

    Returns:
        Values between the ends, in shape and type of the means.

    Raises:
        InputError: a lower end that is not below the upper one; or another shape of `uniform` than the means'.
    """
    if uniform.shape != normal.mean.shape:
        raise InputError(
            f"expected one number for each of means {tuple(normal.mean.shape)}, got {tuple(uniform.shape)}."
        )
    mean, scale, u = normal.mean.double(), (2.0 * normal.variance.double()).sqrt(), uniform.double()
    low, high = _ends(low, high, mean)
    begin, end = (low - mean).div_(scale), (high - mean).div_(scale)
    below = begin.erf()
    z = end.erf().sub_(below).mul_(u).add_(below).clamp_(_LEAST - 1.0, 1.0 - _LEAST).erfinv_()
    tail = (begin > _FAR) | (end < -_FAR)
    if bool(tail.any()):
        at = tail.nonzero(as_tuple=True)
        z[at] = _draw_tail(begin[at], end[at], u[at])
    return z.mul_(scale).add_(mean).clamp_(low, high).to(normal.mean.dtype)


def _draw_tail(begin: Tensor, end: Tensor, u: Tensor) -> Tensor:
    """Draw from p(z) ∝ exp(-z^2) on [begin, end], which lies far out on one side, as `draw_truncated`.

    Mirrored to the right, a share `passed` of the mass lies between the end `near` 0 and the draw z. Solves
    log erfc(near) - log erfc(z) = nats by Newton's method, with erfc(z) = exp(-z^2) erfcx(z). The start is right up to
    erfcx, which hardly varies there.
    """
    left, u = end < 0.0, u.clamp(_LEAST, 1.0 - _LEAST)
    near, far = torch.where(left, -end, begin), torch.where(left, -begin, end)
    passed = torch.where(left, 1.0 - u, u)
    tallest = torch.special.erfcx(near)
    fall = (far - near) * (far + near)  # nats of the density
    nats = -torch.log1p(passed * torch.expm1(torch.log(torch.special.erfcx(far) / tallest) - fall))
    away = nats / (near + (near.square() + nats).sqrt())
    for _ in range(2):
        tail = torch.special.erfcx(near + away)
        missing = nats - away * (2.0 * near + away) + torch.log(tail / tallest)
        away = away + 0.5 * math.sqrt(math.pi) * tail * missing
    return torch.where(left, -near - away, near + away)


def centres(bins: int, like: Tensor) -> Tensor:
    """Middles of `bins` equal bins of [-1, 1], [bins], in type and place of `like`."""
    return (2.0 * torch.arange(bins, dtype=like.dtype, device=like.device) + 1.0) / bins - 1.0


@torch.no_grad()
def binned_mixture(
    prior: Normal, posterior: Normal, weight: float | Tensor, *, bins: int = 256, floor: float = DENSITY_FLOOR
) -> Tensor:
    """The geometric mean as the paper's code tabulates it, for comparison with the closed form.

    At the middles of `bins` equal bins of [-1, 1], p ∝ prior^a (posterior + floor)^(1-a), zero farther than two
    standard deviations from the prior's mean. Both variances are at least `LEAST_VARIANCE`. That code normalises each
    density by itself and cuts the posterior's at 100 standard deviations: neither changes p, for constants cancel and a
    density of e^-5000 is nothing beside the floor.

    If the prior's support has no middle of a bin, which takes a mean outside of [-1, 1], the middle nearest to its mean
    gets all of the mass. The support counts at a weight of 0 too.

    Args:
        prior: the diffusion model's side, means [B, C, H, W].
        posterior: the tractable model's side, of the same shape.
        weight: a in [0, 1], as in `geometric_mean`.
        bins: how many.
        floor: density per unit of x_0, 0 for none.

    Returns:
        Probabilities [B, C, H, W, bins].

    Raises:
        InputError: a weight outside of [0, 1].
    """
    a = _weight(weight, prior.mean)[..., None]
    places = centres(bins, prior.mean)
    v1 = prior.variance.clamp(min=LEAST_VARIANCE)[..., None]
    v2 = posterior.variance.clamp(min=LEAST_VARIANCE)[..., None]
    log_posterior = (places - posterior.mean[..., None]).square().mul_(-0.5 / v2).sub_(0.5 * (2.0 * math.pi * v2).log())
    log_floor = torch.tensor(floor, dtype=places.dtype, device=places.device).log()
    logits = torch.logaddexp(log_posterior, log_floor, out=log_posterior).mul_(1.0 - a)
    square = (places - prior.mean[..., None]).square_()
    outside = square > torch.maximum(4.0 * v1, square.amin(-1, keepdim=True))
    logits += square.mul_(-0.5 * a / v1)
    return logits.masked_fill_(outside, float("-inf")).softmax(-1)


def binned_moments(law: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, [B, C, H, W] each, of `binned_mixture`'s probabilities [B, C, H, W, bins]."""
    places = centres(law.shape[-1], law)
    mean = law @ places
    return mean, (law * (places - mean[..., None]).square()).sum(-1)


def draw_binned(law: Tensor, uniform: Tensor) -> Tensor:
    """Draw a bin of each pixel by inverting the distribution function.

    Args:
        law: probabilities [B, C, H, W, bins].
        uniform: numbers in [0, 1), [B, C, H, W]; draws increase with them.

    Returns:
        Middles of bins, [B, C, H, W].
    """
    cdf = law.cumsum(-1)
    total = cdf[..., -1:].contiguous()
    index = torch.searchsorted(cdf, uniform[..., None].to(cdf) * total, right=True)
    last = torch.searchsorted(cdf, total)  # rounding must not pass the last bin that has mass
    return centres(law.shape[-1], law)[torch.minimum(index, last)[..., 0]]


def _weight(weight: float | Tensor, like: Tensor) -> Tensor:
    """The weight as a tensor in type and place of `like`, checked."""
    a = torch.as_tensor(weight, dtype=like.dtype, device=like.device)
    if not bool(((a >= 0.0) & (a <= 1.0)).all()):
        raise InputError(f"expected weights from 0 to 1, but they range from {float(a.min())} to {float(a.max())}.")
    return a


def _ends(low: float | Tensor, high: float | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Both ends of intervals as tensors in type and place of `like`, checked."""
    low, high = (torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in (low, high))
    if not bool((low < high).all()):
        raise InputError("expected intervals whose lower end is below the upper one, but some are empty or NaN.")
    return low, high


def _broadcasts(tensor: Tensor, shape: torch.Size) -> bool:
    """Whether a tensor can be expanded to `shape`."""
    try:
        joint: torch.Size = torch.broadcast_shapes(tensor.shape, shape)
    except RuntimeError:
        return False
    return joint == shape
