"""Resampling: its trajectories, weights and copies."""

import math
from dataclasses import replace

import pytest
import torch

from golden import tape
from pipeline.errors import ConfigError
from pipeline.methods.blended import Blended
from pipeline.methods.resampling import PRESETS, Resampling, residual, systematic
from pipeline.noise import Noise
from pipeline.oracles.mixture import MixturePosterior
from pipeline.problem import Problem

torch.set_num_threads(1)

SHAPE = (3, 16, 16)


class Ordered:
    """Given normal numbers, as they come, with or without an axis for one particle per image."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def normal(self, shape):
        return next(self.draws).view(2, *shape)

    def uniform(self, shape):
        return torch.full((2, *shape), 0.5, dtype=torch.float64)

    def choice(self, weights, n):
        return torch.zeros(len(weights), n, dtype=torch.int64)


def states(method, problem):
    """What a method asks about at each step, [steps][B, P, C, H, W]."""
    asked, count = tape.Recorded(tape.denoiser()), len(problem)
    with torch.no_grad():
        method(asked, problem, Noise(range(count), dtype=torch.float64))
    return [x_t.unflatten(0, (count, method.particles)) for x_t in asked.states], asked.times


def test_one_particle_is_replacement():
    """Blended without a learned variance and with the same noise; Blended draws no seen noise for the clean image."""
    steps, problem, source = 30, tape.problem(), Noise([1, 2], dtype=torch.float64)
    draws = [source.normal(SHAPE) for _ in range(2 * steps + 1)]
    seen, z, unused = draws[1::2], draws[2::2], draws[0]
    order = [draws[0], seen[0]] + [draw for k in range(steps) for draw in ([*seen, unused][k + 1], z[k])]
    prior = tape.denoiser()
    prior.v = None
    with torch.no_grad():
        blended = Blended(steps=steps)(prior, problem, Ordered(draws))
        one = Resampling(steps=steps, particles=1, path="independent")(prior, problem, Ordered(order))
    assert float((blended - one).abs().max()) < 1e-12


@pytest.mark.parametrize("path", ["ancestral", "independent"])
def test_seen_pixels_follow_one_trajectory_of_the_forward_process(path):
    x_0 = tape.problem(batch=8).y
    everything = Problem.observe(x_0, torch.ones(8, 1, 16, 16, dtype=torch.bool))
    asked, times = states(Resampling(steps=40, particles=2, path=path), everything)
    alpha_bar = tape.denoiser().schedule.alpha_bar
    noise = []
    for x_t, t in zip(asked, times, strict=True):
        assert torch.equal(x_t[:, 0], x_t[:, 1])
        noise.append((x_t[:, 0] - math.sqrt(alpha_bar[t]) * x_0) / math.sqrt(1 - alpha_bar[t]))
    for k in range(0, 39, 6):
        a, b = alpha_bar[times[k]], alpha_bar[times[k + 1]]
        expected = math.sqrt(a / b * (1 - b) / (1 - a)) if path == "ancestral" else 0.0
        assert abs(float(noise[k].square().mean()) - 1) < 0.09  # 5 sqrt(2 / 6144)
        assert abs(float((noise[k] * noise[k + 1]).mean()) - expected) < 0.09


WEIGHTS = torch.tensor([0.52, 0.0, 0.08, 0.3, 0.1], dtype=torch.float64)


def copies(parents):
    return torch.nn.functional.one_hot(parents, 5).sum(1).double()


@pytest.mark.parametrize("scheme", ["systematic", "residual", "residual_distinct"])
def test_copies_are_as_many_as_weights_ask_for(scheme):
    rows, generator = 20000, torch.Generator().manual_seed(0)
    numbers = torch.rand(rows, 5, generator=generator, dtype=torch.float64)
    weights = WEIGHTS.expand(rows, 5)
    if scheme == "systematic":
        counted = copies(systematic(weights, numbers[:, :1]))
    else:
        counted = copies(residual(weights, numbers, distinct=scheme == "residual_distinct"))
    assert (counted.sum(1) == 5).all()
    assert (counted[:, 1] == 0).all()
    assert (counted >= torch.floor(5 * WEIGHTS + 1e-9)).all()
    if scheme != "residual":
        assert (counted <= torch.ceil(5 * WEIGHTS - 1e-9)).all()
    if scheme != "residual_distinct":
        assert float((counted.mean(0) - 5 * WEIGHTS).abs().max()) < 0.03


def test_equal_weights_copy_nobody():
    weights = torch.full((1, 8), 0.125, dtype=torch.float64)
    numbers = torch.rand(1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for parents in (systematic(weights, numbers[:, :1]), residual(weights, numbers, distinct=True)):
        assert torch.equal(parents[0], torch.arange(8))


def test_the_threshold_decides_whether_particles_are_copied():
    """Hidden pixels of a walk whose steps are lost show whose copy a particle is."""
    lost = replace(PRESETS["copaint_repo"], steps=40)
    hidden = ~tape.problem().known[0, 0]
    never = states(replace(lost, threshold=0.0), tape.problem())[0]
    assert all(torch.equal(x_t[..., hidden], never[0][..., hidden]) for x_t in never)
    always = states(lost, tape.problem())[0]
    start, end = always[0][..., hidden].flatten(2), always[-1][..., hidden].flatten(2)
    match = (end[:, :, None] == start[:, None]).all(-1)  # [B, P, P]
    assert (match.sum(2) == 1).all()
    assert (match.any(1).sum(1) < 10).all()


def test_completions_are_of_the_kinds_that_were_seen():
    """Four kinds of image, of which two have the seen left half."""
    problem = tape.problem(batch=2)
    with torch.no_grad():
        x = Resampling(steps=60)(tape.denoiser(), problem, Noise([0, 1], dtype=torch.float64))
    modes = MixturePosterior(tape.denoiser(), problem).recognise(problem.paste(x))
    assert float(modes[:, :2].sum(1).min()) > 0.999


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 1, "stop": "first_level"}, "steps must be at least 2"),
        ({"particles": 0}, "particles must be at least 1"),
        ({"threshold": 1.1}, "threshold must be between 0 and 1"),
        ({"kernel": "ddim"}, "weighting 'likelihood' needs kernel 'ancestral'"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        Resampling(**settings)


def test_evaluations_are_those_of_all_particles():
    assert Resampling().nfe() == 2500
    assert PRESETS["copaint_repo"].nfe() == 2490
