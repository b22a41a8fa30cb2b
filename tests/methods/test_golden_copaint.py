"""CoPaint reproduces the published sampler's steps and results when fed its noise, with fewer evaluations."""

import json
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch

from golden import tape
from pipeline.diffusion.denoiser import Counted
from pipeline.methods.copaint import PRESETS

torch.set_num_threads(1)

FILES = {
    "copaint_b1": PRESETS["copaint_repo"],
    "copaint": replace(PRESETS["copaint_repo"], search="batch", slack=0.0),  # the published search, as it was
    "copaint_fast": PRESETS["fast"],
    "copaint_tt": PRESETS["tt"],
}
BOTH = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-5), (torch.float32, 5e-4)])


def walk(method):
    """Per optimisation of x_t: does a step down follow? And the numbers of the tape's calls that the method draws.

    The published sampler draws (and ignores) one noise per optimisation.
    """
    followed, used, calls, down = [], [0], 1, False
    for i, j in method.moves():
        if j < i or down:
            followed.append(j < i)
            calls += 1
        if j > i:
            used.append(calls)
            calls += 1
        down = j < i
    return followed, used, calls


def play(name, method, dtype):
    golden = np.load(tape.GOLDEN / f"{name}_left.npz")
    batch, (_, used, _) = len(golden["x_final"]), walk(method)
    recorded = tape.Recorded(Counted(tape.denoiser()))
    noise = tape.Tape(batch, lambda k: (used[k], False), dtype)
    with torch.no_grad():
        x = method(recorded, tape.problem(batch=batch, dtype=dtype), noise)
    assert noise.k == len(used)
    return golden, json.loads(str(golden["meta"])), recorded, x


def errors_of_steps(golden, method, recorded, x):
    """Largest error of each stored step that goes down: where it leads is where the next optimisation begins."""
    followed, _, _ = walk(method)
    order = [next(group) for _, group in groupby(range(len(recorded.times)), key=recorded.times.__getitem__)]
    assert len(order) == len(followed)
    begins = [recorded.states[k] for k in order] + [x]
    for call, expected in zip(golden["step_call"], golden["step_out"], strict=True):
        if followed[call]:
            last = call == len(followed) - 1
            yield np.abs(begins[call + 1].numpy() - (expected.clip(-1, 1) if last else expected)).max()


@BOTH
@pytest.mark.parametrize("name", FILES)
def test_steps_and_results(name, dtype, tolerance):
    golden, meta, recorded, x = play(name, FILES[name], dtype)
    assert np.abs(x.numpy() - golden["x_final"]).max() < tolerance
    steps = list(errors_of_steps(golden, FILES[name], recorded, x))
    assert len(steps) >= len(golden["step_out"]) - 1
    assert max(steps) < tolerance
    if dtype == torch.float64:  # theirs evaluates every iterate from which a gradient starts twice
        counted = recorded.inner
        assert counted.forwards == len(x) * (meta["nf_per_image"] - meta["nb_per_image"])
        assert counted.backwards == len(x) * meta["nb_per_image"] == len(x) * FILES[name].nbe()
    assert walk(FILES[name])[2] == meta["n_draws"]


def test_forwards_of_the_published_settings():
    """Before rejected trials; the published sampler needs 1245, 297 and 2565."""
    assert (PRESETS["paper"].nfe(), PRESETS["paper"].nbe()) == (747, 498)
    assert (PRESETS["fast"].nfe(), PRESETS["fast"].nbe()) == (198, 99)
    assert (PRESETS["tt"].nfe(), PRESETS["tt"].nbe()) == (1539, 1026)


def test_with_a_search_per_image_the_first_of_two_is_as_alone():
    """Both files begin with the same noise; the published search does not give one image the same with a neighbour."""
    alone, shared = (np.load(tape.GOLDEN / f"{name}_left.npz")["x_final"] for name in ("copaint_b1", "copaint"))
    with torch.no_grad():
        x = PRESETS["copaint_repo"](tape.denoiser(), tape.problem(batch=2), tape.Tape(2))
    assert np.abs(x[:1].numpy() - alone).max() < 5e-5
    assert np.abs(shared[:1] - alone).max() > 2e-4


def test_rounding_rejects_no_trials():
    """In single precision, a comparison to the last bit costs over a hundred forwards more, for the same image."""
    counts = []
    for slack in (64.0, 0.0):
        _, _, recorded, _ = play("copaint_b1", replace(PRESETS["copaint_repo"], slack=slack), torch.float32)
        counts.append(recorded.inner.forwards)
    assert counts[0] < 747 + 10
    assert counts[1] > 747 + 100
