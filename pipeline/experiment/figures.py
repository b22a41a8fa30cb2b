"""Pictures and plots of the report, as text that can stand inside one HTML file.

Pictures become data URIs. Plots become inline SVG whose colours are the page's CSS variables, so that they follow the
reader's light or dark scheme, and whose letters are text in the page's own font.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError

Pixels = NDArray[np.uint8]
Array = NDArray[np.float64]

EXACT_SIDE = 64  # results up to so many pixels a side are kept exactly
QUALITY = 75  # of lossy WebP
POINTS = 240  # a curve is drawn with at most so many points

INK, MUTED, RULE, ACCENT, SECOND = "#010203", "#010204", "#010205", "#010206", "#010207"
LINES = (ACCENT, SECOND, INK, MUTED)  # colours of a plot's curves, in turn
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", SECOND: "--second"}
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
}


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One line of a picture grid: what every method made of one image under one mask."""

    image_id: str
    truth: int
    """Index of the image in the truth."""
    hidden: str
    """SVG path of the hidden pixels, one unit per pixel."""
    results: tuple[str, ...]
    """Data URIs, one per method, known pixels pasted."""

    @property
    def size(self) -> int:
        """Characters of the results."""
        return sum(map(len, self.results))


def encode(image: Pixels, *, exact: bool) -> str:
    """Write a picture [H, W, 3] as a WebP data URI, exactly or with losses too small to see."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "webp", lossless=exact, quality=100 if exact else QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def hidden_path(known: NDArray[np.bool_]) -> str:
    """Cover the hidden pixels of `known` [H, W] (True = seen) with SVG rectangles, equal runs of rows merged."""
    parts: list[str] = []
    open_runs: dict[tuple[int, int], int] = {}  # (first column, past the last) -> first row
    for row in range(known.shape[0] + 1):
        runs: set[tuple[int, int]] = set()
        if row < known.shape[0]:
            edges = np.flatnonzero(np.diff(np.concatenate([[True], known[row], [True]]).astype(np.int8)))
            runs = {(int(a), int(b)) for a, b in edges.reshape(-1, 2)}
        for run in sorted(open_runs.keys() - runs):
            top = open_runs.pop(run)
            parts.append(f"M{run[0]} {top}H{run[1]}V{row}H{run[0]}Z")
        open_runs |= {run: row for run in runs - open_runs.keys()}
    return "".join(parts)


def strips(
    cells: Mapping[str, Mapping[str, Any]], ids: Sequence[str], keys: Sequence[str], truth: Pixels, where: str
) -> list[Strip]:
    """Lay out what the methods made of the same images under the same mask, first sample of each.

    Args:
        cells: for each method its arrays `samples` uint8 [I, S, H, W, 3], raw, and `known` bool [I, H, W].
        ids: the images to show, the first of those in the cells.
        keys: names of the true images.
        truth: the true images, [N, H, W, 3].
        where: dataset and mask, for the messages.

    Raises:
        InputError: an image has no truth or another size, or two methods did not see the same pixels.
    """
    known = np.asarray(next(iter(cells.values()))["known"], np.bool_)
    for method, cell in cells.items():
        if cell["samples"].shape[2:] != truth.shape[1:]:
            raise InputError(
                f"Samples of {where}, method {method} have the shape {cell['samples'].shape[2:]}, but the test images "
                f"{truth.shape[1:]}; data and samples are of different runs, so run the inpaint stage again."
            )
        if not np.array_equal(cell["known"], known):
            raise InputError(
                f"Methods of {where} saw different pixels ({method} differs); run the inpaint stage again."
            )
    position = {key: index for index, key in enumerate(keys)}
    lines = []
    for index, image_id in enumerate(ids):
        if image_id not in position:
            raise InputError(f"Samples of {where} name image {image_id!r}, which is not among the split's images.")
        image = truth[position[image_id]]
        seen = known[index][..., None]
        pasted = [np.where(seen, image, cell["samples"][index, 0]).astype(np.uint8) for cell in cells.values()]
        lines.append(
            Strip(
                image_id=image_id,
                truth=position[image_id],
                hidden=hidden_path(known[index]),
                results=tuple(encode(result, exact=max(result.shape) <= EXACT_SIDE) for result in pasted),
            )
        )
    return lines


def curve_plot(curves: Mapping[str, tuple[Array, Array]], *, name: str, over: str = "steps", unit: str = "") -> str:
    """Draw one quantity as training goes on, one line per curve, named at its end; returns inline SVG.

    A curve that ends before the others goes on dotted at its last value.

    Args:
        curves: for each name (`train`, `val`, ...) steps or seconds, and values, each [points].
        name: of the quantity, for readers of the page who cannot see it.
        over: what the horizontal axis counts, for the same readers.
        unit: written after the numbers of that axis, which then starts at 0.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(3.4, 1.9)
        last = max(steps[-1] for steps, _ in curves.values())
        for index, (steps, values) in enumerate(curves.values()):
            color, line = LINES[index % len(LINES)], (binned(steps, POINTS), binned(values, POINTS))
            axes.plot(*line, color=color, linewidth=1.4, solid_joinstyle="round")
            if line[0][-1] < 0.98 * last:
                axes.plot([line[0][-1], last], [line[1][-1]] * 2, ":", color=color, linewidth=1)
        every = np.concatenate([values for _, values in curves.values()])
        if every.min() > 0 and every.max() > 30 * every.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.tick_params(axis="y", which="minor", length=0)
        axes.margins(x=0)
        axes.set_xlim(left=min(axes.get_xlim()[0], 0.0) if unit else None)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}{unit}"))
        figure.draw_without_rendering()
        ends = np.array([axes.transData.transform((0, binned(values, POINTS)[-1]))[1] for _, values in curves.values()])
        for index, (split, height) in enumerate(zip(curves, spread(ends, 11.0), strict=True)):
            at = (1.0, (height - axes.bbox.y0) / axes.bbox.height)
            text = axes.annotate(split, at, (5, -3), xycoords="axes fraction", textcoords="offset points")
            text.set_color(LINES[index % len(LINES)])
        return inline_svg(figure, f"{name} over {over} of training")


def binned(values: Array, bins: int) -> Array:
    """Average neighbours so that at most `bins` values remain, [n] -> [min(n, bins)]."""
    return np.array([part.mean() for part in np.array_split(values, min(bins, len(values)))])


def spread(positions: Array, gap: float) -> Array:
    """Move positions [n] apart, as little as a simple sweep can, until neighbours are at least `gap` apart."""
    order = np.argsort(positions, kind="stable")
    placed = positions[order].astype(np.float64)
    for index in range(1, len(placed)):
        placed[index] = max(placed[index], placed[index - 1] + gap)
    placed -= (placed - positions[order]).mean()
    result = np.empty_like(placed)
    result[order] = placed
    return result


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure of so many inches with one pair of axes; to be called under `STYLE`."""
    figure = Figure(figsize=(width, height), dpi=72, layout="constrained")
    return figure, figure.add_subplot()


def inline_svg(figure: Figure, label: str) -> str:
    """Serialise for inlining: no prolog or size, colours as CSS variables, the page's font, a label for readers."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label}):  # ids must differ between the plots of a page
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    opening = rf'<svg \1 role="img" aria-label="{escape(label)}">'
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', opening, svg, count=1)
    svg = re.sub(r' id="[a-z]\w*?(?:_\d+|\.\w+)"', "", svg)  # names of groups, which nothing refers to
    svg = re.sub(r"; font-family: [^;\"]*| transform=\"rotate\(-0 [^\"]*\"", "", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return re.sub(r"\s*\n\s*", "\n", svg)
