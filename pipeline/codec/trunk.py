"""The pipeline's own perceptual trunk: a small picture classifier whose feature maps measure how alike pictures look.

LPIPS (Zhang et al., 2018, arXiv 1801.03924) compares the feature maps of an ImageNet classifier, which has to be
downloaded; this one is trained in a minute on the attributes of the painted domains. It has two uses: the perceptual
loss of the VQ-GAN, and the metric `lpips_domain` where no ImageNet trunk can be had.

What differs from LPIPS: the trunk and its data; no learned weights for the channels, because there are no human
judgements to learn them from, so all channels and layers count alike; and the scale, which is fixed at [0, 1].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import CheckpointError, misfit, reason
from pipeline.files import replacing
from pipeline.weights import check_fit, check_hash, fill, read_tensors

SMALLEST = 16  # pixels a side: four halvings leave one
LARGEST = 10_000  # channels or classes that a record may speak of
WEIGHTS, RECORD = "trunk.safetensors", "trunk.json"


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """What a trunk is built from.

    Attributes:
        width: channels of the first stage, even; the five stages have 1, 1.5, 2, 3 and 4 times as many.
        heads: number of classes of every head, named "domain" or "<domain>/<attribute>".
    """

    width: int
    heads: dict[str, int]


class Trunk(nn.Module):
    """Five stages of (halving,) 3 x 3 convolution, batch normalisation and ReLU; linear heads on the last.

    In evaluation mode, in which `load_trunk` and the training hand it over, an image's features are its own, whatever
    the batch.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        channels = [3, *(config.width * half // 2 for half in (2, 3, 4, 6, 8))]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in pairwise(channels)
        )
        self.heads = nn.Linear(4 * channels[-1], sum(config.heads.values()))

    def features(self, x: Tensor) -> list[Tensor]:
        """The feature maps after each stage's ReLU.

        Args:
            x: images in [-1, 1], [B, 3, H, W], H and W at least 16.

        Returns:
            Five tensors [B, C_l, H / 2^l, W / 2^l], l = 0..4, not negative.
        """
        if x.ndim != 4 or x.shape[1] != 3 or min(x.shape[2:]) < SMALLEST:
            raise ValueError(f"expected images [B, 3, H, W] with H and W from {SMALLEST}, got {list(x.shape)}")
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Unnormalised log-probabilities of every head, name -> [B, classes], for images [B, 3, H, W] in [-1, 1]."""
        last = self.features(x)[-1]
        kernel = [(side + 1) // 2 for side in last.shape[2:]]
        stride = [max(side // 2, 1) for side in last.shape[2:]]
        quarters = F.avg_pool2d(last, kernel, stride).expand(-1, -1, 2, 2)  # some attributes say left or right
        scores = self.heads(quarters.flatten(1)).split(list(self.config.heads.values()), dim=1)
        return dict(zip(self.config.heads, scores, strict=True))


def perceptual_distance(trunk: Trunk, x: Tensor, y: Tensor) -> Tensor:
    """How differently two pictures look: 1 - cosine of their features, averaged over places, then over layers.

    LPIPS with uniform weights: with features normalised to length 1 over the channels, the sum over the channels of
    their squared difference is 2 - 2 cosine, of which half is taken. Differentiable in both pictures.

    Args:
        trunk: in evaluation mode.
        x: images in [-1, 1], [B, 3, H, W].
        y: images of the same shape.

    Returns:
        [B], in [0, 1], 0 for equal pictures.
    """
    layers = [feature_distance(f, g) for f, g in zip(trunk.features(x), trunk.features(y), strict=True)]
    return torch.stack([layer.mean(dim=(1, 2)) for layer in layers]).mean(dim=0)


def feature_distance(f: Tensor, g: Tensor) -> Tensor:
    """1 - cosine of two pictures' features at every place of a layer, [B, C, h, w] -> [B, h, w] in [0, 1]."""
    return (_unit(f) - _unit(g)).square().sum(dim=1) / 2


def save_trunk(folder: Path, trunk: Trunk, accuracies: Mapping[str, float]) -> str:
    """Write trunk.safetensors and trunk.json.

    Args:
        folder: made if absent.
        trunk: to be saved.
        accuracies: on held-out pictures, per head, for the record.

    Returns:
        The sha256 of trunk.safetensors.
    """
    content = save({key: value.detach().cpu().contiguous() for key, value in trunk.state_dict().items()})
    sha256 = hashlib.sha256(content).hexdigest()
    record = {"schema": 1, "kind": "trunk", "sha256": sha256, "config": asdict(trunk.config)}
    with replacing(folder / WEIGHTS) as draft:
        draft.write_bytes(content)
    with replacing(folder / RECORD) as draft:
        draft.write_text(json.dumps(record | {"accuracies": dict(accuracies)}, indent=2) + "\n", encoding="utf-8")
    return sha256


def load_trunk(folder: Path) -> Trunk:
    """Read what `save_trunk` wrote: a frozen trunk in evaluation mode, on the CPU.

    Raises:
        CheckpointError: a file is missing, the record is none, or the weights are not the record's or do not fit.
    """
    config, expected = _read_record(folder / RECORD)
    weights = folder / WEIGHTS
    check_hash(weights, expected, RECORD)
    with torch.device("meta"):  # shapes without memory, until the weights are known to have them
        trunk = Trunk(config)
    check_fit(trunk, tensors := read_tensors(weights), str(weights))
    fill(trunk.to_empty(device="cpu"), tensors, str(weights))
    return trunk.eval().requires_grad_(False)


def _read_record(path: Path) -> tuple[TrunkConfig, str]:
    """The configuration and the sha256 of the weights."""
    if not path.is_file():
        raise CheckpointError(f"{path}: expected the record of the perceptual trunk, found none; train it first.")
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected the record of a perceptual trunk, but {reason(error)}; train the trunk again."
        ) from error
    if wrong := misfit(record, {"sha256": str, "config": {"width": int, "heads": {str: int}}}):
        raise CheckpointError(f"{path}: expected the record of a perceptual trunk, but {wrong}; train the trunk again.")
    width, heads = record["config"]["width"], record["config"]["heads"]
    if not (2 <= width <= LARGEST and heads and all(1 <= classes <= LARGEST for classes in heads.values())):
        raise CheckpointError(
            f"{path}: expected config.width and classes in config.heads up to {LARGEST}, but they are {width} and "
            f"{list(heads.values())}; train the trunk again."
        )
    return TrunkConfig(width=width, heads=heads), record["sha256"]


def _unit(features: Tensor) -> Tensor:
    """Features [B, C, H, W] of length 1 over the channels; near nothing stays near nothing, with a finite gradient."""
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + 1e-4)
