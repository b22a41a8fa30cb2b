"""Fingerprints: the same for the same, another for another, and code counts where it decides."""

import ast
import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

from pipeline.experiment import provenance
from pipeline.experiment.models import InPrecision
from pipeline.experiment.provenance import (
    REGISTRIES,
    WITNESSES,
    closure,
    code_digest,
    digest,
    file_digest,
    imported_by,
    source_of,
)
from pipeline.experiment.sweep import SHELL, module_of
from pipeline.methods import METHODS

ROOT = Path(__file__).parents[2]


# --- digests ---


def shuffled(value, generator):
    """The same mapping with its keys in another order, all the way down."""
    if isinstance(value, dict):
        items = [(key, shuffled(item, generator)) for key, item in value.items()]
        generator.shuffle(items)
        return dict(items)
    return [shuffled(item, generator) for item in value] if isinstance(value, list) else value


VALUE = {"a": {"x": 1, "y": [1, {"p": None, "q": True}], "z": "caf\u00e9"}, "b": 1e-7, "c": [], "d": {}}


def test_a_digest_does_not_depend_on_the_order_of_keys():
    for seed in range(20):
        assert digest(shuffled(VALUE, random.Random(seed))) == digest(VALUE)


def test_a_digest_is_the_same_on_every_machine():
    """Of the text {"a":[1,2.5,null],"b":"x"}."""
    expected = hashlib.sha256(b'{"a":[1,2.5,null],"b":"x"}').hexdigest()
    assert digest({"b": "x", "a": [1, 2.5, None]}) == expected


def test_different_values_have_different_digests():
    values = [1, 1.5, "1", [1], [[1]], {"a": 1}, {"a": "1"}, {"a": [1]}, {"b": 1}, None, True, "", [], {}, [2, 1]]
    assert len({digest(value) for value in values}) == len(values)


def test_a_digest_survives_being_written_and_read():
    assert digest(json.loads(json.dumps(VALUE, indent=1))) == digest(VALUE)


def test_what_json_has_not_has_no_digest():
    with pytest.raises(TypeError):
        digest({"a": {1, 2}})


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    for content in (b"", b"x" * 100000, b"\x00\xff"):
        (tmp_path / "x").write_bytes(content)
        assert file_digest(tmp_path / "x") == hashlib.sha256(content).hexdigest()


# --- the import graph ---


def test_imports_are_found_wherever_they_stand():
    """At the top, as whole modules, inside functions, and for types only."""
    assert "pipeline.diffusion.schedule" in imported_by("pipeline.methods.ddnm")
    assert {"pipeline.noise", "pipeline.methods"} <= imported_by("pipeline.experiment.completion")
    assert "pipeline.experiment.encode" in imported_by("stages.encode")
    assert "pipeline.experiment.layout" in imported_by("stages.command")
    assert imported_by("pipeline.errors") == frozenset()
    assert "pipeline.methods.ddnm" not in imported_by("pipeline.methods.ddnm")


def test_a_package_is_its_init_file():
    assert source_of("pipeline.methods") == ROOT / "pipeline" / "methods" / "__init__.py"
    assert source_of("pipeline.noise") == ROOT / "pipeline" / "noise.py"


def test_a_closure_holds_itself_and_what_it_reaches():
    reached = closure("pipeline.methods.ddnm")
    assert {"pipeline.methods.ddnm", "pipeline.diffusion.denoiser", "pipeline.diffusion.schedule"} <= reached
    assert {"pipeline.noise", "pipeline.problem", "pipeline.watch"} <= reached
    for module in reached:
        assert imported_by(module) <= reached | REGISTRIES | WITNESSES


@pytest.mark.parametrize("name", METHODS)
def test_a_closure_stops_at_registries_and_witnesses(name):
    reached = closure(module_of(name), *SHELL)
    assert not reached & (REGISTRIES | WITNESSES)
    assert "pipeline.methods" in imported_by("pipeline.experiment.completion")  # so there is something to stop at
    assert [module for module in reached if module.startswith("pipeline.methods")] == [f"pipeline.methods.{name}"]
    through = closure(module_of(name), *SHELL, without=frozenset())
    assert {f"pipeline.methods.{other}" for other in METHODS} <= through


def test_a_closure_is_that_of_its_parts():
    both = closure("pipeline.methods.ddnm", "pipeline.codec.codec")
    assert both == closure("pipeline.methods.ddnm") | closure("pipeline.codec.codec")
    assert closure() == frozenset()


def test_registries_and_witnesses_exist():
    for module in REGISTRIES | WITNESSES:
        assert source_of(module).is_file()


# --- code in fingerprints ---


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the sources that may be changed."""
    for package in ("pipeline", "stages"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    imported_by.cache_clear()
    yield tmp_path
    imported_by.cache_clear()


CODE = {name: (module_of(name), *SHELL) for name in METHODS} | {
    "ddpm": ("pipeline.training.ddpm", "pipeline.diffusion.unet")
}


def digests():
    imported_by.cache_clear()
    return {name: code_digest(*modules) for name, modules in CODE.items()}


@pytest.mark.parametrize(
    ("changed", "dependants"),
    [
        ("pipeline/methods/ddnm.py", {"ddnm"}),
        ("pipeline/methods/blended.py", {"blended"}),
        ("pipeline/diffusion/schedule.py", set(CODE)),
        ("pipeline/diffusion/unet.py", set(CODE)),
        ("pipeline/noise.py", set(CODE)),
        ("pipeline/experiment/completion.py", set(METHODS)),
        ("pipeline/problem.py", set(METHODS)),
        ("pipeline/training/fit.py", {"ddpm"}),
        ("pipeline/methods/__init__.py", set()),
        ("pipeline/data/faces.py", set()),
        ("pipeline/data/masks.py", set()),
        ("pipeline/errors.py", set()),
        ("pipeline/experiment/inpaint.py", set()),
        ("pipeline/experiment/tracking.py", set()),
        ("pipeline/experiment/runtime.py", set()),
        ("pipeline/codec/vqgan.py", set()),
        ("pipeline/diffusion/analytic.py", set()),
    ],
)
def test_a_change_reaches_its_dependants_only(copied, changed, dependants):
    before = digests()
    with (copied / changed).open("a") as file:
        file.write("\n# changed\n")
    after = digests()
    assert {name for name in CODE if before[name] != after[name]} == dependants


def test_a_new_import_brings_its_module_into_the_digest(copied):
    before = digests()
    with (copied / "pipeline" / "methods" / "ddnm.py").open("a") as file:
        file.write("\nfrom pipeline.diffusion import analytic\n")
    between = digests()
    with (copied / "pipeline" / "diffusion" / "analytic.py").open("a") as file:
        file.write("\n# changed\n")
    after = digests()
    assert len({before["ddnm"], between["ddnm"], after["ddnm"]}) == 3
    assert before["blended"] == between["blended"] == after["blended"]


def test_the_digest_is_of_content_and_not_of_place(copied):
    here = digests()
    provenance.ROOT = ROOT  # the fixture restores it
    assert digests() == here


def test_the_number_format_of_a_network_decides_its_cells():
    for name in METHODS:
        assert InPrecision.__module__ in closure(module_of(name), *SHELL)


DO_NOT_DECIDE_A_TRAINING = {
    "pipeline.codec.codec": "reconstructs pictures for the eye, after the training",
    "pipeline.data.images": "float pictures for validation and for the eye",
    "pipeline.data.shards": "reads images, whose digest is an input",
    "pipeline.diffusion.sampling": "draws pictures for the eye, after the training",
    "pipeline.weights": "reads and writes tensors as they are",
}


@pytest.mark.parametrize("stage", ["train_ddpm", "train_vqgan", "train_trunk"])
def test_the_science_a_training_imports_is_in_its_fingerprint(stage):
    """Apart from what is listed with a reason, every module of the library that the stage imports."""
    module = f"pipeline.experiment.{stage}"
    [given] = [
        keyword.value
        for node in ast.walk(ast.parse(source_of(module).read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Task"
        for keyword in node.keywords
        if keyword.arg == "code"
    ]
    science = {name for name in imported_by(module) if not name.startswith("pipeline.experiment")}
    decided = closure(*ast.literal_eval(given)) | DO_NOT_DECIDE_A_TRAINING.keys() | WITNESSES
    assert science - decided == set()
