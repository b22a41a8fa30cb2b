"""params.yaml: what can be read is right, and what is wrong is one sentence that names the key."""

import copy
import dataclasses
import datetime
import math
from pathlib import Path

import pytest

from pipeline.codec.vqgan import VQGANParams
from pipeline.data.sources import Folder, Procedural, ShardSet
from pipeline.diffusion.unet import UNetParams
from pipeline.errors import ConfigError
from pipeline.experiment.params import build_method, check_params, load_params, read_yaml
from pipeline.methods import METHODS
from pipeline.training.settings import TrainerParams

BASE = Path(__file__).parents[2] / "configs" / "base.yaml"
VALUES = read_yaml(BASE)
GONE = object()


def edited(edits):
    """The base with values by dotted name replaced, added, or taken away (`GONE`)."""
    values = copy.deepcopy(VALUES)
    for name, value in edits.items():
        *path, last = name.split(".")
        block = values
        for part in path:
            block = block[part]
        if value is GONE:
            del block[last]
        else:
            block[last] = value
    return values


def refusal(edits):
    with pytest.raises(ConfigError) as caught:
        check_params(edited(edits))
    return str(caught.value)


# --- what is right ---


def test_the_base_becomes_its_types():
    params = check_params(VALUES)
    assert params.ddpm.unet == UNetParams(**{**VALUES["ddpm"]["unet"], "channels": (64, 64, 96), "attention": (8, 4)})
    assert params.vqgan.network == VQGANParams(**{**VALUES["vqgan"]["network"], "channels": (32, 64)})
    assert params.ddpm.trainer == TrainerParams(**VALUES["ddpm"]["trainer"])
    assert params.datasets["rooms"] == Procedural(**VALUES["datasets"]["rooms"])
    for name in METHODS:
        assert params.method(name) == METHODS[name](**VALUES["methods"][name])


def test_each_kind_of_source_is_read():
    blocks = {
        "a": {"source": "folder", "path": "x", "val": 2, "test": 3, "train": None, "watch": "x"},
        "b": {"source": "shards", "train": ["x.tar", "y.tar"], "val": "v.tar", "test": "t.tar"},
        "folder": {"source": "procedural", "domain": "rooms", "train": 1, "val": 1, "test": 12},
    }
    params = check_params(edited({"datasets": blocks, "sweep.datasets": ["folder"]}))
    assert params.datasets["a"] == Folder(path="x", val=2, test=3, watch="x")
    assert params.datasets["b"] == ShardSet(train=("x.tar", "y.tar"), val="v.tar", test="t.tar")
    assert params.datasets["folder"] == Procedural(domain="rooms", train=1, val=1, test=12)


def test_a_mask_of_one_s_own_may_be_swept():
    params = check_params(edited({"mask_files": {"mine": "folder"}, "sweep.masks": ["left", "mine"]}))
    assert params.sweep.masks == ["left", "mine"]


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4", "+1e-4"])
def test_numbers_are_read_as_yaml_1_2(tmp_path, text):
    """As DVC does; PyYAML would read 1e-4 as a word."""
    path = tmp_path / "params.yaml"
    path.write_text(BASE.read_text().replace("learning_rate: 2.0e-5", f"learning_rate: {text}"))
    assert load_params(path).ddpm.trainer.learning_rate == 1e-4


def test_whole_numbers_may_stand_for_real_ones():
    params = check_params(edited({"methods.ddnm.eta": 1, "ddpm.trainer.clip": 2}))
    assert (params.method("ddnm").eta, params.ddpm.trainer.clip) == (1.0, 2.0)


def test_params_cannot_be_changed():
    params = check_params(VALUES)
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.ddpm.unet.layers = 3


# --- what is wrong: edits, and words the sentence must have ---

UNKNOWN = [
    ({"sede": 1}, ["sede", "'seed'"]),
    ({"sweep.image": 1}, ["sweep.image:", "'images'"]),
    ({"lpips.pth": None}, ["lpips.pth", "'path'"]),
    ({"trunk.step": 3}, ["trunk.step:", "'steps'"]),
    ({"report.bootstraps": 3}, ["report.bootstraps", "'bootstrap'"]),
    ({"vqgan.perceptual_wieght": 0.1}, ["vqgan.perceptual_wieght", "'perceptual_weight'"]),
    ({"vqgan.network.code": 3}, ["vqgan.network.code:", "'codes'"]),
    ({"ddpm.unet.chanels": [32]}, ["ddpm.unet.chanels", "'channels'"]),
    ({"ddpm.schedule.t": 3}, ["ddpm.schedule.t:"]),
    ({"ddpm.trainer.step": 3}, ["ddpm.trainer.step:", "'steps'"]),
    ({"datasets.faces.trian": 3}, ["datasets.faces.trian", "'train'"]),
    ({"methods.ddnm.ets": 0.1}, ["methods.ddnm.ets", "'eta'"]),
    ({"methods.ddnn": {}}, ["methods.ddnn", "'ddnm'"]),
    ({"datasets.faces.source": "procedual"}, ["datasets.faces", "procedual", "'procedural'"]),
    ({"datasets.faces.domain": "face"}, ["datasets.faces", "domain", "'faces'"]),
    ({"sweep.datasets": ["face"]}, ["sweep.datasets", "'face'", "'faces'"]),
    ({"sweep.methods": ["blended", "blendet"]}, ["sweep.methods", "'blendet'", "'blended'"]),
    ({"sweep.masks": ["lefft"]}, ["sweep.masks", "'lefft'", "'left'"]),
    ({"report.reference": "copainnt"}, ["report.reference", "'copainnt'", "'copaint'"]),
    (
        {"methods": {name: VALUES["methods"][name] for name in ("blended", "copaint", "ddnm", "repaint")}},
        ["sweep.methods", "'resampling'"],
    ),
]

WRONG_TYPES = [
    ({"seed": "1"}, ["seed"]),
    ({"seed": 1.5}, ["seed"]),
    ({"seed": True}, ["seed"]),
    ({"seed": None}, ["seed"]),
    ({"image_size": "32"}, ["image_size"]),
    ({"profile": 3}, ["profile"]),
    ({"profile": "My Profile"}, ["profile", "My Profile"]),
    ({"ddpm.trainer.learning_rate": "1e-3"}, ["ddpm.trainer.learning_rate", "1e-3"]),
    ({"ddpm.unet.learn_variance": 1}, ["ddpm.unet.learn_variance"]),
    ({"ddpm.unet.channels": 64}, ["ddpm.unet.channels"]),
    ({"ddpm.unet.channels": [64, "64"]}, ["ddpm.unet.channels"]),
    ({"ddpm.init": 5}, ["ddpm.init"]),
    ({"ddpm": None}, ["ddpm"]),
    ({"lpips.download": "yes"}, ["lpips.download", "yes"]),
    ({"sweep.masks": "left"}, ["sweep.masks"]),
    ({"sweep.images": "4"}, ["sweep.images"]),
    ({"mask_files": None}, ["mask_files"]),
    ({"mask_files": {"mine": 3}}, ["mask_files.mine"]),
    ({"datasets.faces": None}, ["datasets.faces"]),
    ({"datasets.faces.train": "2000"}, ["datasets.faces.train"]),
    ({"datasets": {"folder": {**VALUES["datasets"]["faces"], "train": "x"}}}, ["datasets.folder.train"]),
    ({"methods.blended": None}, ["methods.blended"]),
    ({"methods.blended.steps": 2.5}, ["methods.blended.steps"]),
    ({"methods.ddnm.clip": "no"}, ["methods.ddnm.clip"]),
    ({"ddpm.schedule.kind": "cosin"}, ["ddpm.schedule.kind", "cosin", "'cosine'"]),
    ({"ddpm.target": "x0"}, ["ddpm.target", "x0", "'x_0'"]),
    ({"ddpm.trainer.precision": "fp16"}, ["ddpm.trainer.precision", "fp16"]),
    ({"sweep.precision": "float16"}, ["sweep.precision", "float16"]),
    ({"methods.blended.kernel": "ddmi"}, ["methods.blended.kernel", "ddmi", "'ddim'"]),
]

MISSING = [
    ({"sweep": GONE}, ["sweep: missing"]),
    ({"seed": GONE}, ["seed: missing"]),
    ({"ddpm.unet": GONE}, ["ddpm.unet: missing"]),
    ({"ddpm.trainer.steps": GONE}, ["ddpm.trainer.steps: missing"]),
    ({"datasets.faces.source": GONE}, ["datasets.faces", "source"]),
    ({"datasets.faces.train": GONE}, ["datasets.faces.train: missing"]),
]

OUT_OF_RANGE = [
    ({"seed": -1}, ["seed", "-1"]),
    ({"image_size": 0}, ["image_size"]),
    ({"image_size": 40}, ["image_size", "16", "40"]),
    ({"ddpm.init": "a/{datset}"}, ["ddpm.init", "{dataset}", "{datset}"]),
    ({"ddpm.pictures": 0}, ["ddpm.pictures"]),
    ({"ddpm.picture_steps": 2000}, ["ddpm.picture_steps", "2000", "1000"]),
    ({"ddpm.vlb_weight": -0.1}, ["ddpm.vlb_weight"]),
    ({"ddpm.schedule.T": 0}, ["ddpm.schedule", "T"]),
    ({"ddpm.schedule.T": -5}, ["ddpm.schedule", "T"]),
    ({"ddpm.unet.patch": 0}, ["ddpm.unet", "patch"]),
    ({"ddpm.unet.patch": -2}, ["ddpm.unet", "patch"]),
    ({"ddpm.unet.channels": []}, ["ddpm.unet", "channels"]),
    ({"ddpm.unet.channels": [64, -64]}, ["ddpm.unet", "channels"]),
    ({"ddpm.unet.layers": 0}, ["ddpm.unet", "layers"]),
    ({"ddpm.unet.head_dim": 0}, ["ddpm.unet", "head_dim"]),
    ({"ddpm.unet.dropout": 1.5}, ["ddpm.unet", "dropout"]),
    ({"ddpm.trainer.steps": -20}, ["ddpm.trainer", "steps", "-20"]),
    ({"ddpm.trainer.checkpoint_every": 0}, ["ddpm.trainer", "checkpoint_every"]),
    ({"ddpm.trainer.batch": 0}, ["ddpm.trainer", "batch"]),
    ({"ddpm.trainer.learning_rate": 0}, ["ddpm.trainer", "learning_rate"]),
    ({"ddpm.trainer.learning_rate": -1e-3}, ["ddpm.trainer", "learning_rate"]),
    ({"ddpm.trainer.warmup": -1}, ["ddpm.trainer", "warmup"]),
    ({"ddpm.trainer.ema": 1.0}, ["ddpm.trainer", "ema"]),
    ({"ddpm.trainer.clip": -1.0}, ["ddpm.trainer", "clip"]),
    ({"ddpm.trainer.clip": 0}, ["ddpm.trainer", "clip"]),
    ({"ddpm.trainer.log_every": 0}, ["ddpm.trainer", "log_every"]),
    ({"ddpm.trainer.workers": -1}, ["ddpm.trainer", "workers"]),
    ({"vqgan.network.codes": 0}, ["vqgan.network", "codes"]),
    ({"vqgan.network.codes": 70000}, ["vqgan.network", "codes", "65536"]),
    ({"vqgan.network.code_dim": -1}, ["vqgan.network", "code_dim"]),
    ({"vqgan.network.layers": 0}, ["vqgan.network", "layers"]),
    ({"vqgan.revive_every": 0}, ["vqgan.revive_every"]),
    ({"trunk.steps": -1}, ["trunk", "steps"]),
    ({"trunk.images_per_domain": 0}, ["trunk", "images_per_domain"]),
    ({"datasets.faces.train": -1}, ["datasets.faces", "train"]),
    ({"sweep.images": 0}, ["sweep.images"]),
    ({"sweep.samples": -1}, ["sweep.samples"]),
    ({"methods.blended.steps": 0}, ["methods.blended", "steps"]),
    ({"methods.blended.eta": -0.5}, ["methods.blended", "eta"]),
    ({"methods.ddnm.eta": 1.2}, ["methods.ddnm", "eta", "1.2"]),
    ({"methods.ddnm.travel_length": 0}, ["methods.ddnm", "travel_length"]),
    ({"methods.ddnm.travel_repeats": 0}, ["methods.ddnm", "travel_repeats"]),
    ({"ddpm.trainer.learning_rate": math.nan}, ["ddpm.trainer.learning_rate"]),
    ({"ddpm.trainer.learning_rate": math.inf}, ["ddpm.trainer.learning_rate"]),
    ({"vqgan.perceptual_weight": math.inf}, ["vqgan.perceptual_weight"]),
    ({"methods.ddnm.eta": math.nan}, ["methods.ddnm", "eta"]),
]

IMPOSSIBLE_TOGETHER = [
    ({"image_size": 64}, ["vqgan.network.channels", "64", "16x16"]),
    ({"vqgan.network.channels": [32, 64, 64]}, ["vqgan.network.channels"]),
    ({"vqgan.network.channels": []}, ["vqgan.network", "channels"]),
    ({"vqgan.network.channels": [30, 64]}, ["vqgan.network", "channels", "32"]),
    ({"ddpm.unet.patch": 3}, ["ddpm.unet", "image_size", "12"]),
    ({"ddpm.unet.channels": [50, 64, 96]}, ["ddpm.unet", "channels", "32"]),
    ({"ddpm.unet.head_dim": 7}, ["ddpm.unet", "head_dim"]),
    ({"ddpm.unet.attention": [7]}, ["ddpm.unet", "attention", "7"]),
    ({"ddpm.trainer.steps": 50}, ["ddpm.trainer", "steps", "checkpoint_every"]),
    ({"methods.blended.steps": 5000}, ["methods.blended", "steps", "5000", "1000"]),
    ({"methods.copaint.levels": 5000}, ["methods.copaint.levels", "5000", "1000"]),
    ({"sweep.images": 1000}, ["sweep.images", "1000", "64"]),
    ({"sweep.masks": ["left", "left"]}, ["sweep.masks", "twice"]),
    ({"sweep.masks": []}, ["sweep.masks"]),
    ({"sweep.methods": []}, ["sweep.methods"]),
    ({"sweep.datasets": []}, ["sweep.datasets"]),
    ({"mask_files": {"left": "folder"}}, ["mask_files", "'left'"]),
    ({"datasets.two words": VALUES["datasets"]["faces"]}, ["datasets", "two words"]),
]

ODD_VALUES = [
    ({"seed": datetime.date(2026, 1, 1)}, ["seed", "2026"]),
    ({"sweep.masks": ["left", datetime.date(2026, 1, 1)]}, ["sweep.masks", "2026"]),
    ({"methods.ddnm.eta": {1, 2}}, ["methods.ddnm.eta"]),
    ({"profile": b"embedded"}, ["profile"]),
]

TABLE = UNKNOWN + WRONG_TYPES + MISSING + OUT_OF_RANGE + IMPOSSIBLE_TOGETHER + ODD_VALUES


@pytest.mark.parametrize(("edits", "words"), TABLE, ids=lambda value: str(next(iter(value)))[:60])
def test_a_malformed_edit_is_one_sentence_with_its_key(edits, words):
    message = refusal(edits)
    assert message.startswith("params.yaml: ")
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert not message.endswith(("..", "?."))
    for word in words:
        assert word in message
    assert len(message) < 300


def test_the_table_is_long():
    assert len(TABLE) > 100
    assert len({str(edits) for edits, _ in TABLE}) == len(TABLE)


def test_the_place_is_the_file_that_was_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(BASE.read_text().replace("seed: 2401", "seed: x"))
    with pytest.raises(ConfigError, match=r"mine\.yaml: seed: .* it is 'x'"):
        load_params(path)


# --- files that are no params.yaml ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "but it is empty"),
        (b"# only a comment\n", "but it is empty"),
        (b"- seed\n- image_size\n", "but it holds"),
        (b"just words", "but it holds 'just words'"),
        (b"seed: 1\n\timage_size: 32\n", "expected YAML, but"),
        (b"seed: [1, 2\n", "expected YAML, but"),
        (b"seed: 1\nimage_size: 32\nseed: 2\n", "seed"),
        (b"profile: caf\xe9\n", "expected YAML, but"),
        (b"\xff\xfe\x00\x00", "expected YAML, but"),
        (b"seed: \x00\n", "expected YAML, but"),
        (b"seed: 1\n---\nseed: 2\n", "expected YAML, but"),
        (b"seed: *nowhere\n", "nowhere"),
        (b"seed: !!python/object/apply:os.getcwd []\n", "expected YAML, but"),
        (b"seed: 1\n", "missing"),
    ],
)
def test_a_malformed_file_is_one_sentence_with_its_name(tmp_path, content, words):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_params(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="expected YAML, but") as caught:
            load_params(path)
        assert str(path) in str(caught.value)


def test_a_date_in_a_file_is_refused_with_its_key(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(BASE.read_text().replace("seed: 2401", "seed: 2026-01-01"))
    with pytest.raises(ConfigError, match="seed"):
        load_params(path)


# --- methods ---


@pytest.mark.parametrize("name", METHODS)
def test_a_block_of_settings_makes_its_method_and_nothing_else(name):
    block = VALUES["methods"][name]
    assert dataclasses.asdict(build_method(name, block)) == block
    for key in block:
        for wrong in ([], {}, "nonsense", None):
            with pytest.raises(ValueError, match=rf"methods\.{name}\.{key}"):
                build_method(name, {**block, key: wrong})
