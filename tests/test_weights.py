"""Weights on disk: what is read is what was written, or an error says what is wrong."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import CheckpointError
from pipeline.weights import fill, load_weights, read_description, save_weights


class Small(nn.Module):
    """Floating-point weights, a buffer and a counter."""

    def __init__(self, seed=0, width=3):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layer = nn.Linear(width, 2)
        with torch.no_grad():
            for value in self.layer.parameters():
                value.normal_(generator=generator)
        self.register_buffer("mean", torch.randn(4, generator=generator))
        self.register_buffer("count", torch.tensor(seed))


def equal(first, second):
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


def test_a_round_trip_keeps_every_bit(tmp_path):
    network, other = Small(7), Small(8)
    sha256 = save_weights(tmp_path / "a" / "b", network, {"kind": "small", "width": 3})
    assert load_weights(tmp_path / "a" / "b", other) == {"sha256": sha256, "kind": "small", "width": 3}
    assert equal(network, other)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["model.json", "model.safetensors"]
    assert sha256 == hashlib.sha256((tmp_path / "a" / "b" / "model.safetensors").read_bytes()).hexdigest()


def test_the_same_weights_make_the_same_file(tmp_path):
    assert save_weights(tmp_path / "a", Small(7), {}) == save_weights(tmp_path / "b", Small(7), {"kind": "x"})
    assert save_weights(tmp_path / "a", Small(7), {}) != save_weights(tmp_path / "b", Small(8), {})


def test_half_stores_floating_point_numbers_only_in_float16(tmp_path):
    network, other = Small(7), Small(8)
    save_weights(tmp_path, network, {}, bits=16)
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: value.dtype for name, value in stored.items()} == {
        "layer.weight": torch.float16,
        "layer.bias": torch.float16,
        "mean": torch.float16,
        "count": torch.int64,
    }
    load_weights(tmp_path, other)
    assert int(other.count) == 7
    assert other.layer.weight.dtype == torch.float32
    torch.testing.assert_close(other.layer.weight, network.layer.weight, rtol=2**-11, atol=0)


def test_a_description_cannot_claim_another_hash(tmp_path):
    """The description of other weights, hash and all, may be passed on; what is recorded is the hash of these."""
    other = {"sha256": "0" * 64, "kind": "small"}
    sha256 = save_weights(tmp_path, Small(7), other)
    assert read_description(tmp_path)["sha256"] == sha256
    load_weights(tmp_path, Small(8))


def test_saving_again_replaces_both_files(tmp_path):
    save_weights(tmp_path, Small(7), {"kind": "old"})
    save_weights(tmp_path, Small(8), {"kind": "new"})
    network = Small(9)
    assert load_weights(tmp_path, network)["kind"] == "new"
    assert equal(network, Small(8))


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    save_weights(tmp_path, Small(), {})
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_weights(tmp_path, Small())


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"kind": "small"}', "null"])
def test_an_unreadable_description_is_refused(tmp_path, text):
    save_weights(tmp_path, Small(), {})
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.json: expected the description .* train it (first|again)"):
        load_weights(tmp_path, Small())


def test_any_flipped_bit_is_found(tmp_path):
    save_weights(tmp_path, Small(), {})
    path, network = tmp_path / "model.safetensors", Small(3)
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged or was exchanged"):
            load_weights(tmp_path, network)
    assert equal(network, Small(3))


@pytest.mark.parametrize("length", [0, 1, 8, 100])
def test_a_cut_file_is_found(tmp_path, length):
    save_weights(tmp_path, Small(), {})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: its SHA-256"):
        load_weights(tmp_path, Small())


def test_a_file_of_another_kind_is_refused_even_if_its_hash_is_right(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    sha256 = hashlib.sha256(b"not tensors").hexdigest()
    (tmp_path / "model.json").write_text(json.dumps({"sha256": sha256}))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(tmp_path, Small())


def test_weights_of_another_shape_are_refused_and_nothing_is_filled(tmp_path):
    save_weights(tmp_path, Small(7, width=5), {})
    network = Small(3)
    with pytest.raises(CheckpointError, match=r"'layer\.weight' has shape \(2, 5\), .* expects \(2, 3\)"):
        load_weights(tmp_path, network)
    assert equal(network, Small(3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("mean"), "holds 3 tensors, .* expects 4; it lacks 'mean'"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "holds 'extra', which the network has not"),
    ],
)
def test_missing_and_additional_tensors_are_named(change, words):
    tensors, network = dict(Small(7).state_dict()), Small(3)
    change(tensors)
    with pytest.raises(CheckpointError, match=f"some.file: .*{words}"):
        fill(network, tensors, "some.file")
    assert equal(network, Small(3))


def test_a_foreign_file_with_a_right_record_loads(tmp_path):
    """Weights may come from elsewhere: only names, shapes and the recorded hash count."""
    save_file(dict(Small(7).state_dict()), tmp_path / "model.safetensors")
    sha256 = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "model.json").write_text(json.dumps({"sha256": sha256, "source": "elsewhere"}))
    network = Small(3)
    assert load_weights(tmp_path, network)["source"] == "elsewhere"
    assert equal(network, Small(7))


def test_eight_bits_round_each_row_to_half_a_step(tmp_path):
    torch.manual_seed(0)
    network, again = torch.nn.Conv2d(3, 5, 3), torch.nn.Conv2d(3, 5, 3)
    with torch.no_grad():
        network.weight[2] *= 100.0
        network.weight[3] = 0.0
    save_weights(tmp_path, network, {}, bits=8)
    load_weights(tmp_path, again)
    step = network.weight.flatten(1).abs().amax(1) / 127.0
    assert ((network.weight - again.weight).flatten(1).abs().amax(1) <= 0.51 * step + 1e-12).all()
    assert torch.equal(again.bias, network.bias.half().float())
