"""Contact sheets."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from pipeline.experiment.record import write_bytes


def contact_sheet(images: NDArray[np.uint8], columns: int, *, smallest: int = 96) -> Image.Image:
    """Lay images uint8 [N, S, S, 3] out in rows of `columns`.

    They are enlarged by whole pixels to at least `smallest` a side.
    """
    count, size = len(images), images.shape[1]
    zoom, gap = max(1, smallest // size), 4
    cell = size * zoom + gap
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * cell - gap, rows * cell - gap), "white")
    for k, image in enumerate(images):
        tile = Image.fromarray(image).resize((size * zoom, size * zoom), Image.Resampling.NEAREST)
        sheet.paste(tile, (k % columns * cell, k // columns * cell))
    return sheet


def write_sheet(path: Path, images: ArrayLike, columns: int) -> None:
    """Write a contact sheet as PNG; `images` may be a tensor on the CPU."""
    buffer = BytesIO()
    contact_sheet(np.asarray(images, np.uint8), columns).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())
