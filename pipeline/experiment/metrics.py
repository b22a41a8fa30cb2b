"""How good a completion is: peak signal-to-noise ratio, structural similarity and LPIPS, one number per image.

Three views of the same sample. By default the known pixels are pasted first, as in the Tiramisu authors' evaluation
code: the whole completed picture is compared. `_hidden` looks at the hidden pixels only, so that masks of different
sizes can be compared. `_unpasted` takes the sampler's raw output, as in CoPaint's evaluation code.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from pipeline.errors import InputError

Metric = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, x_0, known) -> [B]: sample and truth float [B, 3, H, W] in [-1, 1], known [B, 1, H, W] bool with True = seen."""

LARGEST_PSNR = 100.0  # dB: identical pictures; the mean squared error of pixels in [0, 1] is taken as at least 1e-10
SMALLEST_SSIM = 11  # pixels a side: the Gaussian window of SSIM
SMALLEST_LPIPS = 31  # pixels a side: below, nothing is left of the picture at AlexNet's second pooling

ALEXNET_CONVOLUTIONS = (0, 3, 6, 8, 10)  # positions in torchvision's `features`; the i-th is in slice i + 1 of lpips


def psnr(x: Tensor, x_0: Tensor, known: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of the whole picture, known pixels pasted, [B]; at most `LARGEST_PSNR`."""
    return psnr_unpasted(paste(x, x_0, known), x_0, known)


def psnr_hidden(x: Tensor, x_0: Tensor, known: Tensor) -> Tensor:
    """The same over hidden pixels only, [B]; NaN where nothing is hidden."""
    return _psnr(_mean_hidden(_square_error(x, x_0), known))


def psnr_unpasted(x: Tensor, x_0: Tensor, known: Tensor) -> Tensor:
    """The same of the raw sample, [B]."""
    return _psnr(_square_error(x, x_0).mean(dim=(1, 2, 3)))


def ssim(x: Tensor, x_0: Tensor, known: Tensor) -> Tensor:
    """Structural similarity of the whole picture, known pixels pasted, [B] in [-1, 1].

    Wang et al., 2004: Gaussian window of 11 x 11 (sigma 1.5), mirrored borders, mean over pixels and colours. Taken on
    pixels in [0, 1]: the index changes when all pixels are shifted, so [-1, 1] would give something else.
    """
    return _ssim_map(paste(x, x_0, known), x_0).mean(dim=(1, 2, 3))


def ssim_hidden(x: Tensor, x_0: Tensor, known: Tensor) -> Tensor:
    """The map of the pasted picture's similarity averaged over hidden pixels, [B]; NaN where nothing is hidden."""
    return _mean_hidden(_ssim_map(paste(x, x_0, known), x_0), known)


def ssim_unpasted(x: Tensor, x_0: Tensor, known: Tensor) -> Tensor:
    """Structural similarity of the raw sample, [B]."""
    return _ssim_map(x, x_0).mean(dim=(1, 2, 3))


METRICS: dict[str, Metric] = {
    "psnr": psnr,
    "psnr_hidden": psnr_hidden,
    "psnr_unpasted": psnr_unpasted,
    "ssim": ssim,
    "ssim_hidden": ssim_hidden,
    "ssim_unpasted": ssim_unpasted,
}


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

    def distance(self, x: Tensor, x_0: Tensor) -> Tensor:
        """LPIPS between pictures [B, 3, H, W] in [-1, 1], H and W at least 31; returns [B], 0 for equal ones."""
        if min(x.shape[2:]) < SMALLEST_LPIPS:
            raise InputError(f"LPIPS on AlexNet needs pictures of {SMALLEST_LPIPS} pixels a side, got {list(x.shape)}.")
        distance: Tensor = self._network(x, x_0)
        return distance.flatten()


def paste(x: Tensor, x_0: Tensor, known: Tensor) -> Tensor:
    """The completed picture: truth where known [B, 1, H, W], sample elsewhere."""
    return torch.where(known, x_0, x)


def _square_error(x: Tensor, x_0: Tensor) -> Tensor:
    """Squared error of pixels in [0, 1], [B, 3, H, W]."""
    return ((x - x_0) / 2).square()


def _psnr(error: Tensor) -> Tensor:
    return -10 * torch.log10(error.clamp(min=10 ** (-LARGEST_PSNR / 10)))


def _ssim_map(x: Tensor, x_0: Tensor) -> Tensor:
    """The similarity around every pixel, [B, 3, H, W]."""
    if min(x.shape[2:]) < SMALLEST_SSIM:
        raise InputError(f"SSIM needs pictures of {SMALLEST_SSIM} pixels a side, got {list(x.shape)}.")
    _, full = structural_similarity_index_measure(
        (x + 1) / 2, (x_0 + 1) / 2, data_range=1.0, reduction="none", return_full_image=True
    )
    return full


def _mean_hidden(values: Tensor, known: Tensor) -> Tensor:
    """Mean over colours and hidden pixels, [B, 3, H, W] -> [B]."""
    hidden = (~known).expand_as(values)
    return (values * hidden).sum(dim=(1, 2, 3)) / hidden.sum(dim=(1, 2, 3))


def _slice_key(key: str) -> str:
    """The name in `lpips` of a tensor of torchvision: features.3.weight -> net.slice2.3.weight."""
    _, position, kind = key.split(".")
    return f"net.slice{ALEXNET_CONVOLUTIONS.index(int(position)) + 1}.{position}.{kind}"
