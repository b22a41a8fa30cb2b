"""The dry run: its numbers are those of the methods, and it says whose speed was measured."""

import copy
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from pipeline.diffusion.unet import UNet
from pipeline.errors import CheckpointError
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import check_params, read_yaml
from pipeline.experiment.plan import Rate, as_text, completions, measure, plan, rows
from pipeline.methods import METHODS
from pipeline.weights import save_weights

ROOT = Path(__file__).parents[2]
BASE = read_yaml(ROOT / "configs" / "base.yaml")
RATE = Rate(forward=0.5, backward=0.25, batch=12, where="cpu", network="the trained model in runs/x/ddpm/faces")


def edited(**sweep):
    """The base with another sweep and a network that takes no time."""
    values = copy.deepcopy(BASE)
    values["sweep"].update(sweep)
    values["report"]["reference"] = values["sweep"]["methods"][0]
    values["image_size"] = 32
    values["ddpm"]["unet"] = {**values["ddpm"]["unet"], "patch": 4, "channels": [32], "attention": [], "head_dim": 8}
    values["methods"]["ddnm"]["travel_length"] = 4
    values["methods"]["ddnm"]["travel_repeats"] = 2
    return values


PARAMS = check_params(
    edited(datasets=["faces", "rooms"], methods=["blended", "ddnm"], masks=["left", "top", "wide"], images=5, samples=2)
)


def trained(folder, params=PARAMS):
    torch.manual_seed(0)
    save_weights(folder, UNet(params.ddpm.unet, params.image_size), {"kind": "ddpm"})


def test_every_method_of_the_parameters_has_a_row_with_its_own_numbers():
    found = rows(PARAMS, RATE)
    assert [row.method for row in found] == [*PARAMS.methods, *PARAMS.steered]
    assert set(PARAMS.methods) == set(METHODS)
    for row in found:
        method = PARAMS.method(row.method)
        assert (row.forwards, row.backwards, row.moves) == (method.nfe(), method.nbe(), len(method.moves()))
        assert row.swept == (row.method in ("blended", "ddnm", "tiramisu"))


def test_a_steered_row_takes_what_its_base_takes():
    found = {row.method: row for row in rows(PARAMS, RATE)}
    assert replace(found["tiramisu"], method="copaint", swept=False) == found["copaint"]
    assert replace(found["steered_ddnm"], method="ddnm", swept=True) == found["ddnm"]


def test_moves_count_those_that_go_back():
    [row] = [row for row in rows(PARAMS, RATE) if row.method == "ddnm"]
    assert row.forwards > 100
    assert row.moves == 2 * row.forwards - 100


def test_a_sweep_is_datasets_times_masks_times_images_times_samples():
    assert completions(PARAMS) == 2 * 3 * 5 * 2
    assert {row.completions for row in rows(PARAMS, RATE)} == {60}


def test_time_is_evaluations_at_the_measured_rate():
    found = {row.method: row for row in rows(PARAMS, RATE)}
    assert found["blended"].seconds == pytest.approx(60 * 250 * 0.5)
    dps = PARAMS.method("dps")
    assert found["dps"].seconds == pytest.approx(60 * (dps.nfe() * 0.5 + dps.nbe() * 0.25))
    assert dps.nbe() > 0


def test_the_text_adds_up_the_sweep():
    text = as_text(PARAMS, RATE, rows(PARAMS, RATE))
    assert "2 dataset(s) x 3 mask(s) x 5 image(s) x 2 sample(s) = 60 completions per method" in text
    assert "12 image(s) at a time: 500 ms forward and 250 ms backward per image" in text
    assert "measured just now on the trained model in runs/x/ddpm/faces." in text
    assert re.search(r"^blended \* +250 +250 +0 +15000 +0 +2:05:00$", text, re.MULTILINE)
    assert re.search(r"^dps +250 +250 +250 +15000 +15000 +3:07:30$", text, re.MULTILINE)
    copaint = PARAMS.method("copaint")
    forwards, backwards = 60 * (250 + PARAMS.method("ddnm").nfe() + copaint.nfe()), 60 * copaint.nbe()
    assert f"The sweep runs those with a *: {forwards} forwards and {backwards} backwards, about" in text
    assert len({len(line) for line in text.splitlines()[4 : 5 + len(METHODS) + len(PARAMS.steered)]}) == 1


def test_without_a_model_it_says_that_a_new_network_was_timed(tmp_path):
    rate = measure(PARAMS, Layout(tmp_path, "embedded"))
    assert rate.network == (
        "a freshly initialised network of the same shape, because runs/embedded/ddpm holds no trained model yet"
    )
    assert rate.forward > 0
    assert rate.backward >= 0
    assert rate.batch == 10


def test_the_trained_model_is_the_one_that_is_timed(tmp_path):
    layout = Layout(tmp_path, "embedded")
    trained(layout.ddpm("rooms"))
    assert measure(PARAMS, layout).network == "the trained model in runs/embedded/ddpm/rooms"
    trained(layout.ddpm("faces"))
    assert "the trained model in runs/embedded/ddpm/faces." in plan(PARAMS, layout)


def test_a_damaged_model_is_no_missing_one(tmp_path):
    layout = Layout(tmp_path, "embedded")
    trained(layout.ddpm("faces"))
    (layout.ddpm("faces") / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"faces/model\.safetensors"):
        measure(PARAMS, layout)


def test_the_command_prints_the_plan_and_leaves_nothing_behind(tmp_path):
    YAML().dump(edited(images=1), tmp_path / "params.yaml")
    command = [sys.executable, "-m", "stages.plan"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1", "TIRAMISU_DEVICE": "cpu"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Profile embedded: 3 dataset(s) x 7 mask(s) x 1 image(s) x 1 sample(s)")
    assert all(re.search(rf"^{name}( \*)? +\d", done.stdout, re.MULTILINE) for name in METHODS)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
