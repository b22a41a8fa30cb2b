"""The worlds that methods are judged in: what their problems are like, and that exact sampling solves them."""

import pytest
import torch

from pipeline.diffusion.sampling import sample
from pipeline.methods.blended import Blended
from pipeline.noise import Noise
from pipeline.oracles.distances import Judge
from pipeline.oracles.worlds import WORLDS
from pipeline.problem import Problem

torch.set_num_threads(1)

every_world = pytest.mark.parametrize("name", WORLDS)
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
