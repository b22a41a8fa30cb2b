"""The command fuse on toy models: what it writes, from test images and from files, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from experiment.toy import CPU, SIZE, TEST, make_toy
from pipeline.circuit.queries import log_evidence
from pipeline.circuit.store import load_circuit
from pipeline.data.images import to_float
from pipeline.data.shards import read_split
from pipeline.errors import CheckpointError, ConfigError, InputError
from pipeline.experiment.codecs import load_codec
from pipeline.experiment.fuse import ends, fuse, summary
from pipeline.experiment.fusion_pictures import INK, outlined
from pipeline.experiment.layout import Layout
from pipeline.steering.calibration import Calibration
from pipeline.steering.semantic import Reference, compatibility, read, spread


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy(tmp_path_factory.mktemp("root"))


def record(folder):
    return json.loads((folder / "fusion.json").read_text())


def sheet(folder):
    return np.asarray(Image.open(folder / "fusion.png").convert("RGB"))


@pytest.fixture(scope="module")
def done(toy):
    """Test images fused as the command does without further options but levels."""
    params, layout = toy
    fuse(params, layout, "faces", levels=(0.0, 1.0))
    return record(layout.fusion("faces")), sheet(layout.fusion("faces"))


def test_the_record_says_what_was_fused(done):
    found, picture = done
    assert found["params"]["coherence"] == [0.0, 1.0]
    assert found["inputs"].keys() == {"vqgan", "circuit", "calibration", "denoiser"}
    first = found["rows"][0]
    keys = found["ranking"]["images"]
    assert first["references"] == [{"image": keys[0], "region": "left"}, {"image": keys[1], "region": "right"}]
    assert first["covered_tokens"] == 256
    assert first["bits_per_token"] == pytest.approx(first["bits"] / 256, abs=1e-5)
    assert all(len(row["distances"]) == 2 for row in found["rows"])
    zoom = 96 // SIZE
    assert picture.shape[1] == 4 * (SIZE * zoom + 4) - 4
    assert picture.shape[0] == 3 * 32 + len(found["rows"]) * (SIZE * zoom + 4 + 16)


def test_the_ranking_is_of_all_pairs_and_shows_its_ends(toy, done):
    params, layout = toy
    found, _ = done
    bits = np.array(found["ranking"]["bits"])
    assert bits.shape == (TEST, TEST)
    codec, _ = load_codec(layout.vqgan("faces"), params.vqgan, CPU)
    circuit, _ = load_circuit(layout.circuit("faces"))
    calibration = Calibration.from_json(json.loads((layout.steering("faces") / "calibration.json").read_text()))
    x = to_float(read_split(layout.data("faces"), "test", layout.cache).images)
    left = (torch.arange(SIZE) < SIZE // 2).expand(1, 1, SIZE, SIZE)
    pair = [Reference(x=x[1:2], region=left), Reference(x=x[3:4], region=~left)]
    with torch.no_grad():
        claims = read(codec, pair, spread(calibration))
    assert float(compatibility(circuit, claims).bits) == pytest.approx(bits[1, 3], abs=0.01)
    assert log_evidence(circuit, claims[0].log_w).isfinite().all()
    others = bits[~np.eye(TEST, dtype=bool)]
    shown = [row["bits"] for row in found["rows"][TEST // 2 :]]
    assert max(shown) == pytest.approx(others.max(), abs=0.01)
    assert min(shown) == pytest.approx(others.min(), abs=0.01)
    assert shown == sorted(shown, reverse=True)
    same = found["ranking"]["same_image"]
    assert same["mean"] == pytest.approx(bits.diagonal().mean(), abs=0.01)
    assert same["first"] == (bits.argmax(1) == np.arange(TEST)).sum()


def test_the_ends_of_a_ranking_are_of_different_images_without_repeats():
    bits = np.arange(100.0).reshape(10, 10) + 1000.0 * np.eye(10)
    best, worst = ends(bits)
    assert best == [(9, 8), (7, 6), (5, 4), (3, 2)]
    assert worst == [(6, 7), (4, 5), (2, 3), (0, 1)]
    assert ends(bits[:2, :2]) == ([(1, 0)], [(0, 1)])


def test_a_ranking_counts_halves_that_find_each_other():
    told = summary(np.array([[5.0, 1.0, 2.0], [4.0, 3.0, 0.0], [-1.0, -2.0, 6.0]]), ("a", "b", "c"))
    assert told["same_image"] == {"mean": pytest.approx(14 / 3), "first": 2}
    assert told["other_image"] == {"mean": pytest.approx(4 / 6), "least": -2.0, "most": 4.0}


def test_the_same_command_writes_the_same(toy, done, tmp_path):
    params, layout = toy
    fuse(params, layout, "faces", levels=(0.0, 1.0), out=tmp_path)
    again = record(tmp_path)
    assert {k: v for k, v in again.items() if k != "measured"} == {k: v for k, v in done[0].items() if k != "measured"}
    assert (sheet(tmp_path) == done[1]).all()


def test_named_pairs_and_samples_make_rows(toy, tmp_path):
    params, layout = toy
    keys = read_split(layout.data("faces"), "test", layout.cache).keys
    fuse(params, layout, "faces", pairs=[("2", keys[4]), ("0", "1")], levels=(0.5,), samples=3, out=tmp_path)
    found = record(tmp_path)
    assert found["ranking"] is None
    rows = [([reference["image"] for reference in row["references"]], row["sample"]) for row in found["rows"]]
    assert rows == [([keys[a], keys[b]], k) for a, b in ((2, 4), (0, 1)) for k in range(3)]
    assert len({row["distances"][0] for row in found["rows"]}) == 6  # every draw is its own


def test_files_are_fused(toy, tmp_path):
    params, layout = toy
    images = read_split(layout.data("faces"), "test", layout.cache).images
    for k in range(3):
        Image.fromarray(np.asarray(images[k])).save(tmp_path / f"{k}.png")
    spot = np.zeros((SIZE, SIZE), bool)
    spot[2:5, 3:8] = True
    Image.fromarray(spot).save(tmp_path / "spot.png")
    own = [(tmp_path / "0.png", "left"), (tmp_path / "1.png", "bottom"), (tmp_path / "2.png", tmp_path / "spot.png")]
    own = [(str(image), str(place)) for image, place in own]
    fuse(params, layout, "faces", own=own, levels=(0.25, 0.75), out=tmp_path / "out")
    [row] = record(tmp_path / "out")["rows"]
    assert [reference["region"] for reference in row["references"]] == ["left", "bottom", "spot.png"]
    assert row["covered_tokens"] == 256 * 3 // 4
    tiles = sheet(tmp_path / "out")[32 : 32 + 96]
    assert (tiles[:, 200:296][spot.repeat(6, 0).repeat(6, 1)] == INK).all(-1).any()
    assert (tiles[:, 200:296][~spot.repeat(6, 0).repeat(6, 1)] != INK).any(-1).all()
    assert (tiles[3:93, 51:96] == np.asarray(images[0]).repeat(6, 0).repeat(6, 1)[3:93, 51:96]).all()


def test_an_outline_runs_within_the_region():
    place = np.zeros((12, 12), bool)
    place[2:10, 3:12] = True
    marked = (outlined(np.zeros((12, 12, 3), np.uint8), place) == INK).all(-1)
    inside = np.zeros((12, 12), bool)
    inside[4:8, 5:10] = True
    assert (marked == (place & ~inside)).all()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"pairs": [("0", "99")]}, InputError, r"no test image '99'.*0 to 4"),
        ({"pairs": [("0", "-1")]}, InputError, "no test image '-1'"),
        ({"own": [("0.png", "left")] * 2}, InputError, "0.png"),
        ({"own": [("0.png", "left")] * 2, "pairs": [("0", "1")]}, ConfigError, "not both"),
        ({"levels": (0.5, 1.5)}, ConfigError, "coherence must be between 0 and 1, but is 1.5"),
        ({"levels": ()}, ConfigError, "levels"),
        ({"samples": 0}, ConfigError, "samples"),
    ],
)
def test_what_cannot_be_fused_is_refused(toy, tmp_path, given, error, words):
    with pytest.raises(error, match=words):
        fuse(*toy, "faces", out=tmp_path / "out", **{"levels": (0.5,)} | given)
    assert not (tmp_path / "out").exists()


def test_one_picture_or_an_unknown_region_is_refused(toy, tmp_path):
    path = tmp_path / "0.png"
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(path)
    for own, words in (([(path, "left")], "at least 2"), ([(path, "left"), (path, "middle")], "middle: .*left, top")):
        with pytest.raises(InputError, match=words):
            fuse(*toy, "faces", own=[tuple(map(str, pair)) for pair in own], levels=(0.5,), out=tmp_path / "out")


def test_what_is_missing_is_named(toy, tmp_path):
    params, layout = toy
    with pytest.raises(ConfigError, match=r"no dataset 'cats' .* but faces"):
        fuse(params, layout, "cats")
    bare = Layout(tmp_path, "smoke")
    for folder in ("vqgan", "circuit", "ddpm"):
        shutil.copytree(layout.runs / folder, bare.runs / folder)
    with pytest.raises(CheckpointError, match=r"calibration\.json is missing; run the stage fit_steering"):
        fuse(params, bare, "faces")
    shutil.rmtree(bare.circuit("faces"))
    with pytest.raises(CheckpointError, match=r"circuit.*train"):
        fuse(params, bare, "faces")
