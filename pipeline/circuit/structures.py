"""Ready-made region graphs and ties over square grids of tokens, in row-major order."""

from __future__ import annotations

from typing import Literal

from pipeline.circuit.regions import RegionGraph, latent_tree
from pipeline.errors import ConfigError

Tie = Literal["untied", "blocks", "shared"]


def quadtree(side: int) -> RegionGraph:
    """Halve both axes at once until blocks of 2x2 tokens are left: the structure of Liu et al. 2024 (section 6).

    Each block of 2x2 tokens has a latent, each 2x2 of those another, up to the root: 85 latents for a side of 16.

    Raises:
        ConfigError: `side` is no power of two, or below 2.
    """
    if side < 2 or side & (side - 1):
        raise ConfigError(f"a quad-tree needs a side that is a power of two, at least 2, but it is {side}")
    parents, first, blocks = [-1], 0, 1
    while blocks < side // 2:
        start = len(parents)
        blocks *= 2
        parents += [
            first + (row // 2) * (blocks // 2) + column // 2 for row in range(blocks) for column in range(blocks)
        ]
        first = start
    homes = [first + (row // 2) * (side // 2) + column // 2 for row in range(side) for column in range(side)]
    return latent_tree(parents, homes)


def rooted(edges: list[tuple[int, int]], count: int) -> list[int]:
    """Parents of a tree given by its edges, rooted at its centre, so that it has as few levels as can be.

    Where a hidden tree is rooted changes no distribution it can express, only how many levels there are.
    """
    near: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)

    def walk(start: int) -> tuple[list[int], list[int]]:
        parents, order = [-2] * count, [start]
        parents[start] = -1
        for node in order:
            for other in sorted(near[node]):
                if parents[other] == -2:
                    parents[other] = node
                    order.append(other)
        return parents, order

    one_end = walk(0)[1][-1]
    parents, order = walk(one_end)
    path = [order[-1]]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return walk(path[len(path) // 2])[0]


def ties(kind: Tie, side: int) -> tuple[int, ...]:
    """Which emission table each token of the grid reads.

    "untied": its own; "blocks": one for each 4x4 block; "shared": one for all.

    Raises:
        ConfigError: blocks do not divide the grid.
    """
    if kind == "untied":
        return tuple(range(side * side))
    if kind == "shared":
        return (0,) * (side * side)
    if side % 4:
        raise ConfigError(f"4x4 blocks of tied inputs need a side that is a multiple of 4, but it is {side}")
    return tuple((row // 4) * (side // 4) + column // 4 for row in range(side) for column in range(side))
