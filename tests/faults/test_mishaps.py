"""What befalls single cells: memory ends, or values are not finite. The others are finished all the same."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from faults.processes import NO_MLFLOW, finish, run
from faults.toy import PROFILE, SMALLER, STAGES, settled
from pipeline.diffusion.unet import UNet
from pipeline.errors import UserError
from pipeline.experiment.inpaint import inpaint
from pipeline.experiment.layout import Layout
from pipeline.experiment.mishaps import in_batches
from pipeline.experiment.models import load_denoiser
from pipeline.experiment.params import load_params
from pipeline.weights import load_weights, save_weights

STEPS = SMALLER["methods.ddnm.steps"]


class Faulty:
    """A denoiser at whose every answer `fault` looks, and may raise or answer something else."""

    def __init__(self, inner, fault):
        self.inner, self.fault = inner, fault
        self.schedule, self.shape = inner.schedule, inner.shape

    def denoise(self, x_t, t):
        return self.fault(x_t, t, self.inner.denoise(x_t, t))


@pytest.fixture
def sample(root, undo, monkeypatch):
    """Runs the stage in this process, with a network that has a fault; nothing is done yet."""
    undo("inpaint")
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NO_MLFLOW)
    monkeypatch.setenv("TIRAMISU_DEVICE", "cpu")

    def run_with(fault):
        def load(*arguments):
            denoiser, description = load_denoiser(*arguments)
            return Faulty(denoiser, fault), description

        monkeypatch.setattr("pipeline.experiment.sweep.load_denoiser", load)
        inpaint(load_params(), Layout(root, PROFILE), "faces", "ddnm")

    return run_with


def measured(root):
    cells = json.loads((root / "runs" / PROFILE / "inpaint/faces/ddnm/cells.json").read_text())["cells"]
    return [cell["measured"] for cell in cells]


# --- memory ---


def assert_same_but_for_rounding(root, whole):
    """Convolutions may round differently in other batches: by one grey value here and there, never more."""
    cells = sorted((root / "runs").rglob("inpaint/*/*/*.npz"))
    pairs = [(np.load(path), np.load(whole / path.relative_to(root))) for path in cells]
    assert all(np.abs(one["samples"].astype(int) - other["samples"]).max() <= 1 for one, other in pairs)
    one, other = (
        {name: value for name, value in settled(place).items() if ".npz" not in name} for place in (root, whole)
    )
    assert one == other


def limited(most, error):
    def fault(x_t, t, prediction):
        if len(x_t) > most:
            raise error
        return prediction

    return fault


SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 4 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize(
    ("most", "sizes", "error"), [(3, [2] * 4, SHORT[0]), (3, [2] * 4, SHORT[1]), (1, [1] * 8, SHORT[2])]
)
def test_a_smaller_batch_is_recorded_and_changes_nothing(whole, root, sample, most, sizes, error):
    sample(limited(most, error))
    assert_same_but_for_rounding(root, whole)
    assert [(cell["batch_size"], cell["batch_sizes"]) for cell in measured(root)] == [(sizes[0], sizes)] * 3


def test_memory_that_ends_in_the_middle_halves_what_is_left(whole, root, sample):
    """What was sampled before is kept, and the failed batch is neither counted nor timed."""
    calls = []

    def fault(x_t, t, prediction):
        calls.append(len(x_t))
        if len(calls) > 1 + STEPS + 3 and len(x_t) > 2:  # in the second batch of the first cell
            raise SHORT[0]
        return prediction

    sample(fault)
    assert_same_but_for_rounding(root, whole)
    assert [cell["batch_sizes"] for cell in measured(root)] == [[4, 2, 2], [2, 2, 2, 2], [2, 2, 2, 2]]


def test_one_image_that_does_not_fit_is_named(root, sample):
    warm = []

    def fault(x_t, t, prediction):
        if warm:  # the evaluation that warms up succeeds
            raise SHORT[0]
        warm.append(t)
        return prediction

    with pytest.raises(UserError) as caught:
        sample(fault)
    assert str(caught.value).startswith("3 of 3 cells failed")
    for word in ("faces, mask left, ddnm", "(3, 16, 16)", "not even one at a time", "Tried to allocate", "lower"):
        assert word in str(caught.value)
    assert not list(root.rglob("cells/*"))
    assert not (root / "runs" / PROFILE / "inpaint" / "faces" / "ddnm").exists()


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def work(rows):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        in_batches(4, 4, work, "nothing")


@pytest.mark.parametrize(("count", "size", "most"), [(7, 3, 9), (10, 8, 3), (5, 5, 1), (1, 4, 1), (9, 4, 2)])
def test_every_number_is_worked_on_once_and_in_order(count, size, most):
    done = []

    def work(rows):
        if len(rows) > most:
            raise MemoryError
        done.extend(rows)

    sizes = in_batches(count, size, work, "numbers")
    assert done == list(range(count))
    assert sum(sizes) == count
    assert max(sizes) <= min(size, most)


# --- values that are not finite ---


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_cell_that_is_not_finite_is_refused_and_the_others_are_finished(whole, root, sample, value):
    calls = []

    def fault(x_t, t, prediction):
        calls.append(t)
        if len(calls) != 1 + 2 * STEPS + STEPS + 3:  # the third step of the second cell's second batch
            return prediction
        x_0 = prediction.x_0.clone()
        x_0[2, 1, 4, 5] = value
        return dataclasses.replace(prediction, x_0=x_0)

    with pytest.raises(UserError) as caught:
        sample(fault)
    time = calls[1 + 2]  # of the third step
    words = ("1 of 3 cells failed", "faces, mask expand1, ddnm", "the network's estimate", f"t = {time} of 1000")
    for word in (*words, "image faces-test-000003 "):
        assert word in str(caught.value)
    cells = [np.load(path) for path in root.glob("work/cells/*.npz")]
    assert sorted(json.loads(cell["record"].tobytes())["mask"] for cell in cells) == ["left", "wide"]
    assert not (root / "runs" / PROFILE / "inpaint" / "faces" / "ddnm").exists()
    finish(root, "inpaint", *STAGES["inpaint"])
    assert settled(root) == settled(whole)


def test_a_method_that_diverges_by_itself_is_told_from_a_network(sample):
    """The network's answer is too large for the numbers the method makes of it."""

    def fault(x_t, t, prediction):
        return dataclasses.replace(prediction, eps=prediction.eps * 3e38)

    with pytest.raises(UserError, match="what the method makes of image faces-test-000000 is not finite at t = "):
        sample(fault)


@pytest.mark.parametrize("value", [float("nan"), 3e38])  # the second is a number, what is computed with it is not
def test_a_network_with_one_bad_weight_is_refused_with_status_2(whole, root, undo, value):
    undo("inpaint")
    params, folder = load_params(root / "params.yaml"), root / "runs" / PROFILE / "ddpm" / "faces"
    network = UNet(params.ddpm.unet, params.image_size)
    description = load_weights(folder, network)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = value
    good = {path: path.read_bytes() for path in folder.iterdir()}
    save_weights(folder, network, {key: value for key, value in description.items() if key != "sha256"})
    status, words = run(root, "inpaint", *STAGES["inpaint"])
    assert status == 2
    assert "Traceback" not in words
    assert "finite" in words
    assert not list(root.rglob("cells/*"))
    for path, content in good.items():
        path.write_bytes(content)
    finish(root, "inpaint", *STAGES["inpaint"])
    assert settled(root) == settled(whole)
