"""Plots of quality against cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from pipeline.experiment.figures import ACCENT, MUTED, STYLE, inline_svg, new_axes

LABEL_PLACES = [
    (side * dx, dy) for dx in (7, 16) for dy in (-3, 5, -11, 14, -20, 23, -29, 32, -38) for side in (1, -1)
]  # offsets of a label from its point


@dataclass(frozen=True, kw_only=True)
class Point:
    """A method in the plot of quality against cost; `low` and `high` bound `y`."""

    label: str
    x: float
    y: float
    low: float
    high: float
    front: bool
    """No other method is better in one of the two without being worse in the other."""


def pareto_plot(points: Sequence[Point], *, x_label: str, y_label: str) -> str:
    """Draw quality against cost with intervals, each point named beside it, the front joined; returns inline SVG."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(4.2, 3.0)
        front = sorted((p for p in points if p.front), key=lambda p: p.x)
        axes.plot([p.x for p in front], [p.y for p in front], color=ACCENT, linewidth=1, alpha=0.5, zorder=1)
        for point in points:
            color = ACCENT if point.front else MUTED
            if np.isfinite([point.low, point.high]).all():
                axes.plot([point.x] * 2, [point.low, point.high], color=color, linewidth=1.2, alpha=0.6, zorder=2)
            axes.plot(point.x, point.y, "o", color=color, markersize=5.5, markeredgewidth=0, zorder=3)
        _cost_axis(axes, [p.x for p in points])
        axes.margins(y=0.12)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel(x_label)
        axes.set_title(y_label, loc="left", fontsize=9, color=MUTED, pad=8)
        _name_points(figure, axes, points, front)
        return inline_svg(figure, f"{y_label} against {x_label}")


def _cost_axis(axes: Axes, values: Sequence[float]) -> None:
    """Scale the cost axis, by logarithms if costs span a factor of four or more, with room for names at the right."""
    least, most = min(values), max(values)
    if least > 0 and most >= 4 * least:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most > 20 * least else (1, 1.5, 2, 3, 5, 7)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="minor", length=0)
        span = most / least
        axes.set_xlim(least / span**0.08, most * span**0.3)
    else:
        span = (most - least) or most or 1.0
        axes.set_xlim(least - 0.08 * span, most + 0.3 * span)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.4g}"))


def _name_points(figure: Figure, axes: Axes, points: Sequence[Point], front: Sequence[Point]) -> None:
    """Write each point's name where it covers the least of names, points, intervals and the front."""
    figure.draw_without_rendering()
    at = {p.label: axes.transData.transform([(p.x, p.y), (p.x, p.low), (p.x, p.high)]) for p in points}
    taken = [Bbox([(x - 4, y - 4), (x + 4, y + 4)]) for (x, y), _, _ in at.values()]
    taken += [Bbox([(x - 1, low), (x + 1, high)]) for (x, _), (_, low), (_, high) in at.values()]
    for a, b in pairwise(at[p.label][0] for p in front):
        taken += [Bbox([spot - 1, spot + 1]) for spot in np.linspace(a, b, 40)]
    edge = Bbox([(axes.bbox.x0 + 2, figure.bbox.y0), (figure.bbox.x1, figure.bbox.y1)])
    for p in points:
        text = axes.annotate(p.label, (p.x, p.y), (0, 0), textcoords="offset points", annotation_clip=False)
        box = text.get_window_extent()

        def covered(place: tuple[int, int], box: Bbox = box) -> int:
            moved = box.translated(place[0] if place[0] > 0 else place[0] - box.width, place[1])
            return sum(map(moved.overlaps, taken)) + 100 * (
                not edge.containsx(moved.x0) or not edge.containsx(moved.x1)
            )

        dx, dy = min(LABEL_PLACES, key=covered)
        text.set(position=(dx, dy), ha="left" if dx > 0 else "right", in_layout=False)
        taken.append(text.get_window_extent())
