"""Every method at a few steps, to be steered, on images of 4 x 4 pixels and four tokens."""

from dataclasses import replace

import pytest
import torch

from methods.test_laws import SEEDS, PerImage, mixture
from pipeline.methods import METHODS
from pipeline.methods.steered import Steered
from pipeline.noise import Noise
from pipeline.problem import Problem
from pipeline.steering.meter import Meter
from pipeline.steering.settings import PRESETS, Steering
from pipeline.watch import ignore
from steering.worlds import masks, pictures, prior

SETTINGS = {
    "copaint": {"levels": 6},
    "repaint": {"jump": 2, "repeats": 2},
    "resampling": {"particles": 3},
    "daps": {"ode_steps": 2},
    "tds": {"particles": 3},
    "lanpaint": {"inner_steps": 2},
}
BASES = {name: METHODS[name](**{"steps": 6, **SETTINGS.get(name, {})}) for name in METHODS}
NEVER = Steering(until=1.0, known="steered")
STEERINGS = {
    "ours": Steering(until=0.4),
    "drawn": replace(PRESETS["paper"], until=0.5, evidence_draws=1, draws=2),
    "released": replace(PRESETS["released"], until=0.7),
}

every_base = pytest.mark.parametrize("name", BASES)
every_steering = pytest.mark.parametrize("how", STEERINGS)


def steered(name, how="ours", *, warm=1.0, meter=None):
    steering = STEERINGS[how] if isinstance(how, str) else how
    return Steered(base=BASES[name], steering=steering, prior=prior(), warm=warm, meter=meter or Meter())


def shown(index=(0, 1, 2, 3)):
    index = list(index)
    return Problem.observe(pictures()[index], masks()[index])


def run(method, problem=None, seeds=SEEDS, *, denoiser=None, watch=ignore):
    with torch.no_grad():
        return method(
            denoiser or PerImage(mixture()), problem or shown(), Noise(seeds, dtype=torch.float64), watch=watch
        )


def near(first, second):
    """Matrix products may round differently in other batches."""
    torch.testing.assert_close(first, second, rtol=0, atol=1e-7)
