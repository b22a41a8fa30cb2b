"""Perceptual distances, their maps and features: LPIPS against its definition, laws for both networks."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from pipeline.codec.trunk import Trunk, TrunkConfig, perceptual_distance
from pipeline.errors import InputError
from pipeline.experiment.lpips_trunk import IMAGENET_FEATURES, SHAPES, features_digest
from pipeline.experiment.perception import DomainLpips, Lpips, Perception

torch.set_num_threads(1)


def pictures(count: int = 3, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, truths, and what is known: the left part, of another width for every picture."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = F.interpolate(torch.rand((count, 3, 8, 8), generator=generator) * 2 - 1, size=size, mode="bilinear")
    x = (x_0 + 0.3 * torch.randn(x_0.shape, generator=generator)).clamp(-1, 1)
    known = torch.arange(size) < torch.arange(5, 5 + count)[:, None] * 3
    return x, x_0, known[:, None, None, :].expand(count, 1, size, size)


@pytest.fixture(scope="module")
def alexnet() -> dict[str, Tensor]:
    """AlexNet's convolutions with random weights that keep the scale of what passes through."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(shape, generator=generator) * (2 / math.prod(shape[1:])) ** 0.5
        if len(shape) == 4
        else 0.1 * torch.randn(shape, generator=generator)
        for key, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    """Random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Trunk(TrunkConfig(width=8, heads={"domain": 3})).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def perceptions(alexnet: dict[str, Tensor], trunk: Trunk) -> dict[str, Perception]:
    return {"own": DomainLpips(trunk), "alexnet": Lpips(alexnet)}


def layers_by_hand(trunk: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[list[Tensor], Tensor]:
    """Zhang et al., 2018, equation 1 before the mean over places, [B, h, w] of each layer; and x's last features."""
    import lpips

    heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/alex.pth", map_location="cpu", weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    f, g = (x - shift) / scale, (y - shift) / scale
    layers = []
    for layer, (position, options) in enumerate(
        {
            0: {"stride": 4, "padding": 2},
            3: {"padding": 2},
            6: {"padding": 1},
            8: {"padding": 1},
            10: {"padding": 1},
        }.items()
    ):
        if layer in (1, 2):
            f, g = F.max_pool2d(f, 3, 2), F.max_pool2d(g, 3, 2)
        weight, bias = trunk[f"features.{position}.weight"], trunk[f"features.{position}.bias"]
        f, g = (F.conv2d(maps, weight, bias, **options).relu() for maps in (f, g))
        difference = (F.normalize(f, dim=1, eps=1e-10) - F.normalize(g, dim=1, eps=1e-10)).square()
        layers.append((difference * heads[f"lin{layer}.model.1.weight"]).sum(dim=1))
    return layers, f


@pytest.mark.parametrize("size", [32, 64])
def test_lpips_is_its_definition(alexnet: dict[str, Tensor], size: int) -> None:
    x, x_0, _ = pictures(size=size)
    layers, last = layers_by_hand(alexnet, x, x_0)
    found = Lpips(alexnet)
    assert found.distance(x, x_0) == pytest.approx(sum(layer.mean(dim=(1, 2)) for layer in layers), rel=1e-4)
    maps = [F.interpolate(layer[:, None], size, mode="bilinear") for layer in layers]
    torch.testing.assert_close(found.distance_map(x, x_0), sum(maps), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.embed(x), last.mean(dim=(2, 3)), rtol=1e-4, atol=1e-6)


def test_the_own_distance_is_the_mean_of_its_map(trunk: Trunk) -> None:
    x, x_0, _ = pictures()
    assert torch.equal(DomainLpips(trunk).distance(x, x_0), perceptual_distance(trunk, x, x_0))
    found = DomainLpips(trunk).distance_map(x, x_0)
    assert found.mean(dim=(1, 2, 3)) == pytest.approx(perceptual_distance(trunk, x, x_0), rel=1e-5)
    torch.testing.assert_close(DomainLpips(trunk).embed(x), trunk.features(x)[4].mean(dim=(2, 3)))


@pytest.mark.parametrize("kind", ["own", "alexnet"])
def test_law_a_map_shows_where_pictures_differ(perceptions: dict[str, Perception], kind: str) -> None:
    _, x_0, _ = pictures(size=128)
    x = x_0.clone()
    x[..., :16, :16] *= -1
    found = perceptions[kind].distance_map(x, x_0)
    assert found.shape == (3, 1, 128, 128)
    assert (perceptions[kind].distance_map(x_0, x_0) == 0).all()
    near, far = found[..., :16, :16].mean(dim=(1, 2, 3)), found[..., 96:, 96:].mean(dim=(1, 2, 3))
    assert (near > 20 * far).all()


@pytest.mark.parametrize("kind", ["own", "alexnet"])
def test_laws_of_distances(perceptions: dict[str, Perception], kind: str) -> None:
    x, x_0, _ = pictures()
    distance = perceptions[kind].distance
    together = distance(x, x_0)
    assert (distance(x_0, x_0) == 0).all()
    assert together == pytest.approx(distance(x_0, x), rel=1e-5)
    assert together == pytest.approx(torch.cat([distance(x[i : i + 1], x_0[i : i + 1]) for i in range(3)]), rel=1e-4)


@pytest.mark.parametrize("kind", ["own", "alexnet"])
def test_law_features_are_a_pictures_own(perceptions: dict[str, Perception], kind: str) -> None:
    x, _, _ = pictures()
    together = perceptions[kind].embed(x)
    assert together.shape == (3, {"own": 32, "alexnet": 256}[kind])
    torch.testing.assert_close(perceptions[kind].embed(x[1:2])[0], together[1], rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_pictures_that_are_too_small_for_alexnet_are_refused(alexnet: dict[str, Tensor]) -> None:
    x, found = torch.zeros(1, 3, 30, 40), Lpips(alexnet)
    for ask in (lambda: found.distance(x, x), lambda: found.distance_map(x, x), lambda: found.embed(x)):
        with pytest.raises(InputError, match="LPIPS on AlexNet needs pictures of 31"):
            ask()


def test_building_lpips_draws_no_random_numbers(alexnet: dict[str, Tensor]) -> None:
    before = torch.random.get_rng_state()
    Lpips(alexnet)
    assert torch.equal(before, torch.random.get_rng_state())


def test_lpips_wants_all_of_the_trunk(alexnet: dict[str, Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"net\.slice5\.10\.bias"):
        Lpips({key: value for key, value in alexnet.items() if key != "features.10.bias"})


@pytest.mark.skipif("TIRAMISU_ALEXNET" not in os.environ, reason="TIRAMISU_ALEXNET names no file of AlexNet features")
def test_lpips_on_imagenet_weights() -> None:
    trunk = load_file(os.environ["TIRAMISU_ALEXNET"])
    assert features_digest(trunk) == IMAGENET_FEATURES
    x, x_0, known = pictures(size=64)
    grey = torch.where(known, x_0, torch.zeros(()))
    # the weights that gave these numbers give the published ones on the pictures of the LPIPS repository
    assert Lpips(trunk).distance(x, x_0).tolist() == pytest.approx([0.42603, 0.39472, 0.37551], abs=1e-4)
    assert Lpips(trunk).distance(grey, x_0).tolist() == pytest.approx([0.67374, 0.58604, 0.54544], abs=1e-4)
