"""What sees pictures for the metrics: LPIPS on AlexNet, and the same kind of distance on the pipeline's own trunk."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.codec.trunk import Trunk, feature_distance, perceptual_distance
from pipeline.errors import InputError

SMALLEST_LPIPS = 31  # pixels a side: below, nothing is left of the picture at AlexNet's second pooling

ALEXNET_CONVOLUTIONS = (0, 3, 6, 8, 10)  # positions in torchvision's `features`; the i-th is in slice i + 1 of lpips


class Perception(Protocol):
    """A network that sees how unlike pictures look; pictures are [B, 3, H, W] in [-1, 1]."""

    def distance(self, x: Tensor, x_0: Tensor) -> Tensor:
        """Between pictures, [B]; 0 for equal ones."""
        ...

    def distance_map(self, x: Tensor, x_0: Tensor) -> Tensor:
        """Around every pixel, [B, 1, H, W]: each layer's distances, interpolated between its places."""
        ...

    def embed(self, x: Tensor) -> Tensor:
        """What a picture shows, wherever it shows it: the last layer's features averaged over places, [B, D]."""
        ...


class Lpips:
    """LPIPS version 0.1 on AlexNet (Zhang et al., 2018, arXiv 1801.03924), computed by the package `lpips`.

    The package would download the trunk; it is handed in here instead, and nothing is drawn at random on the way.
    """

    def __init__(self, trunk: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Build the metric.

        Args:
            trunk: torchvision's AlexNet without its classifier, keys features.<i>.weight and features.<i>.bias with i
                in `ALEXNET_CONVOLUTIONS`.
            device: where to compute.
        """
        import lpips  # here, because a report without an ImageNet trunk needs no `lpips`

        with torch.device("meta"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchvision")  # lpips names its weights in the old way
            network = lpips.LPIPS(net="alex", version="0.1", pretrained=False, pnet_rand=True, verbose=False)
        heads_file = Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth"
        heads = torch.load(heads_file, map_location="cpu", weights_only=True)
        state = {_slice_key(key): value for key, value in trunk.items()}
        for key, value in heads.items():  # the package registers each head twice: lin0 is lins.0
            state |= {key: value, key.replace("lin", "lins.", 1): value}
        state |= {f"scaling_layer.{key}": value for key, value in network.scaling_layer.state_dict().items()}
        network.load_state_dict(state, strict=True, assign=True)
        self._network = network.to(device).eval().requires_grad_(False)
        self._mapping = copy(self._network)  # the same weights; the package decides by this attribute what it returns
        self._mapping.spatial = True

    def distance(self, x: Tensor, x_0: Tensor) -> Tensor:
        """LPIPS between pictures [B, 3, H, W] in [-1, 1], H and W at least 31; returns [B], 0 for equal ones."""
        distance: Tensor = self._network(_large_enough(x), x_0)
        return distance.flatten()

    def distance_map(self, x: Tensor, x_0: Tensor) -> Tensor:
        """LPIPS around every pixel, [B, 1, H, W], as the package's option `spatial` has it."""
        found: Tensor = self._mapping(_large_enough(x), x_0)
        return found

    def embed(self, x: Tensor) -> Tensor:
        """AlexNet's last convolution averaged over places, [B, 256]."""
        network = self._network
        last: Tensor = network.net(network.scaling_layer(_large_enough(x)))[-1]
        return last.mean(dim=(2, 3))


class DomainLpips:
    """The distance on the pipeline's own trunk, `perceptual_distance`."""

    def __init__(self, trunk: Trunk) -> None:
        self._trunk = trunk

    def distance(self, x: Tensor, x_0: Tensor) -> Tensor:
        """Between pictures [B, 3, H, W] in [-1, 1], H and W at least 16; returns [B] in [0, 1], 0 for equal ones."""
        return perceptual_distance(self._trunk, x, x_0)

    def distance_map(self, x: Tensor, x_0: Tensor) -> Tensor:
        """The same around every pixel, [B, 1, H, W]; its mean is `distance` if H and W are powers of two."""
        layers = [
            F.interpolate(feature_distance(f, g)[:, None], x.shape[2:], mode="bilinear")
            for f, g in zip(self._trunk.features(x), self._trunk.features(x_0), strict=True)
        ]
        return torch.stack(layers).mean(dim=0)

    def embed(self, x: Tensor) -> Tensor:
        """The trunk's last stage averaged over places, [B, 4 widths]."""
        return self._trunk.features(x)[-1].mean(dim=(2, 3))


def _large_enough(x: Tensor) -> Tensor:
    if min(x.shape[2:]) < SMALLEST_LPIPS:
        raise InputError(f"LPIPS on AlexNet needs pictures of {SMALLEST_LPIPS} pixels a side, got {list(x.shape)}.")
    return x


def _slice_key(key: str) -> str:
    """The name in `lpips` of a tensor of torchvision: features.3.weight -> net.slice2.3.weight."""
    _, position, kind = key.split(".")
    return f"net.slice{ALEXNET_CONVOLUTIONS.index(int(position)) + 1}.{position}.{kind}"
