"""Teachers of latent variable distillation that need no training: features of a region from code vectors.

"codes" describes a region by its own tokens' vectors; "context" by what a ridge regression expects them to be, given
the tokens around. The second is the linear form of the masked transformer of Liu et al. 2024: what matters about a
region is what the rest of the image can know of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 8
"""Dimensions kept of a code vector."""

REACH = 2
"""Tokens around a region that the regression looks at, in each direction; farther ones as means of 4x4 blocks."""

RIDGE = 0.1
"""Ridge penalty as a share of the mean variance of the inputs."""


def embed(tokens: Tensor, codebook: Tensor) -> Tensor:
    """Code vectors [M, N, D] of tokens [M, N], centred, on their MOST principal directions, of mean square 1."""
    vectors = codebook.double()
    used = torch.bincount(tokens.flatten(), minlength=len(vectors)).double()[:, None] / tokens.numel()
    vectors = vectors - (used * vectors).sum(0)
    if vectors.shape[1] > MOST:
        directions = torch.linalg.eigh((used * vectors).t() @ vectors).eigenvectors.flip(-1)[:, :MOST]
        vectors = vectors @ directions
    scale = (used * vectors.square()).sum().div(vectors.shape[1]).sqrt().clamp_min(1e-12)
    return (vectors / scale).float()[tokens]


def code_features(embedded: Tensor, regions: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Describe regions by their own vectors: means over the cells of a 2x2 grid laid over each, [M, 4 D] (or [M, D]).

    Args:
        embedded: [M, N, D] of square grids.
        regions: tokens of each.
    """
    side = math.isqrt(embedded.shape[1])
    return [_cells(embedded, region, side) for region in regions]


def _cells(embedded: Tensor, region: tuple[int, ...], side: int) -> Tensor:
    rows, columns = [token // side for token in region], [token % side for token in region]
    middle = (min(rows) + max(rows) + 1) / 2, (min(columns) + max(columns) + 1) / 2
    cells: dict[tuple[bool, bool], list[int]] = {}
    for token, row, column in zip(region, rows, columns, strict=True):
        cells.setdefault((row >= middle[0], column >= middle[1]), []).append(token)
    return torch.cat([embedded[:, cell].mean(1) for _, cell in sorted(cells.items())], 1)


def context_features(embedded: Tensor, regions: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """What a linear regression on the surroundings expects a region's `code_features` to be; shapes are the same.

    The surroundings are the tokens up to REACH away and the means of 4x4 blocks, without any that touch the region.
    """
    images, count, dim = embedded.shape
    side = math.isqrt(count)
    blocks = _blocks(side)
    means = torch.stack([embedded[:, block].mean(1) for block in blocks], 1)
    inputs = torch.cat([embedded, means], 1).flatten(1)
    gram = (inputs.t() @ inputs) / images
    ridge = RIDGE * gram.diagonal().mean()
    out = []
    for region, own in zip(regions, code_features(embedded, regions), strict=True):
        places = _around(region, side, blocks)
        if not places:
            out.append(own)  # nothing around: the whole grid
            continue
        columns = (torch.tensor(places)[:, None] * dim + torch.arange(dim)).flatten()
        seen = inputs[:, columns]
        square = gram[columns[:, None], columns] + ridge * torch.eye(len(columns))
        out.append(seen @ torch.linalg.solve(square, seen.t() @ own / images))
    return out


def _blocks(side: int) -> list[list[int]]:
    size = max(side // 4, 1)
    found: dict[tuple[int, int], list[int]] = {}
    for token in range(side * side):
        found.setdefault((token // side // size, token % side // size), []).append(token)
    return [found[key] for key in sorted(found)]


def _around(region: tuple[int, ...], side: int, blocks: list[list[int]]) -> list[int]:
    """Numbers of the inputs that describe the surroundings: tokens first, then side^2 + number of the block."""
    inside = set(region)
    rows, columns = [token // side for token in region], [token % side for token in region]
    near = [
        row * side + column
        for row in range(max(min(rows) - REACH, 0), min(max(rows) + REACH, side - 1) + 1)
        for column in range(max(min(columns) - REACH, 0), min(max(columns) + REACH, side - 1) + 1)
        if row * side + column not in inside
    ]
    return near + [side * side + k for k, block in enumerate(blocks) if not inside & set(block)]
