"""Token grids are read as encode wrote them, and anything else is refused in one sentence."""

import json

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.experiment.tokens import read_tokens

GRIDS = np.random.default_rng(0).integers(0, 8, (3, 4, 4)).astype(np.uint16)
GRIDS[0, 0, 0] = 7
KEYS = np.array(["a", "b", "c"])


@pytest.fixture
def folder(tmp_path):
    write(tmp_path)
    return tmp_path


def write(folder, *, codes=8, **arrays):
    (folder / "tokens.json").write_text(json.dumps({"schema": 1, "codes": codes}))
    np.savez_compressed(folder / "val.npz", **({"tokens": GRIDS, "keys": KEYS} | arrays))


def test_tokens_are_read_row_by_row(folder):
    found = read_tokens(folder, "val")
    assert found.tokens.dtype == torch.int64
    assert found.tokens.tolist() == GRIDS.reshape(3, 16).tolist()
    assert found.keys == ("a", "b", "c")
    assert found.codes == 8


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"tokens": GRIDS.reshape(3, 16)}, r"val\.npz: expected integer tokens .* found uint16 \[3, 16\]"),
        ({"tokens": GRIDS[:, :2]}, r"found uint16 \[3, 2, 4\]"),
        ({"tokens": GRIDS[:0], "keys": KEYS[:0]}, r"found uint16 \[0, 4, 4\]"),
        ({"tokens": GRIDS.astype(np.float32)}, r"found float32"),
        ({"keys": KEYS[:2]}, r"one key for each of the 3 images, found <U1 \[2\]"),
        ({"keys": np.arange(3)}, r"one key for each of the 3 images, found int64"),
        ({"codes": 7}, r"tokens from 0 to 6, as tokens\.json says, found 0 to 7"),
        ({"tokens": GRIDS.astype(np.int64) - 1}, r"tokens from 0 to 7, .* found -1 to 6"),
        ({"codes": 0}, r"tokens\.json: expected the size of the codebook under `codes`, found 0"),
        ({"codes": "8"}, r"tokens\.json: .* found '8'"),
        ({"tokens": np.array([None])}, r"val\.npz: expected arrays `tokens` and `keys`, but .*allow_pickle"),
    ],
)
def test_other_content_is_refused(folder, arrays, words):
    write(folder, **arrays)
    with pytest.raises(InputError, match=words):
        read_tokens(folder, "val")


@pytest.mark.parametrize("name", ["tokens.json", "val.npz"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: expected .* again\."):
        read_tokens(folder, "val")


@pytest.mark.parametrize("name", ["tokens.json", "val.npz"])
@pytest.mark.parametrize("keep", [0, 40])
def test_a_damaged_file_is_named(folder, name, keep):
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep].replace(b"}", b""))
    with pytest.raises(InputError, match=rf"{name}: expected .* again\."):
        read_tokens(folder, "val")


def test_changed_bytes_are_noticed(folder):
    path = folder / "val.npz"
    content = bytearray(path.read_bytes())
    content[content.index(b"tokens.npy") + 60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"val\.npz: expected arrays"):
        read_tokens(folder, "val")


def test_an_array_that_is_missing_is_named(folder):
    np.savez(folder / "val.npz", tokens=GRIDS)
    with pytest.raises(InputError, match=r"val\.npz: expected arrays `tokens` and `keys`, but .*keys"):
        read_tokens(folder, "val")
