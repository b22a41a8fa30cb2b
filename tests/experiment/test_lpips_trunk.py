"""Which trunk LPIPS uses: the order of the search, refusals, what is written and read. Nothing asks the network."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.codec.trunk import Trunk, TrunkConfig, perceptual_distance, save_trunk
from pipeline.errors import CheckpointError
from pipeline.experiment import lpips_trunk
from pipeline.experiment.lpips_trunk import (
    FEATURES,
    OFFLINE,
    RECORD,
    SHAPES,
    features_digest,
    load_lpips,
    read_features,
    read_resolution,
    resolve,
)
from pipeline.experiment.perception import Lpips


@pytest.fixture(scope="module")
def alexnet() -> dict[str, Tensor]:
    """AlexNet's convolutions with random weights."""
    generator = torch.Generator().manual_seed(1)
    return {
        key: torch.randn(shape, generator=generator) * (2 / math.prod(shape[1:] or (200,))) ** 0.5
        for key, shape in SHAPES.items()
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache of one's own, and an address that answers nobody."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(OFFLINE, raising=False)
    monkeypatch.setattr(lpips_trunk, "ORIGIN", (tmp_path / "server" / "alexnet-owt-7be5be79.pth").as_uri())
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def torchvision_file(folder: Path, alexnet: dict[str, Tensor]) -> Path:
    """A .pth with a classifier, named after its hash as torchvision names its files."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / "draft.pth"
    torch.save(alexnet | {"classifier.1.weight": torch.zeros(4, 4)}, draft)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()
    return draft.rename(folder / f"alexnet-owt-{digest[:8]}.pth")


def pictures() -> tuple[Tensor, Tensor]:
    x, y = torch.rand((2, 2, 3, 40, 40), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return x, y


def test_a_file_named_in_params_comes_first(tmp_path: Path, cache: Path, alexnet: dict[str, Tensor]) -> None:
    (cache / "alexnet-owt-7be5be79.pth").write_text("never looked at")
    save_file(alexnet, tmp_path / "mine.safetensors")
    resolution = resolve(tmp_path / "mine.safetensors", True, tmp_path / "lpips")
    assert (resolution.column, resolution.source, resolution.verified) == ("lpips", "params", False)
    assert resolution.trunk_sha256 == features_digest(alexnet)
    assert "mine.safetensors" in resolution.reason
    assert "do not compare" in resolution.reason
    assert read_resolution(tmp_path / "lpips") == resolution


def test_the_metric_is_built_from_the_written_files_alone(
    tmp_path: Path, cache: Path, alexnet: dict[str, Tensor]
) -> None:
    source = torchvision_file(tmp_path / "weights", alexnet)
    resolve(source, False, tmp_path / "lpips")
    source.unlink()
    metric = load_lpips(tmp_path / "lpips", tmp_path / "no-trunk-needed")
    assert (metric.column, metric.trunk_sha256, metric.verified) == ("lpips", features_digest(alexnet), False)
    assert torch.equal(metric.perception.distance(*pictures()), Lpips(alexnet).distance(*pictures()))
    assert set(load_file(tmp_path / "lpips" / FEATURES)) == set(SHAPES)


def test_a_missing_file_of_params_is_an_error_even_if_there_are_others(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, alexnet: dict[str, Tensor]
) -> None:
    monkeypatch.setattr(lpips_trunk, "ORIGIN", torchvision_file(cache, alexnet).as_uri())
    with pytest.raises(CheckpointError, match="no such file"):
        resolve(tmp_path / "absent.safetensors", True, tmp_path / "lpips")
    assert not (tmp_path / "lpips").exists()


def _wrong_shape(path: Path, alexnet: dict[str, Tensor]) -> None:
    save_file(alexnet | {"features.3.bias": torch.zeros(100)}, path)


def _wrong_names(path: Path, alexnet: dict[str, Tensor]) -> None:
    save_file({f"module.{key}": value for key, value in alexnet.items()}, path)


def _not_safetensors(path: Path, alexnet: dict[str, Tensor]) -> None:
    path.write_text("<html>not found</html>")


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (_wrong_shape, r"features\.3\.bias of shape \(192,\), got shape \(100,\)"),
        (_wrong_names, r"features\.0\.weight of shape .* got none among 10 tensors"),
        (_not_safetensors, "not a whole safetensors file"),
    ],
)
def test_a_file_of_params_that_is_no_alexnet_is_an_error(
    tmp_path: Path, cache: Path, alexnet: dict[str, Tensor], write: object, sentence: str
) -> None:
    path = tmp_path / "mine.safetensors"
    write(path, alexnet)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=sentence) as caught:
        resolve(path, True, tmp_path / "lpips")
    assert str(path) in str(caught.value)


class Surprise:
    """Runs code when unpickled carelessly."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("surprise"),)  # type: ignore[return-value]


def test_a_pickle_with_more_than_tensors_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Surprise()}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"an object of .* could run code"):
        read_features(tmp_path / "odd.pth")
    assert not (tmp_path / "surprise").exists()
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="of type list"):
        read_features(tmp_path / "list.pth")


def test_torchs_cache_is_used_if_the_hash_is_that_of_the_name(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, alexnet: dict[str, Tensor]
) -> None:
    monkeypatch.setattr(lpips_trunk, "ORIGIN", f"https://nowhere.invalid/{torchvision_file(cache, alexnet).name}")
    resolution = resolve(None, False, tmp_path / "lpips")
    assert (resolution.column, resolution.source, resolution.verified) == ("lpips", "cache", True)
    assert resolution.trunk_sha256 == features_digest(alexnet)


def test_another_file_under_that_name_is_refused_with_both_hashes(
    tmp_path: Path, cache: Path, alexnet: dict[str, Tensor]
) -> None:
    planted = torchvision_file(cache, alexnet).rename(cache / "alexnet-owt-7be5be79.pth")
    actual = hashlib.sha256(planted.read_bytes()).hexdigest()
    with pytest.raises(CheckpointError, match=f"begins with 7be5be79, got {actual}"):
        resolve(None, True, tmp_path / "lpips")


def test_a_download_lands_in_torchs_cache(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, alexnet: dict[str, Tensor]
) -> None:
    server = torchvision_file(tmp_path / "server", alexnet)
    monkeypatch.setattr(lpips_trunk, "ORIGIN", server.as_uri())
    resolution = resolve(None, True, tmp_path / "lpips")
    assert (resolution.column, resolution.source, resolution.verified) == ("lpips", "download", True)
    assert (cache / server.name).read_bytes() == server.read_bytes()
    assert resolve(None, False, tmp_path / "lpips").source == "cache"


def test_without_a_trunk_the_column_has_another_name_and_the_reason_is_told(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, alexnet: dict[str, Tensor]
) -> None:
    folder = tmp_path / "lpips"
    save_file(alexnet, tmp_path / "mine.safetensors")
    resolve(tmp_path / "mine.safetensors", False, folder)
    reasons = [resolve(None, False, folder).reason]
    assert not (folder / FEATURES).exists()
    reasons.append(resolve(None, True, folder).reason)  # the address leads nowhere
    torchvision_file(tmp_path / "server", alexnet).rename(tmp_path / "server" / "alexnet-owt-7be5be79.pth")
    reasons.append(resolve(None, True, folder).reason)  # something else answers there
    monkeypatch.setenv(OFFLINE, "1")
    reasons.append(resolve(None, True, folder).reason)
    causes = [
        "params.yaml forbids the download",
        "No such file",
        "invalid hash value",
        f"{OFFLINE} forbids the download",
    ]
    for reason, cause in zip(reasons, causes, strict=True):
        assert cause in reason
        assert "lpips_domain" in reason
    assert list(cache.iterdir()) == []
    record = json.loads((folder / RECORD).read_text())
    assert (record["column"], record["trunk_sha256"], record["verified"]) == ("lpips_domain", None, None)


def test_lpips_domain_is_the_distance_on_the_own_trunk(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(0)
    trunk = Trunk(TrunkConfig(width=8, heads={"domain": 3})).eval()
    sha256 = save_trunk(tmp_path / "trunk", trunk, {})
    resolution = resolve(None, False, tmp_path / "lpips")
    metric = load_lpips(tmp_path / "lpips", tmp_path / "trunk")
    assert (metric.column, metric.trunk_sha256, metric.reason) == ("lpips_domain", sha256, resolution.reason)
    assert torch.equal(metric.perception.distance(*pictures()), perceptual_distance(trunk, *pictures()))
    with pytest.raises(CheckpointError, match="train it first"):
        load_lpips(tmp_path / "lpips", tmp_path / "elsewhere")


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, cache: Path, alexnet: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"lpips\.json.*resolve the trunk first"):
        load_lpips(tmp_path, tmp_path)
    save_file(alexnet, tmp_path / "mine.safetensors")
    resolve(tmp_path / "mine.safetensors", False, tmp_path / "lpips")
    save_file(alexnet | {"features.0.bias": torch.ones(64)}, tmp_path / "lpips" / FEATURES)
    with pytest.raises(CheckpointError, match="expected weights with digest"):
        load_lpips(tmp_path / "lpips", tmp_path)


def test_the_digest_depends_on_the_numbers_only(tmp_path: Path, alexnet: dict[str, Tensor]) -> None:
    shuffled = dict(reversed(list(alexnet.items())))
    assert features_digest(shuffled) == features_digest(alexnet)
    save_file(alexnet, tmp_path / "a.safetensors", metadata={"note": "another file"})
    assert features_digest(read_features(tmp_path / "a.safetensors")) == features_digest(alexnet)
    assert features_digest(alexnet | {"features.0.bias": torch.ones(64)}) != features_digest(alexnet)
