"""What the report says of rows that steer one base in different ways: a curve over `until`, and a table of the rest.

The curve is that of Figure 4 of Liu et al. 2024 (arXiv 2401.03349): quality and time against the share of steered time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.experiment.report_contents import Results
from pipeline.experiment.report_inputs import Findings
from pipeline.experiment.report_steering import Effect, SteeredRow, Steering, compare, differences, steering
from pipeline.experiment.steering_figures import Point, until_plots
from pipeline.steering.settings import PRESETS

CURVE = 3
"""Rows that differ in `until` alone, from which on there is a curve."""
SETTINGS = {name: {"warm": 1.0} | dataclasses.asdict(preset) for name, preset in PRESETS.items()}
"""What a row with the values of each preset has."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Rows that differ in `until` alone, and their base."""

    base: str
    points: tuple[Point, ...]
    """By the share of steered time, the base first."""
    plots: tuple[str, ...]
    """Inline SVG: the main metric, and seconds."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of an ablation."""

    row: SteeredRow
    preset: str | None
    """The preset whose values it has."""
    changed: dict[str, Any]
    """Where it differs from the row that others are compared with."""
    effect: Effect
    """Against that row."""


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Rows of one base that differ in more than `until`."""

    base: str
    reference: str
    """The row with the values of the preset `ours`, or else the first."""
    variants: tuple[Variant, ...]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything the page says of steering."""

    steering: Steering
    curves: tuple[Curve, ...]
    ablations: tuple[Ablation, ...]


def study(findings: Findings, results: Results) -> Study | None:
    """Collect everything the page says of steering; None if the sweep has no steered row.

    Raises:
        InputError: see `steering`.
    """
    found = steering(findings, results)
    if found is None:
        return None
    return Study(
        steering=found,
        curves=tuple(curves(found, results)),
        ablations=tuple(ablations(found, results)),
    )


def plot_tables(found: Study, results: Results) -> dict[str, tuple[tuple[str, ...], list[list[Any]]]]:
    """Tables for DVC's plots, (columns, lines) by name: rows, their differences, and the curve if there is one."""
    steered = found.steering
    points = {point.row: point for rows in _by_base(steered).values() for point in _points(steered, results, rows)}
    tables = {"steering": _point_table(points.values())}
    if found.curves:
        tables["until"] = _point_table(point for curve in found.curves for point in curve.points)
    header = ("dataset", "mask", "row", "base", "difference", "low", "high")
    lines = [
        [line.dataset, line.mask, row.name, row.base]
        + [_known(values[row.index]) for values in (line.difference, line.difference_low, line.difference_high)]
        for row in steered.compared
        for line in steered.lines[row.base]
    ]
    return tables | {"steering_differences": (header, lines)}


def curves(found: Steering, results: Results) -> Iterator[Curve]:
    """Find rows that differ in `until` alone, at least `CURVE` of them, and whose base is in the sweep."""
    groups: dict[str, list[SteeredRow]] = {}
    for row in found.compared:
        alike = {key: value for key, value in row.settings.items() if key != "until"}
        groups.setdefault(f"{row.base} {alike}", []).append(row)
    for rows in groups.values():
        if len({row.settings["until"] for row in rows}) >= CURVE:
            points = tuple(_points(found, results, rows))
            yield Curve(base=rows[0].base, points=points, plots=until_plots(points, results.main, rows[0].base))


def ablations(found: Steering, results: Results) -> Iterator[Ablation]:
    """Find bases whose rows differ in more than `until`, and compare these with the row of the preset `ours`."""
    for base, rows in _by_base(found).items():
        reference = next((row for row in rows if row.settings == SETTINGS["ours"]), rows[0])
        lines = differences(results, reference.name)
        variants = tuple(_variant(row, reference, compare(lines, results, row.name, reference.name)) for row in rows)
        if any(variant.changed.keys() - {"until"} for variant in variants):
            yield Ablation(base=base, reference=reference.name, variants=variants)


def _by_base(found: Steering) -> dict[str, list[SteeredRow]]:
    return {base: [row for row in found.compared if row.base == base] for base in found.lines}


def _point_table(points: Iterable[Point]) -> tuple[tuple[str, ...], list[list[Any]]]:
    header = ("row", "base", "until", "fraction", "mean", "low", "high", "seconds", "extra")
    return header, [[_known(getattr(point, name)) for name in header] for point in points]


def _known(value: Any) -> Any:
    """The value, or nothing where there is no number."""
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else ""
    return value


def _variant(row: SteeredRow, reference: SteeredRow, effect: Effect) -> Variant:
    return Variant(
        row=row,
        preset=next((name for name, settings in SETTINGS.items() if row.settings == settings), None),
        changed={key: value for key, value in row.settings.items() if value != reference.settings[key]},
        effect=effect,
    )


def _points(found: Steering, results: Results, rows: Sequence[SteeredRow]) -> Iterator[Point]:
    """The base of the rows, then the rows, the least steered first."""
    base = rows[0].base
    line, seconds = found.lines[base][-1], found.seconds(base)
    steered = sorted(((float(row.settings["until"]), row.name) for row in rows), reverse=True)
    for until, name in ((1.0, base), *steered):
        index = results.methods.index(name)
        yield Point(
            row=name,
            base=base,
            until=until,
            mean=float(line.mean[index]),
            low=float(line.low[index]),
            high=float(line.high[index]),
            paired_low=float(line.mean[index] - line.difference[index] + line.difference_low[index]),
            paired_high=float(line.mean[index] - line.difference[index] + line.difference_high[index]),
            seconds=found.seconds(name),
            extra=found.seconds(name) / seconds - 1.0,
        )
