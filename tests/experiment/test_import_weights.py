"""A published checkpoint becomes a folder that `init` can name, or one sentence; it never runs."""

import hashlib
import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.codec import published as taming
from pipeline.codec.vqgan import VQGAN
from pipeline.diffusion import published as guided
from pipeline.diffusion.unet import UNet
from pipeline.errors import CheckpointError, ConfigError
from pipeline.experiment.import_weights import convert, empty_network, import_weights
from pipeline.experiment.params import check_params
from pipeline.experiment.profiles import resolved
from pipeline.weights import RECIPE, load_weights, read_published

ROOT = Path(__file__).parents[2]
ADM_NAMES = "3424aa2ded1c77ead54880bfda14512c35548734dc6beb29d315064fc164ab79"
"""SHA-256 of the names and shapes of guided-diffusion's 256x256 network, as sorted JSON."""
F16_NAMES = "e3908a824103bf55b3dd48fe57206efb8795e907371fa91ee4a9a37fbd5944df"
"""The same of taming-transformers' network with f = 16 and 1024 codes."""
SMALL = {"patch": 1, "channels": [32, 64], "layers": 1, "attention": [16], "head_dim": 16, "learn_variance": True}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def params():
    values = resolved(ROOT, "embedded")
    values["ddpm"]["unet"] |= SMALL
    return check_params(values)


def published(network, seed=0):
    """A checkpoint that fits the network."""
    found = guided.sources(network) if isinstance(network, UNet) else taming.sources(network)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape, _ in found.values()}


@pytest.fixture(scope="module")
def unet_tensors(params):
    return published(empty_network("unet", params))


@pytest.fixture(scope="module")
def vqgan_tensors(params):
    return published(empty_network("vqgan", params))


def write(path, tensors):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def complaint(call, error=CheckpointError):
    with pytest.raises(error) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", ["plain.pt", "plain.safetensors", "lightning.ckpt"])
def test_unet_folder_loads_as_init(name, params, unet_tensors, tmp_path):
    held = {"epoch": 3, "state_dict": unet_tensors} if name == "lightning.ckpt" else unet_tensors
    file = write(tmp_path / name, held)
    import_weights("unet", file, tmp_path / "out", params)
    network = UNet(params.ddpm.unet, params.image_size)
    description = load_weights(tmp_path / "out", network)
    assert description["source"] == {
        "file": name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "layout": "guided-diffusion",
        "attention_order": "legacy",
    }
    assert description["unet"]["channels"] == [32, 64]
    state = network.state_dict()
    assert torch.equal(state["inner.conv_in.weight"], unet_tensors["input_blocks.0.0.weight"])
    values = unet_tensors["middle_block.1.qkv.weight"][:, :, 0].view(4, 3, 16, 64)[:, 2].reshape(64, 64)
    assert torch.equal(state["inner.mid_block.attentions.0.to_v.weight"], values)


def test_the_same_weights_give_the_same_file_whatever_held_them(params, unet_tensors, tmp_path):
    for name in ("a.pt", "b.safetensors"):
        import_weights("unet", write(tmp_path / name, unet_tensors), tmp_path / name[0], params)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_the_new_order_is_another_network(params, unet_tensors):
    network = empty_network("unet", params)
    legacy, new = (convert(unet_tensors, network, "x", order) for order in ("legacy", "new"))
    differ = {key for key in legacy if not torch.equal(legacy[key], new[key])}
    assert differ == {key for key in legacy if ".to_q." in key or ".to_k." in key or ".to_v." in key}


def test_vqgan_folder_loads_as_init_without_the_loss(params, vqgan_tensors, tmp_path):
    held = {f"first_stage_model.{name}": value for name, value in vqgan_tensors.items()}
    held |= {"first_stage_model.loss.logvar": torch.ones(1), "transformer.head.weight": torch.ones(2)}
    import_weights("vqgan", write(tmp_path / "t.ckpt", {"state_dict": held}), tmp_path / "out", params)
    network = VQGAN(params.vqgan.network)
    assert load_weights(tmp_path / "out", network)["source"]["layout"] == "taming-transformers"
    assert torch.equal(network.codebook, vqgan_tensors["quantize.embedding.weight"])
    assert torch.equal(
        network.state_dict()["inner.decoder.up_blocks.0.resnets.0.conv1.weight"],
        vqgan_tensors["decoder.up.1.block.0.conv1.weight"],
    )


def test_half_precision_becomes_single(params, unet_tensors):
    halves = {name: value.half() for name, value in unet_tensors.items()}
    state = convert(halves, empty_network("unet", params), "x")
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert torch.equal(state["inner.conv_in.weight"], unet_tensors["input_blocks.0.0.weight"].half().float())


class Trap:
    """Leaves a file behind if unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    file, sprung = tmp_path / "trap.pt", tmp_path / "sprung"
    torch.save({"w": torch.ones(2), "x": Trap(sprung)}, file)
    message = complaint(lambda: read_published(file))
    assert "system" in message
    assert RECIPE in message
    assert not sprung.exists()
    torch.load(file, weights_only=False)
    assert sprung.exists(), "the trap works where pickles are run"


class ModelCheckpoint:
    """Stands for a class of another library."""


def test_foreign_classes_are_named_and_the_recipe_helps(tmp_path, monkeypatch):
    file, made = tmp_path / "old.ckpt", tmp_path / "new.safetensors"
    ModelCheckpoint.__module__ = "__main__"
    monkeypatch.setattr(sys.modules["__main__"], "ModelCheckpoint", ModelCheckpoint, raising=False)
    torch.save({"state_dict": {"w": torch.arange(6.0).view(2, 3).T}, "callbacks": {ModelCheckpoint: 1}}, file)
    assert "an object of __main__.ModelCheckpoint" in complaint(lambda: read_published(file))
    monkeypatch.setattr(sys, "argv", ["-c", str(file), str(made)])
    exec(shlex.split(RECIPE)[2], {})
    assert read_published(made)["w"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "page", "cut"])
def test_damaged_files_are_refused(damage, suffix, tmp_path):
    file = write(tmp_path / f"x{suffix}", {"w": torch.ones(5000)})
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "page": b"<html>Not found</html>", "cut": whole[: len(whole) // 2]}[damage])
    assert complaint(lambda: read_published(file)).startswith(f"{file}: not a")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "of type list"),
        ({}, "found none"),
        ({"w": torch.ones(2), "step": 3}, "'step' is int"),
        ({"state_dict": {"w": torch.ones(2), 4: torch.ones(1)}}, "4 is Tensor"),
    ],
)
def test_what_is_not_tensors_by_name_is_refused(content, words, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    assert words in complaint(lambda: read_published(tmp_path / "x.pt"))


def test_a_missing_file_is_named(tmp_path):
    assert "no such file" in complaint(lambda: read_published(tmp_path / "none.pt"))


def without(tensors, *names):
    return {name: value for name, value in tensors.items() if name not in names}


def test_the_first_missing_tensor_is_named_with_its_place(params, unet_tensors):
    held = without(unet_tensors, "output_blocks.0.1.qkv.weight", "input_blocks.3.1.norm.bias")
    message = complaint(lambda: convert(held, empty_network("unet", params), "x.pt"))
    assert "lacks 'input_blocks.3.1.norm.bias' (self-attention in block 3 on the way down, at 16x16" in message
    assert f"{len(held)} tensors; expected {len(unet_tensors)}" in message


def test_a_tensor_of_another_shape_is_named(params, unet_tensors):
    held = unet_tensors | {"middle_block.1.qkv.weight": torch.ones(96, 64, 1)}
    message = complaint(lambda: convert(held, empty_network("unet", params), "x.pt"))
    assert "'middle_block.1.qkv.weight' (self-attention in the middle) with shape (192, 64, 1)" in message
    assert "its shape is (96, 64, 1)" in message


def test_a_class_conditional_network_is_refused(params, unet_tensors):
    held = unet_tensors | {"label_emb.weight": torch.ones(10, 128)}
    message = complaint(lambda: convert(held, empty_network("unet", params), "x.pt"))
    assert "'label_emb.weight' (the class embedding of a class-conditional network" in message


def test_attention_the_vqgan_has_not_is_named(params, vqgan_tensors):
    held = vqgan_tensors | {"encoder.down.1.attn.0.norm.weight": torch.ones(64)}
    message = complaint(lambda: convert(held, empty_network("vqgan", params), "x.ckpt"))
    assert "'encoder.down.1.attn.0.norm.weight' (self-attention on level 1 of the encoder, at 16x16" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers_are_refused(value, params, unet_tensors):
    held = unet_tensors | {"out.0.bias": torch.full((32,), value)}
    assert "'out.0.bias' (the last layers) with values that are not finite" in complaint(
        lambda: convert(held, empty_network("unet", params), "x.pt")
    )


def test_the_wrong_kind_is_said_at_once(params, unet_tensors, vqgan_tensors):
    assert "none of them" in complaint(lambda: convert(vqgan_tensors, empty_network("unet", params), "x.pt"))
    assert "none of them" in complaint(lambda: convert(unet_tensors, empty_network("vqgan", params), "x.pt"))


def test_a_folding_network_takes_no_published_weights():
    params = check_params(resolved(ROOT, "embedded"))
    assert "ddpm.unet.patch" in complaint(lambda: empty_network("unet", params), ConfigError)


def test_nothing_is_written_if_the_checkpoint_does_not_fit(params, unet_tensors, tmp_path):
    file = write(tmp_path / "x.pt", without(unet_tensors, "out.2.bias"))
    complaint(lambda: import_weights("unet", file, tmp_path / "out", params))
    assert not (tmp_path / "out").exists()


def test_the_paper_profile_has_the_published_networks_and_trains_nothing():
    params = check_params(resolved(ROOT, "paper"))
    network = empty_network("unet", params)
    shapes = {theirs: list(shape) for theirs, shape, _ in guided.sources(network).values()}
    assert hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest() == ADM_NAMES
    shapes = {theirs: list(shape) for theirs, shape, _ in taming.sources(empty_network("vqgan", params)).values()}
    assert hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest() == F16_NAMES
    assert params.ddpm.trainer.steps == params.vqgan.trainer.steps == 0
    beta = 1.0 - params.ddpm.schedule.build().alpha_bar[1:] / params.ddpm.schedule.build().alpha_bar[:-1]
    assert np.allclose(beta[[0, -1]], [1e-4, 2e-2])
    assert (len(beta), params.ddpm.target) == (1000, "eps")


def test_the_command_converts_for_a_profile(params, vqgan_tensors, tmp_path, monkeypatch):
    from stages.import_weights import main

    monkeypatch.chdir(ROOT)
    file = write(tmp_path / "x.safetensors", vqgan_tensors)
    main("vqgan", str(file), str(tmp_path / "out"), "legacy", "embedded")
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(held["inner.quantize.embedding.weight"], vqgan_tensors["quantize.embedding.weight"])
