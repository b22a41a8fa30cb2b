"""The methods reproduce the published samplers' outputs when fed their noise."""

import numpy as np
import pytest
import torch

from golden import tape
from pipeline.methods import PRESETS
from pipeline.methods.ddnm import DDNM


def blended_call(k):
    """x_T, then per step the seen noise of the level (drawn up front, one image for all) and an unused draw."""
    if k == 0:
        return 0, False
    step, unused = divmod(k - 1, 2)
    return (251 + step, False) if unused else (1 + 249 - step, True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-5), (torch.float32, 5e-4)])
@pytest.mark.parametrize("name", ["blended", "ddnm"])
def test_copaint_repo(name, dtype, tolerance):
    golden = np.load(tape.GOLDEN / f"{name}_left.npz")
    noise = tape.Tape(2, blended_call if name == "blended" else None, dtype)
    x = PRESETS[name]["copaint_repo"](tape.denoiser(), tape.problem(dtype=dtype), noise)
    assert np.abs(x.numpy() - golden["x_final"]).max() < tolerance


@pytest.mark.parametrize(
    ("name", "preset"), [("official_ddnm_100_left", "paper"), ("official_ddnm_100_tt_left", "paper_travel")]
)
def test_official_ddnm(name, preset):
    golden = np.load(tape.GOLDEN / f"{name}.npz")
    x = PRESETS["ddnm"][preset](tape.denoiser(), tape.problem(), tape.Tape(2))
    assert np.abs(x.numpy() - golden["x_final"]).max() < 5e-5


def test_ddnm_evaluations_match_the_authors_count():
    assert DDNM().nfe() == 100
    assert DDNM(travel_length=10, travel_repeats=3).nfe() == 280
