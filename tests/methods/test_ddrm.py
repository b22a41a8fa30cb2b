"""DDRM's own laws: its marginals, its special case, its edge."""

from dataclasses import replace

import pytest
import torch

from pipeline.diffusion.analytic import MixtureDenoiser
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError
from pipeline.methods.blended import Blended
from pipeline.methods.ddrm import DDRM, noise_level
from pipeline.noise import Noise
from pipeline.problem import Problem

torch.set_num_threads(1)

SHAPE, SEEDS = (3, 4, 4), [1, 2, 3]


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Clipped:
    """A denoiser whose x_0 stays within [-1, 1] and whose eps is as it was, so that clipping again changes nothing."""

    def __init__(self, schedule):
        self.schedule, self.shape = schedule, SHAPE
        self.inner = MixtureDenoiser(
            schedule,
            SHAPE,
            weights=torch.tensor([0.6, 0.4], dtype=torch.float64),
            means=0.5 * draw(2, 48, seed=1),
            basis=torch.linalg.qr(draw(48, 4, seed=2))[0],
            scales=torch.tensor([1.0, 0.7, 0.5, 0.3], dtype=torch.float64),
            floor=0.05,
        )

    def denoise(self, x_t, t):
        return self.inner.denoise(x_t, t).clipped()


class Kept(Clipped):
    """As before, and keeps what it is asked."""

    def __init__(self, schedule):
        super().__init__(schedule)
        self.states = []

    def denoise(self, x_t, t):
        self.states.append(x_t)
        return super().denoise(x_t, t)


class Played:
    """Draws that are given beforehand."""

    def __init__(self, *draws):
        self.draws = iter(draws)

    def normal(self, shape):
        return next(self.draws)


def problem():
    """Three images of which the left half, one row and nothing are known."""
    known = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    known[0, :, :, :2] = known[1, :, 1] = True
    return Problem.observe(draw(3, *SHAPE, seed=3).clamp(-1, 1), known)


@pytest.mark.parametrize("stop", ["clean", "first_level"])
@pytest.mark.parametrize("schedule", [Schedule.linear(), Schedule.cosine()], ids=["linear", "cosine"])
def test_without_fresh_noise_it_is_deterministic_replacement_with_fresh_noise_for_the_seen(schedule, stop):
    """What DDRM puts in after a step to s, Blended puts in before the step from s; with eta = 0 no other draw counts.

    Only the first state differs by the division by sigma, which is undone here in the draw that Blended gets. Stopping
    one step short, DDRM has just put in the seen pixels at the first level and Blended has not, so hidden ones compare.
    """
    steps, world, given = 25, Clipped(schedule), problem()
    x_T, *z = Noise(SEEDS, dtype=torch.float64).normal((steps + 1, *SHAPE)).unbind(1)
    T, sigma = schedule.T, noise_level(schedule, schedule.T)
    a = float(schedule.alpha_bar[T])
    first = ((given.y + sigma * x_T) / sigma - a**0.5 * given.y) / (1 - a) ** 0.5
    seen = [first, *z]
    unused = torch.full_like(x_T, 1e3)
    with torch.no_grad():
        mine = DDRM(steps=steps, spacing="even", eta=0.0, stop=stop)(world, given, Played(x_T, *z))
        pairs = [draw for n in seen for draw in (n, unused)]
        other = Blended(steps=steps, kernel="ddim", eta=0.0, stop=stop)(world, given, Played(x_T, *pairs))
    compared = torch.ones_like(mine, dtype=torch.bool) if stop == "clean" else ~given.known.expand_as(mine)
    assert torch.allclose(mine[compared], other[compared], rtol=0, atol=1e-12)
    assert mine[compared].std() > 0.1


@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
@pytest.mark.parametrize("eta_b", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.1, 0.1000001, 0.3, 5.0])
def test_seen_pixels_have_the_noise_of_their_level(sigma, eta, eta_b):
    """Given a true x_0 and y = x_0 + sigma_y n, they are N(x_0, sigma^2), as the paper promises."""
    method = DDRM(sigma_y=0.1, eta=eta, eta_b=eta_b, ties="seen")
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    of_x_0, of_y, of_z = (
        float(method.seen(*arguments))
        for arguments in ((one, zero, sigma, zero), (zero, one, sigma, zero), (zero, zero, sigma, one))
    )
    assert of_x_0 + of_y == pytest.approx(1.0)
    assert (of_y * method.sigma_y) ** 2 + of_z**2 == pytest.approx(sigma**2)


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_ties_decide_about_the_level_of_y_alone(sigma_y):
    x_0, y, z = draw(3, 2, 4, seed=5)
    hidden, seen = DDRM(sigma_y=sigma_y), DDRM(sigma_y=sigma_y, ties="seen")
    assert hidden.seen(x_0, y, sigma_y, z) is None
    assert torch.allclose(seen.seen(x_0, y, sigma_y, z), y)
    for sigma in (0.05, 0.2):
        assert torch.equal(hidden.seen(x_0, y, sigma, z), seen.seen(x_0, y, sigma, z))


def test_the_last_step_gives_the_estimate_or_what_was_seen():
    world, given = Clipped(Schedule.linear()), problem()
    shown = []
    with torch.no_grad():
        x, pasted = (
            replace(DDRM(), ties=ties)(
                world, given, Noise(SEEDS, dtype=torch.float64), watch=lambda t, x_0: shown.append(x_0)
            )
            for ties in ("hidden", "seen")
        )
    assert torch.equal(x, shown[19])
    assert torch.equal(pasted, given.paste(x))
    assert not torch.equal(pasted, x)


def test_measurement_noise_is_added_once_and_only_to_what_is_seen():
    world, given = Clipped(Schedule.linear()), problem()
    n, *rest = Noise(SEEDS, dtype=torch.float64).normal((22, *SHAPE)).unbind(1)
    noisy = Problem(y=torch.where(given.known, given.y + 0.2 * n, 0.0), known=given.known)
    method = DDRM(sigma_y=0.2)
    with torch.no_grad():
        added = method(world, given, Played(n, *rest))
        before = method(world, noisy, Played(torch.zeros_like(n), *rest))
    assert torch.equal(added, before)


@pytest.mark.parametrize("sigma_y", [0.0, 100.0, 200.0])
def test_the_first_state_is_y_with_the_noise_that_is_missing(sigma_y):
    """At the last time sigma is 157; seen pixels get what y lacks of it, and noise alone where y is noisier still."""
    given, schedule = problem(), Schedule.linear()
    world = Kept(schedule)
    n, x_T, *z = Noise(SEEDS, dtype=torch.float64).normal((4, *SHAPE)).unbind(1)
    with torch.no_grad():
        DDRM(steps=2, spacing="even", sigma_y=sigma_y)(world, given, Played(*([n] if sigma_y else []), x_T, *z))
    sigma = noise_level(schedule, schedule.T)
    assert sigma == pytest.approx(157.4, abs=0.1)
    expected = x_T
    if sigma_y < sigma:
        missing = (sigma**2 - sigma_y**2) ** 0.5
        expected = torch.where(given.known, (given.y + sigma_y * n + missing * x_T) / sigma, x_T)
    assert torch.allclose(world.states[0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["eta", "eta_b", "sigma_y"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        DDRM(**{name: value})


def test_evaluations():
    assert (DDRM().nfe(), DDRM(steps=250, stop="first_level").nfe(), DDRM().nbe()) == (20, 249, 0)
