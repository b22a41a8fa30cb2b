"""RePaint: where it turns, and what it becomes without jumps."""

import pytest
import torch

from golden import tape
from pipeline.errors import ConfigError
from pipeline.methods.blended import Blended
from pipeline.methods.repaint import RePaint
from pipeline.noise import Noise

torch.set_num_threads(1)

SHAPE = (3, 16, 16)


class Ordered:
    """Given draws, as they come."""

    def __init__(self, draws):
        self.draws = iter(draws)

    def normal(self, shape):
        return next(self.draws)


@pytest.mark.parametrize(("kernel", "eta"), [("ancestral", 0.0), ("ddim", 0.0), ("ddim", 0.7)])
def test_without_jumps_it_is_replacement(kernel, eta):
    """Blended with the same noise: it draws seen noise before z, and at the first level too, which goes into x_T."""
    steps, problem, source = 30, tape.problem(), Noise([1, 2], dtype=torch.float64)
    x_T, *rest = [source.normal(SHAPE) for _ in range(2 * steps + 1)]
    seen, z = rest[::2], rest[1::2]
    first = torch.where(problem.known, tape.denoiser().schedule.diffuse(problem.y, 1000, seen[0]), x_T)
    order = [first, z[0]] + [draw for k in range(1, steps) for draw in (z[k], seen[k])]
    with torch.no_grad():
        blended = Blended(steps=steps, kernel=kernel, eta=eta)(tape.denoiser(), problem, Ordered([x_T, *rest]))
        repaint = RePaint(steps=steps, repeats=1, kernel=kernel, eta=eta)(tape.denoiser(), problem, Ordered(order))
    assert torch.equal(blended, repaint)


def test_a_walk_turns_at_multiples_of_the_jump():
    moves = RePaint(steps=60, jump=10, repeats=4).moves()
    assert moves[0] == (59, 58)
    assert moves[-1] == (0, -1)
    assert all(abs(i - j) == 1 for i, j in moves)
    assert all(moves[k][1] == moves[k + 1][0] for k in range(len(moves) - 1))
    starts = [i for k, (i, j) in enumerate(moves) if j > i and moves[k - 1][1] < moves[k - 1][0]]
    assert starts == [level for level in (40, 30, 20, 10, 0) for _ in range(3)]
    assert sum(j > i for i, j in moves) == 5 * 3 * 10


def test_jumps_can_be_kept_to_the_clean_end():
    moves = RePaint(steps=60, jump=10, repeats=4, jump_share=0.5).moves()
    assert moves[:31] == [(i, i - 1) for i in range(59, 28, -1)]
    assert max(j for i, j in moves if j > i) == 20
    assert RePaint(steps=60, jump_share=1.0).moves() == RePaint(steps=60).moves()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"jump": 0}, "jump must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"eta": 1.5}, "eta must be between 0 and 1"),
        ({"jump_share": -0.1}, "jump_share must be between 0 and 1"),
        ({"steps": 10}, "jump must be below the 10 levels"),
        ({"jump_share": 0.02}, "jump must be below the 5 levels"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        RePaint(**settings)
    assert RePaint(steps=5, repeats=1).nfe() == 5
