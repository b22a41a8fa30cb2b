"""The schedule against printed numbers, and the identities between its formulas."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from golden import tape
from pipeline.diffusion.schedule import Schedule, ScheduleParams, travel
from pipeline.errors import ConfigError

LINEAR, COSINE = Schedule.linear(), Schedule.cosine()
BOTH = pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])
STEPS = [(1, 0), (2, 1), (500, 499), (1000, 999), (1000, 500), (999, 1), (17, 0)]
DOWN = pytest.mark.parametrize(("t", "s"), STEPS)
EXACT = {"rtol": 0.0, "atol": 1e-12}  # float64, a dozen operations on numbers of order 1


def draws(count, *, seed=0):
    """`count` standard normal batches [5, 3, 4, 4] in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


# --- the table ---


@BOTH
def test_alpha_bar_falls_from_one_and_stays_above_zero(schedule):
    a = schedule.alpha_bar
    assert schedule.T == 1000
    assert a.dtype == np.float64
    assert a[0] == 1.0
    assert (np.diff(a) < 0).all()
    assert 0 < a[-1] < 1e-4


def test_linear_is_the_product_of_the_printed_betas():
    beta = [1e-4 + (2e-2 - 1e-4) * k / 999 for k in range(1000)]
    expected, product = [1.0], 1.0
    for b in beta:
        product *= 1.0 - b
        expected.append(product)
    np.testing.assert_allclose(LINEAR.alpha_bar, expected, rtol=1e-12)


@pytest.mark.parametrize(("level", "printed"), [(0, "0.9999"), (1, "0.999301"), (124, "0.080188"), (249, "0.00004036")])
def test_250_levels_have_the_printed_alpha_bar(level, printed):
    """Levels count from 0 at the clean end; the numbers have as many digits as are known."""
    value = LINEAR.alpha_bar[LINEAR.times(250)[::-1][level]]
    assert f"{value:.{len(printed) - 2}f}" == printed


def test_the_largest_beta_of_250_levels():
    last, before = LINEAR.alpha_bar[LINEAR.times(250)[:2]]
    assert round(1.0 - last / before, 4) == 0.0775


def test_250_levels_are_those_of_the_published_samplers():
    golden, times = tape.prior(), LINEAR.times(250)[::-1]
    assert [t - 1 for t in times] == golden["timestep_map"].tolist()
    assert [t - 1 for t in times[:3]] == [0, 4, 8]
    assert [t - 1 for t in times[-3:]] == [991, 995, 999]
    np.testing.assert_allclose(LINEAR.alpha_bar[times], golden["alphas_cumprod"], rtol=1e-12)


def test_cosine_follows_its_formula_until_betas_are_capped():
    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1, 10, 250, 500, 900, 990):
        assert COSINE.alpha_bar[t] == pytest.approx(f(t) / f(0), rel=1e-9)
    beta = 1.0 - COSINE.alpha_bar[1:] / COSINE.alpha_bar[:-1]
    assert beta.max() == pytest.approx(0.999, abs=1e-12)


@pytest.mark.parametrize(
    "table",
    [[0.9, 0.5], [1.0, 0.5, 0.5], [1.0, 0.5, 0.6], [1.0, 0.5, 0.0], [1.0, math.nan], [[1.0], [0.5]]],
    ids=["first", "flat", "rising", "zero", "nan", "matrix"],
)
def test_an_impossible_table_is_refused(table):
    with pytest.raises(ConfigError, match="alpha_bar"):
        Schedule(np.array(table))


@pytest.mark.parametrize(("kind", "first"), [("linear", 1e-4), ("cosine", 4.1e-5)])
def test_params_build_the_schedule_they_name(kind, first):
    schedule = ScheduleParams(kind=kind, T=1000).build()
    assert 1.0 - schedule.alpha_bar[1] == pytest.approx(first, rel=0.02)
    assert ScheduleParams(kind=kind, T=400).build().T == 400


# --- walks ---


@pytest.mark.parametrize("spacing", ["even", "leading"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 100, 249, 250, 300, 333, 500, 999, 1000])
def test_times_fall_and_lie_in_the_schedule(steps, spacing):
    times = LINEAR.times(steps, spacing)
    assert len(times) == steps
    assert all(t > s for t, s in pairwise(times))
    assert 1 <= times[-1] <= times[0] <= 1000


@pytest.mark.parametrize("steps", [2, 3, 50, 250, 999])
def test_even_times_have_both_ends_and_nearly_equal_gaps(steps):
    times = LINEAR.times(steps)
    gaps = {t - s for t, s in pairwise(times)}
    assert (times[0], times[-1]) == (1000, 1)
    assert max(gaps) - min(gaps) <= 1


def test_leading_times_skip_from_the_first():
    assert LINEAR.times(4, "leading") == [751, 501, 251, 1]
    assert LINEAR.times(300, "leading")[0] == 898  # 1000 // 300 = 3, so the walk starts below T
    assert LINEAR.times(1, "leading") == [1]
    assert LINEAR.times(1) == [1000]


def test_all_times_are_the_schedule_itself():
    assert LINEAR.times(1000) == LINEAR.times(1000, "leading") == list(range(1000, 0, -1))


def test_steps_are_the_times_joined_and_end_at_zero():
    assert LINEAR.steps(4, "leading") == [(751, 501), (501, 251), (251, 1), (1, 0)]
    assert LINEAR.steps(1) == [(1000, 0)]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ConfigError, match=f"1000 times, but is {steps}"):
        LINEAR.times(steps)


@pytest.mark.parametrize(
    ("arguments", "moves", "down", "up"),
    [
        ((250, 10, 10), 4570, 2410, 2160),
        ((250, 1, 1), 250, 250, 0),
        ((100, 10, 3), 460, 280, 180),
        ((5, 1, 2), 13, 9, 4),
    ],
)
def test_travel_has_the_published_number_of_moves(arguments, moves, down, up):
    walk = list(travel(*arguments))
    assert (len(walk), sum(j < i for i, j in walk), sum(j > i for i, j in walk)) == (moves, down, up)


@pytest.mark.parametrize("arguments", [(250, 10, 10), (30, 10, 3), (7, 3, 2), (12, 1, 4), (4, 10, 3), (1, 1, 5)])
def test_travel_is_one_connected_walk_of_single_levels(arguments):
    walk = list(travel(*arguments))
    assert walk[0][0] == arguments[0] - 1
    assert walk[-1] == (0, -1)
    assert all(abs(i - j) == 1 for i, j in walk)
    assert all(before[1] == after[0] for before, after in pairwise(walk))
    assert max(max(move) for move in walk) == arguments[0] - 1


def test_a_short_travel_written_out():
    """Levels 4..0, going back two levels once from each of 0 and 2."""
    down_to_2, back_to_4 = [(4, 3), (3, 2)], [(2, 3), (3, 4)]
    down_to_0, back_to_2 = [(2, 1), (1, 0)], [(0, 1), (1, 2)]
    expected = down_to_2 + back_to_4 + down_to_2 + down_to_0 + back_to_2 + down_to_0 + [(0, -1)]
    assert list(travel(5, 2, 2)) == expected


# --- formulas ---


@BOTH
@pytest.mark.parametrize("t", [1, 2, 500, 999, 1000])
def test_noise_and_image_come_back(schedule, t):
    x_0, z = draws(2)
    x_t = schedule.diffuse(x_0, t, z)
    scale = 1.0 / math.sqrt(schedule.alpha_bar[t])  # dividing by sqrt(alpha_bar) enlarges the rounding error of x_t
    torch.testing.assert_close(schedule.eps(x_t, x_0, t), z, rtol=0, atol=1e-10)
    torch.testing.assert_close(schedule.x_0(x_t, z, t), x_0, rtol=0, atol=1e-14 * scale + 1e-12)


@BOTH
@pytest.mark.parametrize("t", [1, 2, 500, 999, 1000])
def test_diffusing_keeps_unit_variance(schedule, t):
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    signal, noise = float(schedule.diffuse(one, t, zero)), float(schedule.diffuse(zero, t, one))
    assert signal**2 == pytest.approx(schedule.alpha_bar[t], rel=1e-12)
    assert signal**2 + noise**2 == pytest.approx(1.0, abs=1e-12)


@BOTH
@pytest.mark.parametrize(("s", "t"), [(0, 1), (1, 2), (0, 1000), (499, 500), (1, 999)])
def test_diffusing_and_ascending_is_diffusing_further(schedule, s, t):
    """x_s ~ q(x_s | x_0), then x_t ~ q(x_t | x_s): signal and noise multiply and add to those of q(x_t | x_0)."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    x_0, _ = draws(2)
    direct = schedule.diffuse(x_0, t, torch.zeros_like(x_0))
    torch.testing.assert_close(schedule.ascend(schedule.diffuse(x_0, s, 0 * x_0), s, t, 0 * x_0), direct, **EXACT)
    first = float(schedule.ascend(schedule.diffuse(zero, s, one), s, t, zero))
    second = float(schedule.ascend(zero, s, t, one))
    assert first**2 + second**2 == pytest.approx(1.0 - schedule.alpha_bar[t], abs=1e-12)


@BOTH
@DOWN
def test_the_posterior_mean_is_bayes_rule(schedule, t, s):
    """q(x_s | x_t, x_0) from the joint Gaussian of x_s and x_t given x_0, by conditioning."""
    x_0, x_t = draws(2)
    a, b = schedule.alpha_bar[t], schedule.alpha_bar[s]
    gain = math.sqrt(a / b) * (1.0 - b) / (1.0 - a)  # cov(x_s, x_t | x_0) / var(x_t | x_0)
    expected = math.sqrt(b) * x_0 + gain * (x_t - math.sqrt(a) * x_0)
    torch.testing.assert_close(schedule.posterior_mean(x_0, x_t, t, s), expected, rtol=0, atol=1e-11)


@BOTH
@DOWN
def test_ddim_with_all_noise_is_ancestral_with_the_smallest_variance(schedule, t, s):
    x_0, x_t, z = draws(3)
    eps = schedule.eps(x_t, x_0, t)
    torch.testing.assert_close(
        schedule.ddim(x_0, eps, t, s, z, eta=1.0), schedule.ancestral(x_0, x_t, t, s, z), rtol=0, atol=1e-10
    )


@BOTH
@DOWN
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_leaves_the_marginal_of_x_s(schedule, t, s, eta):
    """Given x_0, the step's signal and noises are those of q(x_s | x_0) (Song et al. 2021, lemma 1)."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    signal = float(schedule.ddim(one, zero, t, s, zero, eta))
    kept, fresh = float(schedule.ddim(zero, one, t, s, zero, eta)), float(schedule.ddim(zero, zero, t, s, one, eta))
    assert signal == pytest.approx(math.sqrt(schedule.alpha_bar[s]), rel=1e-12)
    assert kept**2 + fresh**2 == pytest.approx(1.0 - schedule.alpha_bar[s], abs=1e-12)
    assert (fresh == 0.0) == (eta == 0.0 or s == 0)


@BOTH
def test_ddim_steps_compose_when_deterministic(schedule):
    x_0, eps, z = draws(3)
    x_t = schedule.diffuse(x_0, 900, eps)
    halfway = schedule.ddim(x_0, schedule.eps(x_t, x_0, 900), 900, 400, z, 0.0)
    there = schedule.ddim(x_0, schedule.eps(halfway, x_0, 400), 400, 0, z, 0.0)
    torch.testing.assert_close(halfway, schedule.diffuse(x_0, 400, eps), rtol=0, atol=1e-11)
    torch.testing.assert_close(there, x_0, **EXACT)


@BOTH
@pytest.mark.parametrize(("t", "s"), [(2, 1), (500, 499), (1000, 999), (1000, 500), (999, 1)])
def test_variances_are_beta_tilde_and_beta(schedule, t, s):
    a, b = schedule.alpha_bar[t], schedule.alpha_bar[s]
    beta = 1.0 - a / b
    low, high = schedule.log_variances(t, s)
    assert math.exp(low) == pytest.approx(beta * (1.0 - b) / (1.0 - a), rel=1e-9)
    assert math.exp(high) == pytest.approx(beta, rel=1e-9)
    assert low < high


def test_the_last_step_borrows_the_smallest_variance_of_the_one_before():
    assert LINEAR.log_variances(1, 0)[0] == LINEAR.log_variances(2, 1)[0]
    assert LINEAR.log_variances(1, 0)[1] == pytest.approx(math.log(1e-4), rel=1e-9)


def test_learned_variance_interpolates_the_logarithms():
    low, high = LINEAR.log_variances(500, 496)
    v = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    expected = torch.tensor([low, 0.75 * low + 0.25 * high, high], dtype=torch.float64)
    torch.testing.assert_close(LINEAR.log_variance(500, 496, v), expected, **EXACT)
    assert LINEAR.log_variance(500, 496, None) == low


def test_ancestral_adds_noise_of_the_learned_variance():
    x_0, x_t, z = draws(3)
    v = torch.full_like(z, 0.3)
    noise = LINEAR.ancestral(x_0, x_t, 500, 496, z, v) - LINEAR.posterior_mean(x_0, x_t, 500, 496)
    low, high = LINEAR.log_variances(500, 496)
    torch.testing.assert_close(noise, math.exp(0.5 * (0.7 * low + 0.3 * high)) * z, **EXACT)


@BOTH
@pytest.mark.parametrize("t", [1, 5, 1000])
def test_a_step_to_the_clean_image_is_its_estimate_without_noise(schedule, t):
    x_0, x_t, z = draws(3)
    for v in (None, torch.full_like(z, 0.5)):
        torch.testing.assert_close(schedule.ancestral(x_0, x_t, t, 0, z, v), x_0, **EXACT)
    torch.testing.assert_close(schedule.ddim(x_0, z, t, 0, z, 1.0), x_0, **EXACT)


def test_formulas_keep_the_number_format():
    x_0, x_t, z = (x.float() for x in draws(3))
    results = [
        LINEAR.diffuse(x_0, 5, z),
        LINEAR.eps(x_t, x_0, 5),
        LINEAR.x_0(x_t, z, 5),
        LINEAR.ddim(x_0, x_t, 5, 1, z, 0.5),
        LINEAR.ancestral(x_0, x_t, 5, 1, z, torch.full_like(z, 0.5)),
        LINEAR.ascend(x_0, 1, 5, z),
    ]
    assert all(x.dtype == torch.float32 for x in results)
