"""The worlds in which samplers are judged, drawn from fixed seeds, and the problems posed in them.

Both hold images [3, 16, 16] of a few kinds that share parts of their left halves, so that a seen half or a small seen
square leaves several kinds possible; and both hardly ever leave [-1, 1], so that clipping is no part of the question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.data.masks import MASKS
from pipeline.diffusion.analytic import MixtureDenoiser
from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.schedule import Schedule
from pipeline.noise import Noise
from pipeline.oracles.circuit_world import CircuitDenoiser, CircuitPosterior
from pipeline.oracles.distances import Posterior
from pipeline.oracles.mixture import MixturePosterior
from pipeline.problem import Problem

SIDE, CHANNELS, EXAMPLES = 16, 3, 24


@dataclass(frozen=True, kw_only=True)
class World:
    """A prior whose posteriors are exact.

    Attributes:
        denoiser: the prior as samplers see it.
        posterior: what is known of x_0 once pixels are.
        example: which of the first images of seed 1 problems are about; a part of it leaves several kinds open.
    """

    denoiser: Denoiser
    posterior: Callable[[Problem], Posterior]
    example: int

    def problem(self, mask: str) -> Problem:
        """The example behind one of `pipeline.data.masks.MASKS`, a batch of one."""
        _, height, width = self.denoiser.shape
        known = torch.from_numpy(MASKS[mask](height, width, 0))[None, None]
        return Problem.observe(self.images(EXAMPLES, seed=1)[self.example : self.example + 1], known)

    def images(self, count: int, seed: int) -> Tensor:
        """Draw from the prior, [count, C, H, W] float64: the posterior when nothing is known."""
        shape = self.denoiser.shape
        nothing = torch.zeros(1, 1, *shape[1:], dtype=torch.bool)
        problem = Problem(y=torch.zeros(1, *shape, dtype=torch.float64), known=nothing)
        return self.posterior(problem).draw(Noise([seed], dtype=torch.float64), count)[0]


def _fields(generator: torch.Generator, count: int, cells: int) -> Tensor:
    """Smooth random images [count, 3, 16, 16]: normal numbers on a grid of `cells`, interpolated."""
    grid = torch.randn(count, CHANNELS, cells, cells, generator=generator, dtype=torch.float64)
    return interpolate(grid, size=(SIDE, SIDE), mode="bicubic", align_corners=True)


def mixture(seed: int = 0) -> World:
    """Four kinds of smooth image that differ least in the middle, so that a small seen square leaves several possible.

    Kinds 0 and 1 have the same left half, 2 and 3 another, and every kind its own right. Of the 16 directions in which
    images of a kind vary, two are confined to the right half.
    """
    generator = torch.Generator().manual_seed(seed)
    lefts, rights = _fields(generator, 2, 4), _fields(generator, 4, 4)
    away = (torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2).abs()
    left = torch.arange(SIDE) < SIDE // 2
    fade = torch.maximum(away, away[:, None]) / away.max()  # from almost 0 in the middle to 1 at the rim
    means = 0.2 * fade * torch.where(left, lefts.repeat_interleave(2, 0), rights)
    directions = torch.cat([_fields(generator, 2, 4).masked_fill(left, 0.0), _fields(generator, 14, 6)])
    world = MixtureDenoiser(
        Schedule.linear(),
        (CHANNELS, SIDE, SIDE),
        weights=torch.tensor([0.35, 0.25, 0.25, 0.15], dtype=torch.float64),
        means=means.flatten(1),
        basis=torch.linalg.qr(directions.flatten(1).T).Q,
        scales=torch.linspace(1.5, 0.4, 16, dtype=torch.float64),
        floor=0.04,
        v=0.65,
    )
    return World(denoiser=world, posterior=lambda problem: MixturePosterior(world, problem), example=6)


def circuit(seed: int = 0) -> World:
    """4x4 tokens, each one of 12 patches of 4x4 pixels, from a quad-tree circuit with 6 states."""
    generator = torch.Generator().manual_seed(seed)
    tree = Circuit(quadtree(4), states=6, vocabulary=Vocabulary.full(12)).double()
    tree.randomize(generator, concentration=0.15)
    tree.root.fill_(1.0 / 6)
    grid = torch.randn(12, CHANNELS, 2, 2, generator=generator, dtype=torch.float64)
    codebook = interpolate(grid, size=(4, 4), mode="bilinear", align_corners=True)
    codebook = 0.6 * codebook / codebook.abs().amax((1, 2, 3), keepdim=True)
    world = CircuitDenoiser(Schedule.linear(), tree, codebook=codebook, sigma=0.08, v=0.65)
    return World(denoiser=world, posterior=lambda problem: CircuitPosterior(world, problem), example=9)


WORLDS: dict[str, Callable[[], World]] = {"mixture": mixture, "circuit": circuit}
"""How to make each world."""
