"""Trained models in MLflow's registry: one version per training, with its weights and what they were made from."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from experiment.tracked import ask, bring_up_to_date, files, runs, train_record, write_json, write_training
from pipeline.errors import InputError
from pipeline.experiment.registry import register
from pipeline.experiment.tracking import open_store


def write_model(root: Path, kind: str, weights: bytes, stem: str = "model", **inputs: str) -> str:
    """Write a training with weights, as its stage does; return their digest."""
    digest = hashlib.sha256(weights).hexdigest()
    folder = root / "runs/embedded" / kind / "faces"
    record = train_record(f"training of {digest}", stage=f"train_{kind}", artifacts=[])
    write_json(folder / "record.json", record | {"inputs": {"data": "d" * 64, **inputs}})
    write_json(folder / f"{stem}.json", {"sha256": digest})
    (folder / f"{stem}.safetensors").write_bytes(weights)
    return digest


@pytest.fixture
def root(tracked_root) -> Path:
    """Three trainings, each made from the one before, shown; and one without weights."""
    trunk = write_model(tracked_root, "trunk", b"trunk", stem="trunk")
    codes = write_model(tracked_root, "vqgan", b"codes", trunk=trunk)
    write_model(tracked_root, "circuit", b"circuit", vqgan=codes)
    write_training(tracked_root, train_record(), [])
    bring_up_to_date(tracked_root)
    assert enter(tracked_root) == 3
    return tracked_root


def enter(root: Path) -> int:
    return register(open_store(root), root / "runs", "embedded")


def versions(root: Path, name: str) -> dict[str, dict[str, str]]:
    found = ask(root).search_model_versions(f"name = 'embedded.{name}.faces'")
    return {str(version.version): version.tags for version in found}


def test_every_training_with_weights_is_a_version(root):
    models = ask(root).search_registered_models()
    assert [model.name for model in models] == [
        "embedded.circuit.faces",
        "embedded.trunk.faces",
        "embedded.vqgan.faces",
    ]
    version = ask(root).get_model_version_by_alias("embedded.vqgan.faces", "current")
    (run,) = runs(root, "tags.stage = 'train_vqgan'")
    assert (version.run_id, version.source) == (run.info.run_id, f"runs:/{run.info.run_id}/model")
    assert {"model/model.json", "model/model.safetensors"} <= files(run)
    assert "| val/loss | 0.25 |" in version.description
    assert "| unet.dropout | 0.0 |" in version.description


def test_files_of_a_version_are_its_weights(root, tmp_path, monkeypatch):
    from mlflow.artifacts import download_artifacts

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    (tmp_path / "got").mkdir()
    folder = download_artifacts("models:/embedded.vqgan.faces@current", dst_path=str(tmp_path / "got"))
    assert {path.name for path in Path(folder).iterdir()} == {"model.json", "model.safetensors"}
    weights = (Path(folder) / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == versions(root, "vqgan")["1"]["weights"]


def test_lineage_names_data_and_parents(root):
    tags = versions(root, "circuit")["1"]
    assert tags["parent.vqgan"] == "embedded.vqgan.faces version 1"
    assert tags["input.vqgan"] == versions(root, "vqgan")["1"]["weights"]
    assert versions(root, "vqgan")["1"]["parent.trunk"] == "embedded.trunk.faces version 1"
    assert (tags["data_hash"], tags["git_commit"], tags["execution"]) == ("d" * 64, "abc123", "e1")
    (version,) = ask(root).search_model_versions("name = 'embedded.circuit.faces'")
    assert "data tokens of faces, dddddddddddd; vqgan: embedded.vqgan.faces version 1" in version.description


def test_registering_twice_adds_nothing(root):
    def contents() -> list[str]:
        return sorted(repr(dict(version)) for version in ask(root).search_model_versions())

    before = contents()
    assert bring_up_to_date(root).created == 0
    assert enter(root) == 0
    assert contents() == before


def test_another_training_is_another_version(root):
    codes = write_model(root, "vqgan", b"other codes")
    bring_up_to_date(root)
    assert enter(root) == 1
    assert versions(root, "vqgan").keys() == {"1", "2"}
    assert versions(root, "vqgan")["2"]["weights"] == codes
    model = ask(root).get_registered_model("embedded.vqgan.faces")
    assert {name: str(version) for name, version in model.aliases.items()} == {"current": "2"}


def test_weights_trained_before_come_back_as_current(root):
    shutil.copytree(root / "runs/embedded/vqgan", root / "kept")
    write_model(root, "vqgan", b"other codes")
    bring_up_to_date(root)
    enter(root)
    shutil.rmtree(root / "runs/embedded/vqgan")
    shutil.copytree(root / "kept", root / "runs/embedded/vqgan")  # as `dvc checkout` does
    bring_up_to_date(root)
    assert enter(root) == 0
    assert str(ask(root).get_model_version_by_alias("embedded.vqgan.faces", "current").version) == "1"


def test_version_of_a_deleted_run_is_made_again(root):
    (run,) = runs(root, "tags.stage = 'train_circuit'")
    ask(root).delete_run(run.info.run_id)
    bring_up_to_date(root)
    assert enter(root) == 1
    (run,) = runs(root, "tags.stage = 'train_circuit'")
    assert [version.run_id for version in ask(root).search_model_versions("name = 'embedded.circuit.faces'")] == [
        run.info.run_id
    ]
    assert {"model/model.json", "model/model.safetensors"} <= files(run)


def test_deleted_database_is_rebuilt_with_its_models(root, schema):
    before = {name: versions(root, name) for name in ("trunk", "vqgan", "circuit")}
    shutil.copy(schema, root / "mlflow.db")
    bring_up_to_date(root)
    assert enter(root) == 3
    assert {name: versions(root, name) for name in before} == before


def test_weights_that_are_not_those_described_are_refused(root):
    write_model(root, "vqgan", b"other codes")
    (root / "runs/embedded/vqgan/faces/model.safetensors").write_bytes(b"damaged")
    bring_up_to_date(root)
    with pytest.raises(InputError, match=r"vqgan/faces/model\.safetensors does not hold the weights"):
        enter(root)
    assert versions(root, "vqgan").keys() == {"1"}


def test_nothing_pickled_is_kept(root):
    kept = {path.suffix for path in (root / "mlartifacts").rglob("*") if path.is_file()}
    assert kept <= {".json", ".png", ".safetensors"}
    assert json.loads(next((root / "mlartifacts").rglob("model.json")).read_text())
