"""Means, intervals and paired comparisons of the sweep's scores: pure functions over NumPy arrays.

Scores arrive as one row per (mask, method, image, sample) and become one cube per dataset, [masks, methods, images],
samples averaged. Every method has met the same images, masks and seeds, so one bootstrap resample of a dataset's images
serves every mask and method at once: a difference between two methods is paired by construction, and so is an average
over masks. Intervals are percentile intervals over resampled images (Efron and Tibshirani 1993, section 13.3).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError

Array = NDArray[np.float64]

AVERAGE = "average"  # the mask of a row that averages a dataset's masks
ALL = "all datasets"  # the dataset of the row that averages the datasets' averages
KEYS = ("dataset", "mask", "method", "image_id", "sample")
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How one column of scores.csv is called, read and printed."""

    name: str
    label: str
    higher: bool
    """True where a higher value is better."""
    digits: int

    @property
    def sign(self) -> int:
        """Factor that turns values into losses: 1 where lower is better, -1 where higher is."""
        return -1 if self.higher else 1

    @property
    def best(self) -> str:
        """The word for the best value."""
        return "highest" if self.higher else "lowest"

    def text(self, value: float, *, sign: bool = False) -> str:
        """Print a value with this metric's digits and a typographic minus, e.g. 0.143 or, with `sign`, −0.012."""
        printed = f"{value:{'+' if sign else ''}.{self.digits}f}"
        return printed.replace("-", "−") if float(printed) else printed.lstrip("+-")


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="lpips", label="LPIPS", higher=False, digits=3),
        Metric(name="lpips_unpasted", label="LPIPS, unpasted", higher=False, digits=3),
        Metric(name="lpips_domain", label="domain LPIPS", higher=False, digits=3),
        Metric(name="lpips_domain_unpasted", label="domain LPIPS, unpasted", higher=False, digits=3),
        Metric(name="psnr", label="PSNR (dB)", higher=True, digits=2),
        Metric(name="psnr_hidden", label="PSNR of hidden pixels (dB)", higher=True, digits=2),
        Metric(name="ssim", label="SSIM", higher=True, digits=3),
        Metric(name="ssim_hidden", label="SSIM of hidden pixels", higher=True, digits=3),
        Metric(name="psnr_unpasted", label="PSNR, unpasted (dB)", higher=True, digits=2),
        Metric(name="ssim_unpasted", label="SSIM, unpasted", higher=True, digits=3),
    )
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result tables: a setting (dataset, mask) or an average; every array is [methods]."""

    dataset: str
    mask: str
    mean: Array
    low: Array
    high: Array
    difference: Array
    """Mean minus the reference method's mean; 0 for the reference itself."""
    difference_low: Array
    difference_high: Array
    clear: bool
    """The best mean's paired interval against every other method excludes zero."""

    @property
    def is_average(self) -> bool:
        """Whether the line averages settings instead of being one."""
        return self.mask == AVERAGE


@dataclass(frozen=True, kw_only=True)
class Wins:
    """How often each method has the best mean of a setting; equal as printed counts as shared."""

    settings: int
    alone: NDArray[np.int64]
    shared: NDArray[np.int64]
    clear: NDArray[np.int64]
    """Of `alone`: settings in which the lead over every other method is outside the paired interval."""

    @property
    def total(self) -> NDArray[np.int64]:
        """Settings won alone or shared, [methods]."""
        return self.alone + self.shared


def collect(
    scores: Iterable[Mapping[str, str]],
    names: Sequence[str],
    *,
    dataset: str,
    masks: Sequence[str],
    methods: Sequence[str],
) -> tuple[list[str], dict[str, Array]]:
    """Arrange one dataset's score rows as cubes, averaging each image's samples.

    Args:
        scores: rows of scores.csv as text; rows of masks or methods not asked for are passed over.
        names: metric columns to read.
        dataset: whose rows these are, for the messages.
        masks: order of the cube's first axis.
        methods: order of the cube's second axis.

    Returns:
        The image ids in order of appearance, and for each metric its cube [masks, methods, images].

    Raises:
        InputError: a (mask, method) asked for has no rows, has other images than the first, has one image and sample
            twice, or holds a value that is not a finite number.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Array]]] = {(k, m): {} for k in masks for m in methods}
    for row in scores:
        cell = found.get((row["mask"], row["method"]))
        if cell is None:
            continue
        samples = cell.setdefault(row["image_id"], {})
        where = f"Scores of {dataset}, mask {row['mask']}, method {row['method']}, image {row['image_id']}"
        if row["sample"] in samples:
            raise InputError(f"{where}: sample {row['sample']} appears twice in scores.csv; run the score stage again.")
        samples[row["sample"]] = np.array([_number(row[name], f"{where}, {name}") for name in names])
    _check_paired(found, dataset)
    ids = list(found[masks[0], methods[0]])
    cube = np.array([[[np.mean(list(found[k, m][i].values()), axis=0) for i in ids] for m in methods] for k in masks])
    return ids, {name: cube[..., index] for index, name in enumerate(names)}


def _check_paired(found: Mapping[tuple[str, str], Mapping[str, object]], dataset: str) -> None:
    """Refuse scores in which a (mask, method) is missing or met other images than the first."""
    (first_mask, first_method), first = next(iter(found.items()))
    for (mask, method), cell in found.items():
        if not cell:
            raise InputError(
                f"Scores of {dataset} have no rows for method {method}, mask {mask}, which the sweep asks for; "
                "run the inpaint and score stages for it, or take it out of the sweep in params.yaml."
            )
        if cell.keys() != first.keys():
            raise InputError(
                f"Scores of {dataset}: method {method}, mask {mask} has other images ({len(cell)}) than method "
                f"{first_method}, mask {first_mask} ({len(first)}); comparisons are paired, so run all on the same."
            )


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{where}: expected a finite number, found {text!r}; run the score stage again.")
    return value


def bootstrap_weights(images: int, resamples: int, rng: np.random.Generator) -> Array:
    """Draw how much each image weighs in each resample, [resamples, images]; rows sum to 1."""
    counts = rng.multinomial(images, np.full(images, 1.0 / images), size=resamples)
    return np.asarray(counts / images, np.float64)


def interval(resampled: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """Percentile interval over the last axis, [..., resamples] -> two arrays [...]."""
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(resampled, [tail, 100.0 - tail], axis=-1)
    return low, high


def summarise(
    cubes: Mapping[str, Array], masks: Sequence[str], metric: Metric, *, reference: int, resamples: int
) -> list[Row]:
    """Compute the table's lines: each dataset's masks, their average, and last the average over datasets if several.

    Args:
        cubes: for each dataset the values of one metric, [masks, methods, images].
        masks: names along the cubes' first axis.
        metric: what the values are.
        reference: index of the method that differences are taken to.
        resamples: number of bootstrap resamples; a dataset's do not depend on which other datasets are there.

    Returns:
        Lines in the order of `cubes` and `masks`; intervals are NaN where a dataset has fewer than two images.
    """
    rows, averages = [], []
    for dataset, cube in cubes.items():
        images = cube.shape[-1]
        rng = np.random.default_rng([SEED, zlib.crc32(dataset.encode())])
        resampled = cube @ bootstrap_weights(images, resamples, rng).T  # [masks, methods, resamples]
        if images < 2:
            resampled = np.full_like(resampled, np.nan)
        for index, mask in enumerate(masks):
            rows.append(_row(dataset, mask, cube[index].mean(axis=-1), resampled[index], reference, metric))
        averages.append((cube.mean(axis=(0, 2)), resampled.mean(axis=0)))
        rows.append(_row(dataset, AVERAGE, *averages[-1], reference, metric))
    if len(cubes) > 1:
        mean, resampled = (np.mean(parts, axis=0) for parts in zip(*averages, strict=True))
        rows.append(_row(ALL, AVERAGE, mean, resampled, reference, metric))
    return rows


def _row(dataset: str, mask: str, mean: Array, resampled: Array, reference: int, metric: Metric) -> Row:
    """Build a line from means [methods] and resampled means [methods, resamples]."""
    low, high = interval(resampled)
    difference_low, difference_high = interval(resampled - resampled[reference])
    best = int(np.argmin(metric.sign * mean))
    _, worst_lead = interval(metric.sign * (resampled[best] - np.delete(resampled, best, axis=0)))  # [methods - 1]
    return Row(
        dataset=dataset,
        mask=mask,
        mean=mean,
        low=low,
        high=high,
        difference=mean - mean[reference],
        difference_low=difference_low,
        difference_high=difference_high,
        clear=bool(np.all(worst_lead < 0)),
    )


def places(mean: Array, metric: Metric) -> NDArray[np.int64]:
    """Place of each method in one line, [methods]: 1 for the best and all that print equal, 2 for the next, ..."""
    printed = np.round(metric.sign * mean, metric.digits)
    return np.asarray(np.unique(printed, return_inverse=True)[1] + 1, np.int64)


def standing(row: Row, metric: Metric) -> list[str]:
    """Say for each method whether its paired interval is on the better or worse side of the reference, or open."""
    low, high = row.difference_low, row.difference_high
    if metric.higher:
        low, high = -high, -low
    return ["better" if ends[1] < 0 else "worse" if ends[0] > 0 else "open" for ends in zip(low, high, strict=True)]


def count_wins(rows: Iterable[Row], metric: Metric) -> Wins:
    """Count over the settings among `rows` (averages are passed over) who has the best mean."""
    settings = [row for row in rows if not row.is_average]
    first = np.array([places(row.mean, metric) == 1 for row in settings])  # [settings, methods]
    alone = first & (first.sum(axis=1, keepdims=True) == 1)
    clear = alone & np.array([row.clear for row in settings])[:, None]
    shared = first & ~alone
    return Wins(settings=len(settings), alone=alone.sum(axis=0), shared=shared.sum(axis=0), clear=clear.sum(axis=0))


def average_ranks(rows: Iterable[Row], metric: Metric) -> Array:
    """Mean rank of each method over the settings in `rows`, [methods]; methods that print equal share ranks."""
    ranks = []
    for row in rows:
        if not row.is_average:
            place = places(row.mean, metric)
            ranks.append([(place < p).sum() + ((place == p).sum() + 1) / 2 for p in place])
    return np.asarray(np.mean(ranks, axis=0), np.float64)


def pareto_front(cost: Array, loss: Array) -> NDArray[np.bool_]:
    """Which points none beats in cost or loss without being worse in the other, [points]; lower is better."""
    no_worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)  # [other, point]
    better = (cost[:, None] < cost) | (loss[:, None] < loss)
    return np.asarray(~(no_worse & better).any(axis=0), np.bool_)
