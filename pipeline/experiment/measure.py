"""What is measured of a finished cell: a row of metrics for every sample, and what a network sees in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.images import to_float
from pipeline.errors import InputError
from pipeline.experiment.cells import Cell
from pipeline.experiment.metrics import METRICS, diversity, perceptual_metrics
from pipeline.experiment.perception import Perception

BATCH = 64

PLACE = ("dataset", "mask", "method", "image_id", "sample")

Row = dict[str, Any]
Truth = Mapping[str, NDArray[np.uint8]]
"""True images [H, W, 3] by key."""


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What cells are measured with."""

    column: str
    """The name of the perceptual distance."""
    perception: Perception
    device: torch.device

    def tensor(self, images: NDArray[np.uint8]) -> Tensor:
        """Images [N, H, W, 3] as the metrics want them."""
        return to_float(images).to(self.device)

    @torch.inference_mode()
    def look(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the network sees in images [..., H, W, 3], [..., D]."""
        flat = images.reshape(-1, *images.shape[-3:])
        parts = (self.tensor(flat[start : start + BATCH]) for start in range(0, len(flat), BATCH))
        seen = torch.cat([self.perception.embed(part).cpu() for part in parts])
        return seen.reshape(*images.shape[:-3], -1).numpy()


@torch.inference_mode()
def measure(cell: Cell, truth: Truth, tools: Instruments) -> list[Row]:
    """One row of metrics for every sample of a cell; if there are several of an image, their diversity among them.

    Raises:
        InputError: an image of the cell is none of the truth's.
    """
    samples = cell.samples.shape[1]
    x = cell.samples.reshape(-1, *cell.samples.shape[2:])
    x_0, known = truths(cell, truth).repeat(samples, axis=0), cell.known.repeat(samples, axis=0)
    metrics = perceptual_metrics(tools.perception, tools.column) | METRICS
    place = {name: cell.record[name] for name in PLACE[:3]}
    rows: list[Row] = [
        place | {"image_id": key, "sample": k} for key in cell.record["image_ids"] for k in range(samples)
    ]
    for start in range(0, len(rows), BATCH):
        batch = slice(start, start + BATCH)
        seen = torch.from_numpy(known[batch]).unsqueeze(1).to(tools.device)
        pair = tools.tensor(x[batch]), tools.tensor(x_0[batch])
        values = {name: metric(*pair, seen).tolist() for name, metric in metrics.items()}
        for index, row in enumerate(rows[batch]):
            row |= {name: value[index] for name, value in values.items()}
    if samples > 1:
        completed = completions(cell, truth)
        spread = [diversity(tools.tensor(each), tools.perception.distance, BATCH) for each in completed]
        for row, value in zip(rows, torch.cat(spread).tolist(), strict=True):
            row[f"{tools.column}_diversity"] = value
    return rows


def completions(cell: Cell, truth: Truth) -> NDArray[np.uint8]:
    """The samples of a cell with known pixels pasted, [I, S, H, W, 3]."""
    return np.where(cell.known[:, None, ..., None], truths(cell, truth)[:, None], cell.samples)


def truths(cell: Cell, truth: Truth) -> NDArray[np.uint8]:
    """The true images that a cell completes, [I, H, W, 3].

    Raises:
        InputError: one of them is not there.
    """
    ids = cell.record["image_ids"]
    missing = [key for key in ids if key not in truth]
    if missing:
        raise InputError(
            f"The cell {cell.record['fingerprint']} completes {missing[0]!r}, which is not among the split's images."
        )
    return np.stack([truth[key] for key in ids])
