"""The worlds that methods are judged in: what their problems are like, and that exact sampling solves them."""

import pytest
import torch

from pipeline.circuit.queries import log_prob, posterior
from pipeline.diffusion.sampling import sample
from pipeline.methods.blended import Blended
from pipeline.noise import Noise
from pipeline.oracles.distances import Judge
from pipeline.oracles.worlds import GRID, WEIGHTS, WORLDS
from pipeline.problem import Problem
from pipeline.steering.patches import PatchModel

torch.set_num_threads(1)

every_world = pytest.mark.parametrize("name", WORLDS)
every_circuit = pytest.mark.parametrize("name", [name for name in WORLDS if WORLDS[name]().tokens])
every_mask = pytest.mark.parametrize("mask", ["left", "expand1"])


@every_world
def test_a_world_is_always_the_same(name):
    first, again = WORLDS[name](), WORLDS[name]()
    assert torch.equal(first.problem("left").y, again.problem("left").y)
    x_t = first.images(2, seed=5)
    assert torch.equal(first.denoiser.denoise(x_t, 300).x_0, again.denoiser.denoise(x_t, 300).x_0)


@every_world
def test_images_stay_where_clipping_does_not_reach(name):
    images = WORLDS[name]().images(500, seed=3)
    assert images.shape == (500, 3, 16, 16)
    assert float((images.abs() > 1).double().mean()) < 1e-3


@every_mask
@every_world
def test_what_is_seen_leaves_several_kinds_possible(name, mask):
    world = WORLDS[name]()
    problem = world.problem(mask)
    modes = world.posterior(problem).modes[0]
    assert float(modes.max()) < 0.9
    assert float(modes.sort().values[-2]) > 0.1
    assert int(problem.known.sum()) == {"left": 128, "expand1": 16}[mask]


@every_world
def test_nothing_known_leaves_all_kinds_as_likely_as_they_are(name):
    """Shares among 500 images, recognised one by one, within five standard errors."""
    world = WORLDS[name]()
    nothing = Problem.observe(world.images(1, seed=0), torch.zeros(1, 1, 16, 16, dtype=torch.bool))
    posterior = world.posterior(nothing)
    shares = posterior.recognise(world.images(500, seed=4)).mean(0)
    assert float((shares - posterior.modes[0]).abs().max()) < 5 * 0.5 / 500**0.5


@every_mask
@every_world
def test_the_exact_conditional_denoiser_reaches_the_floor(name, mask):
    """And plain replacement does not, on small evidence."""
    world, n = WORLDS[name](), 48
    problem = world.problem(mask)
    posterior = world.posterior(problem)
    judge = Judge(posterior, reference=2048)
    floor = torch.tensor([verdict.sliced_w2 for verdict in judge.floor(n, 16)])
    with torch.no_grad():
        walked = sample(posterior, Noise(range(n), dtype=torch.float64), 100)
        many = Problem(y=problem.y.expand(n, -1, -1, -1), known=problem.known.expand(n, -1, -1, -1))
        replaced = Blended(steps=50)(world.denoiser, many, Noise(range(n), dtype=torch.float64))
    assert judge.judge(walked).sliced_w2 < 1.3 * float(floor.mean())
    if mask == "expand1":
        assert judge.judge(replaced).sliced_w2 > 2 * float(floor.mean())


@every_circuit
def test_the_law_of_the_tokens_is_that_of_the_images(name):
    """Circuit and patches give the world's E[x_0 | x_t] at all times, and the spread of its images."""
    world = WORLDS[name]()
    law, schedule, x_t = world.tokens, world.denoiser.schedule, world.images(4, seed=5)
    patches = PatchModel(mean=law.mean, variance=law.variance, side=GRID)
    nothing = Problem(y=torch.zeros_like(x_t), known=torch.zeros(4, 1, 16, 16, dtype=torch.bool))
    for t in (1, 30, 300, 700, 1000):
        a = float(schedule.alpha_bar[t])
        marginals = posterior(law.circuit, patches.log_evidence(x_t, a, nothing)).marginals
        found, exact = patches.estimate(x_t, a, marginals, nothing), world.denoiser.denoise(x_t, t).x_0
        torch.testing.assert_close(found.mean, exact, rtol=0, atol=1e-10)
    clean = world.posterior(nothing)
    torch.testing.assert_close(found.variance, clean.variance, rtol=0.05, atol=0)  # at t = T, where x_t says little


def test_every_circuit_is_told_from_the_mixture_that_is_none():
    assert [name for name in WORLDS if WORLDS[name]().tokens] == ["circuit", "axis"]


def test_the_axis_world_is_a_mixture_of_axis_aligned_gaussians():
    """One pixel for each direction of its covariance, and a circuit that rules out all but one grid for each kind."""
    world = WORLDS["axis"]()
    basis, law = world.denoiser.basis, world.tokens
    assert torch.equal(basis.sort(0).values[-1], torch.ones(24).double())
    assert float(basis.sum()) == 24.0
    assert not law.circuit.is_safe
    kinds = torch.arange(len(WEIGHTS))[:, None].expand(-1, GRID**2)
    torch.testing.assert_close(log_prob(law.circuit, kinds).exp(), torch.tensor(WEIGHTS).double())
    other = kinds.clone()
    other[:, 3] = (other[:, 3] + 1) % len(WEIGHTS)
    assert bool(log_prob(law.circuit, other).isneginf().all())


def test_the_axis_world_s_example_is_the_first_whose_centre_overturns_what_was_likeliest():
    world = WORLDS["axis"]()
    known = world.problem("expand1").known
    problems = Problem.observe(world.images(24, seed=1), known.expand(24, -1, -1, -1))
    likeliest = world.posterior(problems).modes.argmax(1)
    assert int((likeliest != 0).nonzero()[0]) == world.example
