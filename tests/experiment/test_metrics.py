"""Metrics: laws over the table, closed forms, and LPIPS against its definition."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.experiment.lpips_trunk import IMAGENET_FEATURES, SHAPES, features_digest
from pipeline.experiment.metrics import (
    METRICS,
    Lpips,
    paste,
    psnr,
    psnr_hidden,
    psnr_unpasted,
    ssim,
    ssim_hidden,
    ssim_unpasted,
)


def pictures(count: int = 3, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, truths, and what is known: the left part, of another width for every picture."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = F.interpolate(torch.rand((count, 3, 8, 8), generator=generator) * 2 - 1, size=size, mode="bilinear")
    x = (x_0 + 0.3 * torch.randn(x_0.shape, generator=generator)).clamp(-1, 1)
    known = torch.arange(size) < torch.arange(5, 5 + count)[:, None] * 3
    return x, x_0, known[:, None, None, :].expand(count, 1, size, size)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("size", [32, 50])
def test_law_one_finite_number_per_picture(name: str, size: int) -> None:
    value = METRICS[name](*pictures(size=size))
    assert value.shape == (3,)
    assert value.dtype == torch.float32
    assert value.isfinite().all()


@pytest.mark.parametrize("name", METRICS)
def test_law_the_best_value_is_for_the_truth(name: str) -> None:
    x, x_0, known = pictures()
    best = METRICS[name](x_0, x_0, known)
    assert best == pytest.approx([100.0 if "psnr" in name else 1.0] * 3, abs=1e-5)
    assert (METRICS[name](x, x_0, known) < best - 0.01).all()


@pytest.mark.parametrize("name", METRICS)
def test_law_alone_is_as_in_a_batch(name: str) -> None:
    x, x_0, known = pictures(4)
    alone = torch.cat([METRICS[name](x[i : i + 1], x_0[i : i + 1], known[i : i + 1]) for i in range(4)])
    assert METRICS[name](x, x_0, known) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_law_only_unpasted_metrics_see_the_known_pixels_of_the_sample(name: str) -> None:
    x, x_0, known = pictures()
    other = torch.where(known, -x, x)
    same = torch.isclose(METRICS[name](x, x_0, known), METRICS[name](other, x_0, known), atol=1e-6)
    assert same.any() != name.endswith("_unpasted")
    assert same.all() != name.endswith("_unpasted")


def test_psnr_of_a_constant_error() -> None:
    x_0 = torch.zeros(1, 3, 16, 16)
    known = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    known[..., :12] = True
    x = x_0 + 0.2  # 0.1 of the range: 20 dB
    assert psnr_unpasted(x, x_0, known).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr_hidden(x, x_0, known).item() == pytest.approx(20.0, abs=1e-4)
    assert psnr(x, x_0, known).item() == pytest.approx(20.0 + 10 * math.log10(4), abs=1e-4)  # a quarter is hidden


def test_ssim_is_its_formula_at_a_pixel() -> None:
    x, x_0, _ = pictures(count=1, size=11)  # the window of the middle pixel is the whole picture
    known = torch.ones(1, 1, 11, 11, dtype=torch.bool)
    known[..., 5, 5] = False
    x[..., 5, 5] = -x_0[..., 5, 5].sign()
    distance = torch.arange(11, dtype=torch.float64) - 5
    weight = torch.exp(-(distance**2) / (2 * 1.5**2))
    window = weight[:, None] * weight[None, :] / weight.sum() ** 2
    expected = []
    for a, b in zip(((paste(x, x_0, known) + 1) / 2).double()[0], ((x_0 + 1) / 2).double()[0], strict=True):
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        variances = (window * a**2).sum() - mean_a**2 + (window * b**2).sum() - mean_b**2
        covariance = (window * a * b).sum() - mean_a * mean_b
        luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
        expected.append(float(luminance * (2 * covariance + 0.03**2) / (variances + 0.03**2)))
    assert min(expected) < 0.95
    assert ssim_hidden(x, x_0, known).item() == pytest.approx(sum(expected) / 3, abs=1e-4)


def test_ssim_unpasted_is_ssim_with_nothing_known() -> None:
    x, x_0, known = pictures()
    assert torch.equal(ssim_unpasted(x, x_0, known), ssim(x, x_0, torch.zeros_like(known)))


def test_hidden_metrics_are_undefined_where_nothing_is_hidden() -> None:
    x, x_0, known = pictures()
    for name in ("psnr_hidden", "ssim_hidden"):
        assert METRICS[name](x, x_0, torch.ones_like(known)).isnan().all()


def test_paste_keeps_known_pixels_bit_for_bit() -> None:
    x, x_0, known = pictures()
    everywhere = known.expand_as(x)
    assert torch.equal(paste(x, x_0, known)[everywhere], x_0[everywhere])
    assert torch.equal(paste(x, x_0, known)[~everywhere], x[~everywhere])


def test_pictures_that_are_too_small_are_refused(alexnet: dict[str, Tensor]) -> None:
    x = torch.zeros(1, 3, 10, 10)
    with pytest.raises(InputError, match="SSIM needs pictures of 11"):
        ssim_unpasted(x, x, x[:, :1] > 0)
    x = torch.zeros(1, 3, 30, 40)
    with pytest.raises(InputError, match="LPIPS on AlexNet needs pictures of 31"):
        Lpips(alexnet).distance(x, x)


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


def lpips_by_hand(trunk: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Zhang et al., 2018, equation 1, with the heads that the package brings along."""
    import lpips

    heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/alex.pth", map_location="cpu", weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    f, g = (x - shift) / scale, (y - shift) / scale
    total = torch.zeros(len(x))
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
        total += (difference * heads[f"lin{layer}.model.1.weight"]).sum(dim=1).mean(dim=(1, 2))
    return total


def test_lpips_is_its_definition(alexnet: dict[str, Tensor]) -> None:
    for size in (32, 64):
        x, x_0, _ = pictures(size=size)
        assert Lpips(alexnet).distance(x, x_0) == pytest.approx(lpips_by_hand(alexnet, x, x_0), rel=1e-4)


def test_lpips_laws(alexnet: dict[str, Tensor]) -> None:
    x, x_0, _ = pictures()
    metric = Lpips(alexnet)
    together = metric.distance(x, x_0)
    assert (metric.distance(x_0, x_0) == 0).all()
    assert together == pytest.approx(metric.distance(x_0, x), rel=1e-5)
    assert together == pytest.approx(
        torch.cat([metric.distance(x[i : i + 1], x_0[i : i + 1]) for i in range(3)]), rel=1e-4
    )


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
