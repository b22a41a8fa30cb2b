"""The stage score on cells made up for it: what it writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.codec.trunk import Trunk, TrunkConfig, save_trunk
from pipeline.data.shards import read_split
from pipeline.errors import InputError
from pipeline.experiment.cells import Cell, pack
from pipeline.experiment.distribution import kernel_distances
from pipeline.experiment.features import FILE, load_features
from pipeline.experiment.layout import Layout
from pipeline.experiment.lpips_trunk import resolve
from pipeline.experiment.params import load_params
from pipeline.experiment.prepare import prepare
from pipeline.experiment.profiles import apply
from pipeline.experiment.record import write_bytes
from pipeline.experiment.score import score
from pipeline.experiment.statistics import average
from pipeline.experiment.tables import METRICS, collect

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
METHODS, MASKS = ("ddnm", "blended"), ("left", "wide")
COUNTS = {"train": 1, "val": 1, "test": 6}
TOY = {
    "image_size": 16,
    "datasets": {"faces": {"source": "procedural", "domain": "faces", "watch": "pipeline/data/faces.py", **COUNTS}},
    "vqgan.network.channels": [32],
    "ddpm.unet": {"patch": 4, "channels": [32], "layers": 1, "attention": [], "head_dim": 8},
    "sweep": {"datasets": ["faces"], "images": 4, "samples": 2, "methods": list(METHODS), "steered": []},
    "sweep.masks": list(MASKS),
    "report.reference": "ddnm",
}


def write_cell(layout, method, mask, test, keys):
    """Samples that are the truth with noise, more of it for blended."""
    rng = np.random.default_rng([len(method), len(mask)])
    truth = np.stack([test.images[test.keys.index(key)] for key in keys])[:, None].repeat(2, axis=1)
    noise = rng.normal(0, {"ddnm": 10, "blended": 60}[method], truth.shape)
    known = np.zeros((len(keys), 16, 16), bool)
    known[:, :, :8] = True
    record = {"dataset": "faces", "mask": mask, "method": method, "fingerprint": method + mask, "image_ids": keys}
    record |= {"evaluations": {"forwards": 5.0}, "measured": {"seconds_per_image": 0.1}}
    cell = Cell(record, (truth + noise).clip(0, 255).astype(np.uint8), known)
    write_bytes(layout.inpaint("faces", method) / f"{mask}.npz", pack(cell))


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Parameters, layout and test images of a profile whose cells are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there: the stage must not mind
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    apply(tmp_path, "smoke", TOY)
    params, layout = load_params(), Layout(tmp_path, "smoke")
    prepare(params, layout, "faces")
    torch.manual_seed(0)
    save_trunk(layout.trunk, Trunk(TrunkConfig(width=8, heads={"domain": 3})), {})
    resolve(None, False, layout.lpips)
    test = read_split(layout.data("faces"), "test", layout.cache)
    for method in METHODS:
        for mask in MASKS:
            write_cell(layout, method, mask, test, test.keys[1:5])
    return params, layout, test


def test_everything_is_written_for_the_report(world):
    params, layout, test = world
    score(params, layout, "faces")
    rows = list(csv.DictReader((layout.scores("faces") / "scores.csv").open()))
    assert [(row["method"], row["mask"]) for row in rows[::8]] == [(a, b) for a in METHODS for b in MASKS]
    assert len(rows) == 2 * 2 * 4 * 2
    columns = set(rows[0]) - {"dataset", "mask", "method", "image_id", "sample"}
    assert columns == {name for name in METRICS if not name.startswith("lpips") or name.startswith("lpips_domain")}
    ids, cubes = collect(rows, ["psnr", "lpips_domain"], dataset="faces", masks=MASKS, methods=METHODS)
    assert ids == test.keys[1:5]
    assert (cubes["psnr"][:, 0] > cubes["psnr"][:, 1]).all()
    record = json.loads((layout.scores("faces") / "score.json").read_text())
    assert record["lpips"]["column"] == "lpips_domain"
    means = {(cell["method"], cell["mask"]): cell["metrics"]["psnr"] for cell in record["cells"]}
    assert means["ddnm", "wide"] == pytest.approx(cubes["psnr"][1, 0].mean(), abs=1e-5)


def test_cells_of_another_split_than_the_sweeps_are_refused(world):
    params, layout, _ = world
    chosen = params.model_copy(update={"sweep": params.sweep.model_copy(update={"split": "val"})})
    with pytest.raises(InputError, match="not among the split's images"):
        score(chosen, layout, "faces")


def test_features_tell_the_methods_apart(world):
    params, layout, _ = world
    score(params, layout, "faces")
    found = load_features(layout.scores("faces"), ["blended", "ddnm"])
    assert (found.completed, found.truths.shape, found.completions.shape) == ((1, 2, 3, 4), (6, 32), (2, 4, 4, 32))
    far, near = average(kernel_distances({"faces": found}, digits=3, resamples=2)).mean
    assert far > near


def test_a_second_run_writes_the_same(world):
    params, layout, _ = world
    written = []
    for _ in range(2):
        score(params, layout, "faces")
        written.append({path.name: path.read_bytes() for path in layout.scores("faces").iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"scores.csv", "score.json", FILE}


def test_cells_of_other_images_are_refused(world):
    params, layout, test = world
    write_cell(layout, "blended", "wide", test, test.keys[2:6])
    with pytest.raises(InputError, match=r"blended/wide\.npz completes other images than the first cell of faces"):
        score(params, layout, "faces")
    assert not layout.scores("faces").exists()


def test_a_missing_cell_is_told(world):
    params, layout, _ = world
    (layout.inpaint("faces", "blended") / "left.npz").unlink()
    with pytest.raises(InputError, match=r"blended/left\.npz: expected a finished sweep cell"):
        score(params, layout, "faces")
