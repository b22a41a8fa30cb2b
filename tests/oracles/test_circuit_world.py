"""The circuit's images against the enumeration of all token grids, Tweedie's formula, and finite differences."""

import math

import numpy as np
import pytest
import torch

from circuit.worlds import enumerated, make
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.regions import latent_tree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.diffusion.denoiser import Counted
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError, InputError
from pipeline.noise import Noise
from pipeline.oracles.circuit_world import CircuitDenoiser, CircuitPosterior
from pipeline.problem import Problem

torch.set_num_threads(1)

SCHEDULE, SIGMA, CHANNELS, PATCH = Schedule.linear(), 0.3, 2, 2
TIMES = [1, 50, 300, 700, 1000]
SAFE = ["2x2, quad-tree", "2x2, quad-tree, shared", "2x2, quad-tree, pruned", "2x2, chain", "2x2, one state"]
ZEROS = ["2x2, quad-tree, pruned, zeros", "2x2, star, shared, zeros"]
LARGE = ["4x4, quad-tree", "4x4, random tree"]
every_world = pytest.mark.parametrize("name", [*SAFE, *ZEROS, *LARGE])
small_world = pytest.mark.parametrize("name", [*SAFE, *ZEROS])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def denoiser(name, sigma=SIGMA, v=None):
    """Patches of 2x2 pixels with two channels, not too far apart, so that several grids stay possible."""
    circuit = make(name)
    codebook = 0.4 * draw(circuit.codes, CHANNELS, PATCH, PATCH, seed=1)
    return CircuitDenoiser(SCHEDULE, circuit, codebook=codebook, sigma=sigma, v=v)


def painted(world, tokens):
    """Images of token grids [M, N], patch by patch, [M, C, H, W] as numpy."""
    side, codebook = world.side, world.codebook.numpy()
    out = np.zeros((len(tokens), *world.shape))
    for i in range(side * side):
        row, column = PATCH * (i // side), PATCH * (i % side)
        out[:, :, row : row + PATCH, column : column + PATCH] = codebook[tokens[:, i]]
    return out


class Truth:
    """Every grid of a world, its image and its probability."""

    def __init__(self, name, world):
        found = enumerated(name)
        self.p, self.images = found.p, painted(world, found.tokens)
        shares = [found.joint[found.states[:, 0] == h].sum(0) for h in range(len(world.circuit.root))]
        self.root_given_grid = np.stack(shares, 1) / np.where(found.p > 0, found.p, 1.0)[:, None]

    def log_weights(self, x, scale, variance, seen=None):
        """Log of p(grid) N(x; scale image, variance) over the seen pixels, [M]."""
        square = (x - scale * self.images) ** 2
        square = square if seen is None else np.where(seen, square, 0.0)
        count = square[0].size if seen is None else seen.sum()
        with np.errstate(divide="ignore"):
            log_p = np.log(self.p)
        return log_p - 0.5 * square.sum((1, 2, 3)) / variance - 0.5 * count * math.log(2 * math.pi * variance)


def normalised(log_weights):
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def noisy(t):
    a = SCHEDULE.alpha_bar[t]
    return math.sqrt(a), a * SIGMA**2 + 1 - a


def masks(world):
    """A pixel, half a patch and all but a pixel: patches known in part; and nothing, and everything."""
    known = torch.zeros(5, 1, *world.shape[1:], dtype=torch.bool)
    known[0, 0, 1, 2] = True
    known[1, 0, :, :3] = True
    known[2:4] = True
    known[2, 0, 0, 0] = False
    known[3] = False
    known[4] = True
    return known


def problems(world):
    """Images of random pixels: no grid's, so that all of them stay possible."""
    return Problem.observe(0.4 * draw(5, *world.shape, seed=2), masks(world))


def test_cutting_and_putting_together_are_inverse():
    world = denoiser("4x4, quad-tree")
    x = draw(3, *world.shape)
    patches = world.patches(x)
    assert patches.shape == (3, 16, 8)
    assert torch.equal(world.picture(patches), x)
    assert torch.equal(patches[1, 6], x[1, :, 2:4, 4:6].flatten())  # token 6 is at row 1, column 2


@pytest.mark.parametrize("t", TIMES)
@every_world
def test_the_estimate_is_the_enumerated_mean(name, t):
    """Also by the differentiable way."""
    world = denoiser(name)
    truth, x_t = Truth(name, world), draw(3, *world.shape, seed=3)
    scale, variance = noisy(t)
    plain, traced = world.denoise(x_t, t), world.denoise(x_t.clone().requires_grad_(), t)
    for k in range(3):
        p = normalised(truth.log_weights(x_t[k].numpy(), scale, variance))
        gain = scale * SIGMA**2 / variance
        means = truth.images + gain * (x_t[k].numpy() - scale * truth.images)
        exact = np.tensordot(p, means, 1)
        np.testing.assert_allclose(plain.x_0[k].numpy(), exact, rtol=0, atol=1e-10)
        np.testing.assert_allclose(traced.x_0[k].detach().numpy(), exact, rtol=0, atol=1e-10)
    torch.testing.assert_close(SCHEDULE.diffuse(plain.x_0, t, plain.eps), x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0, *TIMES])
@every_world
def test_the_log_density_is_the_enumerated_one(name, t):
    world = denoiser(name)
    truth, x_t = Truth(name, world), draw(2, *world.shape, seed=3)
    found = world.log_density(x_t, t)
    for k in range(2):
        exact = np.logaddexp.reduce(truth.log_weights(x_t[k].numpy(), *noisy(t)))
        assert abs(float(found[k]) - exact) < 1e-10 * max(1.0, abs(exact))


@pytest.mark.parametrize("t", TIMES)
@every_world
def test_tweedie(name, t):
    """x_0 = (x_t + (1 - a) d log p(x_t) / d x_t) / sqrt(a)."""
    world, a = denoiser(name), float(SCHEDULE.alpha_bar[t])
    x_t = draw(3, *world.shape, seed=3).requires_grad_()
    (score,) = torch.autograd.grad(world.log_density(x_t, t).sum(), x_t)
    formula = (x_t + (1 - a) * score) / math.sqrt(a)
    torch.testing.assert_close(world.denoise(x_t.detach(), t).x_0, formula.detach(), rtol=0, atol=1e-10 / math.sqrt(a))


@pytest.mark.parametrize("t", [50, 500])
@small_world
def test_the_estimate_is_differentiable_and_right_to_first_order(name, t):
    world = denoiser(name)
    x_t = draw(2, *world.shape, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: world.denoise(x, t).x_0, (x_t,))


@pytest.mark.parametrize("t", [1, 300])
def test_the_derivative_is_the_posterior_covariance(t):
    """d E[x_0 | x_t] / d x_t = sqrt(a) / (1 - a) Cov[x_0 | x_t], from the enumeration."""
    name = "2x2, quad-tree"
    world = denoiser(name)
    truth, a = Truth(name, world), SCHEDULE.alpha_bar[t]
    x_t = 0.3 * draw(1, *world.shape, seed=3)
    scale, variance = noisy(t)
    p = normalised(truth.log_weights(x_t[0].numpy(), scale, variance))
    flat = (1 - scale**2 * SIGMA**2 / variance) * truth.images.reshape(len(p), -1)
    covariance = (p[:, None] * flat).T @ flat - np.outer(p @ flat, p @ flat)
    covariance += np.eye(flat.shape[1]) * SIGMA**2 * (1 - a) / variance
    found = torch.autograd.functional.jacobian(lambda x: world.denoise(x, t).x_0, x_t).reshape(covariance.shape)
    np.testing.assert_allclose(found.numpy(), scale / (1 - a) * covariance, rtol=1e-9, atol=1e-10)


@every_world
def test_the_posterior_is_the_enumerated_one(name):
    """Mean, variance and the state of the root, with patches known in part, under all masks."""
    world = denoiser(name)
    truth, problem = Truth(name, world), problems(world)
    found = CircuitPosterior(world, problem)
    for k in range(5):
        known = np.broadcast_to(problem.known[k].numpy(), world.shape)
        p = normalised(truth.log_weights(problem.y[k].numpy(), 1.0, SIGMA**2, known))
        mean = np.tensordot(p, truth.images, 1)
        variance = np.tensordot(p, (truth.images - mean) ** 2, 1) + SIGMA**2
        np.testing.assert_allclose(found.mean[k].numpy(), np.where(known, problem.y[k], mean), rtol=0, atol=1e-11)
        np.testing.assert_allclose(found.variance[k].numpy(), np.where(known, 0.0, variance), rtol=0, atol=1e-11)
        np.testing.assert_allclose(found.modes[k].numpy(), p @ truth.root_given_grid, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["2x2, quad-tree", "2x2, quad-tree, pruned, zeros"])
def test_draws_have_the_enumerated_mean_and_covariance(name):
    """Within five standard errors of 40000 draws, in every entry."""
    world, count = denoiser(name), 40_000
    truth, problem = Truth(name, world), problems(world)
    drawn = CircuitPosterior(world, problem).draw(Noise(range(5), dtype=torch.float64), count).flatten(2).numpy()
    for k in range(5):
        known = np.broadcast_to(problem.known[k].numpy(), world.shape)
        p = normalised(truth.log_weights(problem.y[k].numpy(), 1.0, SIGMA**2, known))
        grids = np.where(known, problem.y[k].numpy(), truth.images).reshape(len(p), -1)
        mean = p @ grids
        covariance = (p[:, None] * grids).T @ grids - np.outer(mean, mean) + np.diag(SIGMA**2 * ~known.ravel())
        spread = np.sqrt(covariance.diagonal().clip(0))
        assert (np.abs(drawn[k].mean(0) - mean) <= 5 * spread / math.sqrt(count) + 1e-12).all()
        error = np.abs(np.cov(drawn[k].T) - covariance)
        assert (error <= 5 * math.sqrt(2) * np.outer(spread, spread) / math.sqrt(count) + 1e-12).all()


@pytest.mark.parametrize("t", TIMES)
@small_world
def test_the_conditional_denoiser_is_the_enumerated_mean(name, t):
    world = denoiser(name)
    truth, problem, x_t = Truth(name, world), problems(world), draw(5, *world.shape, seed=3)
    scale, variance = noisy(t)
    found = CircuitPosterior(world, problem).denoise(x_t, t).x_0
    for k in range(5):
        known = np.broadcast_to(problem.known[k].numpy(), world.shape)
        log_weights = truth.log_weights(problem.y[k].numpy(), 1.0, SIGMA**2, known)
        clean = np.zeros_like(truth.p)
        clean[truth.p > 0] = np.log(truth.p[truth.p > 0])  # the probability of a grid must count once
        log_weights = log_weights + truth.log_weights(x_t[k].numpy(), scale, variance, ~known) - clean
        means = truth.images + scale * SIGMA**2 / variance * (x_t[k].numpy() - scale * truth.images)
        exact = np.where(known, problem.y[k], np.tensordot(normalised(log_weights), means, 1))
        np.testing.assert_allclose(found[k].numpy(), exact, rtol=0, atol=1e-10)


def test_nothing_known_gives_the_prior_s_denoiser():
    world = denoiser("4x4, quad-tree", v=0.65)
    x_t = draw(2, *world.shape)
    nothing = Problem(y=torch.zeros_like(x_t), known=torch.zeros(2, 1, 8, 8, dtype=torch.bool))
    ours, theirs = CircuitPosterior(world, nothing).denoise(x_t, 300), world.denoise(x_t, 300)
    torch.testing.assert_close(ours.x_0, theirs.x_0, rtol=0, atol=1e-12)
    assert torch.equal(ours.v, torch.full_like(x_t, 0.65))


def test_known_pixels_are_exact():
    world = denoiser("2x2, quad-tree")
    problem = problems(world)
    found = CircuitPosterior(world, problem)
    denoised = found.denoise(draw(5, *world.shape), 300).x_0
    for x in (found.mean, denoised, *found.draw(Noise(range(5), dtype=torch.float64), 4).unbind(1)):
        assert torch.equal(problem.paste(x), x)


@small_world
def test_recognising_is_bayes_rule(name):
    world = denoiser(name)
    truth, x = Truth(name, world), 0.4 * draw(3, *world.shape, seed=5)
    found = CircuitPosterior(world, problems(world)).recognise(x)
    for k in range(3):
        p = normalised(truth.log_weights(x[k].numpy(), 1.0, SIGMA**2))
        np.testing.assert_allclose(found[k].numpy(), p @ truth.root_given_grid, rtol=0, atol=1e-11)


def test_far_from_every_patch_estimate_and_gradient_stay_finite():
    world = denoiser("2x2, quad-tree", sigma=0.01)
    x_t = (1e3 * draw(2, *world.shape)).requires_grad_()
    estimate = world.denoise(x_t, 1).x_0
    (gradient,) = torch.autograd.grad(estimate.sum(), x_t)
    assert torch.isfinite(estimate).all()
    assert torch.isfinite(gradient).all()


def test_one_gradient_counts_as_one_backward_pass():
    """The estimate is itself a derivative inside the world; that one must not be counted."""
    counted = Counted(denoiser("2x2, quad-tree"))
    x_t = draw(3, *counted.shape).requires_grad_()
    estimate = counted.denoise(x_t, 300).x_0
    assert (counted.forwards, counted.backwards) == (3, 0)
    estimate.sum().backward()
    assert (counted.forwards, counted.backwards) == (3, 3)


def test_without_gradients_none_are_recorded():
    world = denoiser("2x2, quad-tree")
    with torch.no_grad():
        assert not world.denoise(draw(1, *world.shape).requires_grad_(), 300).x_0.requires_grad


def test_an_image_does_not_depend_on_its_batch():
    world = denoiser("4x4, quad-tree")
    x_t = draw(4, *world.shape)
    together = world.denoise(x_t, 300).x_0
    alone = torch.cat([world.denoise(x, 300).x_0 for x in x_t.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


def test_format_shape_and_variance_are_passed_through():
    world = denoiser("2x2, quad-tree", v=0.65)
    assert (world.shape, world.schedule) == ((2, 4, 4), SCHEDULE)
    x_t = draw(2, *world.shape)
    single, double = world.denoise(x_t.float(), 300), world.denoise(x_t, 300)
    assert single.x_0.dtype == single.eps.dtype == single.v.dtype == torch.float32
    assert torch.equal(single.v, torch.full((2, 2, 4, 4), 0.65))
    assert denoiser("2x2, quad-tree").denoise(x_t, 300).v is None
    torch.testing.assert_close(single.x_0.double(), double.x_0, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused():
    line = Circuit(latent_tree([-1], [0, 0]), states=2, vocabulary=Vocabulary.full(3))
    square, codebook = make("2x2, quad-tree"), torch.zeros(4, 2, 2, 2)
    with pytest.raises(ConfigError, match="square grid of tokens, but the circuit has 2"):
        CircuitDenoiser(SCHEDULE, line, codebook=torch.zeros(3, 2, 2, 2), sigma=0.1)
    for wrong in (torch.zeros(5, 2, 2, 2), torch.zeros(4, 8), torch.zeros(4, 2, 2, 3)):
        with pytest.raises(ConfigError, match=r"expected a codebook \[4, C, p, p\]"):
            CircuitDenoiser(SCHEDULE, square, codebook=wrong, sigma=0.1)
    with pytest.raises(ConfigError, match="sigma must be above 0, but is 0"):
        CircuitDenoiser(SCHEDULE, square, codebook=codebook, sigma=0)
    with pytest.raises(InputError, match=r"expected images \(2, 4, 4\)"):
        world = CircuitDenoiser(SCHEDULE, square, codebook=codebook, sigma=0.1)
        CircuitPosterior(world, Problem(y=torch.zeros(1, 2, 6, 6), known=torch.ones(1, 1, 6, 6, dtype=torch.bool)))
