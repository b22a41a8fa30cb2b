"""The mixture's posterior against stored exact values and dense conditioning."""

import numpy as np
import pytest
import torch

from golden import tape
from pipeline.diffusion.analytic import MixtureDenoiser
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError, InputError
from pipeline.noise import Noise
from pipeline.oracles.mixture import MixturePosterior
from pipeline.problem import Problem

torch.set_num_threads(1)

SCHEDULE, SHAPE, SIZE = Schedule.linear(), (2, 3, 3), 18
TIMES = [1, 50, 300, 700, 1000]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prior(components=3, rank=4, floor=0.3, v=None):
    """A mixture over images [2, 3, 3]."""
    return MixtureDenoiser(
        SCHEDULE,
        SHAPE,
        weights=torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)[:components],
        means=0.5 * draw(components, SIZE, seed=1),
        basis=torch.linalg.qr(draw(SIZE, rank, seed=2))[0] if rank else torch.zeros(SIZE, 0, dtype=torch.float64),
        scales=torch.tensor([0.9, 0.7, 0.4, 0.2], dtype=torch.float64)[:rank],
        floor=floor,
        v=v,
    )


def problems():
    """Nothing, a corner, all but a pixel, and everything known."""
    known = torch.zeros(4, 1, 3, 3, dtype=torch.bool)
    known[1, :, :2, :2] = True
    known[2:] = True
    known[2, :, 1, 2] = False
    return Problem.observe(0.7 * draw(4, *SHAPE, seed=3), known)


def dense(world, values, noise):
    """Weights, means and covariance of x_0 given `values` = x_0 + N(0, noise) at pixels whose noise is finite.

    By the joint Gaussian of image and observation, with dense matrices of numpy.
    """
    basis, scales = world.basis.numpy(), world.scales.numpy()
    covariance = basis @ np.diag(scales**2) @ basis.T + world.floor**2 * np.eye(SIZE)
    seen = np.isfinite(noise)
    gain = covariance[:, seen] @ np.linalg.inv(covariance[np.ix_(seen, seen)] + np.diag(noise[seen]))
    inside = covariance[np.ix_(seen, seen)] + np.diag(noise[seen])
    weights, means = [], []
    for weight, mean in zip(world.weights.numpy(), world.means.numpy(), strict=True):
        rest = values[seen] - mean[seen]
        weights.append(weight * np.exp(-0.5 * rest @ np.linalg.solve(inside, rest)))
        means.append(mean + gain @ rest)
    return np.array(weights) / np.sum(weights), np.stack(means), covariance - gain @ covariance[seen]


def observed(problem, k):
    """Pixels and their noise, infinite where hidden, of one problem."""
    known = problem.known[k].expand(SHAPE).flatten().numpy()
    return problem.y[k].flatten().numpy(), np.where(known, 0.0, np.inf)


SIZES = [(1, 0), (1, 4), (3, 0), (3, 4)]


@pytest.mark.parametrize("case", ["left", "vstrip", "blob"])
def test_the_stored_posteriors(case):
    """Computed elsewhere with dense matrices, for the hidden pixels in order."""
    golden, problem = tape.prior(), tape.problem(case, batch=1)
    found = MixturePosterior(tape.denoiser(), problem)
    hidden = ~problem.known[0].expand(3, 16, 16).flatten()
    means = found.centres[0, :, hidden].numpy()
    np.testing.assert_allclose(found.modes[0].numpy(), golden[f"post_{case}_weights"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(means, golden[f"post_{case}_comp_means"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.mean.flatten()[hidden].numpy(), golden[f"post_{case}_mean"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.variance.flatten()[hidden].numpy(), golden[f"post_{case}_var"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("components", "rank"), SIZES)
def test_conditioning_agrees_with_dense_matrices(components, rank):
    world, problem = prior(components, rank), problems()
    found = MixturePosterior(world, problem)
    for k in range(4):
        weights, means, covariance = dense(world, *observed(problem, k))
        mean = weights @ means
        between = weights @ (means - mean) ** 2
        for ours, theirs in (
            (found.modes[k], weights),
            (found.centres[k], means),
            (found.mean[k].flatten(), mean),
            (found.variance[k].flatten(), covariance.diagonal() + between),
        ):
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=1e-12)


def test_draws_have_the_exact_mean_and_covariance():
    """Within five standard errors of 40000 draws, in every entry."""
    world, problem, count = prior(), problems(), 40_000
    drawn = MixturePosterior(world, problem).draw(Noise([1, 2, 3, 4], dtype=torch.float64), count).flatten(2)
    for k in range(4):
        weights, means, covariance = dense(world, *observed(problem, k))
        mean = weights @ means
        covariance = covariance + (weights[:, None] * (means - mean)).T @ (means - mean)
        spread = np.sqrt(covariance.diagonal().clip(0))
        assert (np.abs(drawn[k].mean(0).numpy() - mean) <= 5 * spread / np.sqrt(count) + 1e-12).all()
        error = np.abs(np.cov(drawn[k].T.numpy()) - covariance)
        assert (error <= 5 * np.sqrt(2) * np.outer(spread, spread) / np.sqrt(count) + 1e-12).all()


def test_draws_come_from_the_components_in_the_right_shares():
    problem, count = problems(), 4000
    found = MixturePosterior(prior(floor=0.02), problem)
    drawn = found.draw(Noise([1, 2, 3, 4], dtype=torch.float64), count)
    for k in range(2):
        shares = found.recognise(drawn[k]).mean(0)
        assert float((shares - found.modes[k]).abs().max()) < 5 * 0.5 / count**0.5


def test_draws_depend_on_their_own_stream_only():
    problem = problems()
    together = MixturePosterior(prior(), problem).draw(Noise([1, 2, 3, 4], dtype=torch.float64), 3)
    one = Problem(y=problem.y[1:2], known=problem.known[1:2])
    alone = MixturePosterior(prior(), one).draw(Noise([2], dtype=torch.float64), 3)
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-13)


def test_known_pixels_are_exact():
    problem = problems()
    found = MixturePosterior(prior(), problem)
    drawn = found.draw(Noise([1, 2, 3, 4], dtype=torch.float64), 5)
    denoised = found.denoise(draw(4, *SHAPE, seed=4), 300).x_0
    for x in (found.mean, denoised, *drawn.unbind(1)):
        assert torch.equal(problem.paste(x), x)
    assert float(found.variance[3].abs().max()) == 0.0
    assert bool((found.variance[~problem.known.expand_as(problem.y)] > 0).all())


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(("components", "rank"), SIZES)
def test_nothing_known_gives_the_prior_s_denoiser(components, rank, t):
    world, x_t = prior(components, rank, v=0.65), draw(5, *SHAPE, seed=4)
    nothing = Problem(y=torch.zeros_like(x_t), known=torch.zeros(5, 1, 3, 3, dtype=torch.bool))
    ours, theirs = MixturePosterior(world, nothing).denoise(x_t, t), world.denoise(x_t, t)
    torch.testing.assert_close(ours.x_0, theirs.x_0, rtol=0, atol=1e-11)
    torch.testing.assert_close(ours.v, theirs.v)


@pytest.mark.parametrize("t", TIMES)
def test_the_conditional_denoiser_agrees_with_dense_matrices(t):
    """x_t / sqrt(a) is the image with noise of variance (1 - a) / a, known pixels are the image itself."""
    world, problem, x_t = prior(), problems(), draw(4, *SHAPE, seed=4)
    found, a = MixturePosterior(world, problem).denoise(x_t, t), SCHEDULE.alpha_bar[t]
    for k in range(4):
        y, noise = observed(problem, k)
        hidden = np.isinf(noise)
        values = np.where(hidden, x_t[k].flatten().numpy() / np.sqrt(a), y)
        weights, means, _ = dense(world, values, np.where(hidden, (1 - a) / a, 0.0))
        np.testing.assert_allclose(found.x_0[k].flatten().numpy(), weights @ means, rtol=0, atol=1e-10)
    torch.testing.assert_close(SCHEDULE.diffuse(found.x_0, t, found.eps), x_t, rtol=0, atol=1e-12)


def test_the_conditional_denoiser_is_differentiable():
    found = MixturePosterior(prior(), problems())
    x_t = draw(4, *SHAPE, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: found.denoise(x, 300).x_0, (x_t,))


def test_recognising_is_bayes_rule():
    world, x = prior(), draw(3, *SHAPE, seed=5)
    found = MixturePosterior(world, problems()).recognise(x)
    for k in range(3):
        weights, _, _ = dense(world, x[k].flatten().numpy(), np.zeros(SIZE))
        np.testing.assert_allclose(found[k].numpy(), weights, rtol=0, atol=1e-11)


def test_what_cannot_be_conditioned_is_refused():
    with pytest.raises(ConfigError, match=r"floor above 0, but it is 0\.0"):
        MixturePosterior(prior(floor=0.0), problems())
    with pytest.raises(InputError, match=r"expected images \(2, 3, 3\)"):
        MixturePosterior(prior(), Problem(y=torch.zeros(1, 2, 4, 4), known=torch.ones(1, 1, 4, 4, dtype=torch.bool)))
