"""What the strip keeps of a walk, and which times and rows it shows; the stage itself runs in test_seams."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.experiment.strip import Onlooker, shown_row, spread
from pipeline.problem import Problem
from pipeline.steering.fusion import Normal
from pipeline.steering.settings import PRESETS


@pytest.mark.parametrize(
    ("times", "count", "shown"),
    [
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], 5, [9, 7, 5, 3, 1]),
        ([9, 8, 7], 5, [9, 8, 7]),
        ([9, 8, 7, 6], 3, [9, 7, 6]),
        ([9, 8], 1, [9]),
        ([], 5, []),
    ],
)
def test_times_are_spread_over_those_that_are_steered(times, count, shown):
    assert spread(times, count) == shown


def test_an_onlooker_keeps_the_first_particle_of_the_first_visit():
    x_0 = torch.linspace(-1, 1, 2 * 3 * 4 * 4).view(2, 3, 4, 4)
    known = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    known[..., :2] = True
    seen = Onlooker(Problem.observe(x_0, known))
    particles = [torch.full((6, 3, 4, 4), float(k)) + torch.arange(6.0).view(6, 1, 1, 1) / 10 for k in range(3)]
    seen.look(7, *(Normal(mean=mean, variance=torch.ones_like(mean)) for mean in particles))
    seen.look(7, *(Normal(mean=mean + 1, variance=torch.ones_like(mean)) for mean in particles))
    assert list(seen.views) == [7]
    network, circuit, mixture = seen.views[7]
    torch.testing.assert_close(network[:, 0, 0, 0], torch.tensor([0.0, 0.3]))
    torch.testing.assert_close(circuit, particles[1][::3])
    torch.testing.assert_close(mixture, torch.where(known, x_0, particles[2][::3]))
    assert particles[2].eq(particles[2][:, :1, :1, :1]).all()  # what was shown is left alone


def rows(**presets):
    steered = {name: SimpleNamespace(steering=PRESETS[preset]) for name, preset in presets.items()}
    return SimpleNamespace(sweep=SimpleNamespace(steered=list(presets)), row=steered.__getitem__)


def test_the_first_row_that_mixes_is_shown():
    assert shown_row(rows(a="released", b="paper", c="ours")) == "b"
    assert shown_row(rows(a="released")) is None
    assert shown_row(rows()) is None
