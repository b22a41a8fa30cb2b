"""Fitting what steering has to know about its diffusion model, codec and circuit, on training images only.

Training images are noised to each of some times and denoised, their seen pixels are pasted, and the estimate is
compared with the truth, behind every mask, for each class of token (`pipeline.steering.calibration`):

1. The features of an estimate lie around the true code with a mean square distance per dimension, the raw variance.
2. As a likelihood of independent tokens that would be overconfident by far, because errors of neighbours go together.
   So the variance of tokens that are not wholly seen is multiplied, by the one of `TEMPERS` with which the circuit's
   picture can lower the error of the estimate most.
3. The variances of both sides are their mean square errors, and the weights of the mixture are those with which its
   mean has the smallest error: a least-squares problem with one unknown per class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.queries import posterior
from pipeline.codec.codec import Codec
from pipeline.diffusion.denoiser import Denoiser
from pipeline.noise import NoiseSource
from pipeline.steering.calibration import CLASSES, SHARES, Calibration, Level, classify, to_pixels
from pipeline.steering.evidence import distances, expected_codes, features_of, log_normal

TEMPERS = (10.0, 30.0, 100.0, 300.0)
"""Factors of the variance of tokens that are not wholly seen."""

SEEN_TEMPER = 2.0
"""Factor of the variance of tokens that are."""

LEAST = 5e-3
"""Of a variance."""

SHARED = 0.005
"""Part of the sums over all classes that is added to those of each, so that rare classes mix as all do."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What is fitted on.

    Attributes:
        x_0: training images, [M, C, S, S].
        tokens: their tokens, [M, N].
        known: for each mask, which pixels are seen, [M, 1, S, S] bool.
    """

    x_0: Tensor
    tokens: Tensor
    known: Sequence[Tensor]


@torch.no_grad()
def fit(
    denoiser: Denoiser,
    codec: Codec,
    circuit: Circuit,
    examples: Examples,
    noise: NoiseSource,
    times: Sequence[int],
    *,
    tick: Callable[[int, Level], None] = lambda t, level: None,
) -> Calibration:
    """Look at `times` (rising, in 1..T); draws one noise per time from `noise`, which has a stream per image.

    `tick` is told of every level.
    """
    levels = []
    for t in times:
        x_t = denoiser.schedule.diffuse(examples.x_0, t, noise.normal(denoiser.shape))
        estimate = denoiser.denoise(x_t, t).x_0.clamp(-1.0, 1.0)
        levels.append(fit_level(codec, circuit, examples, estimate))
        tick(t, levels[-1])
    return Calibration(times=tuple(times), levels=tuple(levels))


def fit_level(codec: Codec, circuit: Circuit, examples: Examples, estimate: Tensor) -> Level:
    """What is known of estimates [M, C, S, S] like these."""
    views = [View.of(codec, examples, estimate, known) for known in examples.known]
    raw = class_means([(view.classes, view.error) for view in views])
    fits = [fit_temper(codec, circuit, examples, views, raw, temper) for temper in TEMPERS]
    best = max(fits, key=lambda found: found.gain)
    diffusion = class_means([(view.pixels, view.square(examples)) for view in views])
    return Level(
        code_variance=best.code_variance.float(),
        diffusion_variance=diffusion.float(),
        circuit_variance=best.circuit_variance.float(),
        weight=mixing_weights(diffusion, best).float(),
    )


@dataclass(frozen=True, kw_only=True)
class View:
    """Estimates behind one mask.

    Attributes:
        x: with the seen pixels pasted, [M, C, S, S].
        distances: of their features to the codes, squared, [M, N, V].
        classes: of the tokens, [M, N].
        error: mean square distance per dimension of the features to the true codes, [M, N].
        pixels: classes of hidden pixels and -1 elsewhere, [M, 1, S, S].
    """

    x: Tensor
    distances: Tensor
    classes: Tensor
    error: Tensor
    pixels: Tensor

    @classmethod
    def of(cls, codec: Codec, examples: Examples, estimate: Tensor, known: Tensor) -> View:
        """Look at `estimate` [M, C, S, S] behind `known` [M, 1, S, S]."""
        x = torch.where(known, examples.x_0, estimate)
        features = features_of(codec, x)
        square = distances(codec, features)
        classes = classify(known, codec.side)
        error = square.gather(-1, examples.tokens[..., None])[..., 0] / features.shape[-1]
        pixels = to_pixels(classes, x.shape[-1]).masked_fill(known, -1)
        return cls(x=x, distances=square, classes=classes, error=error, pixels=pixels)

    def square(self, examples: Examples) -> Tensor:
        """Square error of the estimate per pixel, mean over colours, [M, 1, S, S]."""
        return (self.x - examples.x_0).square().mean(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class Temper:
    """What comes of one factor of the variance; all [CLASSES], sums over hidden pixels of each class.

    Attributes:
        code_variance: with the factor.
        circuit_variance: mean square error of the circuit's picture.
        along: (x_0 - estimate) (picture - estimate).
        away: (picture - estimate)^2.
    """

    code_variance: Tensor
    circuit_variance: Tensor
    along: Tensor
    away: Tensor

    @property
    def gain(self) -> float:
        """By how much the square error falls if every class mixes as suits it best."""
        b = best_move(self.along, self.away)
        return float((b * (2.0 * self.along - b * self.away)).sum())


def fit_temper(
    codec: Codec, circuit: Circuit, examples: Examples, views: Sequence[View], raw: Tensor, temper: float
) -> Temper:
    """Try one factor of the raw variances [CLASSES]."""
    factor = torch.full_like(raw, temper)
    factor[:SHARES] = SEEN_TEMPER
    variance = raw * factor
    along, away = torch.zeros_like(raw), torch.zeros_like(raw)
    squares = []
    for view in views:
        log_w = log_normal(view.distances, variance.to(view.distances)[view.classes])
        picture = codec.decode_embeddings(expected_codes(codec, posterior(circuit, log_w).marginals))
        move, missing = picture - view.x, examples.x_0 - view.x
        add(along, view.pixels, (missing * move).sum(1, keepdim=True))
        add(away, view.pixels, move.square().sum(1, keepdim=True))
        squares.append((view.pixels, (picture - examples.x_0).square().mean(1, keepdim=True)))
    return Temper(code_variance=variance, circuit_variance=class_means(squares), along=along, away=away)


def best_move(along: Tensor, away: Tensor) -> Tensor:
    """The b in [0, 1] with which estimate + b (picture - estimate) has the smallest square error, [CLASSES]."""
    return (along / away.clamp_min(1e-12)).clamp(0.0, 1.0)


def mixing_weights(diffusion: Tensor, circuit: Temper) -> Tensor:
    """The weights of the diffusion side, [CLASSES], with which the mixture's mean has the smallest square error.

    The mean lies at estimate + b (picture - estimate), whose error is smallest for b = along / away; every class shares
    in the sums of all by `SHARED`. The weighted geometric mean moves by b = (1 - a) / v2 / (a / v1 + (1 - a) / v2).
    """
    along, away = (sums + SHARED * sums.sum() for sums in (circuit.along, circuit.away))
    b = best_move(along, away)
    first, second = (1.0 - b) * diffusion, b * circuit.circuit_variance
    return first / (first + second)


def class_means(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Means by class of numbers, where classes are not negative, [CLASSES] float64; at least `LEAST`.

    Every class shares in the mean over all by one number, so that rare classes are near it and empty ones have it.
    """
    total, count = (torch.zeros(CLASSES, dtype=torch.float64) for _ in range(2))
    for classes, values in parts:
        add(total, classes, values)
        add(count, classes, torch.ones_like(values))
    mean = total.sum() / count.sum().clamp_min(1.0)
    return ((total + mean) / (count + 1.0)).clamp_min(LEAST)


def add(total: Tensor, classes: Tensor, values: Tensor) -> None:
    """Add numbers [*] to the totals [CLASSES] of their classes [*], where these are not negative."""
    there = classes >= 0
    total.index_add_(0, classes[there].cpu(), values[there].double().cpu())


def times_of(T: int, until: float, levels: int) -> list[int]:
    """`levels` times spread evenly from `until` T to T, rising."""
    return sorted({max(1, round(T * (until + (1.0 - until) * k / max(levels - 1, 1)))) for k in range(levels)})
