"""The fixed noise tape and the analytic denoiser behind the golden numbers."""

from pathlib import Path

import numpy as np
import torch

from pipeline.diffusion.analytic import MixtureDenoiser
from pipeline.diffusion.schedule import Schedule
from pipeline.problem import Problem

GOLDEN = Path(__file__).parent
SEED = 3


def draw(call, shape, dtype=torch.float64):
    values = np.random.RandomState((SEED * 100003 + call) % 2**32).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32)).to(dtype)


class Tape:
    """A noise source that plays the tape's calls in the order of `calls` (default: as they come)."""

    def __init__(self, batch, calls=None, dtype=torch.float64):
        self.batch, self.dtype, self.calls, self.k = batch, dtype, calls, 0

    def normal(self, shape):
        if self.calls is None:
            call, shared = self.k, False
        else:
            call, shared = self.calls(self.k)
        self.k += 1
        values = draw(call, ((1 if shared else self.batch), *shape), self.dtype)
        return values.expand(self.batch, *shape)


def prior():
    return np.load(GOLDEN / "prior.npz")


def denoiser():
    p = prior()
    return MixtureDenoiser(
        Schedule.linear(),
        (3, 16, 16),
        weights=torch.from_numpy(p["weights"]),
        means=torch.from_numpy(p["means"]),
        basis=torch.from_numpy(p["U"]),
        scales=torch.from_numpy(p["s"]),
        floor=float(p["tau"]),
        v=0.65,  # the raw channel 0.3 in [-1, 1]
    )


def problem(case="left", batch=2, dtype=torch.float64):
    p = prior()
    index = {"left": 0, "vstrip": 2, "blob": 3}[case]
    x_0 = torch.from_numpy(p["images"][index]).to(dtype).expand(batch, -1, -1, -1)
    known = torch.from_numpy(p[f"mask_{case}"] > 0.5).expand(batch, 1, -1, -1)
    return Problem.observe(x_0, known)


class Recorded:
    """A denoiser that keeps what it is asked: every state and its time."""

    def __init__(self, inner):
        self.inner, self.schedule, self.shape = inner, inner.schedule, inner.shape
        self.states, self.times = [], []

    def denoise(self, x_t, t):
        self.states.append(x_t.detach().clone())
        self.times.append(t)
        return self.inner.denoise(x_t, t)
