"""What the columns of scores.csv mean, and their rows as arrays.

Scores arrive as one row per (mask, method, image, sample) and become one cube per dataset, [masks, methods, images],
samples averaged; `statistics` compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.experiment.statistics import Array

KEYS = ("dataset", "mask", "method", "image_id", "sample")


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
        Metric(name="lpips_hidden", label="LPIPS of hidden pixels", higher=False, digits=3),
        Metric(name="lpips_unpasted", label="LPIPS, unpasted", higher=False, digits=3),
        Metric(name="lpips_domain", label="domain LPIPS", higher=False, digits=3),
        Metric(name="lpips_domain_hidden", label="domain LPIPS of hidden pixels", higher=False, digits=3),
        Metric(name="lpips_domain_unpasted", label="domain LPIPS, unpasted", higher=False, digits=3),
        Metric(name="psnr", label="PSNR (dB)", higher=True, digits=2),
        Metric(name="psnr_hidden", label="PSNR of hidden pixels (dB)", higher=True, digits=2),
        Metric(name="ssim", label="SSIM", higher=True, digits=3),
        Metric(name="ssim_hidden", label="SSIM of hidden pixels", higher=True, digits=3),
        Metric(name="psnr_unpasted", label="PSNR, unpasted (dB)", higher=True, digits=2),
        Metric(name="ssim_unpasted", label="SSIM, unpasted", higher=True, digits=3),
        Metric(name="lpips_diversity", label="diversity (LPIPS between samples)", higher=True, digits=3),
        Metric(name="lpips_domain_diversity", label="diversity (domain LPIPS between samples)", higher=True, digits=3),
    )
}

DISTRIBUTIONS: dict[str, tuple[Metric, Metric]] = {
    column: (
        Metric(name=f"kernel_{eye}", label=f"kernel distance ({trunk})", higher=False, digits=3),
        Metric(name=f"frechet_{eye}", label=f"Fréchet distance ({trunk})", higher=False, digits=2),
    )
    for column, eye, trunk in (("lpips", "alexnet", "AlexNet"), ("lpips_domain", "domain", "domain trunk"))
}
"""Kernel and Frechet distance of a method's completions to the test images, by the LPIPS whose trunk sees them."""


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


def pareto_front(cost: Array, loss: Array) -> NDArray[np.bool_]:
    """Which points none beats in cost or loss without being worse in the other, [points]; lower is better."""
    no_worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)  # [other, point]
    better = (cost[:, None] < cost) | (loss[:, None] < loss)
    return np.asarray(~(no_worse & better).any(axis=0), np.bool_)
