"""The stage train_transformer on a toy: what it leaves behind, and that it can be left out."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import TransformerBlock
from pipeline.experiment.tokens import read_tokens
from pipeline.experiment.train_transformer import train_transformer
from pipeline.training.settings import TrainerParams
from pipeline.training.token_network import TokenTransformer, TransformerParams, bits_per_token, forward_flops
from pipeline.weights import load_weights

NETWORK = TransformerParams(width=8, layers=1, heads=2)


def params(steps):
    trainer = TrainerParams(steps=steps, checkpoint_every=2, batch=4, learning_rate=1e-2, log_every=1)
    return SimpleNamespace(seed=1, transformer=TransformerBlock(network=NETWORK, trainer=trainer))


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there
    monkeypatch.setenv("TIRAMISU_DEVICE", "cpu")
    made = Layout(Path(tmp_path), "toy")
    folder = made.tokens("faces")
    folder.mkdir(parents=True)
    (folder / "tokens.json").write_text(json.dumps({"codes": 6}))
    for number, (split, count) in enumerate({"train": 12, "val": 3, "test": 2}.items()):
        tokens = np.random.default_rng(number).integers(0, 6, (count, 4, 4)).astype(np.uint16)
        np.savez(folder / f"{split}.npz", tokens=tokens, keys=np.array([f"{split}-{k}" for k in range(count)]))
    return made


def test_it_leaves_weights_a_curve_and_a_record(layout):
    train_transformer(params(4), layout, "faces")
    out = layout.transformer("faces")
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "model.json", "curve.jsonl", "record.json"}
    record = json.loads((out / "record.json").read_text())
    network = TokenTransformer(NETWORK, codes=6, length=16, causal=True)
    description = load_weights(out, network)
    assert description["kind"] == "transformer"
    assert (description["codes"], description["length"]) == (6, 16)
    assert description["fingerprint"] == record["fingerprint"]
    expected = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "train/gflop": 48e-9 * forward_flops(network),
    }
    for split in ("train", "val", "test"):
        tokens = read_tokens(layout.tokens("faces"), split).tokens
        expected[f"{split}/bits_per_token"] = float(bits_per_token(network, tokens).mean())
    assert record["metrics"] == pytest.approx(expected)
    assert set(record["inputs"]) == {"data", "val"}
    rows = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val/bits_per_token" in row["metrics"]] == [2, 4]


def test_the_same_seed_gives_the_same_weights(layout):
    train_transformer(params(4), layout, "faces")
    first = load(layout)
    shutil.rmtree(layout.root / "work")
    train_transformer(params(4), layout, "faces")
    assert all(torch.equal(value, load(layout)[name]) for name, value in first.items())


def load(layout):
    network = TokenTransformer(NETWORK, codes=6, length=16, causal=True)
    load_weights(layout.transformer("faces"), network)
    return network.state_dict()


def test_without_steps_it_is_left_out(layout):
    train_transformer(params(0), layout, "faces")
    assert list(layout.transformer("faces").iterdir()) == []


def test_missing_tokens_are_named(layout):
    (layout.tokens("faces") / "test.npz").unlink()
    with pytest.raises(InputError, match=r"test\.npz: expected .* encode"):
        train_transformer(params(4), layout, "faces")
