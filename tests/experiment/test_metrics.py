"""Metrics: laws over the table, closed forms, and diversity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codec.trunk import Trunk, TrunkConfig
from pipeline.errors import InputError
from pipeline.experiment import tables
from pipeline.experiment.lpips_trunk import SHAPES
from pipeline.experiment.metrics import (
    METRICS,
    Metric,
    diversity,
    paste,
    perceptual_metrics,
    psnr,
    psnr_hidden,
    psnr_unpasted,
    ssim,
    ssim_hidden,
    ssim_unpasted,
)
from pipeline.experiment.perception import DomainLpips, Lpips

torch.set_num_threads(1)

NAMES = [
    *METRICS,
    *(f"{column}{view}" for column in ("lpips", "lpips_domain") for view in ("", "_hidden", "_unpasted")),
]
BEST = {"psnr": 100.0, "ssim": 1.0, "lpips": 0.0}


@pytest.fixture(scope="module")
def own() -> DomainLpips:
    """The distance on a trunk with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DomainLpips(Trunk(TrunkConfig(width=8, heads={"domain": 3})).eval().requires_grad_(False))


@pytest.fixture(scope="module")
def metrics(own: DomainLpips) -> dict[str, Metric]:
    """Every metric there is."""
    generator = torch.Generator().manual_seed(0)
    alexnet = {
        key: torch.randn(shape, generator=generator) * (2 / math.prod(shape[1:])) ** 0.5
        if len(shape) == 4
        else torch.zeros(shape)
        for key, shape in SHAPES.items()
    }
    return METRICS | perceptual_metrics(Lpips(alexnet), "lpips") | perceptual_metrics(own, "lpips_domain")


def loss(name: str, value: Tensor) -> Tensor:
    """Lower is better, as the report takes it."""
    return tables.METRICS[name].sign * value


def pictures(count: int = 3, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Samples, truths, and what is known: the left part, of another width for every picture."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = F.interpolate(torch.rand((count, 3, 8, 8), generator=generator) * 2 - 1, size=size, mode="bilinear")
    x = (x_0 + 0.3 * torch.randn(x_0.shape, generator=generator)).clamp(-1, 1)
    known = torch.arange(size) < torch.arange(5, 5 + count)[:, None] * 3
    return x, x_0, known[:, None, None, :].expand(count, 1, size, size)


def test_the_table_names_every_metric(metrics: dict[str, Metric]) -> None:
    assert set(metrics) == set(NAMES)
    diversities = {"lpips_diversity", "lpips_domain_diversity"}
    assert set(tables.METRICS) == set(NAMES) | diversities


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [32, 50])
def test_law_one_finite_number_per_picture(metrics: dict[str, Metric], name: str, size: int) -> None:
    value = metrics[name](*pictures(size=size))
    assert value.shape == (3,)
    assert value.dtype == torch.float32
    assert value.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_law_the_best_value_is_for_the_truth(metrics: dict[str, Metric], name: str) -> None:
    x, x_0, known = pictures()
    best = metrics[name](x_0, x_0, known)
    assert best == pytest.approx([BEST[name.split("_")[0]]] * 3, abs=1e-5)
    assert (loss(name, metrics[name](x, x_0, known)) > loss(name, best) + 0.01).all()


@pytest.mark.parametrize("name", NAMES)
def test_law_more_noise_is_worse(metrics: dict[str, Metric], name: str) -> None:
    _, x_0, known = pictures()
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    losses = [loss(name, metrics[name](x_0 + strength * noise, x_0, known)) for strength in (0.05, 0.2, 0.8)]
    assert (losses[0] < losses[1]).all()
    assert (losses[1] < losses[2]).all()


@pytest.mark.parametrize("name", NAMES)
def test_law_alone_is_as_in_a_batch(metrics: dict[str, Metric], name: str) -> None:
    x, x_0, known = pictures(4)
    alone = torch.cat([metrics[name](x[i : i + 1], x_0[i : i + 1], known[i : i + 1]) for i in range(4)])
    assert metrics[name](x, x_0, known) == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_law_only_unpasted_metrics_see_the_known_pixels_of_the_sample(metrics: dict[str, Metric], name: str) -> None:
    x, x_0, known = pictures()
    other = torch.where(known, -x, x)
    same = torch.isclose(metrics[name](x, x_0, known), metrics[name](other, x_0, known), atol=1e-6)
    assert same.any() != name.endswith("_unpasted")
    assert same.all() != name.endswith("_unpasted")


@pytest.mark.parametrize("name", NAMES)
def test_law_sample_and_truth_can_change_places(metrics: dict[str, Metric], name: str) -> None:
    x, x_0, known = pictures()
    if not name.endswith("_unpasted"):  # otherwise the truth around the hidden pixels would be another
        x = torch.where(known, x_0, x)
    assert metrics[name](x, x_0, known) == pytest.approx(metrics[name](x_0, x, known), rel=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_hidden")])
def test_law_hidden_metrics_are_undefined_where_nothing_is_hidden(metrics: dict[str, Metric], name: str) -> None:
    x, x_0, known = pictures()
    assert metrics[name](x, x_0, torch.ones_like(known)).isnan().all()


@pytest.mark.parametrize("name", ["psnr", "ssim", "lpips_domain"])
def test_law_all_views_agree_where_everything_is_hidden(metrics: dict[str, Metric], name: str) -> None:
    x, x_0, known = pictures()
    values = [metrics[name + view](x, x_0, torch.zeros_like(known)) for view in ("", "_hidden", "_unpasted")]
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    assert torch.equal(values[2], values[0])


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_hidden")])
def test_law_hidden_metrics_thin_out_less_with_what_is_known(metrics: dict[str, Metric], name: str) -> None:
    """The same noise in a half, then in a strip of an eighth: how much of the loss is left."""
    _, x_0, _ = pictures(size=64)
    x = x_0 + 0.3 * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(2))
    half, strip = (torch.arange(64).expand(3, 1, 64, 64) < start for start in (32, 56))

    def left(view: str) -> Tensor:
        best = BEST[view.split("_")[0]]
        return (metrics[view](x, x_0, strip) - best) / (metrics[view](x, x_0, half) - best)

    assert (left(name) > 1.05 * left(name.removesuffix("_hidden"))).all()


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


def test_paste_keeps_known_pixels_bit_for_bit() -> None:
    x, x_0, known = pictures()
    everywhere = known.expand_as(x)
    assert torch.equal(paste(x, x_0, known)[everywhere], x_0[everywhere])
    assert torch.equal(paste(x, x_0, known)[~everywhere], x[~everywhere])


def test_pictures_that_are_too_small_for_ssim_are_refused() -> None:
    x = torch.zeros(1, 3, 10, 10)
    with pytest.raises(InputError, match="SSIM needs pictures of 11"):
        ssim_unpasted(x, x, x[:, :1] > 0)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_diversity_is_the_mean_distance_to_the_other_samples(own: DomainLpips, batch: int) -> None:
    x, _, _ = pictures(5)
    found = diversity(x, own.distance, batch)
    between = torch.stack([own.distance(x, x[i : i + 1].expand_as(x)) for i in range(5)])
    assert found == pytest.approx(between.sum(dim=1) / 4, rel=1e-4)
    pairs = [own.distance(x[i : i + 1], x[j : j + 1]).item() for i in range(5) for j in range(i)]
    assert found.mean().item() == pytest.approx(sum(pairs) / 10, rel=1e-4)


def test_equal_samples_have_no_diversity(own: DomainLpips) -> None:
    x, _, _ = pictures(2)
    assert (diversity(x[:1].expand(3, -1, -1, -1), own.distance, 64) == 0).all()
    assert (diversity(x, own.distance, 64) == own.distance(x[:1], x[1:])).all()
