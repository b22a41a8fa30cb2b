"""DPS reproduces the published samplers' states and results when fed their noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from golden import tape
from pipeline.diffusion.denoiser import Prediction
from pipeline.methods.dps import PRESETS
from pipeline.problem import Problem

PRECISIONS = [(torch.float64, 5e-5), (torch.float32, 5e-4)]


def copaint_call(k):
    """x_T, the noise of y, then per step z and a draw that is not used."""
    return (k if k < 2 else 2 * k - 2), False


def official_call(k):
    """The noise of y, x_T, then as in CoPaint's repository."""
    return (1 - k if k < 2 else 2 * k - 2), False


def assert_near(x, y, tolerance):
    assert np.abs(x.numpy() - y).max() < tolerance


def compare_with_copaint(name, denoiser, problem, dtype, tolerance):
    """The file's states are those before the pull; returns the result."""
    golden, world, method = np.load(tape.GOLDEN / f"{name}.npz"), tape.Recorded(denoiser), PRESETS["copaint_repo"]
    x = method(world, problem, tape.Tape(1, copaint_call, dtype))
    assert len(world.states) == method.nfe() == 249
    y = problem.y + method.sigma_y * tape.draw(1, problem.y.shape, dtype)
    states = [*world.states, x]
    for call, state in zip(golden["step_call"], golden["step_out"], strict=True):
        t = world.times[call]
        gradient = method.differentiate(denoiser, y, problem.known, states[call], t)[1]
        pulled = torch.from_numpy(state).view_as(x) - method.zeta * gradient
        assert_near(states[call + 1], (pulled.clamp(-1, 1) if call == 248 else pulled).numpy(), tolerance)
    assert_near(x.view(golden["x_final"].shape), golden["x_final"], tolerance)
    return x


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_copaint_repo(dtype, tolerance):
    compare_with_copaint("dps_b1_left", tape.denoiser(), tape.problem(batch=1, dtype=dtype), dtype, tolerance)


class Joined:
    """Two images as one of six channels, by the denoiser of one."""

    def __init__(self, inner):
        self.inner, self.schedule, self.shape = inner, inner.schedule, (6, 16, 16)

    def denoise(self, x_t, t):
        prediction = self.inner.denoise(x_t.view(2, 3, 16, 16), t)
        return Prediction(x_0=prediction.x_0.view_as(x_t), eps=prediction.eps.view_as(x_t))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_the_published_batch_of_two_is_pulled_as_one_image(dtype, tolerance):
    """Its norm ran over the batch; two problems of one image each have another result."""
    pair = tape.problem(dtype=dtype)
    joined = Problem(y=pair.y.reshape(1, 6, 16, 16), known=pair.known[:1])
    x = compare_with_copaint("dps_left", Joined(tape.denoiser()), joined, dtype, tolerance)
    apart = PRESETS["copaint_repo"](tape.denoiser(), pair, tape.Tape(2, copaint_call, dtype))
    assert (x.view_as(apart) - apart).abs().max() > 0.01


OFFICIAL = {
    "official_dps_ddpm250_1_left": replace(PRESETS["paper"], steps=250, zeta=1.0, sigma_y=1e-4),
    "official_dps_ddpm1000_05_left": PRESETS["paper"],
}


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", OFFICIAL)
def test_official(name, dtype, tolerance):
    golden, world, method = np.load(tape.GOLDEN / f"{name}.npz"), tape.Recorded(tape.denoiser()), OFFICIAL[name]
    x = method(world, tape.problem(batch=1, dtype=dtype), tape.Tape(1, official_call, dtype))
    assert len(world.states) == method.nfe() == golden["model_call"][-1] + 1
    assert [world.times[k] for k in golden["model_call"]] == list(golden["model_t"] + 1)
    for call, state in zip(golden["model_call"], golden["model_in"], strict=True):
        assert_near(world.states[call], state, tolerance)
    assert_near(x, golden["x_final"], tolerance)


def test_the_noise_at_hidden_pixels_weakens_the_pull():
    """What the field `noisy` switches: the authors' code adds noise everywhere."""
    golden = np.load(tape.GOLDEN / "official_dps_ddpm1000_05_left.npz")
    method = replace(PRESETS["paper"], noisy="seen")
    world = tape.Recorded(tape.denoiser())
    method(world, tape.problem(batch=1), tape.Tape(1, official_call))
    [late] = [k for k, call in enumerate(golden["model_call"]) if call == 900]
    assert np.abs(world.states[900].numpy() - golden["model_in"][late]).max() > 5e-3
