"""Published VQ-GAN weights give published features, tokens and pictures.

tests/golden/published_vqgan*.npz were made by CompVis/taming-transformers' `Encoder`, `VectorQuantizer2` and `Decoder`
in float32: names and shapes of their tensors, the configuration, and what they gave. Weights and images are drawn again
from their seeds here.
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel

from pipeline.codec.published import describe, own_part, sources
from pipeline.codec.vqgan import VQGAN, VQGANParams, quantize

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED_NAMES = {
    "f16, 1024 codes": (343, "e3908a824103bf55b3dd48fe57206efb8795e907371fa91ee4a9a37fbd5944df"),
    "f16, 16384 codes": (343, "d6ce2e7e92b4a393aeca966022763d19a2c282fd5108edb5ef5a449da84ae1c8"),
    "f8, 16384 codes": (299, "d33e0c64fdbe93c8a3abcdd05ffb6c0d04e4c764d6e2a6f70650167c190bf954"),
}
"""Number of tensors, and SHA-256 of names and shapes as sorted JSON, of the reference's networks."""
PUBLISHED = {
    "f16, 1024 codes": VQGANParams(),
    "f16, 16384 codes": VQGANParams(codes=16384),
    "f8, 16384 codes": VQGANParams(channels=(128, 256, 256, 512), codes=16384, code_dim=4),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(params, level_attention):
    """A VQ-GAN with self-attention in the middle only, or on the coarsest level as well."""
    vqgan, levels = VQGAN(params), len(params.channels)
    down, up = ["DownEncoderBlock2D"] * levels, ["UpDecoderBlock2D"] * levels
    if level_attention:
        down[-1], up[0] = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    vqgan.inner = VQModel.from_config({**vqgan.inner.config, "down_block_types": down, "up_block_types": up})
    return vqgan


def weights(shapes):
    """A checkpoint by published name: normalised matrices, biases about 0, scales about 1, codes of length about 1."""
    tensors = {}
    for key, shape in shapes.items():
        z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
        value = z / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.2 * z + float(key.endswith("weight"))
        tensors[key] = torch.from_numpy((z if key.startswith("quantize.") else value).astype(np.float32))
    return tensors


def golden(name):
    file = np.load(GOLDEN / f"{name}.npz")
    config, shapes = json.loads(str(file["config"])), json.loads(str(file["shapes"]))
    params = VQGANParams(**config["network"] | {"channels": tuple(config["network"]["channels"])})
    return file, config, network(params, config["level_attention"]).eval(), {k: tuple(s) for k, s in shapes.items()}


@pytest.mark.parametrize("name", ["published_vqgan", "published_vqgan_middle"])
def test_features_tokens_and_pictures_are_the_published_networks(name):
    file, config, vqgan, shapes = golden(name)
    published, side = weights(shapes), config["image_size"]
    vqgan.load_state_dict({ours: take(published[theirs]) for ours, (theirs, _, take) in sources(vqgan).items()})
    x = torch.from_numpy(np.random.RandomState(0).uniform(-1, 1, (1, 3, side, side)).astype(np.float32))
    with torch.no_grad():
        features = vqgan.encode(x)
        tokens, codes = quantize(features, vqgan.codebook)
        made = vqgan.decode(codes)
    assert np.abs(features.numpy() - file["features"]).max() < 2e-5
    assert np.array_equal(tokens.numpy(), file["tokens"])
    assert np.abs(made.numpy() - file["output"]).max() < 1e-4


@pytest.mark.parametrize("name", ["published_vqgan", "published_vqgan_middle"])
def test_names_and_shapes_are_the_published_ones(name):
    _, _, vqgan, shapes = golden(name)
    assert {theirs: shape for theirs, shape, _ in sources(vqgan).values()} == shapes


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_of_the_published_sizes(name):
    with torch.device("meta"):
        vqgan = VQGAN(PUBLISHED[name])
    expected = {theirs: list(shape) for theirs, shape, _ in sources(vqgan).values()}
    digest = hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()
    assert (len(expected), digest) == PUBLISHED_NAMES[name]


def test_own_part_drops_the_loss_and_nothing_else():
    names = ["encoder.conv_in.bias", "loss.discriminator.main.0.weight", "quantize.embedding.weight", "lossy"]
    tensors = {name: torch.tensor([k]) for k, name in enumerate(names)}
    assert own_part(tensors) == {name: tensors[name] for name in names if not name.startswith("loss.")}


def test_own_part_takes_the_first_stage_of_a_transformer():
    inner = {"encoder.conv_in.bias": torch.tensor(1), "loss.logvar": torch.tensor(2)}
    outer = {"transformer.head.weight": torch.tensor(3), "encoder.conv_in.bias": torch.tensor(4)}
    found = own_part({f"first_stage_model.{name}": value for name, value in inner.items()} | outer)
    assert list(found) == ["encoder.conv_in.bias"]
    assert found["encoder.conv_in.bias"] == 1


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("encoder.down.4.attn.0.q.weight", "self-attention on level 4 of the encoder, at 16x16"),
        ("decoder.up.0.block.2.conv1.weight", "a residual block on level 0 of the decoder, at 256x256"),
        ("encoder.down.1.downsample.conv.bias", "a change of resolution on level 1 of the encoder, at 128x128"),
        ("encoder.down.5.block.0.conv1.bias", "beyond the last level"),
        ("decoder.mid.attn_1.k.bias", "self-attention in the middle of the decoder"),
        ("decoder.mid.block_2.norm1.bias", "a residual block in the middle of the decoder"),
        ("encoder.norm_out.weight", "the first or last layers of the encoder"),
        ("quantize.embed.weight", "a Gumbel quantiser"),
        ("quantize.embedding.weight", "the codebook"),
        ("post_quant_conv.bias", "between codes and decoder"),
        ("model_ema.decay", "running averages"),
        ("time_embed.0.weight", "no part of a taming-transformers VQ-GAN"),
        ("encoder.down", "no part of a taming-transformers VQ-GAN"),
    ],
)
def test_says_what_a_tensor_belongs_to(key, words):
    with torch.device("meta"):
        assert words in describe(key, VQGAN(VQGANParams()))
