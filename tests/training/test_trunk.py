"""The perceptual trunk: its features and distances, its files, and its training on painted pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codec.trunk import (
    RECORD,
    WEIGHTS,
    Trunk,
    TrunkConfig,
    load_trunk,
    perceptual_distance,
    save_trunk,
)
from pipeline.data.images import to_float
from pipeline.data.sources import DOMAINS
from pipeline.errors import CheckpointError, ConfigError
from pipeline.training.settings import TrunkParams
from pipeline.training.trunk import HEADS, accuracies, count_correct, cross_entropy, paint, shifted, train_trunk


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    """The same bits on every machine, and no fight for cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trunk, dict[str, float], list[int]]:
    """A trunk trained for some seconds, its accuracies, and the steps at which it reported."""
    steps: list[int] = []
    trunk, scores = train_trunk(
        TrunkParams(images_per_domain=40, steps=40),
        size=32,
        seed=0,
        folder=tmp_path_factory.mktemp("trunk"),
        device=torch.device("cpu"),
        log=lambda step, metrics: steps.append(step),
        tick=lambda step: None,
    )
    return trunk, scores, steps


@pytest.fixture
def untrained() -> Trunk:
    torch.manual_seed(0)
    return Trunk(TrunkConfig(width=8, heads={"domain": 3, "faces/skin": 4})).eval()


def photos(count: int = 4, size: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand((count, 3, 6, 6), generator=generator) * 2 - 1, size=size, mode="bicubic").clamp(
        -1, 1
    )


def blurred(x: Tensor, strength: float) -> Tensor:
    sigma = torch.tensor(strength)
    kernel = torch.exp(-((torch.arange(9) - 4) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    x = F.conv2d(F.pad(x, (4, 4, 0, 0), mode="reflect"), kernel[:, :, None, :], groups=3)
    return F.conv2d(F.pad(x, (0, 0, 4, 4), mode="reflect"), kernel[:, :, :, None], groups=3)


def noisy(x: Tensor, strength: float) -> Tensor:
    return x + strength * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def covered(x: Tensor, strength: float) -> Tensor:
    x, side = x.clone(), int(strength * x.shape[-1])
    x[:, :, :side, :side] = 0
    return x


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 32), (48, 48), (32, 64), (256, 256)])
def test_features_are_five_maps_of_falling_size(untrained: Trunk, height: int, width: int) -> None:
    x = torch.zeros(2, 3, height, width)
    maps = untrained.features(x)
    assert [tuple(m.shape) for m in maps] == [
        (2, channels, height >> level, width >> level) for level, channels in enumerate((8, 12, 16, 24, 32))
    ]
    assert all((m >= 0).all() for m in maps)
    assert {name: tuple(score.shape) for name, score in untrained(x).items()} == {
        "domain": (2, 3),
        "faces/skin": (2, 4),
    }


def test_the_default_size_is_small() -> None:
    assert 200_000 < sum(p.numel() for p in Trunk(TrunkConfig(width=32, heads=HEADS)).parameters()) < 350_000


@pytest.mark.parametrize("shape", [(1, 3, 15, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_other_shapes_are_refused(untrained: Trunk, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected images"):
        untrained.features(torch.zeros(shape))


def test_distance_laws(trained: tuple[Trunk, dict[str, float], list[int]]) -> None:
    trunk, x, y = trained[0], photos(), photos(seed=1)
    together = perceptual_distance(trunk, x, y)
    assert together.shape == (4,)
    assert ((together > 0.05) & (together <= 1)).all()
    assert (perceptual_distance(trunk, x, x) == 0).all()
    assert together == pytest.approx(perceptual_distance(trunk, y, x), rel=1e-5)
    alone = torch.cat([perceptual_distance(trunk, x[i : i + 1], y[i : i + 1]) for i in range(4)])
    assert together == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(
    ("degrade", "strengths"), [(blurred, (0.5, 1, 2)), (noisy, (0.05, 0.2, 0.6)), (covered, (0.2, 0.5, 0.8))]
)
@pytest.mark.parametrize("size", [32, 64])
def test_distance_grows_with_degradation(
    trained: tuple[Trunk, dict[str, float], list[int]], degrade: object, strengths: tuple[float, ...], size: int
) -> None:
    pictures = F.interpolate(to_float(paint("elsewhere", 2, size=32, seed=1).images), size=size)
    distances = [perceptual_distance(trained[0], pictures, degrade(pictures, s)).mean() for s in strengths]  # type: ignore[operator]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_the_distance_can_be_descended(trained: tuple[Trunk, dict[str, float], list[int]]) -> None:
    trunk, y = trained[0], photos(2)
    x = blurred(y, 1.5).requires_grad_(True)
    before = perceptual_distance(trunk, x, y).sum()
    (gradient,) = torch.autograd.grad(before, x)
    assert perceptual_distance(trunk, x - 1e-2 * gradient / gradient.abs().max(), y).sum() < before
    for flat in (-1.0, 0.0, 1.0):  # where features may vanish
        x = torch.full_like(y, flat).requires_grad_(True)
        (gradient,) = torch.autograd.grad(perceptual_distance(trunk, x, y).sum(), x)
        assert gradient.isfinite().all()
    assert all(p.grad is None and not p.requires_grad for p in trunk.parameters())


def test_a_saved_trunk_comes_back(untrained: Trunk, tmp_path: Path) -> None:
    sha256 = save_trunk(tmp_path / "new", untrained, {"domain": 0.5})
    loaded = load_trunk(tmp_path / "new")
    assert loaded.config == untrained.config
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(
        perceptual_distance(loaded, photos(), photos(seed=1)), perceptual_distance(untrained, photos(), photos(seed=1))
    )
    record = json.loads((tmp_path / "new" / RECORD).read_text())
    assert (record["sha256"], record["accuracies"]) == (sha256, {"domain": 0.5})
    assert save_trunk(tmp_path / "again", loaded, {}) == sha256


def _remove_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _remove_record(folder: Path) -> None:
    (folder / RECORD).unlink()


def _damage_weights(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(content))


def _damage_record(folder: Path) -> None:
    (folder / RECORD).write_text("{}")


def _other_network(folder: Path) -> None:
    record = json.loads((folder / RECORD).read_text())
    record["config"]["width"] = 16
    (folder / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_remove_weights, r"trunk\.safetensors.*train it first"),
        (_remove_record, r"trunk\.json.*train it first"),
        (_damage_weights, "its SHA-256"),
        (_damage_record, r"trunk\.json: expected the record"),
        (_other_network, r"trunk\.safetensors: .* has shape"),
    ],
)
def test_spoilt_files_are_refused(untrained: Trunk, tmp_path: Path, spoil: object, sentence: str) -> None:
    save_trunk(tmp_path, untrained, {})
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=sentence):
        load_trunk(tmp_path)


def test_heads_cover_every_attribute_of_every_domain() -> None:
    assert HEADS["domain"] == len(DOMAINS)
    assert len(HEADS) == 1 + sum(len(domain.attributes) for domain in DOMAINS.values())


def test_painted_labels_say_what_the_painter_said() -> None:
    pictures = paint("train", 2, size=16, seed=3)
    assert pictures.images.shape == (2 * len(DOMAINS), 16, 16, 3)
    assert pictures.labels[:, 0].tolist() == [number for number in range(len(DOMAINS)) for _ in range(2)]
    for row in range(len(pictures.images)):
        domain = list(DOMAINS)[row // 2]
        for head, value in zip(HEADS, pictures.labels[row].tolist(), strict=True):
            own = head == "domain" or head.startswith(f"{domain}/")
            assert (0 <= value < HEADS[head]) if own else value == -1
    other = paint("test", 2, size=16, seed=3)
    assert (other.images != pictures.images).any(axis=(1, 2, 3)).all()


def test_the_loss_ignores_what_a_picture_has_not() -> None:
    scores = {"a": torch.tensor([[2.0, 0.0], [0.0, 2.0]]), "b": torch.zeros(2, 3), "c": torch.zeros(2, 2)}
    labels = torch.tensor([[0, -1, -1], [0, 1, -1]])
    right, wrong = torch.log1p(torch.exp(torch.tensor(-2.0))), torch.log1p(torch.exp(torch.tensor(2.0)))
    expected = ((right + wrong) / 2 + torch.log(torch.tensor(3.0)) + 0) / 3
    assert cross_entropy(scores, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    correct, answers = count_correct(scores, labels)
    assert (correct.tolist(), answers.tolist()) == ([1, 0, 0], [2, 1, 0])


def test_shifts_move_pictures_and_keep_their_size() -> None:
    x = photos(16)
    torch.manual_seed(0)
    moved = shifted(x, 2)
    assert moved.shape == x.shape
    padded = F.pad(x, (2,) * 4, mode="reflect")
    offsets = [(r, c) for r in range(5) for c in range(5)]
    found = [
        [(r, c) for r, c in offsets if torch.equal(moved[i], padded[i, :, r : r + 32, c : c + 32])] for i in range(16)
    ]
    assert all(len(places) == 1 for places in found)
    assert len({places[0] for places in found}) > 5


def test_training_learns_the_attributes(trained: tuple[Trunk, dict[str, float], list[int]]) -> None:
    trunk, scores, steps = trained
    assert list(scores) == list(HEADS)
    chance = sum(1 / classes for classes in HEADS.values()) / len(HEADS)
    assert sum(scores.values()) / len(scores) > chance + 0.2
    assert scores["domain"] > 0.8
    assert steps == [20, 40]
    fresh = paint("fresh", 10, size=32, seed=5)
    assert accuracies(trunk, fresh)["domain"] > 0.8


def train_briefly(folder: Path, seed: int) -> Trunk:
    return train_trunk(
        TrunkParams(images_per_domain=6, steps=3),
        size=16,
        seed=seed,
        folder=folder,
        device=torch.device("cpu"),
        log=lambda step, metrics: None,
        tick=lambda step: None,
    )[0]


def test_training_depends_on_the_seed_only_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = train_briefly(tmp_path / "a", 0)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    again, other = train_briefly(tmp_path / "b", 0), train_briefly(tmp_path / "c", 1)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert not torch.equal(first.stages[0][0].weight, other.stages[0][0].weight)  # type: ignore[index]


@pytest.mark.parametrize(
    "params", [TrunkParams(images_per_domain=0, steps=5), TrunkParams(images_per_domain=5, steps=0)]
)
def test_nothing_to_train_on_is_refused(tmp_path: Path, params: TrunkParams) -> None:
    with pytest.raises(ConfigError, match="expected at least 1 of each"):
        train_trunk(
            params,
            size=16,
            seed=0,
            folder=tmp_path,
            device=torch.device("cpu"),
            log=lambda step, metrics: None,
            tick=lambda step: None,
        )
