"""How far samples are from an exact posterior, and how far exact samples of the same number would be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser
from pipeline.errors import InputError
from pipeline.noise import Noise
from pipeline.problem import Problem


class Posterior(Denoiser, Protocol):
    """p(x_0 | known pixels) of each of B problems in closed form; as a denoiser, it is the exact conditional one."""

    problem: Problem
    modes: Tensor
    """p(kind of image | known pixels), [B, M]."""

    @property
    def mean(self) -> Tensor:
        """E[x_0 | known pixels], [B, C, H, W]."""
        ...

    @property
    def variance(self) -> Tensor:
        """Variance of each pixel, [B, C, H, W]; 0 where known."""
        ...

    def draw(self, noise: Noise, draws: int) -> Tensor:
        """Draw x_0 exactly, [B, draws, C, H, W]."""
        ...

    def recognise(self, x: Tensor) -> Tensor:
        """p(kind of image | image), [n, M], of whole images [n, C, H, W]."""
        ...


class SlicedWasserstein:
    """Sliced Wasserstein-2 distance to a reference sample: sqrt of the mean of W2^2 over random directions.

    Directions are uniform on the sphere (Bonneel et al. 2015, doi 10.1007/s10851-014-0506-3). Along one, W2 is the L2
    distance of quantile functions; those of n samples are steps of width 1/n, so that integrals of the reference's
    quantile function over these steps are all that is needed, whatever the two numbers of samples are.
    """

    def __init__(self, reference: Tensor, projections: int = 256, seed: int = 0) -> None:
        """Project `reference` [m, D] to directions drawn from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(reference.shape[1], projections, generator=generator, dtype=torch.float64)
        self.directions = (drawn / drawn.norm(dim=0)).to(reference)
        ordered = (reference @ self.directions).sort(0).values
        self._second = ordered.square().mean(0)
        self._integral = torch.cat([torch.zeros_like(ordered[:1]), ordered.cumsum(0) / len(ordered)])  # at j / m

    def __call__(self, samples: Tensor) -> float:
        """Distance of `samples` [n, D], in units of a pixel."""
        return self.of_projected(samples @ self.directions)

    def of_projected(self, projected: Tensor) -> float:
        """Distance of samples that were projected already, [n, projections]."""
        ordered = projected.sort(0).values
        product = (ordered * self._over_steps(len(ordered))).sum(0)
        square = ordered.square().mean(0) - 2 * product + self._second
        return float(square.clamp_min(0.0).mean().sqrt())

    def _over_steps(self, n: int) -> Tensor:
        """Integrals of the reference's quantile functions over [i/n, (i+1)/n], [n, projections]."""
        m = len(self._integral) - 1
        place = torch.arange(n + 1, dtype=torch.float64) * m / n
        below = place.floor().long().clamp_max(m - 1)
        part = (place - below)[:, None].to(self._integral)
        return torch.lerp(self._integral[below], self._integral[below + 1], part).diff(dim=0)


MEASURES = ("sliced_w2", "mean_error", "sd_ratio", "mode_error", "known_error")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a judge says about samples.

    Attributes:
        sliced_w2: sliced Wasserstein-2 distance of the hidden pixels to exact draws.
        mean_error: root mean square over hidden pixels of the error of the samples' mean.
        sd_ratio: root mean square standard deviation of the hidden pixels, samples' over exact.
        mode_error: total variation distance between the samples' shares of the modes and the exact ones.
        known_error: root mean square error of the known pixels, before they are pasted.
        modes: shares of the modes.
    """

    sliced_w2: float
    mean_error: float
    sd_ratio: float
    mode_error: float
    known_error: float
    modes: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What verdicts are made of, sample by sample.

    Attributes:
        hidden: hidden pixels, [n, D].
        projected: the same along the directions of the distance, [n, projections].
        modes: p(kind of image | sample), [n, M].
        known_square: mean square error of the known pixels, [n].
    """

    hidden: Tensor
    projected: Tensor
    modes: Tensor
    known_square: Tensor

    def __getitem__(self, rows: Tensor) -> Looks:
        return Looks(
            hidden=self.hidden[rows],
            projected=self.projected[rows],
            modes=self.modes[rows],
            known_square=self.known_square[rows],
        )


class Judge:
    """Compares samples for one problem with its exact posterior."""

    def __init__(self, posterior: Posterior, *, reference: int = 8192, seed: int = 0) -> None:
        """Draw `reference` exact samples from `seed`.

        Raises:
            InputError: the posterior is about several problems.
        """
        if len(posterior.problem) != 1:
            raise InputError(f"a judge needs the posterior of one problem, got {len(posterior.problem)}.")
        self.posterior = posterior
        self._hidden = ~posterior.problem.known[0].expand(posterior.shape)
        mean, variance = posterior.mean[0], posterior.variance[0]
        self._mean, self._variance = mean[self._hidden].double(), variance[self._hidden].double()
        self._distance = SlicedWasserstein(self.hidden(self.exact(reference, seed)))

    def exact(self, draws: int, seed: int) -> Tensor:
        """Exact samples [draws, C, H, W]."""
        return self.posterior.draw(Noise([seed], dtype=torch.float64), draws)[0]

    def hidden(self, x: Tensor) -> Tensor:
        """The hidden pixels of images [n, C, H, W], [n, D]."""
        return x[:, self._hidden]

    def judge(self, samples: Tensor) -> Verdict:
        """Judge raw samples [n, C, H, W] of a method, n >= 2."""
        return self._verdict(self._look(samples))

    def _look(self, samples: Tensor) -> Looks:
        problem, samples = self.posterior.problem, samples.double()
        known, hidden = problem.known[0].expand(self.posterior.shape), self.hidden(samples)
        error = (samples - problem.y)[:, known]
        return Looks(
            hidden=hidden,
            projected=hidden @ self._distance.directions,
            modes=self.posterior.recognise(torch.where(known, problem.y, samples)),
            known_square=error.square().mean(1) if error.numel() else error.new_zeros(len(samples)),
        )

    def _verdict(self, looks: Looks) -> Verdict:
        modes = looks.modes.mean(0)
        return Verdict(
            sliced_w2=self._distance.of_projected(looks.projected),
            mean_error=float((looks.hidden.mean(0) - self._mean).square().mean().sqrt()),
            sd_ratio=float((looks.hidden.var(0).mean() / self._variance.mean()).sqrt()),
            mode_error=0.5 * float((modes - self.posterior.modes[0]).abs().sum()),
            known_error=float(looks.known_square.mean().sqrt()),
            modes=tuple(modes.tolist()),
        )

    def floor(self, draws: int, repeats: int, seed: int = 1) -> list[Verdict]:
        """Verdicts on `repeats` sets of exact samples: what no method can improve on with as many `draws`."""
        return [self.judge(self.exact(draws, seed + k)) for k in range(repeats)]

    def resampled(self, samples: Tensor, repeats: int, seed: int = 0) -> list[Verdict]:
        """Verdicts on samples drawn from `samples` with replacement, as many as there are."""
        generator, looks, n = torch.Generator().manual_seed(seed), self._look(samples), len(samples)
        picks = [torch.randint(n, (n,), generator=generator) for _ in range(repeats)]
        return [self._verdict(looks[pick]) for pick in picks]


def interval(
    verdict: Verdict, resampled: list[Verdict], value: Callable[[Verdict], float], level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of one measure.

    A resample lies farther from the truth than the samples it was drawn from, by about the floor; so what is taken from
    the resamples is how they scatter round their own mean, not where they lie (a bias-corrected interval, Efron &
    Tibshirani 1993, chapter 10).
    """
    values = torch.tensor([value(v) for v in resampled], dtype=torch.float64)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = ((values - values.mean()).quantile(ends) + value(verdict)).tolist()
    return low, high
