"""How much better, and how sure: averages, paired differences, ranks and wins with bootstrap intervals.

Scores come as one cube per dataset, [masks, methods, images], the samples of an image averaged; a picture is one image
under one mask. All methods have met the same images, masks and seeds. The masks of an image are no independent
evidence, because they show the same image: images are resampled, never pictures. One draw of a dataset's images serves
all its masks and methods, so that whatever is computed of them is paired by construction.

    >>> cubes = {"faces": faces, "rooms": rooms}
    >>> found = compare(cubes, ("left", "wide"), higher=False, digits=3, resamples=2000)
    >>> average(found)                        # Estimate(mean, low, high), each [methods]
    >>> average(found.only(mask="left"))      # over datasets; only(dataset="faces"): over masks
    >>> difference(found, reference=0)        # paired, of each method to the first
    >>> average_rank(found)                   # over settings, with intervals
    >>> count_wins(found).total               # settings won, of found.settings
    >>> duels(found).clear[2, 0]              # settings in which 2 is clearly better than 0
    >>> better = compare(beats(cubes, 0, higher=False), ("left", "wide"), higher=True, digits=2, resamples=2000)
    >>> average(better)                       # share of pictures that are better than those of 0

`distribution` makes such comparisons of whole sets of pictures, from the features that `features` reads.

Definitions. A *setting* is a dataset under a mask; an average counts all settings alike. *Equal* means equal as
printed, rounded to the metric's digits. A method *wins* a setting if no other mean is better: *alone*, or *shared* with
equals. It is *clearly* better than another where the interval of their paired difference leaves zero out; a *clear* win
is one alone whose lead over every other method is clear. Equal methods share the mean of their ranks. Intervals are not
corrected for how many there are.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

Array = NDArray[np.float64]
Counts = NDArray[np.int64]

LEVEL = 0.95
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number per method and its interval, [methods] each; the ends are NaN if a dataset has fewer than 2 images."""

    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Mean scores of all methods in all settings, as measured and in every resample of the images."""

    datasets: tuple[str, ...]
    masks: tuple[str, ...]
    images: tuple[int, ...]
    """Number of images of each dataset."""
    higher: bool
    """True where a higher score is better."""
    digits: int
    """After the point, in print."""
    mean: Array
    """[datasets, masks, methods]."""
    draws: Array
    """[datasets, masks, methods, resamples]; NaN for datasets of fewer than 2 images."""

    @property
    def settings(self) -> int:
        """Datasets times masks."""
        return len(self.datasets) * len(self.masks)

    @property
    def sign(self) -> int:
        """Factor that turns scores into losses."""
        return -1 if self.higher else 1

    @property
    def tail(self) -> float:
        """Share of resamples beyond each end of an interval."""
        return tail(self.images)

    def only(self, *, dataset: str | None = None, mask: str | None = None) -> Comparison:
        """The settings of one dataset, one mask, or both; all of them where None."""
        rows, columns = _pick(self.datasets, dataset), _pick(self.masks, mask)
        return replace(
            self,
            datasets=self.datasets[rows],
            masks=self.masks[columns],
            images=self.images[rows],
            mean=self.mean[rows, columns],
            draws=self.draws[rows, columns],
        )


@dataclass(frozen=True, kw_only=True)
class Wins:
    """How often each method has the best mean of a setting, [methods] each."""

    settings: int
    alone: Counts
    shared: Counts
    """Another method's mean prints equal."""
    clear: Counts
    """Of `alone`: the lead over every other method is outside the interval of the paired difference."""

    @property
    def total(self) -> Counts:
        """Settings won alone or shared."""
        return self.alone + self.shared


@dataclass(frozen=True, kw_only=True)
class Duels:
    """Every method (row) against every other (column): numbers of settings, [methods, methods] each."""

    better: Counts
    """The row's mean is better, as printed."""
    tied: Counts
    """Both print equal; the diagonal counts all settings."""
    clear: Counts
    """The interval of the paired difference is wholly on the row's side."""


def compare(
    cubes: Mapping[str, Array], masks: Sequence[str], *, higher: bool, digits: int, resamples: int
) -> Comparison:
    """Average scores over images, as they are and resampled.

    Args:
        cubes: scores by dataset, [masks, methods, images].
        masks: names along the cubes' first axis.
        higher: whether higher scores are better.
        digits: after the point, by which equal is told.
        resamples: of each dataset's images; they depend on its name and number of images only, so that different
            metrics are resampled alike.
    """
    draws = []
    for dataset, cube in cubes.items():
        images = cube.shape[-1]
        drawn = cube @ bootstrap_weights(images, resamples, np.random.default_rng(seeds(dataset))).T
        draws.append(drawn if images > 1 else np.full_like(drawn, np.nan))
    return Comparison(
        datasets=tuple(cubes),
        masks=tuple(masks),
        images=tuple(cube.shape[-1] for cube in cubes.values()),
        higher=higher,
        digits=digits,
        mean=np.stack([cube.mean(axis=-1) for cube in cubes.values()]),
        draws=np.stack(draws),
    )


def average(found: Comparison) -> Estimate:
    """Mean score over the settings."""
    return _estimate(found.mean, found.draws, found.tail)


def difference(found: Comparison, reference: int) -> Estimate:
    """Mean over the settings of the score minus that of the method `reference`; 0 for itself."""
    mean = found.mean - found.mean[:, :, [reference]]
    return _estimate(mean, found.draws - found.draws[:, :, [reference]], found.tail)


def average_rank(found: Comparison) -> Estimate:
    """Mean rank over the settings, 1 for the best.

    Resampled ranks of methods that are close lie nearer to each other than the measured ones, so that an interval need
    not have the rank in its middle.
    """
    mean = ranks(found.sign * found.mean, found.digits)
    draws = np.moveaxis(ranks(found.sign * np.moveaxis(found.draws, 2, 3), found.digits), 3, 2)
    return _estimate(mean, draws, found.tail)


def count_wins(found: Comparison) -> Wins:
    """Count over the settings who has the best mean."""
    losses = found.sign * found.mean.reshape(found.settings, -1)
    first = places(losses, found.digits) == 1
    alone = first & (first.sum(axis=1, keepdims=True) == 1)
    rivals = losses.shape[1] - 1
    clear = (clearly_better(found).sum(axis=3) == max(rivals, 1)).reshape(found.settings, -1)
    return Wins(
        settings=found.settings,
        alone=alone.sum(axis=0),
        shared=(first & ~alone).sum(axis=0),
        clear=(alone & clear).sum(axis=0),
    )


def duels(found: Comparison) -> Duels:
    """Count over the settings who is better than whom."""
    printed = np.round(found.sign * found.mean, found.digits)
    ours, others = printed[..., :, None], printed[..., None, :]
    return Duels(
        better=(ours < others).sum(axis=(0, 1)),
        tied=(ours == others).sum(axis=(0, 1)),
        clear=clearly_better(found).sum(axis=(0, 1)),
    )


def clearly_better(found: Comparison) -> NDArray[np.bool_]:
    """Whether a method (third axis) is clearly better than another (fourth), [datasets, masks, methods, methods]."""
    losses = zip(found.sign * found.draws, found.images, strict=True)
    return np.stack([_superior(draws, tail([images])) for draws, images in losses])


def beats(cubes: Mapping[str, Array], reference: int, *, higher: bool) -> dict[str, Array]:
    """Whether each picture is better (1) or worse (0) than that of the method `reference`, 0.5 if the scores agree."""
    sign = -1 if higher else 1
    return {name: (np.sign(sign * (cube[:, [reference]] - cube)) + 1) / 2 for name, cube in cubes.items()}


def ranks(losses: Array, digits: int) -> Array:
    """Rank along the last axis, 1 for the lowest loss; equals, as printed, share the mean of theirs; NaN stays NaN."""
    printed = np.round(losses, digits)
    found = np.full_like(printed, 0.5)
    for other in range(printed.shape[-1]):
        rival = printed[..., [other]]
        found += (rival < printed) + (rival == printed) / 2
    return np.where(np.isnan(printed), np.nan, found)


def places(losses: Array, digits: int) -> Counts:
    """Place along the last axis: 1 for the lowest loss and all that print equal, 2 for the next, and so on."""
    printed = np.round(losses, digits)
    rows = [np.unique(row, return_inverse=True)[1] + 1 for row in printed.reshape(-1, printed.shape[-1])]
    return np.asarray(rows, np.int64).reshape(printed.shape)


def bootstrap_weights(images: int, resamples: int, rng: np.random.Generator) -> Array:
    """Draw how much each image weighs in each resample, [resamples, images]; rows sum to 1."""
    counts = rng.multinomial(images, np.full(images, 1.0 / images), size=resamples)
    return np.asarray(counts / images, np.float64)


def seeds(dataset: str) -> list[int]:
    """What the resampling of a dataset's images starts from: the same whichever other datasets there are."""
    return [SEED, zlib.crc32(dataset.encode())]


def interval(draws: Array, beyond: float) -> tuple[Array, Array]:
    """Ends that leave the share `beyond` of the last axis out on each side, [..., resamples] -> two arrays [...]."""
    low, high = np.percentile(draws, [100 * beyond, 100 * (1 - beyond)], axis=-1)
    return low, high


def tail(images: Sequence[int], level: float = LEVEL) -> float:
    """Share of resamples to leave out on each side, so that an interval covers the truth in the share `level` of cases.

    The bootstrap's spread is too small by sqrt((n - 1) / n), and few images do not tell their own spread well. Both are
    made good by what is exact for the mean of normal values (the expanded percentile interval, Hesterberg 2015,
    The American Statistician 69(4)): with N images in all, n - 1 degrees of freedom from each dataset and df of them
    altogether, the normal tail at sqrt(N / df) times Student's quantile. 8 images: 0.0057 instead of 0.025.

    Args:
        images: number of images of each dataset that is averaged over.
        level: wished coverage.
    """
    freedom = max(sum(images) - len(images), 1)
    return float(ndtr(stdtrit(freedom, (1 - level) / 2) * np.sqrt(sum(images) / freedom)))


def _pick(names: tuple[str, ...], name: str | None) -> slice:
    """Where `name` is among `names`, as a slice; all of them for None."""
    return slice(None) if name is None else slice(names.index(name), names.index(name) + 1)


def _estimate(mean: Array, draws: Array, beyond: float) -> Estimate:
    """Average over the settings [datasets, masks, ...]."""
    low, high = interval(draws.mean(axis=(0, 1)), beyond)
    return Estimate(mean=mean.mean(axis=(0, 1)), low=low, high=high)


def _superior(losses: Array, beyond: float) -> NDArray[np.bool_]:
    """Whose interval of the difference to whom is below zero, [..., methods, resamples] -> [..., methods, methods]."""
    rows = [interval(losses[..., [method], :] - losses, beyond)[1] < 0 for method in range(losses.shape[-2])]
    return np.stack(rows, axis=-2)
