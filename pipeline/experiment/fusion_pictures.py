"""The sheet of a fusion: references with their regions outlined, what became of them, and how well they go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.experiment.record import write_bytes

SMALLEST, GAP, LINE = 96, 4, 16
"""Least side of a tile, space between tiles, height of a line of text; in pixels."""

INK = (255, 214, 0)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One row of the sheet.

    Attributes:
        references: uint8 [J, S, S, 3].
        regions: what counts of each, bool [J, S, S].
        results: uint8 [L, S, S, 3], a picture for each level of coherence.
        caption: what stands below.
    """

    references: NDArray[np.uint8]
    regions: NDArray[np.bool_]
    results: NDArray[np.uint8]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """Rows with a title."""

    title: str
    strips: Sequence[Strip]


def write_fusion_sheet(path: Path, sections: Sequence[Section], levels: Sequence[float]) -> None:
    """Draw sections of at least one row each as PNG; pictures are enlarged by whole pixels."""
    first = sections[0].strips[0]
    count, size = len(first.references) + len(first.results), first.references.shape[1]
    zoom = max(1, SMALLEST // size)
    cell, rows = size * zoom + GAP, sum(len(section.strips) for section in sections)
    height = sum(2 * LINE for _ in sections) + rows * (cell + LINE)
    sheet = Image.new("RGB", (count * cell - GAP, height), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    names = [f"reference {j + 1}" for j in range(len(first.references))] + [f"coherence {level:g}" for level in levels]
    for section in sections:
        draw.text((2, top + 2), section.title, fill="black")
        for column, name in enumerate(names):
            draw.text((column * cell + 2, top + LINE + 2), name, fill="black")
        top += 2 * LINE
        for strip in section.strips:
            for column, tile in enumerate(tiles(strip, zoom)):
                sheet.paste(tile, (column * cell, top))
            draw.text((2, top + cell - GAP + 1), strip.caption, fill="black")
            top += cell + LINE
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def tiles(strip: Strip, zoom: int) -> list[Image.Image]:
    """Pictures of a row, enlarged."""
    shown = [
        outlined(enlarged(x, zoom), enlarged(r, zoom)) for x, r in zip(strip.references, strip.regions, strict=True)
    ]
    return [Image.fromarray(x) for x in (*shown, *(enlarged(x, zoom) for x in strip.results))]


def enlarged(x: NDArray[np.generic], zoom: int) -> NDArray[np.generic]:
    """Repeat pixels [H, W, ...]."""
    return x.repeat(zoom, 0).repeat(zoom, 1)


def outlined(image: NDArray[np.generic], region: NDArray[np.generic], width: int = 2) -> NDArray[np.generic]:
    """Draw the edge of `region` [H, W], from within, into a copy of `image` uint8 [H, W, 3]."""
    inner = region.astype(bool)
    for _ in range(width):
        around = np.pad(inner, 1)
        inner = inner & around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    out = image.copy()
    out[region.astype(bool) & ~inner] = INK
    return out
