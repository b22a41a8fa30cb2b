"""Circuits on disk: the same bits, and one sentence where they are not."""

import json

import pytest
import torch

from circuit.worlds import WORLDS, enumerated, make, soft
from pipeline.circuit.queries import log_prob, posterior
from pipeline.circuit.store import load_circuit, save_circuit
from pipeline.errors import CheckpointError


@pytest.mark.parametrize("name", WORLDS)
def test_a_circuit_comes_back_bit_for_bit(name, tmp_path):
    circuit = make(name, torch.float32)
    sha256 = save_circuit(tmp_path, circuit, {"dataset": "faces", "seed": 3})
    again, description = load_circuit(tmp_path)
    assert (description["dataset"], description["seed"], description["sha256"]) == ("faces", 3, sha256)
    mine, theirs = dict(circuit.named_buffers()), dict(again.named_buffers())
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert value.dtype == theirs[key].dtype
        assert torch.equal(value, theirs[key]), key
    assert again.graph == circuit.graph
    assert again.table == circuit.table
    assert torch.equal(again.vocabulary.log_share, circuit.vocabulary.log_share)
    tokens, log_w = enumerated(name).all_tokens()[:50], soft(circuit, 2, seed=1)
    assert torch.equal(log_prob(circuit, tokens), log_prob(again, tokens))
    assert torch.equal(posterior(circuit, log_w).marginals, posterior(again, log_w).marginals)
    assert save_circuit(tmp_path / "again", again, {}) == sha256


def change(path, **values):
    description = json.loads(path.read_text())
    for key, value in values.items():
        description[key] = value
    path.write_text(json.dumps({k: v for k, v in description.items() if v is not None}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "vqgan"}, "is not 'circuit'"),
        ({"kind": None}, "kind"),
        ({"states": None}, "states"),
        ({"states": "many"}, "many"),
        ({"states": 2}, "shape"),
        ({"graph": {"parents": [-1, 2, 1], "homes": [0, 1, 2]}}, "cycle"),
        ({"graph": {"parents": [-1]}}, "homes"),
        ({"graph": None}, "graph"),
        ({"ties": [0, 1]}, "each of 4 tokens"),
        ({"ties": [0, 0, 0, 0]}, "shape"),
        ({"vocabulary": {"kept": [0]}}, "compact"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(values, message, tmp_path):
    save_circuit(tmp_path, make("2x2, quad-tree", torch.float32), {})
    change(tmp_path / "model.json", **values)
    with pytest.raises(CheckpointError, match=rf"model\.(json|safetensors): .*{message}"):
        load_circuit(tmp_path)


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load_circuit(tmp_path)
    save_circuit(tmp_path, make("2x2, quad-tree", torch.float32), {})
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_circuit(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="expected trained weights"):
        load_circuit(tmp_path)
