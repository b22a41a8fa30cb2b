"""From a network's answer to x_0, eps and v; and counting evaluations."""

import pytest
import torch
from torch import nn

from pipeline.diffusion.denoiser import Counted, NetworkDenoiser, Prediction
from pipeline.diffusion.schedule import Schedule
from pipeline.diffusion.unet import UNet, UNetParams

torch.set_num_threads(1)

SCHEDULE, SHAPE, TIMES = Schedule.linear(), (3, 4, 4), [1, 2, 300, 999]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Answering(nn.Module):
    """A network that gives a fixed answer and remembers what it was asked."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer
        self.asked = []

    def forward(self, x_t, time):
        self.asked.append((x_t, time))
        return self.answer


class Scaling(nn.Module):
    """A network whose answer depends on its input."""

    def forward(self, x_t, time):
        return 0.5 * x_t


def network_of(answer, target):
    network = Answering(answer)
    return network, NetworkDenoiser(network, SCHEDULE, SHAPE, target)


@pytest.mark.parametrize("t", TIMES)
def test_the_three_targets_say_the_same(t):
    """One x_0 and eps, told to the denoiser as eps, as v and as x_0, give one prediction."""
    x_0, eps = draw(2, *SHAPE), draw(2, *SHAPE, seed=1)
    a = SCHEDULE.alpha_bar[t]
    x_t = SCHEDULE.diffuse(x_0, t, eps)
    answers = {"eps": eps, "x_0": x_0, "v": a**0.5 * eps - (1 - a) ** 0.5 * x_0}
    for target, answer in answers.items():
        prediction = network_of(answer, target)[1].denoise(x_t, t)
        torch.testing.assert_close(prediction.x_0, x_0, rtol=0, atol=1e-10 / a**0.5)
        torch.testing.assert_close(prediction.eps, eps, rtol=0, atol=1e-10)
        assert prediction.v is None


@pytest.mark.parametrize("target", ["eps", "v", "x_0"])
@pytest.mark.parametrize("t", TIMES)
def test_image_and_noise_of_a_prediction_make_up_x_t(target, t):
    x_t = draw(2, *SHAPE)
    prediction = network_of(draw(2, *SHAPE, seed=1), target)[1].denoise(x_t, t)
    torch.testing.assert_close(SCHEDULE.diffuse(prediction.x_0, t, prediction.eps), x_t, rtol=0, atol=1e-11)


def test_the_network_is_asked_once_with_its_zero_based_time():
    network, denoiser = network_of(draw(2, *SHAPE), "eps")
    x_t = draw(2, *SHAPE, seed=1)
    denoiser.denoise(x_t, 300)
    [(seen, time)] = network.asked
    assert torch.equal(seen, x_t)
    assert time.tolist() == [299, 299]
    assert time.dtype == torch.int64


def test_the_second_half_of_the_channels_is_the_variance_fraction():
    answer = torch.cat([draw(2, *SHAPE), torch.linspace(-1, 1, 2 * 48, dtype=torch.float64).view(2, *SHAPE)], dim=1)
    prediction = network_of(answer, "eps")[1].denoise(draw(2, *SHAPE, seed=1), 300)
    assert torch.equal(prediction.eps, answer[:, :3])
    torch.testing.assert_close(prediction.v, torch.linspace(0, 1, 2 * 48, dtype=torch.float64).view(2, *SHAPE))


def test_the_answer_takes_the_format_of_the_input():
    prediction = network_of(draw(2, *SHAPE).to(torch.bfloat16), "v")[1].denoise(draw(2, *SHAPE).float(), 5)
    assert prediction.x_0.dtype == prediction.eps.dtype == torch.float32


def test_clipping_changes_the_image_only():
    prediction = Prediction(x_0=3 * draw(2, *SHAPE), eps=3 * draw(2, *SHAPE, seed=1), v=draw(2, *SHAPE, seed=2))
    clipped = prediction.clipped()
    assert float(clipped.x_0.abs().max()) == 1.0
    inside = prediction.x_0.abs() <= 1
    assert torch.equal(clipped.x_0[inside], prediction.x_0[inside])
    assert torch.equal(clipped.eps, prediction.eps)
    assert torch.equal(clipped.v, prediction.v)


def test_denoising_is_differentiable_in_x_t():
    x_t = draw(2, *SHAPE).requires_grad_()
    t, denoiser = 300, NetworkDenoiser(Scaling(), SCHEDULE, SHAPE, "eps")
    (gradient,) = torch.autograd.grad(denoiser.denoise(x_t, t).x_0.sum(), x_t)
    a = SCHEDULE.alpha_bar[t]
    torch.testing.assert_close(gradient, torch.full_like(gradient, (1 - 0.5 * (1 - a) ** 0.5) / a**0.5))


def test_counted_counts_images_forwards_and_backwards():
    counted = Counted(NetworkDenoiser(Scaling(), SCHEDULE, SHAPE, "x_0"))
    assert (counted.schedule, counted.shape) == (SCHEDULE, SHAPE)
    counted.denoise(draw(8, *SHAPE), 5)
    counted.denoise(draw(1, *SHAPE), 4)
    assert (counted.forwards, counted.backwards) == (9, 0)
    x_t = draw(3, *SHAPE).requires_grad_()
    loss = counted.denoise(x_t, 3).x_0.square().sum()
    assert (counted.forwards, counted.backwards) == (12, 0)
    loss.backward()
    assert (counted.forwards, counted.backwards) == (12, 3)
    assert x_t.grad is not None


def test_counted_changes_nothing():
    inner, x_t = NetworkDenoiser(Scaling(), SCHEDULE, SHAPE, "v"), draw(2, *SHAPE)
    plain, counted = inner.denoise(x_t, 7), Counted(inner).denoise(x_t, 7)
    assert torch.equal(plain.x_0, counted.x_0)
    assert torch.equal(plain.eps, counted.eps)


def test_counted_sees_a_backward_pass_through_eps():
    """A method may differentiate the noise instead of the image; the network pays the same."""
    counted = Counted(NetworkDenoiser(Scaling(), SCHEDULE, SHAPE, "eps"))
    counted.denoise(draw(4, *SHAPE).requires_grad_(), 9).eps.sum().backward()
    assert counted.backwards == 4


def test_counted_sees_a_backward_pass_through_image_and_noise_once():
    counted = Counted(NetworkDenoiser(Scaling(), SCHEDULE, SHAPE, "v"))
    prediction = counted.denoise(draw(4, *SHAPE).requires_grad_(), 9)
    (prediction.x_0.sum() + prediction.eps.sum()).backward()
    assert counted.backwards == 4


# --- the U-Net behind it ---


def unet(size, *, patch=1, learn_variance=True):
    torch.manual_seed(0)
    params = UNetParams(
        patch=patch, channels=(32, 32), layers=1, attention=(8,), head_dim=16, learn_variance=learn_variance
    )
    return UNet(params, size).eval().requires_grad_(False)


@pytest.mark.parametrize(("size", "patch"), [(16, 1), (32, 2), (64, 4), (64, 2)])
@pytest.mark.parametrize("learn_variance", [True, False])
def test_the_network_keeps_the_shape_of_its_images(size, patch, learn_variance):
    x_t = draw(2, 3, size, size).float()
    network = unet(size, patch=patch, learn_variance=learn_variance)
    out = network(x_t, torch.tensor([0, 999]))
    assert out.shape == (2, 6 if learn_variance else 3, size, size)
    prediction = NetworkDenoiser(network, SCHEDULE, (3, size, size), "v").denoise(x_t, 500)
    assert prediction.x_0.shape == prediction.eps.shape == x_t.shape
    assert (prediction.v is not None) == learn_variance


@pytest.mark.parametrize("patch", [1, 2])
def test_the_network_sees_each_image_and_time_by_itself(patch):
    network, x_t, time = unet(32, patch=patch), draw(3, 3, 32, 32).float(), torch.tensor([3, 500, 999])
    together = network(x_t, time)
    alone = torch.cat([network(x_t[k : k + 1], time[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)  # float32, sums over some hundred numbers
    assert float((network(x_t, time.flip(0)) - together)[[0, 2]].abs().max()) > 1e-3


def test_folding_leaves_target_and_variance_apart():
    """The first half of the folded network's channels becomes the target's three, the second the variance's."""
    network = unet(32, patch=2)
    with torch.no_grad():
        network.inner.conv_out.weight.zero_()
        network.inner.conv_out.bias.copy_(torch.arange(24.0))
    out = network(draw(1, 3, 32, 32).float(), torch.tensor([5]))
    for channel in range(6):
        block = out[0, channel, :2, :2]
        assert torch.equal(block, torch.arange(4.0).view(2, 2) + 4 * channel)
        assert torch.equal(out[0, channel], block.repeat(16, 16))
