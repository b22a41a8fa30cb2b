"""What the project promises about its shape: who imports whom, what DVC watches, where parameters stand."""

import ast
import copy
import dataclasses
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args, get_origin

import grimp
import pytest
from importlinter.api import read_configuration
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.independence import IndependenceContract
from importlinter.contracts.layers import LayersContract
from importlinter.contracts.protected import ProtectedContract
from ruamel.yaml import YAML

from pipeline.experiment import provenance
from pipeline.experiment.params import Block, Params, check_params, load_params
from pipeline.experiment.profiles import names, resolved
from pipeline.methods import METHODS

ROOT = Path(__file__).parents[1]
YAML_1_2 = YAML(typ="safe", pure=True)
STAGES = YAML_1_2.load(ROOT / "dvc.yaml")["stages"]


def module_of(path):
    """Dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path for folder in ("pipeline", "stages") for path in sorted((ROOT / folder).rglob("*.py"))}


# --- import contracts, as pyproject.toml states them ---

BREACHES = {
    "layers": [
        ("pipeline.data.images", "pipeline.experiment.layout"),
        ("pipeline.methods.ddnm", "pipeline.training.settings"),
        ("pipeline.diffusion.schedule", "pipeline.codec.codec"),
        ("pipeline.diffusion.analytic", "pipeline.oracles.mixture"),
        ("pipeline.noise", "pipeline.data.images"),
        ("pipeline.errors", "pipeline.problem"),
        ("pipeline.experiment.report", "stages.command"),
    ],
    "methods": [("pipeline.methods.ddnm", "pipeline.methods.blended")],
    "science": [
        ("pipeline.codec.codec", "mlflow"),
        ("pipeline.diffusion.unet", "pytorch_lightning"),
        ("pipeline.methods.ddnm", "tqdm"),
        ("pipeline.problem", "yaml"),
        ("pipeline.weights", "matplotlib"),
        ("pipeline.oracles.worlds", "matplotlib"),
        ("pipeline.steering.fusion", "matplotlib"),
    ],
    "lightning": [("pipeline.experiment.job", "pytorch_lightning"), ("stages.track", "lightning")],
    "mlflow": [("pipeline.experiment.job", "mlflow"), ("stages.ui", "mlflow")],
}
"""Contract -> imports that must break it: the test of the test."""


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("pipeline", "stages", include_external_packages=True, cache_dir=None)


KINDS = {
    "layers": LayersContract,
    "independence": IndependenceContract,
    "forbidden": ForbiddenContract,
    "protected": ProtectedContract,
}


@pytest.fixture(scope="module")
def contracts():
    """The contracts of pyproject.toml by id."""
    configuration = read_configuration(str(ROOT / "pyproject.toml"))
    session = configuration["session_options"]
    return {
        options["id"]: KINDS[options["type"]](name=options["name"], session_options=session, contract_options=options)
        for options in configuration["contracts_options"]
    }


def test_pyproject_has_the_contracts(contracts):
    assert set(contracts) == set(BREACHES)


@pytest.mark.parametrize("contract", BREACHES)
def test_a_contract_is_kept(graph, contracts, contract):
    check = contracts[contract].check(copy.deepcopy(graph), verbose=False)
    assert check.kept, f"{contracts[contract].name}: run `lint-imports` to see the chain of imports"


@pytest.mark.parametrize(
    ("contract", "importer", "imported"), [(name, *pair) for name, pairs in BREACHES.items() for pair in pairs]
)
def test_a_breach_breaks_its_contract(graph, contracts, contract, importer, imported):
    assert importer in graph.modules
    broken = copy.deepcopy(graph)
    if imported not in broken.modules:
        broken.add_module(imported, is_squashed=True)
    broken.add_import(importer=importer, imported=imported, line_number=1, line_contents=f"import {imported}")
    assert not contracts[contract].check(broken, verbose=False).kept


def test_the_shell_alone_prints_logs_and_chooses_devices():
    """The science neither prints nor logs nor moves anything to a GPU by itself."""
    science = [name for name in SOURCES if not re.match(r"pipeline\.(experiment|training)|stages", name)]
    assert len(science) > 20
    for name in science:
        text = SOURCES[name].read_text()
        assert not re.search(r"^\s*(import logging|from logging)|\bprint\(|\.cuda\(", text, re.M), name


def test_nothing_is_called_utils():
    forbidden = {"utils", "helpers", "common", "base", "misc", "util"}
    assert [name for name in SOURCES if forbidden & set(name.split("."))] == []


# Digests of code follow absolute imports of modules, and so need these two.


def test_imports_are_absolute():
    for name, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name}: {ast.unparse(node)}"


def test_packages_hold_no_code_but_registries():
    for name, path in SOURCES.items():
        if path.name == "__init__.py" and name not in provenance.REGISTRIES:
            body = ast.parse(path.read_text()).body
            assert len(body) == 1, f"{name}: only a docstring, because no digest of code looks here"
            assert ast.get_docstring(ast.parse(path.read_text())), name


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("stages.")])
def test_what_an_entry_imports_is_there(name):
    """Entries import inside functions, so a wrong name would show only when the stage runs."""
    for node in ast.walk(ast.parse(SOURCES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("pipeline", "stages")):
            there = set(vars_of(SOURCES[node.module])) | {module.rpartition(".")[2] for module in SOURCES}
            assert {alias.name for alias in node.names} <= there, ast.unparse(node)


def vars_of(path):
    """Names that a module defines or imports at its top level."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


HEAVY = ["pytorch_lightning", "torchmetrics", "diffusers", "lpips", "torchvision", "matplotlib", "mlflow", "dvc"]


def test_reading_params_pulls_in_nothing_heavy():
    code = f"import sys; import pipeline.experiment.params; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert all(find_spec(name) for name in HEAVY), "a package that is not installed cannot be pulled in"


# --- what DVC watches ---

WITNESSES = {
    "stages.command": "parses arguments and prints errors",
    "pipeline.errors": "the words of errors",
    "pipeline.experiment.params": "reads values; DVC watches the values themselves",
    "pipeline.files": "writes what it is given",
    "pipeline.experiment.layout": "says where files lie; DVC watches the files",
    "pipeline.experiment.record": "writes what it is given",
    "pipeline.experiment.provenance": "names results, does not make them",
    "pipeline.experiment.runtime": "device, clock and circumstances, which are measured and not decided",
    "pipeline.experiment.progress": "looks on",
    "pipeline.experiment.mirror": "shows records that are finished",
    "pipeline.experiment.tracking": "shows records that are finished",
    "pipeline.experiment.showing": "part of tracking",
    "pipeline.experiment.trackable": "part of tracking",
    "pipeline.experiment.turns": "part of tracking",
    "pipeline.watch": "looks on",
}
"""Modules that no stage watches, and why they cannot change a result."""

SPARED = {
    ("inpaint", "pipeline.methods"): "the table of methods; the stage watches its own row's file",
    ("inpaint", "pipeline.data.masks"): "reads masks as files, which the stage watches; a new one changes no old one",
    ("inpaint_steered", "pipeline.data.masks"): "as inpaint",
    ("strip", "pipeline.data.masks"): "as inpaint",
    ("score", "pipeline.data.masks"): "as inpaint",
    ("train_vqgan", "pipeline.experiment.pictures"): "sheets for the eye",
    ("train_ddpm", "pipeline.experiment.pictures"): "sheets for the eye",
    ("train_ddpm", "pipeline.diffusion.sampling"): "draws the pictures of a sheet",
}
"""(stage, module) that the stage reaches and does not watch, and why."""


def definition(stage):
    """What dvc.yaml says of a stage, whether it is repeated or not."""
    return STAGES[stage].get("do", STAGES[stage])


def entry(stage):
    """The module of a stage's command."""
    return re.search(r"python -m (stages\.\w+)", definition(stage)["cmd"])[1]


def instances():
    """(stage, method or None): every stage, and `inpaint` once per method."""
    for stage in STAGES:
        yield from ((stage, name) for name in METHODS) if "${item.method}" in str(STAGES[stage]) else ((stage, None),)


def watched(stage, method):
    """Source files and folders among a stage's dependencies."""
    deps = [dep.replace("${item.method}", method or "") for dep in definition(stage)["deps"]]
    return [dep for dep in deps if dep.startswith(("pipeline/", "stages/"))]


def reached(stage, method):
    """Modules whose source decides the result of a stage."""
    modules = [entry(stage)] + ([f"pipeline.methods.{method}"] if method else [])
    spared = {module for name, module in SPARED if name == stage}
    return provenance.closure(*modules, without=frozenset(WITNESSES) | spared)


@pytest.mark.parametrize(("stage", "method"), list(instances()))
def test_a_stage_watches_the_code_that_decides_its_result(stage, method):
    deps = watched(stage, method)
    missing = []
    for module in sorted(reached(stage, method)):
        path = str(SOURCES[module].relative_to(ROOT))
        if not any(path == dep or path.startswith(f"{dep}/") for dep in deps):
            missing.append(path)
    assert missing == [], f"add to the deps of {stage} in dvc.yaml"


@pytest.mark.parametrize(("stage", "method"), list(instances()))
def test_a_stage_watches_no_code_that_it_does_not_reach(stage, method):
    """Otherwise it would run again for nothing; folders may hold more than is reached."""
    paths = {str(SOURCES[module].relative_to(ROOT)) for module in reached(stage, method)}
    for dep in watched(stage, method):
        assert (ROOT / dep).exists(), f"{stage} watches {dep}, which is not there"
        if not dep.endswith("templates"):
            assert any(path == dep or path.startswith(f"{dep}/") for path in paths), f"{stage} does not use {dep}"


def test_no_stage_of_one_method_watches_another():
    for stage, method in instances():
        if method:
            assert [dep for dep in watched(stage, method) if "methods" in dep] == [f"pipeline/methods/{method}.py"]


def test_witnesses_and_spared_are_reached_by_somebody():
    everything = {name: provenance.closure(entry(name), without=frozenset()) for name in STAGES}
    assert WITNESSES.keys() <= set().union(*everything.values()), "a witness that is not there or not reached"
    for stage, module in SPARED:
        assert module in everything[stage]


UNWATCHED_PARAMS = {("inpaint", "sweep.batch"): "how many images at a time: decides the speed, not the images"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_watches_the_parameters_it_reads(stage):
    """Every `params.section.name` in the module that does the stage's work."""
    [worker] = [name for name in provenance.imported_by(entry(stage)) if name.startswith("pipeline.experiment.")]
    declared = [re.sub(r"\$\{\S+\}", "*", name) for name in definition(stage)["params"]]
    for used in read_from_params(SOURCES[worker]):
        if (stage, used) not in UNWATCHED_PARAMS:
            places = [f"{name}." for name in declared]
            assert any(f"{used}.".startswith(place) or place.startswith(f"{used}.") for place in places), (
                f"{stage} reads {used}"
            )


def read_from_params(path):
    """Dotted names, at most two parts, that follow `params` in a source file."""
    for node in ast.walk(ast.parse(path.read_text())):
        chain, inner = [], node
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        chain = [*([inner.id] if isinstance(inner, ast.Name) else []), *reversed(chain)]
        if isinstance(node, ast.Attribute) and "params" in chain[:-1]:
            name = ".".join(chain[chain.index("params") + 1 :][:2])
            yield {"method": "methods", "row": "steered", "rows": "sweep.methods"}.get(name, name)


@pytest.mark.parametrize("profile", names(ROOT))
@pytest.mark.parametrize("stage", STAGES)
def test_watched_parameters_are_there(stage, profile):
    values = resolved(ROOT, profile)
    for name in definition(stage)["params"]:
        for block, key in (("datasets", "${key}"), ("methods", "${item.method}"), ("steered", "${item.steered}")):
            name = name.replace(key, next(iter(values[block])))
        value = values
        for part in name.split("."):
            assert part in value, f"{stage} watches {name}"
            value = value[part]


def test_stages_are_repeated_over_the_sweep():
    for stage in STAGES:
        for name, values in STAGES[stage].get("matrix", {}).items():
            assert values == f"${{sweep.{name if name == 'steered' else name + 's'}}}"
            assert f"--{name} ${{item.{name}}}" in definition(stage)["cmd"]


# --- entries ---


@pytest.mark.parametrize("stage", STAGES)
def test_an_entry_is_short_and_does_one_thing(stage):
    path = SOURCES[entry(stage)]
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    [worker] = [name for name in provenance.imported_by(entry(stage)) if name != "stages.command"]
    assert worker.startswith("pipeline.experiment.")
    assert path.stem == stage


# --- parameters ---


@pytest.mark.parametrize("profile", names(ROOT))
def test_a_profile_loads_and_every_swept_value_has_its_block(profile):
    values = resolved(ROOT, profile)
    params = check_params(values, f"profile {profile}")
    assert params.profile == profile
    assert set(params.sweep.datasets) <= set(params.datasets)
    assert set(params.sweep.methods) <= set(params.methods)


def test_the_params_of_the_repository_load():
    load_params(ROOT / "params.yaml")


def test_the_swept_methods_of_the_default_are_all_methods():
    assert set(resolved(ROOT, "embedded")["methods"]) == set(METHODS)


def dataclasses_below(model=Params, place=()):
    """(dotted name, class) of every dataclass among the sections of params.yaml."""
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) or get_args(field.annotation) or not isinstance(field.annotation, type):
            continue
        if issubclass(field.annotation, Block):
            yield from dataclasses_below(field.annotation, (*place, name))
        elif dataclasses.is_dataclass(field.annotation):
            yield ".".join((*place, name)), field.annotation
    if model is Params:
        yield from ((f"methods.{name}", cls) for name, cls in METHODS.items())


@pytest.mark.parametrize(("place", "cls"), list(dataclasses_below()))
def test_no_default_is_hidden(place, cls):
    """Every field stands in configs/base.yaml, so that whoever reads it sees all there is."""
    block = YAML_1_2.load(ROOT / "configs" / "base.yaml")
    for part in place.split("."):
        block = block[part]
    assert list(block) == [field.name for field in dataclasses.fields(cls)]


def test_the_sections_with_dataclasses_are_found():
    found = {place for place, _ in dataclasses_below()}
    assert {"trunk", "ddpm.unet", "ddpm.schedule", "ddpm.trainer", "vqgan.network", "vqgan.trainer"} <= found


# --- the repository ---

MACHINES = re.compile(r"(?<![\w.*)}>-])/(?:[w]ork|[h]ome|[r]oot|[U]sers|[m]nt)/[\w.$-]+")
"""Absolute paths of somebody's machine; `/path/to`, `/scratch/$USER` and the like are examples."""


def repository_files():
    """Files that are tracked, or would be if they were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout, so it cannot be told what belongs to the repository")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_file_knows_somebody_s_machine():
    found = []
    for path in repository_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if path.name != ".gitignore":
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINES.finditer(text)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /" + "work/main/x.py", True),
        ("'/" + "home/somebody/data'", True),
        ("=/" + "Users/me/x", True),
        ("{root}/" + "work/cells", False),
        ("runs/x, .../" + "work/cells", False),
        ("https://example.org/" + "home/page", False),
        ("/path/to/shards", False),
    ],
)
def test_machine_paths_are_told_from_others(text, found):
    assert bool(MACHINES.search(text)) == found
