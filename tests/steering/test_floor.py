"""What keeps a method from the exact posterior although its estimates are exact, and that it is there without it."""

from dataclasses import replace

import pytest
import torch

from benchmarks.posterior import steered
from pipeline.methods import PRESETS
from pipeline.noise import Noise
from pipeline.oracles.distances import Judge
from pipeline.oracles.worlds import WORLDS
from pipeline.problem import Problem

torch.set_num_threads(1)

DRAWS = 64
SPOILED = {
    "the gradient of DPS counts the known pixels twice": ("circuit", "expand1", ("dps", "small"), {"zeta": 0.0}),
    "DDNM draws more noise than its steps take away": ("axis", "expand1", ("ddnm", "paper"), {"eta": 0.0}),
}


@pytest.mark.parametrize("reason", SPOILED)
def test_a_part_of_the_sampler_keeps_it_from_the_floor(reason):
    name, mask, (method, preset), change = SPOILED[reason]
    world = WORLDS[name]()
    problem = world.problem(mask)
    many = Problem(y=problem.y.expand(DRAWS, -1, -1, -1), known=problem.known.expand(DRAWS, -1, -1, -1))
    judge, base = Judge(world.posterior(problem), reference=4096), PRESETS[method][preset]
    floor = sum(verdict.sliced_w2 for verdict in judge.floor(DRAWS, 16)) / 16
    with torch.no_grad():
        before, after = (
            judge.judge(steered(one, world)(world.denoiser, many, Noise(range(DRAWS), dtype=torch.float64)))
            for one in (base, replace(base, **change))
        )
    assert after.sliced_w2 < 1.2 * floor < before.sliced_w2
