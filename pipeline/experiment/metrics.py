"""How good a completion is: peak signal-to-noise ratio, structural similarity and LPIPS, one number per image.

Three views of the same sample. By default the known pixels are pasted first, as in the Tiramisu authors' evaluation
code: the whole completed picture is compared. `_hidden` looks at the hidden pixels only, so that masks of different
sizes can be compared. `_unpasted` takes the sampler's raw output, as in CoPaint's evaluation code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from pipeline.errors import InputError
from pipeline.experiment.perception import Perception

Metric = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, x_0, known) -> [B]: sample and truth float [B, 3, H, W] in [-1, 1], known [B, 1, H, W] bool with True = seen."""

LARGEST_PSNR = 100.0  # dB: identical pictures; the mean squared error of pixels in [0, 1] is taken as at least 1e-10
SMALLEST_SSIM = 11  # pixels a side: the Gaussian window of SSIM


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


def perceptual_metrics(perception: Perception, column: str) -> dict[str, Metric]:
    """The three views of a perceptual distance, named after the column of the first; 0 for the truth.

    `_hidden` is the map of the pasted picture's distance averaged over hidden pixels. A pixel is compared by what a
    layer sees around it, so known pixels count, too: near ones in the first layers, all of a small picture in the last.
    """

    def pasted(x: Tensor, x_0: Tensor, known: Tensor) -> Tensor:
        return perception.distance(paste(x, x_0, known), x_0)

    def hidden(x: Tensor, x_0: Tensor, known: Tensor) -> Tensor:
        return _mean_hidden(perception.distance_map(paste(x, x_0, known), x_0), known)

    def unpasted(x: Tensor, x_0: Tensor, known: Tensor) -> Tensor:
        return perception.distance(x, x_0)

    return {column: pasted, f"{column}_hidden": hidden, f"{column}_unpasted": unpasted}


def diversity(pictures: Tensor, distance: Callable[[Tensor, Tensor], Tensor], batch: int) -> Tensor:
    """How unlike the samples of one image are: of each, the mean distance to the others; higher is more diverse.

    Args:
        pictures: at least 2 samples, known pixels pasted, [S, 3, H, W] in [-1, 1].
        distance: between pictures [B, 3, H, W], [B]; the same in both directions.
        batch: pairs at a time.

    Returns:
        [S]; the mean is that over all pairs.
    """
    first, second = torch.triu_indices(len(pictures), len(pictures), 1, device=pictures.device)
    pairs = zip(first.split(batch), second.split(batch), strict=True)
    between = torch.cat([distance(pictures[a], pictures[b]) for a, b in pairs])
    total = torch.zeros(len(pictures), dtype=between.dtype, device=between.device)
    return total.index_add(0, first, between).index_add(0, second, between) / (len(pictures) - 1)


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
    """Mean over channels and hidden pixels, [B, C, H, W] -> [B]; NaN where nothing is hidden."""
    hidden = (~known).expand_as(values)
    return (values * hidden).sum(dim=(1, 2, 3)) / hidden.sum(dim=(1, 2, 3))
