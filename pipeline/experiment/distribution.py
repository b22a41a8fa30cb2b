"""How far the completions of a method, taken together, are from the true images: kernel and Frechet distance.

Both compare the features of two sets of pictures, which are no pairs, as KID (Binkowski et al., 2018, arXiv 1801.01401)
and FID (Heusel et al., 2017, arXiv 1706.08500) do. They are neither of the two: those are defined on one Inception
network, these on the trunk that the run has, so they carry other names and compare with nothing published.

A method's completions are those of all masks and samples of a dataset. The masks of an image share its known pixels
with each other and with its truth; the estimate of the kernel distance is unbiased for independent pictures, and so a
pair of pictures of the same image never counts. The Frechet distance of few pictures is biased upwards, the more the
fewer they are: it orders methods that have as many, but its value says little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.experiment.features import Features
from pipeline.experiment.statistics import Array, Comparison, bootstrap_weights, seeds

EVERY = "all masks"
"""The mask of comparisons that pool them."""
FEWEST = 8
"""Completed images from which on there is an interval; a resample of fewer may hold one image alone, and so no pair."""


def kernel_distances(found: Mapping[str, Features], *, digits: int, resamples: int) -> Comparison:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, unbiased and so below 0 at times.

    All pairs of pictures of different images count; there are no subsets. Resamples are of the completed and of the
    other true images, each among themselves.

    Args:
        found: features by dataset, the same methods in each.
        digits: after the point, by which equal is told.
        resamples: of the images.

    Returns:
        A comparison whose one mask is `EVERY`; NaN where a single image was completed.
    """
    parts = []
    for dataset, raw in found.items():
        features = _scaled(raw)
        weights = np.vstack([np.ones(len(raw.truths)), _resampled(dataset, features, resamples)])
        values = np.stack([_discrepancy(features, pictures, weights) for pictures in features.completions])
        enough = len(raw.completed) >= FEWEST
        parts.append((values[:, 0], values[:, 1:] if enough else np.full_like(values[:, 1:], np.nan)))
    return _comparison(found, digits, parts)


def frechet_distances(found: Mapping[str, Features], *, digits: int) -> Comparison:
    """Frechet distance of the normal distributions with the features' means and covariances; it has no intervals."""
    parts = []
    for features in map(_scaled, found.values()):
        sets = [pictures.reshape(-1, pictures.shape[-1]) for pictures in features.completions]
        values = np.array([_frechet_of(pictures, features.truths) for pictures in sets])
        parts.append((values, np.full((len(values), 1), np.nan)))
    return _comparison(found, digits, parts)


def frechet(mean: Array, covariance: Array, other_mean: Array, other_covariance: Array) -> float:
    """Squared Frechet distance of normal distributions: |m - n|^2 + tr(C + D - 2 (C^(1/2) D C^(1/2))^(1/2))."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    cross = np.linalg.eigvalsh(root @ other_covariance @ root)
    traces = np.trace(covariance) + np.trace(other_covariance)
    return float(np.square(mean - other_mean).sum() + traces - 2 * np.sqrt(cross.clip(min=0)).sum())


def kernel(x: Array, y: Array) -> Array:
    """(x.y / D + 1)^3 for all pairs, [N, D] and [M, D] -> [N, M]."""
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3, np.float64)


def _discrepancy(features: Features, pictures: Array, weights: Array) -> Array:
    """The discrepancy of pictures [I, P, D], once for each row of weights of the true images, [rows, R] -> [rows]."""
    (images, each, size), count = pictures.shape, len(features.truths)
    flat, completed = pictures.reshape(-1, size), list(features.completed)
    within = kernel(flat, flat).reshape(images, each, images, each).mean(axis=(1, 3))
    between = kernel(flat, features.truths).reshape(images, each, count).mean(axis=1)
    truths = kernel(features.truths, features.truths)
    ours, other = weights[:, completed], ~np.eye(count, dtype=bool)
    return (
        _mean(ours, within, ours, ~np.eye(images, dtype=bool))
        + _mean(weights, truths, weights, other)
        - 2 * _mean(ours, between, weights, other[completed])
    )


def _mean(left: Array, values: Array, right: Array, counts: NDArray[np.bool_]) -> Array:
    """Mean of values [N, M] over the pairs that count, with weights [rows, N] and [rows, M] -> [rows]."""
    total, pairs = (
        (left @ table * right).sum(axis=1) for table in (np.where(counts, values, 0.0), counts.astype(float))
    )
    with np.errstate(invalid="ignore"):
        return np.asarray(total / pairs, np.float64)


def _resampled(dataset: str, features: Features, resamples: int) -> Array:
    """How often each test image is drawn, [resamples, R]; the completed ones as `compare` draws them."""
    rng = np.random.default_rng(seeds(dataset))
    chosen = np.isin(np.arange(len(features.truths)), features.completed)
    weights = np.empty((resamples, len(chosen)))
    for part in (chosen, ~chosen):
        if part.any():
            weights[:, part] = bootstrap_weights(part.sum(), resamples, rng) * part.sum()
    return weights


def _scaled(features: Features) -> Features:
    """Features in units of their root mean square over the true images, so that no network's scale matters."""
    scale = np.sqrt(np.mean(np.square(features.truths)))
    return replace(features, truths=features.truths / scale, completions=features.completions / scale)


def _frechet_of(pictures: Array, truths: Array) -> float:
    """Between sets of pictures [N, D] and [R, D]; NaN for a single picture, which has no covariance."""
    if min(len(pictures), len(truths)) < 2:
        return float("nan")
    moments = ((each.mean(axis=0), np.cov(each, rowvar=False)) for each in (pictures, truths))
    return frechet(*next(moments), *next(moments))


def _comparison(found: Mapping[str, Features], digits: int, parts: Sequence[tuple[Array, Array]]) -> Comparison:
    """A comparison of values [methods] and draws [methods, resamples] of each dataset."""
    values, draws = zip(*parts, strict=True)
    return Comparison(
        datasets=tuple(found),
        masks=(EVERY,),
        images=tuple(len(features.completed) for features in found.values()),
        higher=False,
        digits=digits,
        mean=np.stack(values)[:, None],
        draws=np.stack(draws)[:, None],
    )
