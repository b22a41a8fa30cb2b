"""The distance against brute force, and the judge against samples whose faults are known."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.oracles.distances import MEASURES, Judge, SlicedWasserstein, Verdict, interval
from pipeline.oracles.worlds import WORLDS
from pipeline.problem import Problem

torch.set_num_threads(1)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(distance, samples, reference):
    """W2 of two samples by repeating each until there are equally many of both."""
    total = math.lcm(len(samples), len(reference))
    squares = []
    for direction in distance.directions.T:
        rows = [np.sort(np.repeat((x @ direction).numpy(), total // len(x))) for x in (samples, reference)]
        squares.append(((rows[0] - rows[1]) ** 2).mean())
    return math.sqrt(np.mean(squares))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (6, 9), (9, 6), (7, 24), (24, 7), (1, 10), (10, 1), (96, 100)])
def test_the_distance_is_that_of_quantile_functions(n, m):
    samples, reference = draw(n, 3), 1.5 * draw(m, 3, seed=1) + 0.3
    distance = SlicedWasserstein(reference, projections=16)
    assert distance(samples) == pytest.approx(brute_force(distance, samples, reference), rel=1e-9)


def test_directions_are_unit_vectors_from_the_seed():
    reference = draw(10, 5)
    first, again, other = (SlicedWasserstein(reference, seed=seed).directions for seed in (0, 0, 1))
    assert first.shape == (5, 256)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(256, dtype=torch.float64))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_sample_is_at_no_distance_from_itself_and_a_shift_is_seen_in_full():
    reference = draw(50, 4)
    distance, shift = SlicedWasserstein(reference), draw(4, seed=1)
    assert distance(reference.flip(0)) < 1e-7  # the root of a rounding error
    seen = float((shift @ distance.directions).square().mean().sqrt())
    assert distance(reference + shift) == pytest.approx(seen, rel=1e-9)


def test_a_gaussian_and_a_wider_one_are_as_far_apart_as_their_spreads():
    """W2 of N(0, 1) and N(0, 4) is 1 along every direction; 40000 samples come within a hundredth."""
    assert SlicedWasserstein(2 * draw(40_000, 2, seed=1), projections=8)(draw(40_000, 2)) == pytest.approx(1, abs=0.02)


@pytest.fixture(scope="module", params=WORLDS)
def judge(request):
    world = WORLDS[request.param]()
    return Judge(world.posterior(world.problem("left")), reference=2048)


def values(verdicts, name):
    return torch.tensor([getattr(v, name) for v in verdicts])


def test_exact_draws_are_at_the_floor(judge):
    floor = judge.floor(96, 20)
    verdict = judge.judge(judge.exact(96, 1000))
    for name in MEASURES:
        found = values(floor, name)
        assert abs(getattr(verdict, name) - float(found.mean())) <= 5 * float(found.std()) + 1e-12, name
    assert float(values(floor, "sd_ratio").mean()) == pytest.approx(1, abs=0.03)
    assert float(values(floor, "known_error").max()) == 0.0


def test_the_floor_falls_with_the_number_of_draws(judge):
    few, many = (values(judge.floor(n, 8), "sliced_w2").mean() for n in (25, 400))
    assert float(few / many) > 2.5  # as 1 / sqrt(n), up to the reference's own error


def test_samples_that_are_too_narrow_are_told(judge):
    mean = judge.posterior.mean
    samples = mean + 0.6 * (judge.exact(400, 1) - mean)
    verdict = judge.judge(samples)
    assert verdict.sd_ratio == pytest.approx(0.6, abs=0.04)
    assert verdict.sliced_w2 > 2 * float(values(judge.floor(400, 8), "sliced_w2").mean())
    assert judge.judge(mean.expand(5, -1, -1, -1)).sd_ratio == 0.0


def test_samples_that_are_shifted_are_told(judge):
    samples = judge.exact(400, 1)
    assert judge.judge(samples + 0.1).mean_error == pytest.approx(0.1, abs=0.02)
    assert judge.judge(samples + 0.1).known_error == pytest.approx(0.1, rel=1e-9)


def test_samples_of_one_mode_only_are_told(judge):
    """The rarer of the two main modes is left out; kinds that share patches are not told apart for certain."""
    samples = judge.exact(400, 1)
    first = int(judge.posterior.modes[0].argmax())
    chosen = judge.judge(samples[judge.posterior.recognise(samples)[:, first] > 0.5])
    assert chosen.modes[first] > float(judge.posterior.modes[0, first]) + 0.25
    assert chosen.mode_error >= chosen.modes[first] - float(judge.posterior.modes[0, first]) - 1e-12
    assert judge.judge(samples).mode_error < 0.1


def test_resampling_is_a_function_of_its_seed(judge):
    samples = judge.exact(20, 1)
    assert judge.resampled(samples, 3) == judge.resampled(samples, 3)
    assert judge.resampled(samples, 3, seed=1) != judge.resampled(samples, 3)


def test_intervals_cover_the_truth(judge):
    """Of 20 intervals for the spread, each from 96 samples and nominally at 95%, at least 15 hold the exact one."""
    covered = 0
    for seed in range(20):
        samples = judge.exact(96, seed + 1)
        low, high = interval(judge.judge(samples), judge.resampled(samples, 40), lambda v: v.sd_ratio)
        covered += low <= 1 <= high
    assert covered >= 15


def test_an_interval_is_the_spread_of_resamples_round_the_estimate():
    def verdict(x):
        return Verdict(sliced_w2=x, mean_error=0, sd_ratio=0, mode_error=0, known_error=0, modes=())

    resampled = [verdict(5.0 + 0.01 * k) for k in range(101)]
    low, high = interval(verdict(2.0), resampled, lambda v: v.sliced_w2, level=0.9)
    assert (low, high) == (pytest.approx(2.0 - 0.45), pytest.approx(2.0 + 0.45))
    assert interval(verdict(2.0), resampled[:1], lambda v: v.sliced_w2) == (2.0, 2.0)


def test_a_judge_wants_one_problem():
    world = WORLDS["mixture"]()
    one = world.problem("left")
    two = Problem(y=one.y.expand(2, -1, -1, -1), known=one.known.expand(2, -1, -1, -1))
    with pytest.raises(InputError, match="posterior of one problem, got 2"):
        Judge(world.posterior(two))
