"""Published U-Net weights give published outputs.

tests/golden/published_unet_*.npz were made by openai/guided-diffusion's `UNetModel` in float32: names and shapes of its
tensors, the configuration, and its output. Weights and images are not stored but drawn again from their seeds here.
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.diffusion.published import describe, sources
from pipeline.diffusion.unet import UNet, UNetParams

GOLDEN = Path(__file__).parents[1] / "golden"
ADM = UNetParams(channels=(256, 256, 512, 512, 1024, 1024), layers=2, attention=(32, 16, 8), head_dim=64)
ADM_NAMES = "3424aa2ded1c77ead54880bfda14512c35548734dc6beb29d315064fc164ab79"
"""SHA-256 of the names and shapes of guided-diffusion's 256x256 network, as sorted JSON."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(shapes):
    """A checkpoint by published name: normalised matrices, biases about 0, scales about 1; seeded by name."""
    tensors = {}
    for key, shape in shapes.items():
        z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
        value = z / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.2 * z + float(key.endswith("weight"))
        tensors[key] = torch.from_numpy(value.astype(np.float32))
    return tensors


def golden(name):
    file = np.load(GOLDEN / f"published_unet_{name}.npz")
    config, shapes = json.loads(str(file["config"])), json.loads(str(file["shapes"]))
    unet = {key: tuple(value) if isinstance(value, list) else value for key, value in config["unet"].items()}
    return file, config["image_size"], UNetParams(**unet), {key: tuple(shape) for key, shape in shapes.items()}


def answer(file, size, params, shapes, order):
    network, published = UNet(params, size).eval(), weights(shapes)
    network.load_state_dict(
        {ours: take(published[theirs]) for ours, (theirs, _, take) in sources(network, order).items()}
    )
    x_t = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (2, 3, size, size)).astype(np.float32))
    with torch.no_grad():
        return network(x_t, torch.from_numpy(file["times"])).numpy()


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_outputs_are_the_published_networks(order):
    file, *rest = golden(order)
    assert np.abs(answer(file, *rest, order) - file["output"]).max() < 2e-5


@pytest.mark.parametrize(("order", "wrong"), [("legacy", "new"), ("new", "legacy")])
def test_the_order_of_queries_keys_and_values_matters(order, wrong):
    file, *rest = golden(order)
    assert np.abs(answer(file, *rest, wrong) - file["output"]).max() > 1e-2


@pytest.mark.parametrize("name", ["legacy", "new"])
def test_names_and_shapes_are_the_published_ones(name):
    _, size, params, shapes = golden(name)
    with torch.device("meta"):
        network = UNet(params, size)
    assert {theirs: shape for theirs, shape, _ in sources(network).values()} == shapes


def test_names_and_shapes_of_the_256_network():
    with torch.device("meta"):
        network = UNet(ADM, 256)
    expected = {theirs: list(shape) for theirs, shape, _ in sources(network).values()}
    assert len(expected) == 566
    assert hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest() == ADM_NAMES
    assert sum(value.numel() for value in network.state_dict().values()) == 552_814_086


def test_queries_keys_and_values_share_out_every_row_once():
    _, size, params, _ = golden("legacy")
    network = UNet(params, size)
    for order in ("legacy", "new"):
        found = sources(network, order)
        rows = torch.arange(3 * 64.0)
        parts = [found[f"inner.mid_block.attentions.0.to_{name}.bias"][2](rows) for name in "qkv"]
        assert sorted(torch.cat(parts).tolist()) == rows.tolist()
    first_head = torch.arange(16.0)
    assert torch.equal(found["inner.mid_block.attentions.0.to_k.bias"][2](rows)[:16], 64 + first_head)
    legacy = sources(network, "legacy")["inner.mid_block.attentions.0.to_k.bias"][2](rows)
    assert torch.equal(legacy[:32], torch.cat([16 + first_head, 64 + first_head]))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("label_emb.weight", "class embedding of a class-conditional"),
        ("time_embed.2.bias", "the time embedding"),
        ("input_blocks.0.0.weight", "the first convolution"),
        ("input_blocks.10.1.qkv.weight", "self-attention in block 10 on the way down, at 32x32"),
        (
            "input_blocks.3.0.op.weight",
            "a plain change of resolution (guided-diffusion's flag resblock_updown off) in block 3",
        ),
        ("output_blocks.2.2.conv.weight", "a plain change of resolution"),
        ("output_blocks.0.0.in_layers.2.weight", "a residual block in block 0 on the way up, at 8x8"),
        ("output_blocks.3.1.norm.bias", "self-attention in block 3 on the way up, at 16x16"),
        ("output_blocks.40.0.in_layers.2.bias", "beyond the last level"),
        ("middle_block.1.norm.weight", "self-attention in the middle"),
        ("out.2.weight", "the last layers"),
        ("encoder.conv_in.weight", "no part of a guided-diffusion U-Net"),
    ],
)
def test_says_what_a_tensor_belongs_to(key, words):
    with torch.device("meta"):
        assert words in describe(key, UNet(ADM, 256))
