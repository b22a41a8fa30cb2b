"""The stage insight on a toy: what it leaves behind, what its numbers are, and what it refuses."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.queries import BITS, log_prob
from pipeline.circuit.store import load_circuit, save_circuit
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.codec.vqgan import VQGAN, VQGANParams
from pipeline.errors import CheckpointError, ConfigError, InputError
from pipeline.experiment import insight_pictures
from pipeline.experiment.insight import DRAWS, PATCH, SHOWN, chosen_masks, hidden_patches, insight
from pipeline.experiment.layout import Layout
from pipeline.experiment.sheet import GAP, HIDDEN, LEFT, SIDE
from pipeline.experiment.tokens import read_tokens
from pipeline.weights import save_weights

NETWORK = VQGANParams(channels=(32,), layers=1, codes=6, code_dim=4, attention=False)
FILES = {"entropy.png", "completions.png", "gain.png", "insight.json"}
SIZE = 16  # of the toy's pictures


@pytest.fixture(scope="module")
def params():
    return SimpleNamespace(
        seed=1,
        image_size=SIZE,
        vqgan=SimpleNamespace(network=NETWORK),
        sweep=SimpleNamespace(masks=["left", "v_strip", "top"], images=2),
        report=SimpleNamespace(images=2),
        mask_files={},
    )


def write_circuit(layout, tokens_side, codes):
    circuit = Circuit(quadtree(tokens_side), states=3, vocabulary=Vocabulary.full(codes))
    circuit.randomize(torch.Generator().manual_seed(0))
    save_circuit(layout.circuit("faces"), circuit, {"dataset": "faces"})


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    made = Layout(tmp_path_factory.mktemp("root"), "toy")
    torch.manual_seed(0)
    save_weights(made.vqgan("faces"), VQGAN(NETWORK), {"kind": "vqgan"})
    write_circuit(made, 16, 6)
    folder = made.tokens("faces")
    folder.mkdir(parents=True)
    (folder / "tokens.json").write_text(json.dumps({"codes": 6}))
    tokens = np.random.default_rng(0).integers(0, 6, (3, 16, 16)).astype(np.uint16)
    np.savez(folder / "test.npz", tokens=tokens, keys=np.array([f"test-{k}" for k in range(3)]))
    return made


@pytest.fixture(scope="module")
def done(params, layout):
    """What the stage wrote, read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIRAMISU_DEVICE", "cpu")
        insight(params, layout, "faces")
    return json.loads((layout.insight("faces") / "insight.json").read_text())


def test_it_leaves_three_sheets_and_their_numbers(layout, done):
    out = layout.insight("faces")
    assert {path.name for path in out.iterdir()} == FILES
    assert [(row["mask"], row["image"]) for row in done["images"]] == [("left", f"test-{k}") for k in range(2)]
    zoom = SIDE // SIZE
    columns = {"entropy.png": 4, "completions.png": 3 + SHOWN, "gain.png": 3}
    for name, count in columns.items():
        with Image.open(out / name) as sheet:
            width = LEFT + count * (SIZE * zoom + GAP)
            assert abs(sheet.width - width) <= 1
            assert len(sheet.convert("RGB").getcolors(2**24)) > 50
    assert done["inputs"]["circuit"] == load_circuit(layout.circuit("faces"))[1]["sha256"]


def test_its_numbers_are_those_of_the_queries(params, layout, done):
    circuit, _ = load_circuit(layout.circuit("faces"))
    tokens = read_tokens(layout.tokens("faces"), "test").tokens
    known = torch.arange(256) % 16 < 8
    for k, row in enumerate(done["images"][:2]):
        assert row["hidden_tokens"] == 128
        truth = (log_prob(circuit, tokens[k : k + 1]) - log_prob(circuit, tokens[k : k + 1], known)) / BITS
        assert row["log2_prob"]["truth"] == pytest.approx(float(truth), abs=1e-3)
        draws, shown = row["log2_prob"]["draws"], row["log2_prob"]["shown"]
        assert len(draws) == DRAWS
        assert draws == sorted(draws, reverse=True)
        assert (shown[0], len(shown)) == (draws[0], SHOWN)
        assert set(shown) <= set(draws)
        assert row["log2_prob"]["draws_below_truth"] == np.mean(np.array(draws) < float(truth))
        assert row["log2_prob"]["most_probable"] > draws[0]
        assert row["log2_prob"]["most_probable_with_latents"] <= row["log2_prob"]["most_probable"]
        entropy = row["entropy"]
        assert entropy["mean_hidden"] * 128 == pytest.approx(entropy["sum_of_tokens"], abs=0.02)
        assert entropy["together"] == pytest.approx(-np.mean(draws), abs=1e-3)
        assert entropy["together"] < entropy["sum_of_tokens"] + 4 * entropy["together_error"]
        best = row["gain"]["patches"]
        assert [patch["bits"] for patch in best] == sorted((patch["bits"] for patch in best), reverse=True)
        assert all(patch["at"][1] >= 8 and patch["at"][0] % PATCH == 0 for patch in best)
        assert all(token["at"][1] >= 8 and token["bits"] > 0 for token in row["gain"]["tokens"])


def test_again_it_writes_the_same_bytes(params, layout, done, monkeypatch):
    monkeypatch.setenv("TIRAMISU_DEVICE", "cpu")
    out = layout.insight("faces")
    before = {name: (out / name).read_bytes() for name in FILES}
    insight(params, layout, "faces")
    assert {name: (out / name).read_bytes() for name in FILES} == before


def test_one_mask_can_be_asked_for(params):
    assert chosen_masks(params, None) == ["left"]
    assert chosen_masks(params, "wide") == ["wide"]
    assert chosen_masks(SimpleNamespace(**{**vars(params), "mask_files": {"mine": "x"}}), "mine") == ["mine"]
    with pytest.raises(ConfigError, match=r"--mask sideways: there is no such mask; choose one of left, "):
        chosen_masks(params, "sideways")


def test_patches_are_those_with_something_hidden():
    known = torch.ones(5, 5, dtype=torch.bool)
    known[0, 1] = known[4, 4] = False
    assert hidden_patches(known.flatten(), 5, 2) == [[0, 1, 5, 6], [24]]
    assert hidden_patches(torch.ones(16, dtype=torch.bool), 4, 2) == []


def test_maps_lie_over_what_is_hidden():
    from matplotlib.colors import Normalize

    picture, known = np.full((4, 4, 3), 7, np.uint8), torch.tensor([True, False, True, False])
    seen = insight_pictures.hide(picture, known)
    assert (seen[:, :2] == 7).all()
    assert (seen[:, 2:] == HIDDEN).all()
    laid = insight_pictures.lay_over(picture, known, torch.tensor([0.0, 0.0, 0.0, 1.0]), Normalize(0, 1))
    assert (laid[:, :2] == 7).all()
    assert (
        len(np.unique(laid[:2, 2:].reshape(-1, 3), axis=0)) == len(np.unique(laid[2:, 2:].reshape(-1, 3), axis=0)) == 1
    )
    assert (laid[0, 3] != laid[3, 3]).any()


def test_one_hidden_token_tells_nobody_anything(params, layout, done, tmp_path, monkeypatch):
    """All maps are 0, and sheets are drawn all the same."""
    monkeypatch.setenv("TIRAMISU_DEVICE", "cpu")
    copy, folder = Layout(Path(tmp_path) / "root", "toy"), tmp_path / "masks"
    shutil.copytree(layout.root, copy.root)
    folder.mkdir()
    pixels = np.full((SIZE, SIZE), 255, np.uint8)
    pixels[3, 5] = 0
    Image.fromarray(pixels).save(folder / "000.png")
    insight(SimpleNamespace(**{**vars(params), "mask_files": {"dot": str(folder)}}), copy, "faces", "dot")
    [row, _] = json.loads((copy.insight("faces") / "insight.json").read_text())["images"]
    assert row["hidden_tokens"] == 1
    assert row["gain"]["tokens"][0]["bits"] == row["gain"]["patches"][0]["bits"] == 0.0
    assert [patch["at"] for patch in row["gain"]["patches"]] == [[2, 4]]
    assert len(row["log2_prob"]["draws"]) == DRAWS
    assert len(row["log2_prob"]["shown"]) <= SHOWN


def test_what_is_missing_or_does_not_fit_is_named(params, layout, done, tmp_path, monkeypatch):
    monkeypatch.setenv("TIRAMISU_DEVICE", "cpu")
    copy = Layout(Path(tmp_path) / "root", "toy")
    shutil.copytree(layout.root, copy.root)
    write_circuit(copy, 8, 6)
    with pytest.raises(InputError, match=r"over 64 tokens of 6 codes, but the codec has 256 of 6; run the stages"):
        insight(params, copy, "faces")
    (copy.circuit("faces") / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        insight(params, copy, "faces")
