"""The closed form against a fine grid, textbook formulas and limits; the 256-bin mixture and what its floor does."""

import math

import pytest
import torch
from scipy import special

from benchmarks.fusion import grid_reference
from pipeline.errors import InputError
from pipeline.noise import Noise
from pipeline.steering.fusion import (
    LEAST_VARIANCE,
    Normal,
    binned_mixture,
    binned_moments,
    centres,
    draw_binned,
    draw_truncated,
    geometric_mean,
    truncated,
    window,
)

INF = math.inf
SHAPE = (2, 3, 4, 4)
EXTREMES = {
    "no cut": (0.3, 0.5, -INF, INF),
    "middle": (0.1, 0.25, -0.5, 0.75),
    "one end": (0.5, 0.25, -INF, 0.125),
    "far below": (-2.0, LEAST_VARIANCE, 0.5, 1.0),
    "far above": (2.0, LEAST_VARIANCE, -1.0, 0.5),
    "very far": (-8.0, 1e-6, 0.5, 1.0),
    "just a tail": (0.0, 1.0, 5.5, 6.0),
    "almost a tail": (0.0, 1.0, 4.75, INF),
    "narrow": (0.0, 1.0, 0.5, 0.5 + 2.0**-20),
    "narrow tail": (0.0, 1.0, 7.0, 7.0 + 2.0**-20),
    "tiny variance": (0.25, 1e-20, -1.0, 1.0),
    "tiny variance at an end": (0.5, 1e-12, 0.5, 1.0),
    "flat": (0.0, 1e12, -1.0, 0.5),
}
"""Mean, variance and ends of what is cut; ends are numbers of float32."""


def uniform(*shape, seed=0, low=0.0, high=1.0):
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return low + (high - low) * drawn


def some(seed, shape=SHAPE, dtype=torch.float64):
    """Any normal with means in [-1, 1] and standard deviations from half a grey level to 0.5."""
    variance = torch.exp(uniform(*shape, seed=seed + 100, low=math.log(LEAST_VARIANCE), high=math.log(0.25)))
    return Normal(mean=uniform(*shape, seed=seed, low=-1.0, high=1.0).to(dtype), variance=variance.to(dtype))


def one(name, dtype, copies=1):
    """One of EXTREMES as a normal of some equal pixels, and its ends."""
    mean, variance, low, high = EXTREMES[name]
    normal = Normal(mean=torch.full((copies,), mean, dtype=dtype), variance=torch.full((1,), variance, dtype=dtype))
    return normal, low, high


def in_double(normal):
    return Normal(mean=normal.mean.double(), variance=normal.variance.double())


# --- the geometric mean ---


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_closed_form_is_that_of_a_fine_grid(seed, dtype):
    prior, posterior = some(seed, dtype=dtype), some(seed + 10, dtype=dtype)
    weight = uniform(*SHAPE, seed=seed + 20)
    mean, deviation = grid_reference(prior, posterior, weight)
    cut = truncated(geometric_mean(prior, posterior, weight), *window(prior))
    torch.testing.assert_close(cut.mean.double(), mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(cut.variance.double().sqrt(), deviation, rtol=0, atol=1e-3)


def test_precisions_add_with_their_weights():
    first, second, a = some(0), some(1), uniform(*SHAPE, seed=2)
    joint = geometric_mean(first, second, a)
    precision = a / first.variance + (1 - a) / second.variance
    torch.testing.assert_close(joint.variance, 1 / precision)
    torch.testing.assert_close(
        joint.mean, (a * first.mean / first.variance + (1 - a) * second.mean / second.variance) / precision
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variance", [1e-30, 1e-3, 1.0, 1e20])
@pytest.mark.parametrize("shape", [(), (2, 1, 1, 1), SHAPE])
def test_at_the_ends_only_one_side_counts_to_the_bit(dtype, variance, shape):
    first = some(3, dtype=dtype)
    second = Normal(mean=some(4, dtype=dtype).mean, variance=torch.full((1, 1, 1, 1), variance, dtype=dtype))
    for weight in (1.0, torch.ones(shape)):
        for given, other in ((first, second), (second, first)):
            for joint in (geometric_mean(given, other, weight), geometric_mean(other, given, 1.0 - weight)):
                assert torch.equal(joint.mean, given.mean)
                assert torch.equal(joint.variance, given.variance.expand(SHAPE))


def test_sides_can_be_exchanged():
    first, second, weight = some(5), some(6), uniform(*SHAPE, seed=7)
    here, there = geometric_mean(first, second, weight), geometric_mean(second, first, 1.0 - weight)
    torch.testing.assert_close(here.mean, there.mean)
    torch.testing.assert_close(here.variance, there.variance)


def test_a_normal_with_itself_is_itself():
    joint = geometric_mean(some(1), some(1), 0.3)
    torch.testing.assert_close(joint.mean, some(1).mean)
    torch.testing.assert_close(joint.variance, some(1).variance)


# --- truncated normals ---


def exact_moments(begin, end):
    """Of a standard normal cut to a moderate interval, by the textbook."""
    density = [math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) for z in (begin, end)]
    mass = special.ndtr(end) - special.ndtr(begin)
    mean = (density[0] - density[1]) / mass
    ends = [z * p if math.isfinite(z) else 0.0 for z, p in zip((begin, end), density, strict=True)]
    return mean, 1 + (ends[0] - ends[1]) / mass - mean**2


@pytest.mark.parametrize(
    "ends", [(-2.0, 2.0), (-INF, INF), (0.0, INF), (-INF, -1.0), (-0.3, 4.0), (1.0, 1.5), (2.0, 9.0)]
)
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (-0.7, 0.04), (3.0, 50.0)])
def test_moments_are_the_textbooks(ends, mean, variance):
    normal = Normal(
        mean=torch.tensor([mean], dtype=torch.float64), variance=torch.tensor([variance], dtype=torch.float64)
    )
    low, high = (mean + math.sqrt(variance) * z for z in ends)
    cut, (offset, spread) = truncated(normal, low, high), exact_moments(*ends)
    assert float(cut.mean) == pytest.approx(mean + math.sqrt(variance) * offset, abs=1e-8 * math.sqrt(variance))
    assert float(cut.variance) == pytest.approx(variance * spread, rel=1e-7)


@pytest.mark.parametrize("distance", [1e2, 1e4, 1e8])
def test_far_out_the_tail_is_exponential(distance):
    """Mills' series: mean 1/d - 2/d^3 beyond the end, variance 1/d^2 - 6/d^4."""
    for dtype in (torch.float32, torch.float64):
        normal = Normal(mean=torch.tensor([-distance], dtype=dtype), variance=torch.ones(1, dtype=dtype))
        cut = truncated(normal, 0.0, INF)
        assert float(cut.mean) == pytest.approx(1 / distance - 2 / distance**3, rel=2e-6)
        assert float(cut.variance) == pytest.approx(1 / distance**2 - 6 / distance**4, rel=5e-6)


@pytest.mark.parametrize("width", [1e-1, 1e-3, 1e-6])
def test_a_narrow_interval_makes_it_uniform(width):
    for dtype in (torch.float32, torch.float64):
        normal = Normal(mean=torch.zeros(1, dtype=dtype), variance=torch.ones(1, dtype=dtype))
        cut = truncated(normal, 0.0, width)
        assert float(cut.mean) == pytest.approx(width / 2, rel=width**2 / 6 + 1e-6)
        assert float(cut.variance) == pytest.approx(width**2 / 12, rel=width**2 / 6 + 2e-6)


def test_without_ends_nothing_changes():
    cut = truncated(some(0), -INF, INF)
    torch.testing.assert_close(cut.mean, some(0).mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(cut.variance, some(0).variance, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", EXTREMES)
def test_single_precision_holds_in_extremes(name):
    normal, low, high = one(name, torch.float32)
    cut, exact = truncated(normal, low, high), truncated(in_double(normal), low, high)
    deviation, rounding = float(exact.variance.sqrt()), 1e-7 * abs(float(exact.mean))
    assert abs(float(cut.mean) - float(exact.mean)) <= 1e-5 * deviation + rounding
    assert float(cut.variance) == pytest.approx(float(exact.variance), rel=1e-5)
    assert low <= float(cut.mean) <= high


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mirrored_intervals_give_mirrored_results(name, dtype):
    normal, low, high = one(name, dtype, copies=9)
    mirror, u = Normal(mean=-normal.mean, variance=normal.variance), torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    here, there = truncated(normal, low, high), truncated(mirror, -high, -low)
    torch.testing.assert_close(there.mean, -here.mean)
    torch.testing.assert_close(there.variance, here.variance)
    drawn = draw_truncated(normal, low, high, u), draw_truncated(mirror, -high, -low, 1.0 - u)
    torch.testing.assert_close(drawn[1], -drawn[0])


# --- draws ---


def passed(z, begin, end):
    """Share of a standard normal's mass in [begin, end] that lies below z, also far out."""
    if begin > 0:
        return 1.0 - passed(-z, -end, -begin)
    logs = [special.log_ndtr(value) for value in (z, begin, end)]
    return math.exp(logs[0] - logs[2]) * math.expm1(logs[1] - logs[0]) / math.expm1(logs[1] - logs[2])


@pytest.mark.parametrize(
    "ends", [(-2.0, 2.0), (-INF, INF), (1.0, INF), (4.9, 7.0), (5.1, 5.2), (5.1, INF), (30.0, 31.0)]
)
@pytest.mark.parametrize("side", [1, -1])
def test_draws_invert_the_distribution_function(ends, side):
    begin, end = sorted(side * z for z in ends)
    u = torch.tensor([1e-6, 0.01, 0.3, 0.5, 0.9, 0.999], dtype=torch.float64)
    normal = Normal(mean=torch.zeros(6).double(), variance=torch.ones(1).double())
    for z, share in zip(draw_truncated(normal, begin, end, u).tolist(), u.tolist(), strict=True):
        assert passed(z, begin, end) == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("name", EXTREMES)
def test_draws_have_the_moments_and_increase(name):
    count = 20_000
    normal, low, high = one(name, torch.float64, copies=count)
    drawn = draw_truncated(normal, low, high, (torch.arange(count) + 0.5).double() / count)
    cut = truncated(normal, low, high)
    deviation = float(cut.variance[0].sqrt())
    assert bool((drawn.diff() >= 0).all()) and low <= float(drawn[0]) and float(drawn[-1]) <= high
    assert float(drawn.mean()) == pytest.approx(float(cut.mean[0]), abs=1e-3 * deviation)
    assert float(drawn.std()) == pytest.approx(deviation, rel=2e-3)


@pytest.mark.parametrize("name", EXTREMES)
def test_draws_in_single_precision_are_rounded_ones(name):
    normal, low, high = one(name, torch.float32, copies=50)
    u = uniform(50, seed=1)
    drawn = draw_truncated(normal, low, high, u)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, draw_truncated(in_double(normal), low, high, u).float())


@pytest.mark.parametrize("name", EXTREMES)
def test_the_least_and_the_largest_uniform_number_give_finite_draws(name):
    normal, low, high = one(name, torch.float64, copies=2)
    drawn = draw_truncated(normal, low, high, torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64))
    assert bool(drawn.isfinite().all()) and low <= float(drawn[0]) < float(drawn[1]) <= high


def test_an_image_does_not_depend_on_its_batch():
    prior, posterior, noise = some(8, dtype=torch.float32), some(9, dtype=torch.float32), Noise([1, 2])
    weight, u = uniform(2, 1, 1, 1, seed=3), noise.uniform(SHAPE[1:])

    def results(rows):
        first, second = (Normal(mean=side.mean[rows], variance=side.variance[rows]) for side in (prior, posterior))
        joint = geometric_mean(first, second, weight[rows])
        cut = truncated(joint, *window(first))
        law = binned_mixture(first, second, weight[rows])
        drawn = draw_truncated(joint, *window(first), u[rows]), draw_binned(law, u[rows])
        return joint.mean, joint.variance, cut.mean, cut.variance, law, *drawn

    for row in range(2):
        for alone, together in zip(results(slice(row, row + 1)), results(slice(None)), strict=True):
            assert torch.equal(alone[0], together[row])


# --- gradients ---


def test_the_geometric_mean_has_right_gradients():
    tensors = [some(k, (3,)) for k in range(2)]
    given = [tensors[0].mean, tensors[0].variance, tensors[1].mean, tensors[1].variance, uniform(3, seed=4)]

    def joint(m1, v1, m2, v2, weight):
        result = geometric_mean(Normal(mean=m1, variance=v1), Normal(mean=m2, variance=v2), weight)
        return result.mean, result.variance

    assert torch.autograd.gradcheck(joint, [tensor.requires_grad_() for tensor in given], eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("ends", [(-2.0, 2.0), (-INF, INF), (0.5, INF), (-INF, -3.0), (6.0, 8.0), (0.25, 0.26)])
def test_truncation_has_right_gradients(ends):
    """By hand: the mean moves with the normal's mean as the cut variance over the variance."""
    mean, variance = (
        torch.tensor([0.1], dtype=torch.float64).requires_grad_(),
        torch.tensor([0.8], dtype=torch.float64).requires_grad_(),
    )
    cut = truncated(Normal(mean=mean, variance=variance), *ends)
    (moved,) = torch.autograd.grad(cut.mean, mean, retain_graph=True)
    assert float(moved) == pytest.approx(float((cut.variance / variance).detach()), rel=1e-5)

    def moments(mean, variance):
        result = truncated(Normal(mean=mean, variance=variance), *ends)
        return result.mean, result.variance

    assert torch.autograd.gradcheck(moments, (mean, variance), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXTREMES)
def test_gradients_are_finite_in_extremes(name):
    normal, low, high = one(name, torch.float32)
    mean, variance = normal.mean.requires_grad_(), normal.variance.requires_grad_()
    cut = truncated(Normal(mean=mean, variance=variance), low, high)
    for output in (cut.mean, cut.variance):
        for slope in torch.autograd.grad(output, (mean, variance), retain_graph=True):
            assert bool(slope.isfinite().all())


# --- the mixture of bins ---


def test_fine_bins_without_a_floor_are_the_closed_form():
    prior, posterior, weight = some(1), some(2), uniform(2, 1, 1, 1, seed=3)
    cut = truncated(geometric_mean(prior, posterior, weight), *window(prior))
    mean, variance = binned_moments(binned_mixture(prior, posterior, weight, bins=4096, floor=0.0))
    torch.testing.assert_close(mean, cut.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(variance.sqrt(), cut.variance.sqrt(), rtol=0, atol=1e-3)


def test_with_the_floor_it_is_the_grid_with_the_floor():
    prior, posterior, weight = some(4), some(5), 0.83
    mean, deviation = grid_reference(prior, posterior, weight, floor=1e-3)
    found = binned_moments(binned_mixture(prior, posterior, weight, bins=4096))
    torch.testing.assert_close(found[0], mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1].sqrt(), deviation, rtol=0, atol=1e-3)


def test_the_floor_makes_a_posterior_that_disagrees_count_less():
    """Here in the second pixel, where the sides are 0.45 apart and the second is sure; in the first they agree."""
    prior = Normal(mean=torch.zeros(1, 1, 1, 2), variance=torch.full((1, 1, 1, 2), 0.07))
    posterior = Normal(mean=torch.tensor([0.0, 0.45]).view(1, 1, 1, 2), variance=torch.full((1, 1, 1, 2), 4e-4))
    cut = truncated(geometric_mean(prior, posterior, 0.83), *window(prior))
    with_floor, _ = binned_moments(binned_mixture(prior, posterior, 0.83))
    without, _ = binned_moments(binned_mixture(prior, posterior, 0.83, floor=0.0))
    torch.testing.assert_close(without, cut.mean, rtol=0, atol=1e-3)
    assert abs(float(with_floor[..., 0])) < 1e-6
    assert float(cut.mean[..., 1]) > 0.4
    assert 0.0 < float(with_floor[..., 1]) < float(cut.mean[..., 1]) - 0.1


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("floor", [0.0, 1e-3])
@pytest.mark.parametrize("mean", [-50.0, -1.0, 0.0, 0.003, 1.0, 1.2])
def test_bins_never_give_a_nan(weight, floor, mean):
    prior = Normal(mean=torch.full((1, 1, 1, 3), mean), variance=torch.full((1, 1, 1, 3), 1e-30))
    posterior = Normal(mean=torch.tensor([-1.0, 0.5, 90.0]).view(1, 1, 1, 3), variance=torch.full((1, 1, 1, 3), 1e-30))
    law = binned_mixture(prior, posterior, weight, floor=floor)
    torch.testing.assert_close(law.sum(-1), torch.ones(1, 1, 1, 3))
    places = centres(256, law)
    support = (law > 0).nonzero()[:, -1]
    nearest = float((places - mean).abs().min())
    assert float((places[support] - mean).abs().max()) <= max(2.0 / 255.0, nearest) + 1e-6
    if abs(mean) > 1.1:
        assert set(support.tolist()) == {0 if mean < 0 else 255}, "the nearest bin gets it all"


@pytest.mark.parametrize("floored", [0, 1])
def test_variances_of_bins_are_at_least_half_a_grey_level_squared(floored):
    sides = [some(1), some(2)]
    laws = []
    for variance in (1e-30, LEAST_VARIANCE):
        sides[floored] = Normal(mean=sides[floored].mean, variance=torch.tensor(variance, dtype=torch.float64))
        laws.append(binned_mixture(*sides, 0.5))
    torch.testing.assert_close(*laws)


def test_moments_of_a_law_are_its_sums():
    law = uniform(*SHAPE, 7, seed=1).softmax(-1)
    mean, variance = binned_moments(law)
    places = [(2 * k + 1) / 7 - 1 for k in range(7)]
    first = sum(law[..., k] * place for k, place in enumerate(places))
    torch.testing.assert_close(mean, first)
    torch.testing.assert_close(variance, sum(law[..., k] * (place - first) ** 2 for k, place in enumerate(places)))


def test_draws_from_bins_have_the_law():
    law, count = torch.tensor([0.0, 0.125, 0.5, 0.0, 0.375, 0.0]), 8000
    drawn = draw_binned(law.expand(count, -1), (torch.arange(count) + 0.5).double() / count)
    index = ((drawn + 1) * 3).long()
    assert bool((drawn.diff() >= 0).all())
    assert (torch.bincount(index, minlength=6) / count).tolist() == law.tolist()


@pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-53])
def test_a_bin_without_mass_is_never_drawn(u):
    law = binned_mixture(some(1, dtype=torch.float32), some(2, dtype=torch.float32), 0.83)
    drawn = draw_binned(law, torch.full(SHAPE, u, dtype=torch.float64))
    chosen = (centres(256, law) == drawn[..., None]).long().argmax(-1, keepdim=True)
    assert bool((law.gather(-1, chosen) > 0).all())


# --- what is refused ---


@pytest.mark.parametrize(
    ("mean", "variance", "words"),
    [
        (torch.zeros(2), torch.zeros(2), "finite variances above 0"),
        (torch.zeros(2), torch.tensor([1.0, math.nan]), "finite variances above 0"),
        (torch.zeros(2), torch.tensor(INF), "finite variances above 0"),
        (torch.zeros(2), torch.ones(3), r"broadcast to means \(2,\), got \(3,\)"),
        (torch.zeros(2), torch.ones(2, 2), r"broadcast to means \(2,\), got \(2, 2\)"),
        (torch.zeros(2), torch.ones(2).double(), "one floating-point type"),
        (torch.zeros(2).long(), torch.ones(2).long(), "one floating-point type"),
    ],
)
def test_what_is_no_normal_is_refused(mean, variance, words):
    with pytest.raises(InputError, match=words):
        Normal(mean=mean, variance=variance)


@pytest.mark.parametrize("weight", [-0.1, 1.5, math.nan, torch.tensor([0.5, 2.0])])
def test_weights_outside_of_0_and_1_are_refused(weight):
    normal = Normal(mean=torch.zeros(2), variance=torch.ones(2))
    for call in (geometric_mean, binned_mixture):
        with pytest.raises(InputError, match="weights from 0 to 1"):
            call(normal, normal, weight)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (0.5, -0.5), (math.nan, 1.0), (torch.tensor([0.0, 2.0]), 1.0)])
def test_empty_intervals_are_refused(ends):
    normal = Normal(mean=torch.zeros(2), variance=torch.ones(2))
    with pytest.raises(InputError, match="lower end is below"):
        truncated(normal, *ends)
    with pytest.raises(InputError, match="lower end is below"):
        draw_truncated(normal, *ends, torch.zeros(2))


def test_a_uniform_number_for_each_mean_is_needed():
    with pytest.raises(InputError, match=r"each of means \(2,\), got \(3,\)"):
        draw_truncated(Normal(mean=torch.zeros(2), variance=torch.ones(2)), -1.0, 1.0, torch.zeros(3))
