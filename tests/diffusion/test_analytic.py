"""The analytic denoiser against stored exact values, dense conditioning, and Tweedie's formula."""

import numpy as np
import pytest
import torch

from golden import tape
from pipeline.diffusion.analytic import MixtureDenoiser
from pipeline.diffusion.schedule import Schedule

SCHEDULE = Schedule.linear()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny(components=3, rank=2, floor=0.3, schedule=SCHEDULE, v=None):
    """A mixture over images [2, 2, 2]."""
    basis = torch.linalg.qr(draw(8, rank, seed=1))[0] if rank else torch.zeros(8, 0, dtype=torch.float64)
    return MixtureDenoiser(
        schedule,
        (2, 2, 2),
        weights=torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)[:components],
        means=draw(components, 8, seed=2),
        basis=basis,
        scales=torch.tensor([0.9, 0.4], dtype=torch.float64)[:rank],
        floor=floor,
        v=v,
    )


def dense(denoiser, x_t, t):
    """E[x_0 | x_t] by conditioning the joint Gaussian of (x_0, x_t) of each component with dense matrices."""
    a, x = denoiser.schedule.alpha_bar[t], x_t.flatten(1).numpy()
    basis, scales = denoiser.basis.numpy(), denoiser.scales.numpy()
    covariance = basis @ np.diag(scales**2) @ basis.T + denoiser.floor**2 * np.eye(len(basis))
    noisy = a * covariance + (1 - a) * np.eye(len(basis))
    weights, means = [], []
    for weight, mean in zip(denoiser.weights.numpy(), denoiser.means.numpy(), strict=True):
        rest = x - np.sqrt(a) * mean
        solved = np.linalg.solve(noisy, rest.T).T
        density = np.exp(-0.5 * (rest * solved).sum(1)) / np.sqrt(np.linalg.det(noisy))
        weights.append(weight * density)
        means.append(mean + np.sqrt(a) * solved @ covariance)
    total = np.stack(weights) / np.sum(weights, axis=0)
    return torch.from_numpy((total[:, :, None] * np.stack(means)).sum(0)).view_as(x_t)


def test_the_stored_exact_values():
    """Computed elsewhere with dense matrices; `check_t` counts from 0."""
    golden, denoiser = tape.prior(), tape.denoiser()
    for k, index in enumerate(golden["check_t"]):
        prediction = denoiser.denoise(torch.from_numpy(golden["check_xt"][k : k + 1]), int(index) + 1)
        np.testing.assert_allclose(prediction.x_0[0].numpy(), golden["check_x0"][k], rtol=0, atol=1e-12)
        scale = max(1.0, 1.0 / np.sqrt(1.0 - SCHEDULE.alpha_bar[int(index) + 1]))  # eps divides by it
        np.testing.assert_allclose(prediction.eps[0].numpy(), golden["check_eps"][k], rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("t", [1, 50, 300, 700, 1000])
@pytest.mark.parametrize(("components", "rank"), [(1, 0), (1, 2), (3, 0), (3, 2)])
def test_conditioning_agrees_with_dense_matrices(components, rank, t):
    denoiser, x_t = tiny(components, rank), draw(5, 2, 2, 2, seed=3)
    torch.testing.assert_close(denoiser.denoise(x_t, t).x_0, dense(denoiser, x_t, t), rtol=0, atol=1e-10)


@pytest.mark.parametrize("t", [1, 300, 1000])
def test_image_and_noise_make_up_x_t(t):
    x_t = draw(4, 2, 2, 2)
    prediction = tiny().denoise(x_t, t)
    torch.testing.assert_close(SCHEDULE.diffuse(prediction.x_0, t, prediction.eps), x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [20, 300, 800])
def test_the_noise_is_the_gradient_of_the_log_density(t):
    """Tweedie: eps = -sqrt(1 - alpha_bar) d/dx log p(x_t), with p from the dense covariance."""
    denoiser, a = tiny(), float(SCHEDULE.alpha_bar[t])
    x_t = draw(4, 2, 2, 2).requires_grad_()
    eye = torch.eye(8, dtype=torch.float64)
    covariance = denoiser.basis @ torch.diag(denoiser.scales**2) @ denoiser.basis.T + denoiser.floor**2 * eye
    noisy = a * covariance + (1 - a) * eye
    mixture = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(denoiser.weights),
        torch.distributions.MultivariateNormal(a**0.5 * denoiser.means, noisy),
    )
    (score,) = torch.autograd.grad(mixture.log_prob(x_t.flatten(1)).sum(), x_t)
    torch.testing.assert_close(denoiser.denoise(x_t, t).eps, -((1 - a) ** 0.5) * score, rtol=0, atol=1e-10)


def test_far_from_every_mean_the_estimate_stays_finite():
    prediction = tape.denoiser().denoise(1e3 * draw(2, 3, 16, 16), 1)
    assert torch.isfinite(prediction.x_0).all()


def test_hardly_any_noise_gives_the_image_back_and_much_noise_the_mean():
    denoiser = tiny(components=1)
    x_0 = draw(3, 2, 2, 2)
    assert float((denoiser.denoise(x_0, 1).x_0 - x_0).abs().max()) < 5e-3  # 1 - alpha_bar = 1e-4 over floor^2 = .09
    mean = denoiser.means[0].view(2, 2, 2).expand_as(x_0)
    assert float((denoiser.denoise(draw(3, 2, 2, 2, seed=1), 1000).x_0 - mean).abs().max()) < 0.02  # sqrt(4e-5) * 3


def test_an_image_does_not_depend_on_its_batch():
    denoiser, x_t = tiny(), draw(4, 2, 2, 2)
    together = denoiser.denoise(x_t, 300).x_0
    alone = torch.cat([denoiser.denoise(x, 300).x_0 for x in x_t.split(1)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


def test_the_estimate_is_differentiable_and_right_to_first_order():
    denoiser, x_t = tiny(), draw(1, 2, 2, 2)
    assert torch.autograd.gradcheck(lambda x: denoiser.denoise(x, 300).x_0, (x_t.requires_grad_(),))


def test_format_shape_and_variance_are_passed_through():
    denoiser = tiny(v=0.65)
    assert (denoiser.shape, denoiser.schedule) == ((2, 2, 2), SCHEDULE)
    single = denoiser.denoise(draw(2, 2, 2, 2).float(), 300)
    assert single.x_0.dtype == single.eps.dtype == single.v.dtype == torch.float32
    assert torch.equal(single.v, torch.full((2, 2, 2, 2), 0.65))
    assert tiny().denoise(draw(2, 2, 2, 2), 300).v is None
    double = denoiser.denoise(draw(2, 2, 2, 2), 300)
    torch.testing.assert_close(single.x_0.double(), double.x_0, rtol=0, atol=1e-5)
