"""Images as grids of square patches, one for each token, in row-major order."""

from __future__ import annotations

import math

from torch import Tensor


def cut(x: Tensor, side: int) -> Tensor:
    """Cut images [B, C, H, W] into patches [B, N, C p p], N = side^2."""
    patch = x.shape[-1] // side
    grid: Tensor = x.unflatten(3, (side, patch)).unflatten(2, (side, patch))  # [B, C, s, p, s, p]
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def put(patches: Tensor, channels: int) -> Tensor:
    """Put patches [*, N, C p p] together, [*, C, H, W]."""
    side = math.isqrt(patches.shape[-2])
    patch = math.isqrt(patches.shape[-1] // channels)
    grid = patches.reshape(-1, side, side, channels, patch, patch)
    images = grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, side * patch, side * patch)
    return images.reshape(*patches.shape[:-2], *images.shape[1:])
