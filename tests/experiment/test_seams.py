"""Every stage runs on a toy, one after the other, on files; interrupted sweeps end with the same records."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.circuit.queries import bits_per_token
from pipeline.circuit.store import load_circuit
from pipeline.data.images import to_float
from pipeline.data.shards import read_manifest, read_split
from pipeline.errors import CheckpointError, ConfigError, InputError
from pipeline.experiment.cells import unpack
from pipeline.experiment.codecs import load_codec
from pipeline.experiment.encode import encode
from pipeline.experiment.fit_steering import fit_steering
from pipeline.experiment.inpaint import inpaint
from pipeline.experiment.inpaint_steered import inpaint_steered
from pipeline.experiment.layout import Layout
from pipeline.experiment.make_report import make_report
from pipeline.experiment.masks import write_masks
from pipeline.experiment.params import load_params
from pipeline.experiment.prepare import prepare
from pipeline.experiment.profiles import apply
from pipeline.experiment.resolve_lpips import resolve_lpips
from pipeline.experiment.score import score
from pipeline.experiment.strip import strip
from pipeline.experiment.tokens import read_tokens
from pipeline.experiment.train_circuit import train_circuit
from pipeline.experiment.train_ddpm import train_ddpm
from pipeline.experiment.train_transformer import train_transformer
from pipeline.experiment.train_trunk import train_trunk
from pipeline.experiment.train_vqgan import train_vqgan
from pipeline.steering import released

ROOT = Path(__file__).parents[2]

TOY = {
    "image_size": 16,
    "datasets": {
        "faces": {
            "source": "procedural",
            "domain": "faces",
            "watch": "pipeline/data/faces.py",
            "train": 12,
            "val": 4,
            "test": 4,
        }
    },
    "trunk.images_per_domain": 8,
    "trunk.steps": 2,
    "vqgan.network": {"channels": [32], "layers": 1, "codes": 8, "code_dim": 4, "attention": False},
    "vqgan.trainer.steps": 2,
    "vqgan.trainer.checkpoint_every": 2,
    "circuit.model.states": 3,
    "circuit.model.doublings": 1,
    "transformer.trainer.steps": 10,
    "ddpm.unet": {"patch": 4, "channels": [32], "layers": 1, "attention": [], "head_dim": 8},
    "ddpm.trainer.steps": 2,
    "ddpm.trainer.checkpoint_every": 2,
    "ddpm.pictures": 2,
    "ddpm.picture_steps": 2,
    "methods.blended.steps": 6,
    "methods.ddnm.steps": 5,
    "sweep": {"datasets": ["faces"], "images": 3, "samples": 2, "batch": 4, "masks": ["left", "wide"]},
    "report.bootstrap": 50,
}


@pytest.fixture(scope="module")
def done(tmp_path_factory, monkeypatch_module):
    """A root in which every stage has run."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(ROOT / "configs", root / "configs")
    monkeypatch_module.chdir(root)
    monkeypatch_module.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there: the pipeline must not mind
    monkeypatch_module.setenv("TORCH_HOME", str(root / "torch"))
    apply(root, "smoke", TOY)
    params, layout = load_params(), Layout(root, "smoke")
    prepare(params, layout, "faces")
    write_masks(params, layout)
    train_trunk(params, layout)
    resolve_lpips(params, layout)
    train_vqgan(params, layout, "faces")
    encode(params, layout, "faces")
    train_circuit(params, layout, "faces")
    train_transformer(params, layout, "faces")
    train_ddpm(params, layout, "faces")
    for method in params.sweep.methods:
        inpaint(params, layout, "faces", method)
    fit_steering(params, layout, "faces")
    for row in params.sweep.steered:
        inpaint_steered(params, layout, "faces", row)
    strip(params, layout, "faces")
    score(params, layout, "faces")
    make_report(params, layout)
    return params, layout


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture
def fresh(done, tmp_path, monkeypatch):
    """A copy of the root without finished cells."""
    params, layout = done
    root = tmp_path / "root"
    shutil.copytree(layout.root, root)
    shutil.rmtree(root / "work" / "cells")
    shutil.rmtree(root / "runs" / "smoke" / "inpaint")
    monkeypatch.chdir(root)
    return params, Layout(root, "smoke")


def run_row(params, layout, row):
    (inpaint_steered if row in params.steered else inpaint)(params, layout, "faces", row)


def settled(layout, method="ddnm"):
    """What must not differ between runs: records without their measurements, and pixels."""
    cells = json.loads((layout.inpaint("faces", method) / "cells.json").read_text())["cells"]
    pixels = {c["mask"]: unpack(layout.inpaint("faces", method) / f"{c['mask']}.npz").samples for c in cells}
    return [{k: v for k, v in cell.items() if k != "measured"} for cell in cells], pixels


def same(first, second):
    return first[0] == second[0] and all(np.array_equal(first[1][mask], second[1][mask]) for mask in first[1])


def test_outputs_are_there(done):
    params, layout = done
    page = (layout.report / "index.html").read_text()
    assert "lpips_domain" in page
    assert json.loads((layout.report / "metrics.json").read_text())["faces"]["left"]["ddnm"] > 0
    rows = (layout.scores("faces") / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + len(params.rows) * len(params.sweep.masks) * 3 * 2
    tokens = np.load(layout.tokens("faces") / "train.npz")
    assert tokens["tokens"].shape == (12, 16, 16)
    assert tokens["tokens"].max() < 8
    for name in ("record.json", "curve.jsonl", "model.safetensors", "samples.png"):
        assert (layout.ddpm("faces") / name).stat().st_size > 0


def test_the_circuit_is_there_and_says_how_good_it_is(done):
    params, layout = done
    circuit, description = load_circuit(layout.circuit("faces"))
    record = json.loads((layout.circuit("faces") / "record.json").read_text())
    metrics = record["metrics"]
    assert circuit.states == metrics["states"] == 6  # doubled once
    assert metrics["parameters"] == circuit.size()
    test = read_tokens(layout.tokens("faces"), "test")
    assert metrics["test/bits_per_token"] == pytest.approx(bits_per_token(circuit, test.tokens), abs=1e-9)
    assert {f"test/conditional_bits/{mask}" for mask in params.sweep.masks} <= metrics.keys()
    assert metrics["test/hidden/left"] == 0.5
    tried = json.loads((layout.circuit("faces") / "candidates.json").read_text())
    model = params.circuit.model
    assert len(tried["candidates"]) == len(model.structures) * len(model.ties) * len(model.spreads)
    best = min(tried["candidates"], key=lambda told: told["val_bits"])
    assert {name: best[name] for name in tried["chosen"]} == tried["chosen"] == description["chosen"]
    for picture in ("samples.png", "completions.png"):
        assert (layout.circuit("faces") / picture).stat().st_size > 0


def test_a_circuit_trained_in_two_goes_is_the_same(done, fresh, monkeypatch):
    import pipeline.experiment.train_circuit as stage

    params, layout = fresh
    shutil.rmtree(layout.circuit("faces"))
    for folder in (layout.root / "work" / "train").glob("train_circuit-*"):
        shutil.rmtree(folder)
    monkeypatch.setattr(stage, "grown", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_circuit(params, layout, "faces")
    assert not (layout.circuit("faces") / "record.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(stage, "choose", lambda *_, **__: pytest.fail("it had chosen already"))
    train_circuit(params, layout, "faces")
    for name in ("model.safetensors", "samples.png", "completions.png"):
        assert (layout.circuit("faces") / name).read_bytes() == (done[1].circuit("faces") / name).read_bytes(), name
    both = [json.loads((place.circuit("faces") / "record.json").read_text()) for place in (layout, done[1])]
    assert both[0]["metrics"] == both[1]["metrics"]


def test_mirror_images_are_encoded_and_learned_from(fresh):
    params, layout = fresh
    block = params.circuit
    block = block.model_copy(update={"mirror": True, "model": dataclasses.replace(block.model, doublings=0)})
    params = params.model_copy(update={"circuit": block})
    plain = read_tokens(layout.tokens("faces"), "train").tokens
    encode(params, layout, "faces")
    mirrored = read_tokens(layout.tokens("faces"), "mirrored").tokens
    assert mirrored.shape == plain.shape
    assert not mirrored.equal(plain)
    pixels = read_split(layout.data("faces"), "train", layout.cache).images[:, :, ::-1]
    codec, _ = load_codec(layout.vqgan("faces"), params.vqgan, torch.device("cpu"))
    assert mirrored.equal(codec.encode(to_float(np.ascontiguousarray(pixels))))
    train_circuit(params, layout, "faces")
    record = json.loads((layout.circuit("faces") / "record.json").read_text())
    assert record["inputs"]["mirrored"]


@pytest.mark.parametrize("teacher", ["codes", "transformer", "none"])
def test_every_teacher_teaches(fresh, teacher):
    params, layout = fresh
    block = params.circuit
    trainer = dataclasses.replace(block.teacher.trainer, steps=2, checkpoint_every=2, log_every=1)
    block = block.model_copy(
        update={
            "model": dataclasses.replace(block.model, teacher=teacher, doublings=0, structures=("quadtree",)),
            "em": dataclasses.replace(block.em, batch=4),  # so that a pass has more steps than the teacher reports
            "teacher": block.teacher.model_copy(update={"trainer": trainer}),
        }
    )
    train_circuit(params.model_copy(update={"circuit": block}), layout, "faces")
    record = json.loads((layout.circuit("faces") / "record.json").read_text())
    assert record["params"]["circuit"]["model"]["teacher"] == teacher
    assert ("teacher" in record["params"]["circuit"]) == (teacher == "transformer")
    rows = [json.loads(line) for line in (layout.circuit("faces") / "curve.jsonl").read_text().splitlines()]
    assert rows
    assert all("val/bits_per_token" in row["metrics"] for row in rows)  # the circuit's own, not its teacher's
    assert 0 < record["metrics"]["test/bits_per_token"] < 6


def test_the_strip_shows_the_walks_of_the_cells(done):
    """Base and steered row end where their cells end, up to rounding to grey values and other batches."""
    params, layout = done
    told = json.loads((layout.strip("faces") / "strip.json").read_text())
    assert (told["row"], told["base"]) == ("tiramisu", "copaint")
    until = params.row("tiramisu").steering.until * params.ddpm.schedule.T
    assert sorted(told["times"], reverse=True) == told["times"]
    assert told["times"][-1] > until
    assert [scene["mask"] for scene in told["scenes"]] == ["left"]  # the first and the third of two
    truth = read_split(layout.data("faces"), "test", layout.cache).images[:2].astype(float)
    for side, row in (("base", "copaint"), ("steered", "tiramisu")):
        cell = unpack(layout.inpaint("faces", row) / "left.npz")
        errors = ((cell.samples[:2, 0] - truth) / 127.5)[~cell.known[:2]].reshape(2, -1)
        np.testing.assert_allclose(told["scenes"][0][side]["result"], np.sqrt((errors**2).mean(1)), atol=0.01)
    assert "faces: tiramisu beside copaint" in (layout.report / "steering.html").read_text()


def test_a_strip_of_rows_that_do_not_mix_has_no_picture(fresh):
    params, layout = fresh
    sweep = params.sweep.model_copy(update={"steered": ["tiramisu_released"]})
    strip(params.model_copy(update={"sweep": sweep}), layout, "faces")
    assert [path.name for path in layout.strip("faces").iterdir()] == ["strip.json"]
    assert json.loads((layout.strip("faces") / "strip.json").read_text())["row"] is None


def test_evaluations_are_counted_and_as_announced(done):
    params, layout = done
    for method in params.sweep.methods:
        for cell in settled(layout, method)[0]:
            assert cell["evaluations"]["forwards"] >= params.method(method).nfe()  # a line search may try again
            assert cell["evaluations"]["backwards"] >= params.method(method).nbe()


def test_what_steering_asks_for_is_counted_and_timed(done):
    """Per image: the circuit is asked at most once a step, and every time one picture is encoded and some decoded."""
    params, layout = done
    for row, images in (("tiramisu", 2), ("tiramisu_released", 1 + released.DRAWS)):
        for cell in json.loads((layout.inpaint("faces", row) / "cells.json").read_text())["cells"]:
            asked = cell["evaluations"]["circuit"]
            assert 1 <= asked <= sum(j < i for i, j in params.method(row).moves())
            assert cell["evaluations"]["codec"] == images * asked
            split = cell["measured"]["split"]
            assert set(split) == {"encode", "circuit", "decode", "fusion"}
            assert all(seconds > 0 for seconds in split.values())
            assert sum(split.values()) < cell["measured"]["seconds_per_image"]
    plain = json.loads((layout.inpaint("faces", "ddnm") / "cells.json").read_text())["cells"]
    assert all("split" not in cell["measured"] for cell in plain)
    assert all(cell["evaluations"]["circuit"] == cell["evaluations"]["codec"] == 0 for cell in plain)


def test_steering_fitted_again_is_the_same(done, fresh):
    params, layout = fresh
    path = layout.steering("faces") / "calibration.json"
    before = path.read_bytes()
    path.unlink()
    fit_steering(params, layout, "faces")
    assert path.read_bytes() == before
    record = json.loads((layout.steering("faces") / "record.json").read_text())
    assert set(record["inputs"]) == {"vqgan", "circuit", "denoiser", "data"}
    assert record["params"]["steering"] == params.steering.model_dump()
    assert len(json.loads(before)["times"]) == params.steering.levels


def test_another_calibration_runs_the_steered_cells_only(fresh):
    params, layout = fresh
    path = layout.steering("faces") / "calibration.json"
    inpaint_steered(params, layout, "faces", "tiramisu")
    first = {path.name for path in layout.cells.iterdir()}
    values = json.loads(path.read_text())
    values["levels"][-1]["weight"] = [0.25] * 15
    path.write_text(json.dumps(values))
    before = settled(layout, "tiramisu")
    inpaint_steered(params, layout, "faces", "tiramisu")
    assert len({path.name for path in layout.cells.iterdir()} - first) == len(params.sweep.masks)
    assert not same(settled(layout, "tiramisu"), before)


def test_steering_without_its_parts_is_refused_before_anything_runs(fresh):
    params, layout = fresh
    (layout.steering("faces") / "calibration.json").unlink()
    with pytest.raises(CheckpointError, match="run the stage fit_steering"):
        inpaint_steered(params, layout, "faces", "tiramisu")
    assert not layout.cells.exists()
    wanting = params.model_copy(update={"steering": params.steering.model_copy(update={"images": 99})})
    with pytest.raises(ConfigError, match=r"steering\.images: 99 are asked for, but faces has 12"):
        fit_steering(wanting, layout, "faces")


def test_finished_cells_are_not_run_again(done):
    params, layout = done
    before = {path: path.stat().st_mtime_ns for path in layout.cells.iterdir()}
    assert len(before) == len(params.rows) * len(params.sweep.masks)
    inpaint(params, layout, "faces", "ddnm")
    inpaint_steered(params, layout, "faces", "tiramisu")
    assert {path: path.stat().st_mtime_ns for path in layout.cells.iterdir()} == before


@pytest.mark.parametrize(
    ("method", "changes", "downs"),
    [
        ("resampling", {"steps": 4, "particles": 3}, 4),
        ("repaint", {"steps": 4, "jump": 2, "repeats": 2}, 6),
        ("copaint", {"steps": 4, "gradient_steps": 1}, 3),
    ],
)
def test_the_bar_is_full_when_the_last_move_is_made(fresh, capsys, method, changes, downs):
    """However many evaluations a move takes, it advances by one."""
    params, layout = fresh
    methods = {**params.methods, method: {**params.methods[method], **changes}}
    capsys.readouterr()
    inpaint(params.model_copy(update={"methods": methods}), layout, "faces", method)
    total = len(params.sweep.masks) * 6 * downs  # of six completions
    full = [line for line in capsys.readouterr().err.splitlines() if f"/{total} moves" in line]
    assert [line.partition(" moves")[0] for line in full][-1:] == [f"inpaint faces {method}: {total}/{total}"]
    assert sum(f": {total}/{total} " in line for line in full) == 1


@pytest.mark.parametrize("row", ["ddnm", "tiramisu", "tiramisu_released"])
def test_an_interrupted_sweep_ends_with_the_same_records(done, fresh, monkeypatch, row):
    import pipeline.experiment.inpaint as stage

    params, layout = fresh
    run_cell, calls = stage.run_cell, []

    def dies_in_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_cell(*arguments)

    monkeypatch.setattr(stage, "run_cell", dies_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_row(params, layout, row)
    assert len(list(layout.cells.iterdir())) == 1
    assert not layout.inpaint("faces", row).exists()
    run_row(params, layout, row)
    assert len(calls) == 3
    assert same(settled(layout, row), settled(done[1], row))


def test_a_damaged_cell_is_computed_again(done, fresh):
    params, layout = fresh
    inpaint(params, layout, "faces", "ddnm")
    path = next(layout.cells.glob("*.npz"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    inpaint(params, layout, "faces", "ddnm")
    assert same(settled(layout), settled(done[1]))
    assert len(list(layout.cells.glob("*.damaged"))) == 1


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_batch_size_does_not_matter(done, fresh, batch):
    """Convolutions may round differently in other batches: by one grey value here and there, never more."""
    params, layout = fresh
    sweep = params.sweep.model_copy(update={"batch": batch})
    inpaint(params.model_copy(update={"sweep": sweep}), layout, "faces", "ddnm")
    for mask, samples in settled(done[1])[1].items():
        other = settled(layout)[1][mask]
        assert np.abs(samples.astype(int) - other.astype(int)).max() <= 1


def test_a_changed_parameter_runs_its_cells_only(fresh):
    params, layout = fresh
    for method in params.sweep.methods:
        inpaint(params, layout, "faces", method)
    first = {path.name for path in layout.cells.iterdir()}
    changed = {**params.methods, "ddnm": {**params.methods["ddnm"], "eta": 0.5}}
    for method in params.sweep.methods:
        inpaint(params.model_copy(update={"methods": changed}), layout, "faces", method)
    assert len({path.name for path in layout.cells.iterdir()} - first) == len(params.sweep.masks)


def test_the_same_image_gets_the_same_noise_under_every_mask_and_method(done):
    from pipeline.experiment.completion import image_seed

    assert image_seed(1, "faces", "a", 0) == image_seed(1, "faces", "a", 0)
    assert len({image_seed(s, d, i, k) for s in (1, 2) for d in ("a", "b") for i in ("x", "y") for k in (0, 1)}) == 16


def test_validation_images_are_completed_to_choose_settings_by(fresh):
    params, layout = fresh
    chosen = params.model_copy(update={"sweep": params.sweep.model_copy(update={"split": "val"})})
    inpaint(params, layout, "faces", "ddnm")
    tested = {path.name for path in layout.cells.iterdir()}
    inpaint(chosen, layout, "faces", "ddnm")
    assert len({path.name for path in layout.cells.iterdir()} - tested) == len(params.sweep.masks)
    record = json.loads((layout.inpaint("faces", "ddnm") / "cells.json").read_text())["cells"][0]
    split = read_manifest(layout.data("faces"))["splits"]["val"]
    assert record["inputs"]["data"] == split["digest"]
    assert record["image_ids"] == read_split(layout.data("faces"), "val", layout.cache).keys[: params.sweep.images]


def test_too_few_images_are_refused_before_anything_runs(fresh):
    params, layout = fresh
    wanting = params.model_copy(update={"sweep": params.sweep.model_copy(update={"images": 99})})
    with pytest.raises(ConfigError, match=r"sweep\.images: 99"):
        inpaint(wanting, layout, "faces", "ddnm")


def test_exchanged_weights_are_refused(fresh):
    params, layout = fresh
    path = layout.ddpm("faces") / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        inpaint(params, layout, "faces", "ddnm")


def test_changed_masks_are_refused(fresh):
    params, layout = fresh
    shutil.copyfile(layout.masks / "wide" / "001.png", layout.masks / "wide" / "000.png")
    with pytest.raises(InputError, match="wide"):
        inpaint(params, layout, "faces", "ddnm")
