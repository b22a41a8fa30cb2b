"""Pictures of one's own on toy models: what is written, what decides it, and what is refused."""

import dataclasses
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiment.toy import CPU, ROOT, SIZE, make_toy
from pipeline.circuit.queries import bits_per_token
from pipeline.circuit.store import load_circuit
from pipeline.data.images import load_image, to_float
from pipeline.data.masks import MASKS, save_mask
from pipeline.data.shards import read_split
from pipeline.errors import CheckpointError, ConfigError, InputError, UserError
from pipeline.experiment import inpaint_files as stage
from pipeline.experiment import own_results
from pipeline.experiment.cells import unpack
from pipeline.experiment.codecs import load_codec
from pipeline.experiment.inpaint import inpaint
from pipeline.experiment.inpaint_files import Order, inpaint_files
from pipeline.experiment.layout import Layout
from pipeline.experiment.masks import write_masks
from pipeline.experiment.own_images import read_own_images
from pipeline.experiment.own_results import Painted, write_own_sheet

LARGE = 40


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("root"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with pictures and masks: the current one."""
    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(0)
    for name, shape in (("small", (SIZE, SIZE)), ("photo", (LARGE, LARGE + 9)), ("tall", (LARGE + 8, LARGE))):
        Image.fromarray(numbers.integers(0, 256, (*shape, 3), np.uint8)).save(f"{name}.png")
    spot = np.ones((SIZE, SIZE), bool)
    spot[4:9, 6:12] = False
    save_mask(tmp_path / "spot.png", spot)
    return tmp_path


def order(**given):
    return Order(**{"dataset": "faces", "method": "ddnm", "samples": 2, "seed": 3} | given)


def run(toy, *given, out="out", replace=False, **options):
    """Inpaint into a folder; returns its record and its samples by name."""
    inpaint_files(*toy, given, order(**options), Path(out), replace=replace)
    return read(Path(out))


def read(folder):
    record = json.loads((folder / "record.json").read_text())
    return record, {name: np.asarray(Image.open(folder / name)) for name in record["files"]}


def pixels(name):
    return np.asarray(Image.open(name).convert("RGB"))


# --- what is written ---


@pytest.mark.parametrize("method", ["ddnm", "copaint", "tiramisu", "steered_ddnm"])
def test_methods_and_steered_rows_keep_what_is_seen(toy, here, method):
    record, found = run(toy, "small.png", "spot.png", method=method)
    assert sorted(found) == ["sheet.png", "small/0.png", "small/1.png"]
    hidden = ~np.asarray(Image.open("spot.png"))
    for k in range(2):
        assert (found[f"small/{k}.png"][~hidden] == pixels("small.png")[~hidden]).all()
        assert (found[f"small/{k}.png"][hidden] != pixels("small.png")[hidden]).any()
    assert (found["small/0.png"] != found["small/1.png"]).any()
    assert (record["method"], record["dataset"], record["seed"]) == (method, "faces", 3)
    assert record["evaluations"]["forwards"] > 0
    steered = "tiramisu" in method or "steered" in method
    assert (record["evaluations"]["circuit"] > 0) == steered == ("calibration" in record["inputs"])
    [image] = record["images"]
    assert image["hidden"] == pytest.approx(30 / SIZE**2)
    assert not list(here.glob(".out*"))


def test_samples_are_the_sweep_s(toy, here, monkeypatch):
    """A test image under its own key gets the sample that its cell holds, up to the rounding of another batch."""
    params, layout = toy
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there
    write_masks(params, layout)
    inpaint(params, layout, "faces", "ddnm")
    cell = unpack(layout.inpaint("faces", "ddnm") / "left.npz")
    images = read_split(layout.data("faces"), "test", layout.cache)
    for key, image in zip(images.keys[:2], images.images[:2], strict=True):
        Image.fromarray(np.asarray(image)).save(here / f"{key}.png")
    record, found = run(toy, *(name for key in images.keys[:2] for name in (f"{key}.png", "left")), seed=params.seed)
    for k, key in enumerate(images.keys[:2]):
        pasted = np.where(cell.known[k][..., None], images.images[k], cell.samples[k, 0]).astype(int)
        assert np.abs(found[f"{key}/0.png"] - pasted).max() <= 1
    assert record["images"][1]["key"] == cell.record["image_ids"][1]


def test_samples_are_ranked_by_the_circuit_where_there_is_one(toy, here):
    params, layout = toy
    record, found = run(toy, "small.png", "spot.png", samples=3)
    codec, _ = load_codec(layout.vqgan("faces"), params.vqgan, CPU)
    circuit, _ = load_circuit(layout.circuit("faces"))
    bits = [bits_per_token(circuit, codec.encode(to_float(found[f"small/{k}.png"][None]))) for k in range(3)]
    [image] = record["images"]
    assert image["bits_per_token"] == pytest.approx(bits, abs=1e-4)
    assert image["ranking"] == np.argsort(bits).tolist()
    bare = Layout(here, "smoke")
    shutil.copytree(layout.ddpm("faces"), bare.ddpm("faces"))
    record, again = run((params, bare), "small.png", "spot.png", samples=3, out="bare")
    assert record["images"][0]["bits_per_token"] == []
    assert record["images"][0]["ranking"] == [0, 1, 2]
    assert all((found[f"small/{k}.png"] == again[f"small/{k}.png"]).all() for k in range(3))


# --- what decides it ---


def test_other_pictures_and_their_order_do_not_matter(toy, here):
    _, alone = run(toy, "small.png", "spot.png", method="tiramisu")
    _, among = run(toy, "photo.png", "top", "small.png", "spot.png", out="among", method="tiramisu")
    _, moved = run(toy, "small.png", "spot.png", "photo.png", "top", out="moved", method="tiramisu")
    for k in range(2):
        name = f"small/{k}.png"
        assert (alone[name] == among[name]).all()
        assert (alone[name] == moved[name]).all()
        assert (among[f"photo/{k}.png"] == moved[f"photo/{k}.png"]).all()


def test_the_same_call_writes_the_same_and_another_seed_another(toy, here):
    first, found = run(toy, "small.png", "spot.png")
    again, same = run(toy, "small.png", "spot.png", out="again")
    assert {k: v for k, v in first.items() if k != "measured"} == {k: v for k, v in again.items() if k != "measured"}
    assert all((found[name] == same[name]).all() for name in found)
    _, other = run(toy, "small.png", "spot.png", out="other", seed=4)
    assert (found["small/0.png"] != other["small/0.png"]).any()


def test_many_samples_are_drawn_in_batches(toy, here):
    """sweep.batch is 4; the first four are those of a smaller call."""
    _, few = run(toy, "small.png", "spot.png", samples=4)
    _, many = run(toy, "small.png", "spot.png", samples=6, out="many")
    assert all((few[f"small/{k}.png"] == many[f"small/{k}.png"]).all() for k in range(4))
    assert len({many[f"small/{k}.png"].tobytes() for k in range(6)}) == 6


# --- pictures and masks ---


class Faulty:
    """A denoiser to which things happen."""

    def __init__(self, inner, fault):
        self.inner, self.fault = inner, fault
        self.schedule, self.shape = inner.schedule, inner.shape

    def denoise(self, x_t, t):
        return self.fault(x_t, self.inner.denoise(x_t, t))


@pytest.fixture
def befall(monkeypatch):
    """Lets something happen at every answer of the network."""

    def befall(fault):
        load = stage.load_denoiser

        def loaded(*arguments):
            denoiser, description = load(*arguments)
            return Faulty(denoiser, fault), description

        monkeypatch.setattr(stage, "load_denoiser", loaded)

    return befall


def test_where_memory_ends_batches_are_smaller(toy, here, befall):
    def short(x_t, prediction):
        if len(x_t) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prediction

    before, whole = run(toy, "small.png", "spot.png", out="whole", samples=3)
    befall(short)
    after, parts = run(toy, "small.png", "spot.png", out="parts", samples=3)
    assert after["evaluations"] == before["evaluations"]  # what failed is not counted
    assert whole.keys() == parts.keys()
    assert all(np.abs(whole[name].astype(int) - parts[name]).max() <= 1 for name in whole if name != "sheet.png")


def test_what_is_not_finite_is_refused_by_name(toy, here, befall):
    befall(lambda x_t, prediction: dataclasses.replace(prediction, x_0=prediction.x_0 * np.inf))
    with pytest.raises(UserError, match=r"small, ddnm: the network's estimate of a sample is not finite at t = "):
        run(toy, "small.png", "spot.png")
    assert not Path("out").exists()


@pytest.mark.parametrize("mask", MASKS)
def test_masks_go_by_name(here, mask):
    for name in ("small", "photo"):
        [image] = read_own_images([f"{name}.png", mask], SIZE)
        assert (image.known == MASKS[mask](SIZE, SIZE, 0)).all()


def test_a_larger_picture_is_cut_and_reduced_as_data_are(here):
    for name, place in (("photo", np.s_[:, 4:44]), ("tall", np.s_[4:44, :])):
        [image] = read_own_images([f"{name}.png", "left"], SIZE)
        assert image.side == LARGE
        inside = np.s_[:, : SIZE // 2 - 3]  # beyond the filter's reach from what is hidden
        Image.fromarray(pixels(f"{name}.png")[place]).save("square.png")
        np.testing.assert_array_equal(image.image[inside], load_image(here / "square.png", SIZE)[inside])
    assert image.reduction == "40x48, its centre square of 40x40, reduced to 16x16"


def test_what_is_hidden_does_not_seep_into_what_is_seen(here):
    hidden = np.zeros((LARGE, LARGE + 9), bool)
    hidden[5:20, 10:30] = True
    save_mask(here / "hole.png", ~hidden)
    picture = pixels("photo.png").copy()
    picture[hidden] = 255 - picture[hidden]
    Image.fromarray(picture).save("other.png")
    first, other = read_own_images(["photo.png", "hole.png", "other.png", "hole.png"], SIZE)
    assert (first.image[first.known] == other.image[other.known]).all()
    assert (load_image(here / "photo.png", SIZE) != load_image(here / "other.png", SIZE))[first.known].any()


def test_a_pixel_is_seen_if_all_it_is_made_of_is(here):
    known = np.random.default_rng(1).random((LARGE, LARGE + 9)) > 0.02
    save_mask(here / "dots.png", known)
    [image] = read_own_images(["photo.png", "dots.png"], SIZE)
    square, scale = known[:, 4:44], LARGE / SIZE
    for row, column in np.ndindex(SIZE, SIZE):
        spans = [slice(int(np.floor(k * scale)), int(np.ceil((k + 1) * scale))) for k in (row, column)]
        assert image.known[row, column] == square[spans[0], spans[1]].all()


def test_samples_go_back_into_the_larger_picture(toy, here):
    record, found = run(toy, "photo.png", "spot.png", large=True)
    large, square = found["photo/1-40.png"], pixels("photo.png")[:, 4:44]
    place = np.arange(LARGE) * SIZE // LARGE
    known = np.asarray(Image.open("spot.png"))[np.ix_(place, place)]
    assert (large[known] == square[known]).all()
    rough = found["photo/1.png"][np.ix_(place, place)].astype(float)
    assert np.abs(large[~known] - rough[~known]).mean() < np.abs(square[~known] - rough[~known]).mean() / 2
    assert record["images"][0]["side"] == LARGE


def test_a_large_mask_leaves_every_seen_pixel_of_the_larger_picture(toy, here):
    known = np.random.default_rng(1).random((LARGE, LARGE + 9)) > 0.02
    save_mask(here / "dots.png", known)
    _, found = run(toy, "photo.png", "dots.png", large=True, samples=1)
    square = np.s_[:, 4:44]
    same = found["photo/0-40.png"] == pixels("photo.png")[square]
    assert same[known[square]].all()
    assert not same[~known[square]].all()


def test_a_picture_is_turned_as_its_camera_says(here):
    turned = Image.Exif()
    turned[0x0112] = 6  # the upper side is on the right
    Image.fromarray(np.rot90(pixels("photo.png"))).save("turned.png", exif=turned)
    save_mask(here / "hole.png", np.arange(LARGE)[:, None].repeat(LARGE + 9, 1) > 9)
    upright, found = read_own_images(["photo.png", "hole.png", "turned.png", "hole.png"], SIZE)
    assert found.frame == upright.frame == (LARGE + 9, LARGE)
    assert (found.image == upright.image).all()


def test_white_may_mean_hidden(here):
    [seen] = read_own_images(["small.png", "spot.png"], SIZE)
    [hidden] = read_own_images(["small.png", "spot.png"], SIZE, "hidden")
    assert (seen.known == ~hidden.known).all()


def test_folders_of_pictures_and_of_masks(here):
    (here / "pictures").mkdir()
    (here / "masks").mkdir()
    for k, name in enumerate(("a", "b.2")):
        shutil.copy("small.png", here / "pictures" / f"{name}.png")
        known = np.arange(SIZE)[:, None].repeat(SIZE, 1) > 3 + k
        save_mask(here / "masks" / f"{name}.png", known)
    (here / "pictures" / "notes.txt").write_text("not a picture")
    found = read_own_images(["pictures", "masks"], SIZE)
    assert [(image.key, int(image.known.sum()) // SIZE) for image in found] == [("a", 12), ("b~2E2", 11)]
    shared = read_own_images(["pictures", "top", "photo.png", "left"], SIZE)
    assert [image.mask for image in shared] == ["top", "top", "left"]


# --- the sheet ---


def test_the_sheet_shows_the_likeliest_first_and_not_too_much(here, monkeypatch):
    monkeypatch.setattr(own_results, "ROWS", 2)
    monkeypatch.setattr(own_results, "COLUMNS", 4)
    [image] = read_own_images(["small.png", "spot.png"], SIZE)
    samples = np.stack([np.full((SIZE, SIZE, 3), 20 * k, np.uint8) for k in range(10)])
    painted = Painted(given=image, samples=samples, bits=[abs(k - 6.2) for k in range(10)])
    write_own_sheet(here / "sheet.png", [painted] * 3)
    picture = pixels("sheet.png")
    assert [int(value) // 20 for value in picture[44 + 80, 78 + 170 + 80 :: 170, 0]] == [6, 7, 5, 8]
    assert picture.shape[0] == 44 + 2 * (160 + 24)


# --- what is refused ---


@pytest.mark.parametrize(
    ("given", "options", "error", "words"),
    [
        (("small.png",), {}, InputError, "IMAGE MASK, but got 1"),
        (("none.png", "left"), {}, InputError, "none.png: cannot be opened"),
        (("spot.png", "none.png"), {}, InputError, "none.png: expected a mask, a PNG or one of left"),
        (("small.png", "photo.png"), {}, InputError, "photo.png: is 49x40, but .* 16x16 .*"),
        (("small.png", "small.png"), {}, InputError, "small.png: expected a black and white PNG"),
        (("notes.txt", "left"), {}, InputError, "notes.txt: not a PNG"),
        (("small.png", "notes.txt"), {}, InputError, "notes.txt: expected a PNG mask"),
        (("tiny.png", "left"), {}, InputError, "tiny.png: 8x8 is too small"),
        (("empty", "left"), {}, InputError, "empty: expected a folder of pictures"),
        (("small.png", "empty"), {}, InputError, r"empty/small\.png: expected a mask"),
        (("small.png", "white.png"), {}, InputError, "white.png: all pixels are 255"),
        (("photo.png", "edge.png"), {}, InputError, "edge.png: hides nothing of the centre square of photo.png"),
        (("photo.png", "lines.png"), {}, InputError, "lines.png: shows nothing of the centre square of photo.png"),
        (("small.png", "left", "small.png", "top"), {}, InputError, "2 pictures are called 'small'"),
        (("small.png", "left"), {"method": "tiramisou"}, ConfigError, "did you mean 'tiramisu'"),
        (("small.png", "left"), {"dataset": "cats"}, ConfigError, "no dataset 'cats' .*; there are faces"),
        (("small.png", "left"), {"samples": 0}, ConfigError, "samples must be at least 1"),
        (("small.png", "left"), {"seed": -1}, ConfigError, "seed must be at least 0"),
    ],
)
def test_what_cannot_be_used_is_refused(toy, here, given, options, error, words):
    (here / "notes.txt").write_text("not a picture")
    (here / "empty").mkdir()
    Image.new("RGB", (8, 8)).save("tiny.png")
    save_mask(here / "white.png", np.ones((SIZE, SIZE), bool))
    column = np.arange(LARGE + 9)[None].repeat(LARGE, 0)
    save_mask(here / "edge.png", column > 2)
    save_mask(here / "lines.png", column % 2 == 0)
    with pytest.raises(error, match=words) as caught:
        run(toy, *given, **options)
    assert "\n" not in str(caught.value)
    assert not (here / "out").exists()
    assert not list(here.glob(".out*"))


def test_missing_models_are_named_with_their_stages(toy, here):
    params, layout = toy
    bare = Layout(here, "smoke")
    with pytest.raises(CheckpointError, match=r"dvc repro train_ddpm@faces$"):
        run((params, bare), "small.png", "left")
    shutil.copytree(layout.ddpm("faces"), bare.ddpm("faces"))
    with pytest.raises(CheckpointError, match=r"train_vqgan@faces train_circuit@faces fit_steering@faces$"):
        run((params, bare), "small.png", "left", method="tiramisu")


def test_results_are_replaced_only_if_asked_and_nothing_else_ever(toy, here):
    run(toy, "small.png", "left", samples=3)
    with pytest.raises(InputError, match=r"holds results already.*--replace"):
        run(toy, "photo.png", "left")
    _, found = run(toy, "photo.png", "left", samples=1, replace=True)
    there = {path.relative_to(here / "out").as_posix() for path in (here / "out").rglob("*.*")}
    assert there == {*found, "record.json"}
    (here / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt is not of this command"):
        run(toy, "small.png", "left", replace=True)
    (here / "out" / "record.json").unlink()
    with pytest.raises(InputError, match="holds something else"):
        run(toy, "small.png", "left", replace=True)
    with pytest.raises(InputError, match="is a file"):
        run(toy, "small.png", "left", out="small.png", replace=True)
    assert sorted(path.name for path in (here / "out").iterdir()) == ["photo", "sheet.png", "thesis.txt"]


def test_an_interrupted_call_leaves_earlier_results(toy, here, monkeypatch):
    import pipeline.experiment.inpaint_files as command

    _, before = run(toy, "small.png", "left")
    monkeypatch.setattr(command, "judged", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(toy, "small.png", "top", replace=True)
    _, after = read(here / "out")
    assert all((before[name] == after[name]).all() for name in before)
    assert not list(here.glob(".out*"))


def test_the_command_says_what_it_does(toy, here):
    _, layout = toy
    command = [sys.executable, "-m", "stages.inpaint_files", here / "photo.png", "left", "--samples", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", here / "out"], cwd=layout.root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "49x40, its centre square of 40x40, reduced to 16x16; 50 % hidden" in done.stderr
    assert "inpaint faces tiramisu: " in done.stderr
    record, _ = read(here / "out")
    assert (record["method"], record["dataset"], record["profile"]) == ("tiramisu", "faces", "smoke")


def test_the_command_refuses_in_a_sentence_and_exits_with_2(toy, here, monkeypatch, capsys):
    _, layout = toy
    monkeypatch.chdir(layout.root)
    monkeypatch.setattr(sys, "argv", ["inpaint_files", str(here / "photo.png"), "left", "--out", str(here)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("stages.inpaint_files", run_name="__main__")
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"{here}: holds something else already; name another folder with --out\n"
