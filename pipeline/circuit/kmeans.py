"""Lloyd's k-means for many sets of points at once, as latent variable distillation needs it: one for each latent."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.noise import stream_seed

ROUNDS = 12
"""Lloyd iterations; what they still change after that does not show in bits per token."""

MANY = 2**26
"""Distances held at a time."""

ENOUGH = 400_000
"""Points of a set by which its centres are found, evenly spaced where it has more; all get a label."""


def kmeans(
    points: Tensor, clusters: int, *, seed: int, weights: Tensor | None = None, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor]:
    """Cluster each set of points by squared distance.

    Args:
        points: [S, M, D], S sets of M points.
        clusters: how many; fewer come to be used where a set has fewer different points.
        seed: of the first centres, which are drawn from the points by k-means++ (Arthur and Vassilvitskii 2007).
        weights: of the points, [M] >= 0; equal if not given.
        rounds: Lloyd iterations.

    Returns:
        Labels [S, M] int64 and centres [S, clusters, D]. Each set's result depends on the set and its number only.
    """
    sets, count, _ = points.shape
    weights = points.new_ones(count) if weights is None else weights.to(points)
    stride = -(-count // ENOUGH)
    labels = torch.empty(sets, count, dtype=torch.int64, device=points.device)
    centres = points.new_empty(sets, clusters, points.shape[-1])
    step = max(1, MANY // (count * clusters))
    for start in range(0, sets, step):
        part = points[start : start + step]
        uniform = torch.stack([_stream(seed, start + k, clusters) for k in range(len(part))]).to(part)
        found = _lloyd(part[:, ::stride], weights[::stride], uniform, rounds)
        labels[start : start + step], centres[start : start + step] = nearest(part, found), found
    return labels, centres


def _stream(seed: int, number: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(stream_seed(seed, "kmeans", number))
    return torch.rand(count, generator=generator, dtype=torch.float64)


def _lloyd(points: Tensor, weights: Tensor, uniform: Tensor, rounds: int) -> Tensor:
    """Centres [S, clusters, D] of points [S, M, D]."""
    centres = first_centres(points, weights, uniform)
    for _ in range(rounds):
        labels = nearest(points, centres)
        used = labels.new_zeros(*centres.shape[:2]).to(points).scatter_add_(1, labels, weights.expand(len(points), -1))
        total = torch.zeros_like(centres).scatter_add_(
            1, labels[..., None].expand_as(points), points * weights[:, None]
        )
        centres = torch.where(used[..., None] > 0, total / used[..., None].clamp_min(1e-30), centres)
    return centres


def first_centres(points: Tensor, weights: Tensor, uniform: Tensor) -> Tensor:
    """First centres [S, clusters, D] by k-means++, from points [S, M, D] and uniform numbers [S, clusters].

    Each next centre is a point, drawn with probability proportional to its squared distance from the centres there are.
    """
    chosen = []
    distance = torch.ones_like(points[..., 0])
    for k in range(uniform.shape[1]):
        mass = (distance * weights).double()
        cdf = torch.where(mass.sum(-1, keepdim=True) > 0, mass, torch.ones_like(mass)).cumsum(-1)
        index = torch.searchsorted(cdf, (uniform[:, k, None].double() * cdf[:, -1:]), right=True)
        index = index.clamp_max(points.shape[1] - 1)
        centre = points.gather(1, index[..., None].expand(-1, -1, points.shape[-1]))
        chosen.append(centre)
        away = (points - centre).square().sum(-1)
        distance = away if k == 0 else torch.minimum(distance, away)
    return torch.cat(chosen, 1)


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest centre [S, M] of points [S, M, D] among centres [S, C, D]; few distances at a time."""
    norms, across = centres.square().sum(-1)[:, None], centres.transpose(1, 2)
    parts = points.split(max(1, MANY // (len(points) * centres.shape[1])), dim=1)
    return torch.cat([(norms - 2.0 * torch.bmm(part, across)).argmin(-1) for part in parts], 1)
