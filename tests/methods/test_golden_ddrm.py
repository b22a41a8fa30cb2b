"""DDRM reproduces the published samplers' states and results when fed their noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from golden import tape
from pipeline.methods.ddrm import PRESETS

KNOWN = tape.prior()["mask_left"] > 0.5


def spectral(values):
    """An image from its values as DDRM's repository orders them: seen ones by pixel, then hidden ones by channel."""
    count, kept = len(values), 3 * int(KNOWN.sum())
    image = torch.empty(count, 3, 16, 16, dtype=values.dtype)
    image[:, :, KNOWN] = values[:, :kept].view(count, -1, 3).transpose(1, 2)
    image[:, :, ~KNOWN] = values[:, kept:].view(count, 3, -1)
    return image


def seen(values):
    """An image with the seen pixels alone, 0 elsewhere."""
    return spectral(torch.cat([values, values.new_zeros(len(values), 3 * int((~KNOWN).sum()))], dim=1))


class SpectralTape:
    """The tape of a run of DDRM's code: noise of y, x_T, then per step draws for all, for seen below, for seen above.

    `cases` says, step by step, where seen pixels lie: "above", "below" or "level" with the measurement noise.
    """

    def __init__(self, batch, cases, dtype, *, measured):
        self.batch, self.cases, self.dtype, self.k = batch, cases, dtype, 0 if measured else 1

    def normal(self, shape):
        assert shape == (3, 16, 16)
        kept = (self.batch, 3 * int(KNOWN.sum()))
        call, self.k = self.k, self.k + 1
        if call == 0:
            return seen(tape.draw(0, kept, self.dtype))
        if call == 1:
            return spectral(tape.draw(1, (self.batch, *shape), self.dtype).flatten(1))
        step, known = call - 2, torch.from_numpy(KNOWN)
        z = spectral(tape.draw(3 * step + 2, (self.batch, 768), self.dtype))
        if self.cases[step] == "level":
            return z
        later = {"below": 3, "above": 4}[self.cases[step]]
        return torch.where(known, seen(tape.draw(3 * step + later, kept, self.dtype)), z)


def cases_of(method, schedule):
    """Where each step's level lies relative to the measurement noise."""
    times = [*reversed(schedule.times(method.steps, method.spacing)), 0]
    for _, j in method.moves():
        sigma = (1 / schedule.alpha_bar[times[j]] - 1) ** 0.5
        yield "above" if sigma > method.sigma_y else "below" if sigma < method.sigma_y else "level"


def compare(name, method, dtype, tolerance):
    golden, world = np.load(tape.GOLDEN / f"{name}.npz"), tape.Recorded(tape.denoiser())
    batch = len(golden["x_final"])
    noise = SpectralTape(batch, list(cases_of(method, world.schedule)), dtype, measured=method.sigma_y > 0)
    x = method(world, tape.problem(batch=batch, dtype=dtype), noise)
    assert len(world.states) == method.nfe() == golden["model_call"][-1] + 1
    assert [world.times[k] for k in golden["model_call"]] == list(golden["model_t"] + 1)
    for call, state in zip(golden["model_call"], golden["model_in"], strict=True):
        assert np.abs(world.states[call].numpy() - state).max() < tolerance, call
    assert np.abs(x.numpy() - golden["x_final"]).max() < tolerance


GOLDEN = {
    "ddrm_left": PRESETS["copaint_repo"],
    "official_ddrm_20_s0_left": PRESETS["paper"],
    "official_ddrm_100_s0_left": PRESETS["paper_100"],
    "official_ddrm_20_s005_left": replace(PRESETS["paper"], sigma_y=0.05),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-5), (torch.float32, 5e-4)])
@pytest.mark.parametrize("name", GOLDEN)
def test_published_run(name, dtype, tolerance):
    compare(name, GOLDEN[name], dtype, tolerance)
