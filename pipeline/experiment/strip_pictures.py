"""The sheet of the stage strip: times from left to right; for each image and mask the base's walk, then the steered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from torch import Tensor

from pipeline.data.images import to_uint8
from pipeline.experiment.sheet import HIDDEN, STYLE, Pixels, Sheet

if TYPE_CHECKING:
    from pipeline.experiment.strip import Scene, Walk

SIDE = 96
"""Pictures are enlarged by whole pixels, to at most so many a side."""
UNDER = 8
ROWS = {"base": ("estimate", "circuit,\nnot used", "mixture,\nnot used"), "steered": ("estimate", "circuit", "mixture")}


def draw(path: Path, scenes: Sequence[Scene], times: Sequence[int], T: int, names: tuple[str, str]) -> None:
    """Write the sheet.

    Args:
        path: of the PNG.
        scenes: masks, each with the same number of images.
        times: columns.
        T: the schedule's.
        names: of base and steered row.
    """
    blocks = [(scene, number) for scene in scenes for number in range(len(scene.images))]
    groups = [f"{scene.mask}, image {number + 1}: {name}" for scene, number in blocks for name in names]
    headings = ["seen, truth", *(f"t = {t / T:.2f} T" for t in times), "result"]
    size = scenes[0].truth.shape[-1]
    with rc_context(STYLE):
        sheet = Sheet(
            [*ROWS["base"], *ROWS["steered"]] * len(blocks), headings, size, side=SIDE, under=UNDER, groups=groups
        )
        for block, (scene, number) in enumerate(blocks):
            truth = pixels(scene.truth[number])
            known = scene.problem.known[number].permute(1, 2, 0).cpu().numpy()
            row = 6 * block
            sheet.show(row, 0, np.where(known, truth, np.uint8(HIDDEN)))
            sheet.show(row + 3, 0, truth)
            for first, walk in ((row, scene.base), (row + 3, scene.steered)):
                show_walk(sheet, first, walk, times, number)
                sheet.show(first, len(times) + 1, pixels(scene.problem.paste(walk.result)[number]))
        sheet.save(path)


def show_walk(sheet: Sheet, row: int, walk: Walk, times: Sequence[int], number: int) -> None:
    """Show three rows of one image's views."""
    for column, t in enumerate(times, 1):
        for offset, side in enumerate(walk.views[t][:, number]):
            sheet.show(row + offset, column, pixels(side))


def pixels(x: Tensor) -> Pixels:
    """A picture uint8 [S, S, 3] of x [C, S, S]."""
    picture: Pixels = to_uint8(x[None].cpu())[0].numpy()
    return picture
