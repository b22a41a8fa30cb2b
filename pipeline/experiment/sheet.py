"""Sheets of pictures for people: rows and columns side by side, every pixel enlarged to a whole square."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.experiment.record import write_bytes

Pixels = NDArray[np.uint8]

DPI = 96
SIDE = 160
"""Pictures are enlarged by whole pixels, to at most so many a side."""
LEFT, TOP, UNDER, GAP, SCALE = 78, 44, 24, 10, 54
"""Pixels for names of rows, headings, the line under a picture, the space beside it, and scales."""
GROUP = 30
"""Pixels for the heading of a group of rows."""
HIDDEN = 200
"""Grey of what is not seen."""
COLORS = "viridis"
STYLE: Any = {"font.family": "sans-serif", "font.size": 9.5, "axes.linewidth": 0.0}


class Sheet:
    """Rows and columns of pictures with headings, names of rows, a line under each picture, and scales below."""

    def __init__(
        self,
        rows: Sequence[str],
        headings: Sequence[str],
        size: int,
        *,
        scales: bool = False,
        side: int = SIDE,
        under: int = UNDER,
        groups: Sequence[str] = (),
    ) -> None:
        """Lay out.

        Args:
            rows: names of the rows.
            headings: of the columns.
            size: side of the pictures in their own pixels.
            scales: whether there is room for scales below.
            side: how large pictures may become.
            under: pixels below a picture.
            groups: headings of the groups of rows, which are of one size; none if empty.
        """
        self.zoom = max(1, side // size)
        self.cell, self.under = size * self.zoom, under
        self.group = len(rows) // len(groups) if groups else 0
        self.width = LEFT + len(headings) * (self.cell + GAP)
        self.height = self._top(len(rows) - 1) + self.cell + under + (SCALE if scales else 0)
        self.figure = Figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor="white")
        for column, heading in enumerate(headings):
            self._text(LEFT + column * (self.cell + GAP) + self.cell / 2, TOP - 10, heading, va="baseline", ha="center")
        for row, name in enumerate(rows):
            self._text(LEFT - 8, self._top(row) + self.cell / 2, name, va="center", ha="right")
        for number, name in enumerate(groups):
            y = self._top(number * self.group) - 8
            self._text(LEFT, y, name, va="baseline", ha="left", fontweight="bold")

    def _top(self, row: int) -> int:
        return TOP + row * (self.cell + self.under) + (GROUP * (1 + row // self.group) if self.group else 0)

    def _text(self, x: float, y: float, text: str, **options: Any) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, text, linespacing=1.25, **options)

    def _axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes whose upper left corner is at pixel (x, y) from the upper left."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def show(self, row: int, column: int, pixels: Pixels, under: str = "") -> Axes:
        """Show a picture [S, S, 3]; coordinates of its axes are the picture's own pixels."""
        x, y, size = LEFT + column * (self.cell + GAP), self._top(row), len(pixels)
        axes = self._axes(x, y, self.cell, self.cell)
        large = pixels.repeat(self.zoom, 0).repeat(self.zoom, 1)
        axes.imshow(large, extent=(0, size, size, 0), interpolation="nearest")
        axes.set_axis_off()
        if under:
            self._text(x + self.cell / 2, y + self.cell + 15, under, va="baseline", ha="center", color="#333333")
        return axes

    def scale(self, column: int, norm: Normalize, label: str) -> None:
        """Put the scale of a column of maps below it."""
        x, y = LEFT + column * (self.cell + GAP), self.height - SCALE + 4
        axes = self._axes(x, y, self.cell, 10)
        bar = self.figure.colorbar(ScalarMappable(norm, COLORS), cax=axes, orientation="horizontal")
        bar.set_label(label, labelpad=2)
        bar.ax.tick_params(length=2, pad=2, width=0.8)
        bar.ax.locator_params(nbins=5)

    def save(self, path: Path) -> None:
        """Write as PNG, the same bytes for the same sheet."""
        buffer = BytesIO()
        self.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        write_bytes(path, buffer.getvalue())
