"""The worlds in which samplers are judged, drawn from fixed seeds, and the problems posed in them.

All hold images [3, 16, 16] of a few kinds that share parts of their left halves, so that a seen half or a small seen
square leaves several kinds possible; and all hardly ever leave [-1, 1], so that clipping is no part of the question.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.regions import latent_tree
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

SIDE, CHANNELS, EXAMPLES, GRID, PATCH = 16, 3, 24, 4, 4
"""Pixels per side, channels, images of which one is the example; tokens per side, and pixels per side of a patch."""

WEIGHTS = (0.35, 0.25, 0.25, 0.15)
"""Of the four kinds of image in the two mixtures."""


@dataclass(frozen=True, kw_only=True)
class TokenLaw:
    """The law of a world's images as a circuit steers by it: tokens, and independent normal pixels given the tokens.

    Attributes:
        circuit: p(z), N tokens of V codes.
        mean: of the pixels of a patch given its code, [V, D], or [N, V, D] for each token; D = C p p.
        variance: likewise.
    """

    circuit: Circuit
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True, kw_only=True)
class World:
    """A prior whose posteriors are exact.

    Attributes:
        denoiser: the prior as samplers see it.
        posterior: what is known of x_0 once pixels are.
        example: which of the first images of seed 1 problems are about; a part of it leaves several kinds open.
        tokens: the same law as a circuit's, if it is one.
    """

    denoiser: Denoiser
    posterior: Callable[[Problem], Posterior]
    example: int
    tokens: TokenLaw | None = None

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


def _kinds(generator: torch.Generator) -> Tensor:
    """Means [4, 3, 16, 16] of four kinds of smooth image that differ least in the middle.

    Kinds 0 and 1 have the same left half, 2 and 3 another, and every kind its own right.
    """
    lefts, rights = _fields(generator, 2, 4), _fields(generator, 4, 4)
    away = (torch.arange(SIDE, dtype=torch.float64) - (SIDE - 1) / 2).abs()
    fade = torch.maximum(away, away[:, None]) / away.max()  # from almost 0 in the middle to 1 at the rim
    return 0.2 * fade * torch.where(_left(), lefts.repeat_interleave(2, 0), rights)


def _left() -> Tensor:
    """Which columns are in the left half, [16] bool."""
    return torch.arange(SIDE) < SIDE // 2


def mixture(seed: int = 0) -> World:
    """Four kinds of smooth image that differ least in the middle, so that a small seen square leaves several possible.

    Of the 16 directions in which images of a kind vary, two are confined to the right half.
    """
    generator = torch.Generator().manual_seed(seed)
    means = _kinds(generator)
    directions = torch.cat([_fields(generator, 2, 4).masked_fill(_left(), 0.0), _fields(generator, 14, 6)])
    world = MixtureDenoiser(
        Schedule.linear(),
        (CHANNELS, SIDE, SIDE),
        weights=torch.tensor(WEIGHTS, dtype=torch.float64),
        means=means.flatten(1),
        basis=torch.linalg.qr(directions.flatten(1).T).Q,
        scales=torch.linspace(1.5, 0.4, 16, dtype=torch.float64),
        floor=0.04,
        v=0.65,
    )
    return World(denoiser=world, posterior=lambda problem: MixturePosterior(world, problem), example=6)


def axis(seed: int = 0) -> World:
    """Such kinds again, with independent pixels, 24 of which vary more: a mixture of axis-aligned Gaussians.

    That is a circuit with Gaussian leaves: one latent, the kind, and under it a token for each patch that repeats it.
    The example is the first image whose centre makes another kind the likeliest than is so before anything is seen.
    """
    generator = torch.Generator().manual_seed(seed)
    means, size = _kinds(generator).flatten(1), CHANNELS * SIDE**2
    wide = torch.randperm(size, generator=generator)[:24]
    scales = torch.linspace(0.3, 0.1, len(wide), dtype=torch.float64)
    world = MixtureDenoiser(
        Schedule.linear(),
        (CHANNELS, SIDE, SIDE),
        weights=torch.tensor(WEIGHTS, dtype=torch.float64),
        means=means,
        basis=torch.eye(size, dtype=torch.float64)[:, wide],
        scales=scales,
        floor=0.1,
        v=0.65,
    )
    variance = torch.full((size,), world.floor**2, dtype=torch.float64).index_add(0, wide, scales.square())
    law = TokenLaw(
        circuit=_repeating(world.weights), mean=_patches(means), variance=_patches(variance.expand_as(means))
    )
    return World(denoiser=world, posterior=lambda problem: MixturePosterior(world, problem), example=6, tokens=law)


def _repeating(weights: Tensor) -> Circuit:
    """One latent with these probabilities, and tokens that all repeat it."""
    states, tokens = len(weights), GRID**2
    tree = latent_tree([-1], [0] * tokens)
    circuit = Circuit(tree, states=states, vocabulary=Vocabulary.full(states), ties=[0] * tokens).to(weights.dtype)
    circuit.root.copy_(weights)
    circuit.emissions.copy_(torch.eye(states)[None])
    return circuit


def _patches(images: Tensor) -> Tensor:
    """Cut flat images [K, C H W] into the patches of each token, [N, K, C p p]."""
    grid = images.view(-1, CHANNELS, GRID, PATCH, GRID, PATCH)
    return grid.permute(2, 4, 0, 1, 3, 5).flatten(3).flatten(0, 1)


def circuit(seed: int = 0) -> World:
    """4x4 tokens, each one of 12 patches of 4x4 pixels, from a quad-tree circuit with 6 states."""
    generator = torch.Generator().manual_seed(seed)
    tree = Circuit(quadtree(GRID), states=6, vocabulary=Vocabulary.full(12)).double()
    tree.randomize(generator, concentration=0.15)
    tree.root.fill_(1.0 / 6)
    grid = torch.randn(12, CHANNELS, 2, 2, generator=generator, dtype=torch.float64)
    codebook = interpolate(grid, size=(PATCH, PATCH), mode="bilinear", align_corners=True)
    codebook = 0.6 * codebook / codebook.abs().amax((1, 2, 3), keepdim=True)
    world = CircuitDenoiser(Schedule.linear(), tree, codebook=codebook, sigma=0.08, v=0.65)
    mean = codebook.flatten(1)
    law = TokenLaw(circuit=tree, mean=mean, variance=torch.full_like(mean, world.sigma**2))
    return World(denoiser=world, posterior=lambda problem: CircuitPosterior(world, problem), example=9, tokens=law)


WORLDS: dict[str, Callable[[], World]] = {"mixture": mixture, "circuit": circuit, "axis": axis}
"""How to make each world."""
