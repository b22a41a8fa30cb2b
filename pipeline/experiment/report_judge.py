"""What the report says of the exact judge: how far methods are from posteriors that are known in closed form.

The numbers are measured by `python -m benchmarks.posterior --write`, which leaves them in `RECORD`; docs/posterior.md
describes the worlds and the measures. They belong to the methods, not to a profile: every report shows the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pipeline.errors import InputError
from pipeline.experiment.figures import ACCENT, INK, MUTED, RULE, STYLE, inline_svg, new_axes
from pipeline.experiment.record import read_json
from pipeline.experiment.tables import Metric

RECORD = Path("docs", "benchmarks", "posterior.json")
"""Relative to the root of the repository."""
WORLDS = {
    "mixture": "four Gaussians with a shared covariance of low rank, in two pairs whose left halves agree",
    "circuit": "4 × 4 tokens from a quad-tree circuit, each painted as a patch, with a little noise on the pixels",
    "axis": "four Gaussians with independent pixels, in two pairs whose left halves agree: a circuit, too",
}
MASKS = {"left": "left half known", "expand1": "centre 4 × 4 known"}
COLUMNS = {
    name: Metric(name=name, label=label, higher=False, digits=digits)
    for name, label, digits in (
        ("sliced_w2", "SW2", 3),
        ("ratio", "× floor", 2),
        ("mean_error", "mean error", 3),
        ("sd_ratio", "sd ratio", 2),
        ("mode_error", "modes off by", 2),
        ("known_error", "known error", 3),
    )
}
"""Measures in the order of the table; `ratio` is `sliced_w2` over the floor's mean, the others are in the record."""
BAND = 2
"""Standard deviations of the floor within which a distance counts as having reached it."""
STEERED = "steered"
"""The method of rows that are steered; their preset is the name of the base."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value and its 95% interval, whose lower end is not below 0."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Floor:
    """A measure of as many exact draws: mean and standard deviation over sets of draws."""

    mean: float
    sd: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """Samples that were judged."""

    method: str
    preset: str
    measures: dict[str, Measured]
    """By the names of `COLUMNS`."""
    forwards: float | None
    """Of the denoiser per completion; None where no method ran."""
    backwards: float | None

    @property
    def name(self) -> str:
        """Method and preset."""
        return f"{self.method} {self.preset}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image of one world, seen through one mask."""

    world: str
    mask: str
    shares: tuple[float, ...]
    """Exact probabilities of the kinds of image."""
    floor: dict[str, Floor]
    """By the names of `COLUMNS`."""
    denoiser: Row
    """Ancestral sampling with the exact conditional denoiser."""
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """World and mask in words."""
        return f"{self.world} world, {MASKS[self.mask]}"

    @property
    def judged(self) -> tuple[Row, ...]:
        """All that was judged, no method first."""
        return (self.denoiser, *self.rows)

    @property
    def band(self) -> tuple[float, float]:
        """Ends of the floor's band, over its mean."""
        width = BAND * self.floor["ratio"].sd
        return max(0.0, 1 - width), 1 + width

    def reaches(self, row: Row) -> bool:
        """Tell whether the interval of a row's distance touches the floor's band or lies below it."""
        return row.measures["ratio"].low <= self.band[1]

    @property
    def reached(self) -> int:
        """How many rows reach the floor."""
        return sum(map(self.reaches, self.rows))


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Everything the page says of the judge."""

    completions: int
    """Of every row."""
    repeats: int
    """Sets of exact draws that make the floor."""
    resamples: int
    """Of the bootstrap."""
    steps: int
    """Of the exact conditional denoiser."""
    machine: str
    """Where it was measured."""
    scenes: tuple[Scene, ...]
    plots: tuple[str, ...]
    """Inline SVG of each scene."""

    @property
    def steered(self) -> bool:
        """Whether there are rows that are steered."""
        return any(row.method == STEERED for scene in self.scenes for row in scene.rows)

    @property
    def worlds(self) -> dict[str, list[Scene]]:
        """Scenes by world, in the order of the record."""
        worlds = dict.fromkeys(scene.world for scene in self.scenes)
        return {world: [scene for scene in self.scenes if scene.world == world] for world in worlds}


def read_judgement(path: Path | None) -> Judgement | None:
    """Read the record of `benchmarks.posterior`; None if there is no such file.

    Raises:
        InputError: the file does not hold what the benchmark writes, or a world or mask the page has no words for.
    """
    if path is None or not path.is_file():
        return None
    record = read_json(path)
    try:
        scenes = tuple(map(_scene, record["scenes"]))
        if not scenes:
            raise ValueError("scenes is empty")
        settings, versions = record["settings"], record["machine"]["versions"]
        return Judgement(
            completions=int(settings["n"]),
            repeats=int(settings["repeats"]),
            resamples=int(settings["resamples"]),
            steps=int(settings["steps"]),
            machine=f"{record['machine']['processor']}, torch {versions['torch']}",
            scenes=scenes,
            plots=tuple(dot_plot(scene, limits(scenes)) for scene in scenes),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected the record of the exact judge, but {type(error).__name__}: {error}; write it again with "
            "`python -m benchmarks.posterior --write`."
        ) from error


def numbers(judgement: Judgement) -> dict[str, Any]:
    """Everything the page says of the judge in numbers, ready to be written as JSON."""
    return {
        "completions": judgement.completions,
        "scenes": [
            {
                "world": scene.world,
                "mask": scene.mask,
                "shares": list(scene.shares),
                "floor": {name: vars(floor) for name, floor in scene.floor.items()},
                "exact_denoiser": _line(scene, scene.denoiser),
                "rows": [_line(scene, row) for row in scene.rows],
            }
            for scene in judgement.scenes
        ],
    }


def _line(scene: Scene, row: Row) -> dict[str, Any]:
    measures = {name: vars(measured) for name, measured in row.measures.items()}
    return vars(row) | {"measures": measures, "reaches_floor": scene.reaches(row)}


def _scene(found: Mapping[str, Any]) -> Scene:
    world, mask = found["world"], found["mask"]
    for name, words in ((world, WORLDS), (mask, MASKS)):
        if name not in words:
            raise ValueError(f"{name!r} is none of {', '.join(words)}, for which report_judge.py has words")
    floor = {name: Floor(mean=_finite(one["mean"]), sd=_finite(one["sd"])) for name, one in found["floor"].items()}
    if (unit := floor["sliced_w2"].mean) <= 0:
        raise ValueError(f"the floor of {world}, {mask} is {unit:g}, so that nothing can be told in its multiples")
    floor["ratio"] = Floor(mean=1.0, sd=floor["sliced_w2"].sd / unit)
    rows = [_row(row, row["method"], row["preset"], unit) for row in found["rows"]]
    return Scene(
        world=world,
        mask=mask,
        shares=tuple(map(_finite, found["exact_modes"])),
        floor={name: floor[name] for name in COLUMNS},
        denoiser=_row(found["exact_denoiser"], "exact", "denoiser", unit),
        rows=tuple(rows),
    )


def _row(found: Mapping[str, Any], method: str, preset: str, unit: float) -> Row:
    measures = {}
    for name in COLUMNS:
        key, scale = ("sliced_w2", unit) if name == "ratio" else (name, 1.0)
        value, low, high = (_finite(number) / scale for number in (found[key], *found["intervals"][key]))
        measures[name] = Measured(value=value, low=max(0.0, low), high=high)
    forwards, backwards = (_finite(found[key]) if key in found else None for key in ("forwards", "backwards"))
    return Row(method=str(method), preset=str(preset), measures=measures, forwards=forwards, backwards=backwards)


def _finite(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} stands where a finite number should")
    return float(value)


def limits(scenes: Sequence[Scene]) -> tuple[float, float]:
    """Span of the axis that all scenes share, in multiples of the floor: all values, and the upper ends of intervals.

    Lower ends may come near 0, where a logarithmic axis has no end; they are cut off.
    """
    ratios = [row.measures["ratio"] for scene in scenes for row in scene.judged]
    least = min(1.0, *(ratio.value for ratio in ratios if ratio.value > 0))
    most = max(2.0, *(max(ratio.value, ratio.high) for ratio in ratios))
    return 0.6 * least, 1.15 * most


def dot_plot(scene: Scene, span: tuple[float, float]) -> str:
    """Draw the distances of one scene with their intervals in multiples of the floor, on a logarithmic axis.

    Args:
        scene: its rows stand in their order, presets of one method together.
        span: ends of the axis, in multiples of the floor.

    Returns:
        Inline SVG.
    """
    places = [0.0]
    for before, row in pairwise(scene.judged):
        places.append(places[-1] + (1.0 if row.method == before.method else 1.5))
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(4.6, 0.5 + 0.155 * (places[-1] + 1))
        axes.axvspan(*scene.band, color=RULE, linewidth=0, zorder=0)
        axes.axvline(1.0, color=MUTED, linewidth=0.8, zorder=1)
        for place, row in zip(places, scene.judged, strict=True):
            ratio = row.measures["ratio"]
            color = INK if row is scene.denoiser else ACCENT if scene.reaches(row) else MUTED
            axes.plot([max(ratio.low, span[0]), ratio.high], [place] * 2, color=color, linewidth=1.2, zorder=2)
            axes.plot(max(ratio.value, span[0]), place, "o", color=color, markersize=4.5, markeredgewidth=0, zorder=3)
        axes.set_yticks(places, [row.name for row in scene.judged])
        axes.set_ylim(places[-1] + 0.8, -0.8)
        axes.tick_params(axis="y", length=0)
        _ratio_axis(axes, span)
        return inline_svg(figure, f"Distance to the exact posterior in multiples of the floor, {scene.title}")


def _ratio_axis(axes: Axes, span: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(*span)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}×"))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
