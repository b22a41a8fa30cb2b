"""Circuits small enough to enumerate, and the enumeration: every assignment of latents and tokens, in plain numpy.

The oracle reads a circuit's numbers and the two lists `parents` and `homes`, and nothing else of the engine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.regions import RegionGraph, latent_tree
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class World:
    """How to draw a circuit: its tree, sizes, ties, and what is special about its numbers."""

    graph: Callable[[], RegionGraph]
    states: int
    codes: int
    ties: tuple[int, ...] | None = None
    dropped: int = 0  # codes that the vocabulary prunes
    zeros: float = 0.0  # share of the parameters that are 0
    seed: int = 0


def random_tree(latents: int, tokens: int, seed: int) -> RegionGraph:
    """A random tree; tokens hang from its leaves at least, so some inner latents may have none and others several."""
    rng = np.random.default_rng(seed)
    parents = [-1, *(int(rng.integers(k)) for k in range(1, latents))]
    leaves = sorted(set(range(latents)) - set(parents))
    homes = [leaves[i] if i < len(leaves) else int(rng.integers(latents)) for i in range(tokens)]
    rng.shuffle(homes)
    return latent_tree(parents, homes)


QUARTERS = tuple(2 * (row // 2) + column // 2 for row in range(4) for column in range(4))  # 2x2 blocks of a 4x4 grid
BLOCKS_2X4 = [1, 1, 2, 2, 1, 1, 2, 2]
SNAKE = [-1, 0, 1, 2, 3, 4, 5, 6]

WORLDS = {
    "1x2, one latent": World(graph=lambda: latent_tree([-1], [0, 0]), states=3, codes=5),
    "1x2, chain, zeros": World(graph=lambda: latent_tree([-1, 0], [0, 1]), states=3, codes=4, zeros=0.3, seed=2),
    "1x2, chain of silent latents": World(graph=lambda: latent_tree([-1, 0, 1, 2], [3, 2]), states=3, codes=4, seed=3),
    "2x2, quad-tree": World(graph=lambda: quadtree(2), states=3, codes=4, seed=4),
    "2x2, quad-tree, shared": World(graph=lambda: quadtree(2), states=3, codes=4, ties=(0,) * 4, seed=5),
    "2x2, quad-tree, pruned": World(graph=lambda: quadtree(2), states=3, codes=6, dropped=2, seed=6),
    "2x2, quad-tree, pruned, zeros": World(
        graph=lambda: quadtree(2), states=3, codes=6, dropped=3, zeros=0.3, ties=(0, 1, 1, 0), seed=7
    ),
    "2x2, one state": World(graph=lambda: quadtree(2), states=1, codes=3, seed=8),
    "2x2, chain": World(graph=lambda: latent_tree([-1, 0, 1, 2], [2, 0, 3, 1]), states=3, codes=3, seed=9),
    "2x2, star": World(graph=lambda: latent_tree([-1, 0, 0, 0, 0], [4, 2, 1, 3]), states=2, codes=4, seed=10),
    "2x2, star, shared, zeros": World(
        graph=lambda: latent_tree([-1, 0, 0, 0], [0, 1, 2, 3]), states=3, codes=4, ties=(0,) * 4, zeros=0.35, seed=11
    ),
    "2x4, blocks": World(graph=lambda: latent_tree([-1, 0, 0], BLOCKS_2X4), states=3, codes=3, seed=12),
    "2x4, blocks, tied, pruned": World(
        graph=lambda: latent_tree([-1, 0, 0], BLOCKS_2X4),
        states=2,
        codes=4,
        ties=(0, 0, 1, 1, 0, 0, 1, 1),
        dropped=1,
        seed=13,
    ),
    "2x4, chain": World(graph=lambda: latent_tree(SNAKE, [0, 1, 2, 3, 7, 6, 5, 4]), states=2, codes=3, seed=14),
    "2x4, random tree": World(graph=lambda: random_tree(8, 8, 1), states=2, codes=3, seed=15),
    "2x4, random tree, zeros": World(graph=lambda: random_tree(7, 8, 2), states=2, codes=3, zeros=0.3, seed=16),
    "4x4, quad-tree": World(graph=lambda: quadtree(4), states=2, codes=2, seed=17),
    "4x4, quad-tree, blocks": World(graph=lambda: quadtree(4), states=2, codes=2, ties=QUARTERS, seed=18),
    "4x4, quad-tree, shared, zeros": World(
        graph=lambda: quadtree(4), states=2, codes=2, ties=(0,) * 16, zeros=0.2, seed=19
    ),
    "4x4, random tree": World(graph=lambda: random_tree(5, 16, 3), states=2, codes=2, seed=20),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> Circuit:
    """Draw the circuit of a world."""
    world = WORLDS[name]
    rng = np.random.default_rng(world.seed)
    counts = torch.from_numpy(rng.integers(5, 50, world.codes))
    counts[rng.permutation(world.codes)[: world.dropped]] = torch.arange(world.dropped)  # 0, 1, ... uses
    vocabulary = Vocabulary.pruned(counts, torch.from_numpy(rng.normal(size=(world.codes, 2))), least=5)
    circuit = Circuit(world.graph(), states=world.states, vocabulary=vocabulary, ties=world.ties).to(dtype)
    for values, axis in ((circuit.root, 0), (circuit.weights, 2), (circuit.emissions, 1)):
        values.copy_(torch.from_numpy(distributions(rng, tuple(values.shape), axis, world.zeros)))
    return circuit


def distributions(rng: np.random.Generator, shape: tuple[int, ...], axis: int, zeros: float = 0.0) -> np.ndarray:
    """Random distributions along `axis`; about `zeros` of the numbers are 0, the largest of each never."""
    drawn = rng.gamma(1.0, size=shape) + 0.02
    drawn[(rng.random(shape) < zeros) & (drawn < drawn.max(axis, keepdims=True))] = 0.0
    return drawn / drawn.sum(axis, keepdims=True)


def soft(circuit: Circuit, batch: int, seed: int, scale: float = 2.0) -> torch.Tensor:
    """Random log-evidence [B, N, V]."""
    drawn = np.random.default_rng(seed).normal(size=(batch, circuit.tokens, circuit.codes))
    return torch.from_numpy(scale * drawn).to(circuit.root.dtype)


def normals(circuit: Circuit, seed: int, *shape: int) -> torch.Tensor:
    """Random numbers of a shape, in the circuit's type."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(circuit.root.dtype)


class Enumeration:
    """All assignments of a circuit's latents and tokens.

    Attributes:
        tokens: every grid, [V^N, N], the last token fastest.
        states: every assignment of the latents, [H^R, R], the last latent fastest.
        joint: p(states, grid), [H^R, V^N].
        p: p(grid), [V^N].
    """

    def __init__(self, circuit: Circuit) -> None:
        parents, homes = circuit.graph.parents, circuit.graph.homes
        root, weights, emissions, share = (
            x.double().numpy() for x in (circuit.root, circuit.weights, circuit.emissions, circuit.share)
        )
        self.codes = circuit.codes
        self.states = np.stack(np.unravel_index(np.arange(len(root) ** len(parents)), (len(root),) * len(parents)), 1)
        self.tokens = np.stack(np.unravel_index(np.arange(self.codes ** len(homes)), (self.codes,) * len(homes)), 1)
        p = root[self.states[:, 0]]
        for k in range(1, len(parents)):
            p = p * weights[k - 1][self.states[:, parents[k]], self.states[:, k]]
        self.joint = p[:, None]
        for i, home in enumerate(homes):
            emitted = emissions[circuit.table[i]][circuit.compact.numpy()] * share[:, None]  # [V, H]
            row = emitted[:, self.states[:, home]].T  # [H^R, V]
            self.joint = (self.joint[:, :, None] * row[:, None, :]).reshape(len(row), -1)
        self.p = self.joint.sum(0)

    def all_tokens(self) -> torch.Tensor:
        return torch.from_numpy(self.tokens)

    def weights(self, w: np.ndarray) -> np.ndarray:
        """prod_i w_i(z_i) of every grid, for weights [N, V]."""
        out = np.ones(1)
        for row in w:
            out = np.outer(out, row).ravel()
        return out

    def sums(self, numbers: np.ndarray, token: int) -> np.ndarray:
        """Sums [V] of numbers for every grid, over the grids that have a code at a token."""
        return numbers.reshape(self.codes**token, self.codes, -1).sum((0, 2))

    def posterior(self, log_w: torch.Tensor) -> tuple[float, np.ndarray]:
        """log Z and p(z_i = c | w), [N, V], for log-evidence [N, V]."""
        weighted = self.p * self.weights(np.exp(log_w.double().numpy()))
        sums = [self.sums(weighted, i) for i in range(len(log_w))]
        return math.log(weighted.sum()), np.stack(sums) / weighted.sum()

    def cavity(self, log_w: torch.Tensor, token: int) -> np.ndarray:
        """p(z_i = c | w of the others), [V]."""
        w = np.exp(log_w.double().numpy())
        w[token] = 1.0
        sums = self.sums(self.p * self.weights(w), token)
        return sums / sums.sum()


@cache
def enumerated(name: str) -> Enumeration:
    """The enumeration of a world; kept, since several tests ask for it."""
    return Enumeration(make(name))


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    """p-value of counts against expected counts; cells that expect fewer than 10 are put together."""
    few = expected < 10.0
    assert (observed[expected == 0] == 0).all(), "drew what has probability 0"
    pooled = [np.append(x[~few], x[few].sum()) for x in (observed, expected)]
    keep = pooled[1] > 0
    statistic = ((pooled[0] - pooled[1])[keep] ** 2 / pooled[1][keep]).sum()
    freedom = torch.tensor((keep.sum() - 1) / 2.0, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2.0)))
