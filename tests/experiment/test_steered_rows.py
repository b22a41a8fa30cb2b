"""Steered rows of params.yaml, the trained parts that steer, and the clock on each part of the work."""

import copy
import json
import time
from pathlib import Path

import pytest
import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.store import save_circuit
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.codec.vqgan import VQGAN
from pipeline.errors import CheckpointError, ConfigError, InputError
from pipeline.experiment.guides import load_guides, load_prior
from pipeline.experiment.layout import Layout
from pipeline.experiment.metering import TimedMeter
from pipeline.experiment.params import SteeredRow, build_row, check_params, read_yaml
from pipeline.experiment.provenance import file_digest
from pipeline.methods.copaint import CoPaint
from pipeline.steering.calibration import CLASSES, NAMES
from pipeline.steering.settings import PRESETS, Steering
from pipeline.weights import save_weights

VALUES = read_yaml(Path(__file__).parents[2] / "configs" / "base.yaml")
ROW = VALUES["steered"]["tiramisu"]
CPU = torch.device("cpu")


def with_rows(rows, **sweep):
    """The base with other steered rows, and other entries of the sweep."""
    values = copy.deepcopy(VALUES)
    values["steered"] = rows
    values["sweep"] |= {"steered": [], **sweep}
    values["report"]["reference"] = values["sweep"]["methods"][-1]
    return values


def refusal(values):
    with pytest.raises(ConfigError) as caught:
        check_params(values)
    message = str(caught.value)
    assert message.startswith("params.yaml: ")
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert len(message) < 300
    return message


# --- rows ---


def test_a_row_is_its_base_and_what_differs_from_its_preset():
    assert build_row("a", {"base": "ddnm"}) == SteeredRow(base="ddnm", warm=1.0, steering=Steering())
    assert build_row("a", {"base": "ddnm", "preset": "paper", "draws": 2, "warm": 1}).steering == Steering(
        **{name: getattr(PRESETS["paper"], name) for name in Steering.__dataclass_fields__ if name != "draws"}, draws=2
    )
    assert build_row("a", {"base": "x", "preset": "released"}).steering is not None
    assert type(build_row("a", {"base": "ddnm", "warm": 1}).warm) is float
    assert build_row("a", {"base": "ddnm", "until": 0, "low": 1}).steering == Steering(until=0.0, low=1.0)


def test_the_documented_row_lists_every_setting_with_its_default():
    assert set(ROW) == {"base", "warm", *Steering.__dataclass_fields__}
    assert build_row("tiramisu", ROW) == SteeredRow(base="copaint", warm=0.8, steering=Steering())


def test_rows_come_after_methods_and_have_the_base_as_their_method():
    params = check_params(with_rows({"mine": {"base": "copaint"}}, steered=["mine"]))
    assert params.rows == [*params.sweep.methods, "mine"]
    assert params.method("mine") == params.method("copaint") == CoPaint(**VALUES["methods"]["copaint"])
    assert params.row("mine").base == "copaint"


def test_no_row_need_be_steered():
    params = check_params(with_rows({}))
    assert params.rows == params.sweep.methods


def test_a_row_may_be_the_reference():
    values = with_rows({"mine": {"base": "ddnm"}}, steered=["mine"])
    values["report"]["reference"] = "mine"
    assert check_params(values).report.reference == "mine"
    values["sweep"]["steered"] = []
    assert "report.reference" in refusal(values)


ROWS = [
    ({"untill": 0.5}, ["steered.row.untill", "'until'"]),
    ({"steps": 5}, ["steered.row.steps: unknown parameter"]),
    ({"base": "copant"}, ["steered.row.base", "'copant'", "'copaint'"]),
    ({"base": "row"}, ["steered.row.base", "'row'"]),
    ({"base": None}, ["steered.row.base", "None"]),
    ({"base": 3}, ["steered.row.base", "3"]),
    ({"base": ["ddnm"]}, ["steered.row.base", "['ddnm']"]),
    ({"preset": "our"}, ["steered.row.preset", "'ours'"]),
    ({"preset": None}, ["steered.row.preset", "ours, paper, released"]),
    ({"preset": ["ours"]}, ["steered.row.preset"]),
    ({"preset": {"ours": 1}}, ["steered.row.preset"]),
    ({"warm": 0}, ["steered.row.warm", "0"]),
    ({"warm": 1.5}, ["steered.row.warm", "1.5"]),
    ({"warm": -0.1}, ["steered.row.warm", "-0.1"]),
    ({"warm": "0.5"}, ["steered.row.warm", "'0.5'"]),
    ({"warm": True}, ["steered.row.warm", "True"]),
    ({"warm": None}, ["steered.row.warm", "None"]),
    ({"warm": float("nan")}, ["steered.row.warm"]),
    ({"until": "0.5"}, ["steered.row.until", "'0.5'"]),
    ({"until": 1.5}, ["steered.row", "until", "1.5"]),
    ({"until": None}, ["steered.row.until", "None"]),
    ({"until": []}, ["steered.row.until"]),
    ({"draws": 1.5}, ["steered.row.draws", "1.5"]),
    ({"draws": True}, ["steered.row.draws", "True"]),
    ({"rule": "likely"}, ["steered.row.rule", "'likely'"]),
    ({"query": 1}, ["steered.row.query"]),
    ({"outcome": None}, ["steered.row.outcome"]),
    ({"evidence_draws": 3}, ["steered.row", "evidence_draws", "likelihood"]),
    ({"draws": 3}, ["steered.row", "draws", "expected"]),
    ({"preset": "released", "eps": "kept"}, ["steered.row", "eps", "released"]),
    ({"preset": "paper", "query": "flow"}, ["steered.row", "query", "joint"]),
]


@pytest.mark.parametrize(("edits", "words"), ROWS, ids=str)
def test_a_row_that_cannot_be_is_one_sentence_with_its_key(edits, words):
    message = refusal(with_rows({"row": {"base": "ddnm", **edits}}))
    for word in words:
        assert word in message


def test_a_row_needs_a_base():
    assert "steered.row.base: expected the name of a block under methods" in refusal(with_rows({"row": {}}))


@pytest.mark.parametrize(
    ("rows", "sweep", "words"),
    [
        ({"ddnm": {"base": "copaint"}}, {}, ["steered.ddnm", "is the name of a method"]),
        ({"two words": {"base": "ddnm"}}, {}, ["steered.two words", "folder"]),
        ({"../up": {"base": "ddnm"}}, {}, ["steered.../up", "folder"]),
        ({"mine": {"base": "ddnm"}}, {"steered": ["mind"]}, ["sweep.steered", "'mind'", "'mine'"]),
        ({"mine": {"base": "ddnm"}}, {"steered": ["ddnm"]}, ["sweep.steered", "'ddnm'"]),
        ({"mine": {"base": "ddnm"}}, {"steered": ["mine", "mine"]}, ["sweep.steered", "twice"]),
        ({"mine": {"base": "ddnm"}}, {"methods": ["mine"]}, ["sweep.methods", "'mine'"]),
        ({"mine": None}, {}, ["steered.mine"]),
        ({"mine": "ddnm"}, {}, ["steered.mine"]),
        (None, {}, ["steered"]),
    ],
)
def test_rows_that_do_not_go_together_are_one_sentence(rows, sweep, words):
    message = refusal(with_rows(rows, **sweep))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"images": 0}, ["steering.images", "0"]),
        ({"levels": 0}, ["steering.levels", "0"]),
        ({"levels": "6"}, ["steering.levels", "'6'"]),
        ({"until": 1.0}, ["steering.until", "1"]),
        ({"until": -0.1}, ["steering.until", "-0.1"]),
        ({"masks": []}, ["steering.masks"]),
        ({"masks": ["lefft"]}, ["steering.masks", "'lefft'", "'left'"]),
        ({"masks": ["left", "left"]}, ["steering.masks", "twice"]),
        ({"mask": ["left"]}, ["steering.mask", "'masks'"]),
    ],
)
def test_what_is_fitted_on_is_checked(edits, words):
    values = copy.deepcopy(VALUES)
    values["steering"] |= edits
    message = refusal(values)
    for word in words:
        assert word in message


# --- the parts on disk ---


@pytest.fixture(scope="module")
def params():
    values = copy.deepcopy(VALUES)
    values["image_size"] = 16
    values["vqgan"]["network"] = {"channels": [32], "layers": 1, "codes": 8, "code_dim": 4, "attention": False}
    values["ddpm"]["unet"] |= {"patch": 4, "channels": [32], "attention": [], "head_dim": 8}
    return check_params(values)


def a_circuit(side=16, codes=8):
    return Circuit(quadtree(side), states=2, vocabulary=Vocabulary.full(codes))


@pytest.fixture
def layout(params, tmp_path):
    """Files of a codec, a circuit and a calibration that go together."""
    made, table = Layout(tmp_path, "toy"), [0.5] * CLASSES
    save_weights(made.vqgan("faces"), VQGAN(params.vqgan.network), {})
    save_circuit(made.circuit("faces"), a_circuit(), {})
    made.steering("faces").mkdir(parents=True)
    (made.steering("faces") / "calibration.json").write_text(
        json.dumps({"times": [500, 1000], "levels": [dict.fromkeys(NAMES, table)] * 2})
    )
    return made


def test_the_parts_that_steer_are_read_with_their_digests(params, layout):
    prior, inputs = load_prior(params, layout, "faces", CPU)
    assert (prior.codec.codes, prior.circuit.tokens, prior.calibration.times) == (8, 256, (500, 1000))
    assert inputs == {
        "vqgan": file_digest(layout.vqgan("faces") / "model.safetensors"),
        "circuit": file_digest(layout.circuit("faces") / "model.safetensors"),
        "calibration": file_digest(layout.steering("faces") / "calibration.json"),
    }
    assert not prior.circuit.training
    assert not prior.codec.vqgan.training
    assert not any(p.requires_grad for p in prior.codec.vqgan.parameters())
    assert load_guides(params, layout, "faces", CPU)[2].keys() == {"vqgan", "circuit"}


def refused(kind, params, layout):
    with pytest.raises(kind) as caught:
        load_prior(params, layout, "faces", CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_calibration_names_its_stage(params, layout):
    path = layout.steering("faces") / "calibration.json"
    path.unlink()
    message = refused(CheckpointError, params, layout)
    assert message == f"{path} is missing; run the stage fit_steering (dvc repro fit_steering@faces)."


@pytest.mark.parametrize("content", ["", "{", '{"times": [1', "[]", "null", '"words"'])
def test_a_calibration_that_is_no_json_is_named(params, layout, content):
    path = layout.steering("faces") / "calibration.json"
    path.write_text(content)
    assert refused(InputError, params, layout).startswith(f"{path}: expected a JSON object")


@pytest.mark.parametrize("content", ["{}", '{"times": [1000], "levels": []}', '{"times": [1e999], "levels": [{}]}'])
def test_a_calibration_with_something_else_in_it_is_named(params, layout, content):
    path = layout.steering("faces") / "calibration.json"
    path.write_text(content)
    message = refused(CheckpointError, params, layout)
    assert message.startswith(f"{path}: expected a calibration")
    assert message.endswith("run the stage fit_steering again.")


@pytest.mark.parametrize(
    ("circuit", "found"),
    [({"codes": 9}, "256 of 9"), ({"side": 8}, "64 of 8")],
)
def test_a_circuit_of_other_tokens_is_refused(params, layout, circuit, found):
    save_circuit(layout.circuit("faces"), a_circuit(**circuit), {})
    message = refused(CheckpointError, params, layout)
    assert message == (
        f"{layout.circuit('faces')}: the codec writes 256 tokens of 8 codes, but the circuit is over {found}; "
        "train the circuit again."
    )


def test_missing_and_exchanged_weights_are_refused(params, layout):
    path = layout.circuit("faces") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "SHA-256" in refused(CheckpointError, params, layout)
    path.unlink()
    assert str(path) in refused(CheckpointError, params, layout)
    (layout.vqgan("faces") / "model.json").unlink()
    assert str(layout.vqgan("faces")) in refused(CheckpointError, params, layout)


# --- the clock ---


def test_a_timed_meter_counts_and_times_each_part():
    meter = TimedMeter(CPU)
    for _ in range(2):
        with meter.part("circuit", 3):
            time.sleep(0.01)
    with meter.part("fusion"):
        pass
    assert meter.counts == {"circuit": 6, "fusion": 0}
    assert set(meter.seconds) == {"circuit", "fusion"}
    assert 0.02 <= meter.seconds["circuit"] < 5
    assert 0 <= meter.seconds["fusion"] < meter.seconds["circuit"]


def test_a_cleared_meter_starts_anew():
    meter = TimedMeter(CPU)
    with meter.part("encode", 3):
        pass
    meter.clear()
    assert meter.counts == {}
    assert meter.seconds == {}
    with meter.part("decode", 1):
        pass
    assert meter.counts == {"decode": 1}
    assert set(meter.seconds) == {"decode"}
