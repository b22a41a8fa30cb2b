"""Resampling reproduces the published sampler's states and results when fed its noise, with its fault and without."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from golden import tape
from pipeline.methods.resampling import PRESETS

torch.set_num_threads(1)

FORWARD = 251
"""Calls before the first step: x_T of the particles, then the seen noise of levels 0..249, once per particle at 0."""


class ParticleTape:
    """The tape of a run with ten particles, from which two were kept; `keep` says which of them is chosen here.

    The run drew all seen noise in advance. Each of its steps drew noise it did not use and, if the surplus of the
    weights did not fill all places, a multinomial. At the last step it weighed by ten noisy copies of the seen pixels
    instead of one: weights are the same to .003, but the third number drawn falls just beyond a border, so it is moved.
    """

    def __init__(self, draws, keep, dtype):
        self.keep, self.dtype, self.seen, self.steps = keep, dtype, 0, 0
        kinds = [kind for kind, _, count in draws for _ in range(count)]
        unused = [k for k, kind in enumerate(kinds) if k >= FORWARD and kind == "randn"]
        self.chance = [k + 1 if kinds[k + 1] == "multinomial" else None for k in unused]
        self.last = len(kinds) - 1

    def normal(self, shape):
        if shape == (10, 3, 16, 16):  # x_T; later noise is multiplied by 0
            return tape.draw(0, shape, self.dtype)[None]
        assert shape == (1, 3, 16, 16)
        self.seen += 1
        return tape.draw(FORWARD - self.seen, shape, self.dtype)[None]

    def uniform(self, shape):
        assert shape == (10,)
        call, self.steps = self.chance[self.steps], self.steps + 1
        numbers = torch.zeros(10, dtype=torch.float64) if call is None else uniforms(call, 10)
        if self.steps == len(self.chance):
            numbers[2] -= 0.03
        return numbers[None]

    def choice(self, weights, n):
        assert weights.shape == (1, 10)
        assert n == 1
        left, kept = 2 * weights[0], []
        assert float(left.max()) < 1  # no particle is kept for certain
        for number in uniforms(self.last, 2):
            kept.append(int(torch.searchsorted(left.cumsum(0), number * left.sum(), right=True)))
            left[kept[-1]] = 0.0
        return torch.tensor([[kept[self.keep]]])


def uniforms(call, count):
    return torch.from_numpy(np.random.RandomState((tape.SEED * 100003 + call) % 2**32).random_sample(count))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-5), (torch.float32, 5e-4)])
@pytest.mark.parametrize(("name", "advance"), [("released", "lost"), ("fixed", "assigned")])
def test_copaint_repo(name, advance, dtype, tolerance):
    """Particles in single precision are compared as sets: their order hangs on the last digits of equal weights."""
    golden = np.load(tape.GOLDEN / f"resample_{name}_left.npz")
    method, problem = replace(PRESETS["copaint_repo"], advance=advance), tape.problem(batch=1, dtype=dtype)
    draws = json.loads(str(golden["meta"]))["draws"]
    for keep in (0, 1):
        asked = tape.Recorded(tape.denoiser())
        with torch.no_grad():
            x = method(asked, problem, ParticleTape(draws, keep, dtype))
        assert np.abs(x[0].numpy() - golden["x_final"][keep]).max() < tolerance
    schedule = asked.schedule
    for call, level, out in zip(golden["step_call"], golden["step_index"], golden["step_out"], strict=True):
        x_t, (t, s) = asked.states[call], schedule.steps(method.steps)[call]
        assert level == 249 - call
        prediction = asked.inner.denoise(x_t, t).clipped()
        step = schedule.ddim(prediction.x_0, prediction.eps, t, s, prediction.eps, 0.0).numpy()
        apart = np.abs(step[:, None] - out[None]).max((2, 3, 4))
        if dtype == torch.float64:
            assert apart.diagonal().max() < tolerance
        assert apart.min(0).max() < tolerance
        assert apart.min(1).max() < tolerance


def test_the_released_code_returns_its_initial_noise():
    golden = np.load(tape.GOLDEN / "resample_released_left.npz")
    hidden = ~tape.problem(batch=1).known.expand(1, 3, 16, 16)[0].numpy()
    noise = tape.draw(0, (10, 3, 16, 16)).clamp(-1, 1).numpy()[:, hidden]
    for x in golden["x_final"]:
        assert np.abs(noise - x[hidden]).max(1).min() < 1e-12
