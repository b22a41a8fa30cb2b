"""Plots of steering: quality and time against the share of the diffusion time that is steered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.experiment.figures import ACCENT, INK, MUTED, STYLE, inline_svg, new_axes
from pipeline.experiment.tables import Metric


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row of the curve, or its base, over all settings."""

    row: str
    base: str
    until: float
    """Share of T down to which it is steered; 1 for the base."""
    mean: float
    low: float
    high: float
    """Ends of the mean's interval."""
    paired_low: float
    paired_high: float
    """The base's mean plus the ends of the paired difference's interval."""
    seconds: float
    """Per image."""
    extra: float
    """Additional time as a share of the base's."""

    @property
    def fraction(self) -> float:
        """Share of T that is steered."""
        return round(1.0 - self.until, 12)


def until_plots(points: Sequence[Point], metric: Metric, base: str) -> tuple[str, str]:
    """Draw the metric with its intervals, and seconds per image, against the steered share; returns inline SVGs."""
    better = f"{metric.label} ({'higher' if metric.higher else 'lower'} is better)"
    return _plot(points, better, base, seconds=False), _plot(points, "seconds per image", base, seconds=True)


def _plot(points: Sequence[Point], title: str, base: str, *, seconds: bool) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(4.2, 2.6)
        values = [point.seconds if seconds else point.mean for point in points]
        x = [point.fraction for point in points]
        axes.axhline(values[0], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.plot(x, values, color=ACCENT, linewidth=1, alpha=0.5, zorder=2)
        if not seconds:
            _intervals(axes, points)
        axes.plot(x[1:], values[1:], "o", color=ACCENT, markersize=5.5, markeredgewidth=0, zorder=4)
        axes.plot(x[0], values[0], "o", color=INK, markersize=5.5, markeredgewidth=0, zorder=4)
        axes.annotate(base, (1.0, values[0]), (0, 4), xycoords=("axes fraction", "data"), textcoords="offset points",
                      ha="right", color=MUTED)  # fmt: skip
        axes.set_xlim(-0.04, 1.04)
        axes.margins(y=0.12)
        if seconds:
            axes.set_ylim(bottom=0.0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:g}"))
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_xlabel("share of the time that is steered")
        axes.set_title(title, loc="left", fontsize=9, color=MUTED, pad=8)
        return inline_svg(figure, f"{title} against the steered share, {base}")


def _intervals(axes: Axes, points: Sequence[Point]) -> None:
    """Draw thin intervals of the means, and thick ones of the paired differences to the base; NaN is not drawn."""
    for point in points:
        axes.plot([point.fraction] * 2, [point.low, point.high], color=MUTED, linewidth=0.9, alpha=0.7, zorder=2)
        ends = [point.paired_low, point.paired_high]
        axes.plot([point.fraction] * 2, ends, color=ACCENT, linewidth=3, alpha=0.45, solid_capstyle="butt", zorder=3)
