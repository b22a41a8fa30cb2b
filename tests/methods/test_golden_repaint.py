"""RePaint reproduces the published sampler's states and results when fed its noise."""

import numpy as np
import pytest
import torch

from golden import tape
from pipeline.methods.repaint import PRESETS, RePaint

torch.set_num_threads(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-5), (torch.float32, 5e-4)])
def test_copaint_repo(dtype, tolerance):
    """What a step gave is what the network is shown next, where nothing was pasted and the walk does not turn."""
    golden, method = np.load(tape.GOLDEN / "repaint_left.npz"), PRESETS["copaint_repo"]
    asked, problem = tape.Recorded(tape.denoiser()), tape.problem(dtype=dtype)
    with torch.no_grad():
        x = method(asked, problem, tape.Tape(2, None, dtype))
    assert np.abs(x.numpy() - golden["x_final"]).max() < tolerance
    hidden = ~problem.known.expand_as(x).numpy()
    walk, compared = [*method.moves(), (-1, -2)], 0
    down = [k for k, (i, j) in enumerate(walk) if j < i]
    for call, level, out in zip(golden["step_call"], golden["step_index"], golden["step_out"], strict=True):
        assert walk[down[call]] == (level, level - 1)
        if down[call + 1] == down[call] + 1 and level > 0:
            compared += 1
            assert np.abs(asked.states[call + 1].numpy() - out)[hidden].max() < tolerance
    assert compared == 13
    assert np.abs(golden["step_out"][-1] - golden["x_final"]).max() < 1e-6


def test_the_walk_is_the_published_one():
    moves = RePaint().moves()
    assert len(moves) == 4570
    assert RePaint().nfe() == sum(j < i for i, j in moves) == 2410
    assert sum(j > i for i, j in moves) == 2160
    assert PRESETS["fast"].nfe() == 730
