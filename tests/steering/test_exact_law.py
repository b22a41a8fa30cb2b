"""Where a circuit with patches is the law of the images, steering with it alone is exact: estimates, and samples.

Images of 2x2 tokens have few enough grids to enumerate p(z | seen pixels).
"""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from circuit.worlds import Enumeration, chi_square, make
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.diffusion.schedule import Schedule
from pipeline.methods.blended import Blended
from pipeline.methods.steered import Steered
from pipeline.noise import Noise
from pipeline.oracles.circuit_world import CircuitDenoiser, CircuitPosterior
from pipeline.oracles.worlds import GRID, WORLDS
from pipeline.problem import Problem
from pipeline.steering.patches import PatchModel
from pipeline.steering.prior import TokenPrior
from pipeline.steering.settings import Steering
from pipeline.steering.steer import Guide

torch.set_num_threads(1)

EXACT = Steering(rule="noisy", picture="patches", weighting="circuit", refresh=0.0, until=0.0)
SCHEDULE, SIGMA, STEPS, COUNT = Schedule.linear(), 0.1, 80, 3000


class OneStream:
    """Noise for many images from one generator: drawing is what takes the time here."""

    def __init__(self, seed: int, images: int) -> None:
        self.images, self.seed = images, seed
        self.generator = torch.Generator().manual_seed(seed)

    def fork(self, name: str) -> "OneStream":
        return OneStream(self.seed + len(name), self.images)

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        return torch.randn(self.images, *shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, shape: Sequence[int]) -> torch.Tensor:
        return torch.rand(self.images, *shape, generator=self.generator, dtype=torch.float64)

    def choice(self, weights: torch.Tensor, n: int) -> torch.Tensor:
        return torch.multinomial(weights, n, replacement=True, generator=self.generator)


def tree() -> Circuit:
    """Four tokens that depend on each other strongly."""
    generator = torch.Generator().manual_seed(0)
    return Circuit(quadtree(2), states=4, vocabulary=Vocabulary.full(4)).double().randomize(generator, 0.3)


def repeating() -> Circuit:
    """Four equal tokens: a mixture of four kinds of image, and 252 grids that are impossible."""
    circuit = Circuit(quadtree(2), states=4, vocabulary=Vocabulary.full(4)).double()
    circuit.root.copy_(torch.tensor([0.4, 0.3, 0.2, 0.1]))
    circuit.emissions.copy_(torch.eye(4).expand_as(circuit.emissions))
    return circuit


CIRCUITS = {"tree": tree, "repeating": repeating}


def world_of(circuit):
    """Patches of 2x2 pixels, the last of which hardly tells codes apart."""
    drawn = torch.randn(circuit.codes, 3, 2, 2, generator=torch.Generator().manual_seed(100), dtype=torch.float64)
    codebook = 0.6 * drawn / drawn.abs().amax((1, 2, 3), keepdim=True)
    codebook[:, :, 1, 1] *= 0.15
    return CircuitDenoiser(SCHEDULE, circuit, codebook=codebook, sigma=SIGMA, v=0.65)


def prior_of(world):
    mean = world.codebook.flatten(1)
    patches = PatchModel(mean=mean, variance=torch.full_like(mean, SIGMA**2), side=world.side, channels=world.shape[0])
    return TokenPrior(circuit=world.circuit, patches=patches)


def seen(world, *pixels):
    """An image of the world, seen at some pixels."""
    nothing = Problem(y=torch.zeros(1, *world.shape).double(), known=torch.zeros(1, 1, 4, 4, dtype=torch.bool))
    image = CircuitPosterior(world, nothing).draw(Noise([3], dtype=torch.float64), 1)[0]
    known = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    for row, column in pixels:
        known[0, 0, row, column] = True
    return Problem.observe(image, known)


def repeated(problem, count):
    return Problem(y=problem.y.expand(count, -1, -1, -1), known=problem.known.expand(count, -1, -1, -1))


def grids(circuit, problem, world):
    """p(grid | seen pixels), [V^N], from the enumeration of all grids and the normal law of each seen pixel."""
    codes, y, known = world.codebook.numpy(), problem.y[0].numpy(), problem.known[0, 0].numpy()
    log_w = np.zeros((4, circuit.codes))
    for row, column in zip(*np.nonzero(known), strict=True):
        token = 2 * (row // 2) + column // 2
        log_w[token] -= ((y[:, row, column] - codes[:, :, row % 2, column % 2]) ** 2).sum(1) / (2 * SIGMA**2)
    found = Enumeration(circuit)
    p = found.p * found.weights(np.exp(log_w - log_w.max(1, keepdims=True)))
    return p / p.sum()


def drawn(method, world, problem):
    """How often each grid was drawn, [V^N], read as the nearest code of every patch."""
    many = repeated(problem, COUNT)
    with torch.no_grad():
        x = many.paste(method(world, many, OneStream(5, COUNT)))
    codes = world.codebook.flatten(1)
    assert torch.cdist(codes, codes).fill_diagonal_(9.0).min() > 9 * SIGMA, "the nearest code must be the token"
    tokens = torch.cdist(world.patches(x), codes.expand(COUNT, -1, -1)).argmin(-1)
    flat = np.ravel_multi_index(tokens.numpy().T, (len(codes),) * 4)
    return np.bincount(flat, minlength=len(codes) ** 4).astype(float)


@pytest.mark.parametrize("name", CIRCUITS)
def test_steered_samples_have_the_enumerated_law(name):
    """And the same sampler without steering does not: it settles on a kind of image before the seen pixel counts."""
    circuit = CIRCUITS[name]()
    world, base = world_of(circuit), Blended(steps=STEPS)
    problem = seen(world, (1, 1))
    p = grids(circuit, problem, world)
    assert 1.0 - p.max() > 0.3, "several grids must stay possible"
    steered = Steered(base=base, steering=EXACT, prior=prior_of(world))
    assert chi_square(drawn(steered, world, problem), COUNT * p) > 1e-3
    plain = drawn(base, world, problem)
    possible = p > 0
    assert chi_square(plain[possible], plain[possible].sum() * p[possible]) < 1e-6


@pytest.mark.parametrize("name", ["2x2, quad-tree", "2x2, quad-tree, pruned, zeros", "2x2, chain"])
def test_the_steered_estimate_is_the_exact_one_at_every_time(name):
    """For three problems together: a patch seen in part, half the image, nothing."""
    world = world_of(make(name))
    one = seen(world, (0, 1))
    known = torch.cat([one.known, torch.zeros_like(one.known), torch.zeros_like(one.known)])
    known[1, 0, :, :2] = True
    problem = Problem.observe(seen(world, *((row, column) for row in range(4) for column in range(4))).y, known)
    exact = CircuitPosterior(world, problem)
    guide = Guide(EXACT, prior_of(world), problem, SCHEDULE, Noise([1, 2, 3], dtype=torch.float64))
    noise = Noise([4, 5, 6], dtype=torch.float64)
    for t in [*range(1, SCHEDULE.T, 5), SCHEDULE.T]:
        x_t = noise.normal(world.shape)
        found, expected = guide(world.denoise(x_t, t), x_t, t), exact.denoise(x_t, t)
        torch.testing.assert_close(found.x_0, expected.x_0, rtol=0, atol=1e-6)
        torch.testing.assert_close(SCHEDULE.diffuse(found.x_0, t, found.eps), x_t, rtol=0, atol=1e-9)
        assert torch.equal(found.v, torch.full_like(x_t, 0.65))


@pytest.mark.parametrize("mask", ["left", "expand1"])
@pytest.mark.parametrize("name", [name for name in WORLDS if WORLDS[name]().tokens])
def test_the_judges_worlds_are_steered_exactly(name, mask):
    """Also two particles for each problem; and the mixture of Gaussians, whose posterior knows nothing of circuits."""
    world = WORLDS[name]()
    law, problem, schedule = world.tokens, world.problem(mask), world.denoiser.schedule
    prior = TokenPrior(circuit=law.circuit, patches=PatchModel(mean=law.mean, variance=law.variance, side=GRID))
    guide = Guide(EXACT, prior, problem, schedule, Noise([1], dtype=torch.float64))
    exact, images, noise = (
        world.posterior(repeated(problem, 2)),
        world.images(2, seed=7),
        Noise([4, 5], dtype=torch.float64),
    )
    for t in (1, 20, 100, 300, 500, 700, 900, 1000):
        x_t = schedule.diffuse(images, t, noise.normal(world.denoiser.shape))
        found, expected = guide(world.denoiser.denoise(x_t, t), x_t, t), exact.denoise(x_t, t)
        torch.testing.assert_close(found.x_0, expected.x_0, rtol=0, atol=1e-6)


def test_mean_and_variance_at_the_last_time_are_those_of_the_posterior():
    """At t = T next to nothing of x_0 is left in x_t."""
    world = world_of(make("2x2, quad-tree"))
    problem = seen(world, (0, 1), (2, 0))
    exact = CircuitPosterior(world, problem)
    guide = Guide(EXACT, prior_of(world), problem, SCHEDULE, Noise([1], dtype=torch.float64))
    x_t = torch.zeros(1, *world.shape, dtype=torch.float64)
    found = guide.mix(x_t, SCHEDULE.T, x_t)
    hidden = ~problem.known.expand_as(x_t)
    torch.testing.assert_close(found.mean, exact.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.variance[hidden], exact.variance[hidden], rtol=1e-3, atol=1e-4)
