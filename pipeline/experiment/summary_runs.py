"""Runs that sum up: a row of the comparison from the cells of one method, and the report from the rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.experiment import provenance
from pipeline.experiment.entry import Entry
from pipeline.experiment.standings import Board

COORDINATES = ("kind", "stage", "method", "base", "family", "mlflow.runColor")
OUTLINE = ("seed", "image_size", "samples")


def rows(cells: Sequence[Entry], scores: Board) -> list[Entry]:
    """Put the cells of each method together, if it is scored in every setting of the board with one set of parameters.

    Args:
        cells: entries of cells.
        scores: the board their metrics are from.

    Returns:
        One entry per method: parameters that all its cells share; means of all scores over the settings; of the
        deciding metric also `<metric>/<dataset>` and `<metric>/<dataset>/<mask>`; `wins`, the settings it is first in.
    """
    columns = set(scores.columns.values())
    if len(columns) != 1:
        return []  # nothing is scored, or a trunk has changed and not all is scored with it yet
    found: dict[str, list[Entry]] = {}
    for entry in cells:
        if entry.final:
            found.setdefault(_essence(entry), []).append(entry)
    settings, ended = set(scores.settings), max(map(_end, cells), default=0)
    return [
        _row(fingerprint, group, min(columns), ended)
        for fingerprint, group in found.items()
        if {_setting(entry) for entry in group} == settings
    ]


def _setting(cell: Entry) -> tuple[str, str]:
    return cell.record["dataset"], cell.record["mask"]


def _end(cell: Entry) -> int:
    return (cell.started or 0) + round((cell.seconds or 0) * 1000)


def _essence(cell: Entry) -> str:
    """Fingerprint of the row a cell belongs to: what it runs, not on what; of its circuit what was asked for."""
    record = cell.record
    own = {key: record[key] for key in ("method", "params", *OUTLINE)}
    asked = {key: value for key, value in cell.params.items() if re.match(r"circuit\.(?!chosen\.)", key)}
    return provenance.digest({"kind": "row", "images": len(record["image_ids"]), **own, "circuit": asked})


def _row(fingerprint: str, cells: Sequence[Entry], column: str, ended: int) -> Entry:
    """Describe a method by its cells in all settings; `ended` puts it above all of them in a list by time."""
    first = cells[0]
    tags = {key: first.tags[key] for key in COORDINATES if key in first.tags}
    metrics = _row_metrics(cells, column)
    fields = (column, "place", f"{column}_minus_base", "psnr", "ssim", "seconds_per_image")
    return Entry(
        fingerprint=fingerprint,
        name=f"{first.record['method']}, all settings",
        note=_row_note(first, cells, metrics, column),
        record={"kind": "row", "fingerprint": fingerprint, "cells": sorted(cell.fingerprint for cell in cells)},
        params={key: value for key, value in first.params.items() if all(c.params.get(key) == value for c in cells)},
        tags={**tags, "kind": "row", "stage": "score", "fingerprint": fingerprint},
        metrics=metrics,
        final=True,
        table=tuple(
            {"setting": "/".join(_setting(cell)), **{key: cell.metrics[key] for key in fields if key in cell.metrics}}
            for cell in cells
        ),
        started=ended,
    )


def _row_metrics(cells: Sequence[Entry], column: str) -> dict[str, float]:
    """Average over settings, keeping apart what the paper's table shows."""
    names = dict.fromkeys(name for cell in cells for name in cell.metrics)
    shared = [name for name in names if all(name in cell.metrics for cell in cells)]
    metrics = {name: float(np.mean([cell.metrics[name] for cell in cells])) for name in shared if "/" not in name}
    for name in (column, f"{column}_minus_base", "seconds_per_image"):
        if name in shared:
            datasets = dict.fromkeys(cell.record["dataset"] for cell in cells)
            for dataset in datasets:
                own = [cell.metrics[name] for cell in cells if cell.record["dataset"] == dataset]
                metrics[f"{name}/{dataset}"] = float(np.mean(own))
    settings = {f"{column}/{cell.record['dataset']}/{cell.record['mask']}": cell.metrics[column] for cell in cells}
    return {**metrics, **settings, "wins": float(sum(cell.metrics["place"] == 1 for cell in cells))}


def _row_note(first: Entry, cells: Sequence[Entry], metrics: Mapping[str, float], column: str) -> str:
    """Say in a sentence and a table how a row did."""
    method, base = first.record["method"], first.record["params"].get("base")
    minus = metrics.get(f"{column}_minus_base")
    text = (
        f"**{method}** in all {len(cells)} settings: {column} {metrics[column]:.3f} on average, first in "
        f"{metrics['wins']:.0f}, {metrics['seconds_per_image']:.2f} s per image"
    )
    if minus is not None:
        text += f"; {column} {minus:+.3f} against its base {base}"
    masks = list(dict.fromkeys(cell.record["mask"] for cell in cells))
    datasets = list(dict.fromkeys(cell.record["dataset"] for cell in cells))
    values = {_setting(cell): cell.metrics for cell in cells}
    lines = [
        f"| {dataset} | "
        + " | ".join(_printed(values.get((dataset, mask)), column) for mask in masks)
        + f" | {metrics[f'{column}/{dataset}']:.3f} |"
        for dataset in datasets
    ]
    head = f"| {column} | {' | '.join(masks)} | average |\n|{'---|' * (len(masks) + 2)}"
    return "\n".join([f"{text}.", "", head, *lines, "", "Bold: first in its setting."])


def _printed(metrics: Mapping[str, float] | None, column: str) -> str:
    if metrics is None:
        return ""
    text = f"{metrics[column]:.3f}"
    return f"**{text}**" if metrics["place"] == 1 else text


def report(folder: Path, profile: str, methods: Sequence[Entry]) -> Entry:
    """Describe a report by its files and by the rows it compares.

    Args:
        folder: with `index.html` and its tables.
        profile: whose report it is.
        methods: entries of the rows.
    """
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    fingerprint = provenance.digest({"kind": "report", "profile": profile})
    return Entry(
        fingerprint=fingerprint,
        name=f"report {profile}",
        note=_report_note(methods),
        record={"kind": "report", "files": {name: provenance.file_digest(path) for name, path in files.items()}},
        params={},
        tags={"kind": "report", "stage": "report", "profile": profile, "fingerprint": fingerprint},
        metrics={},
        final=True,
        files=files,
        table=_pivot(methods),
        started=round((folder / "index.html").stat().st_mtime * 1000),
    )


def _report_note(methods: Sequence[Entry]) -> str:
    """Say who wins and at what cost, best first."""
    if not methods:
        return "The report. No method is scored in all settings."
    names = [name for name in ("lpips", "lpips_domain") if all(name in row.metrics for row in methods)]
    names += ["wins", "place", "seconds_per_image"]
    ranked = sorted(methods, key=lambda row: row.metrics[names[0]])
    lines = [
        f"| {row.tags['method']} | " + " | ".join(f"{row.metrics[name]:.3g}" for name in names) + " |" for row in ranked
    ]
    head = f"| method | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}"
    return "\n".join(["Means over all settings; the page itself is the artifact `index.html`.", "", head, *lines])


def _pivot(methods: Sequence[Entry]) -> tuple[Mapping[str, Any], ...]:
    """Put the deciding metric of all rows side by side, one line per setting."""
    lines: dict[str, dict[str, Any]] = {}
    for row in methods:
        for cell in row.table:
            line = lines.setdefault(cell["setting"], {"setting": cell["setting"]})
            line[row.tags["method"]] = next(cell[name] for name in ("lpips", "lpips_domain") if name in cell)
    return tuple(lines.values())
