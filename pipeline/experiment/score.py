"""The stage score: finished cells of one dataset -> a row per sample, means per cell, and what a network saw in them.

Samples nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shards import read_split
from pipeline.errors import InputError
from pipeline.experiment import runtime
from pipeline.experiment.cells import Cell, unpack
from pipeline.experiment.features import save_features
from pipeline.experiment.layout import Layout
from pipeline.experiment.lpips_trunk import load_lpips
from pipeline.experiment.measure import PLACE, Instruments, Row, completions, measure
from pipeline.experiment.mirror import show
from pipeline.experiment.params import Params
from pipeline.experiment.progress import progress
from pipeline.experiment.record import write_bytes, write_json


def score(params: Params, layout: Layout, dataset: str) -> None:
    """Measure every finished cell of `dataset`; write `scores.csv`, `score.json` and `features.npz`.

    Raises:
        InputError: a cell is missing, or its images are not of the split or others than those of the first cell.
    """
    runtime.make_deterministic()
    device, folder = runtime.choose_device(), layout.scores(dataset)
    lpips = load_lpips(layout.lpips, layout.trunk, device)
    tools = Instruments(column=lpips.column, perception=lpips.perception, device=device)
    split = read_split(layout.data(dataset), params.sweep.split, layout.cache)
    truth = dict(zip(split.keys, split.images, strict=True))
    rows: list[Row] = []
    cells: list[dict[str, Any]] = []
    seen: list[NDArray[np.float32]] = []
    for cell in _finished(params, layout, dataset):
        fresh = measure(cell, truth, tools)
        rows += fresh
        cells.append(summary(cell, fresh))
        seen.append(tools.look(completions(cell, truth)))
    write_bytes(folder / "scores.csv", table(rows).encode())
    kept = {"column": lpips.column, "trunk_sha256": lpips.trunk_sha256, "reason": lpips.reason}
    write_json(folder / "score.json", {"schema": 1, "dataset": dataset, "lpips": kept, "cells": cells})
    save_features(
        folder,
        methods=params.rows,
        truths=tools.look(split.images),
        completed=[split.keys.index(key) for key in dict.fromkeys(row["image_id"] for row in rows)],
        completions=np.stack(seen).reshape(len(params.rows), -1, *seen[0].shape),
    )
    show(layout)


def summary(cell: Cell, rows: list[Row]) -> dict[str, Any]:
    """A cell in one line: metric means and cost."""
    record = cell.record
    return {
        "dataset": record["dataset"],
        "mask": record["mask"],
        "method": record["method"],
        "fingerprint": record["fingerprint"],
        "images": cell.samples.shape[0],
        "samples": cell.samples.shape[1],
        "metrics": {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name not in PLACE},
        "evaluations": record["evaluations"],
        "seconds_per_image": record["measured"]["seconds_per_image"],
    }


def table(rows: list[Row]) -> str:
    """Rows as CSV, numbers with six digits after the point."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def _finished(params: Params, layout: Layout, dataset: str) -> Iterator[Cell]:
    """The cells of all methods and masks, in that order; all of them complete the same images."""
    first: list[str] | None = None
    with progress(f"score {dataset}", len(params.rows) * len(params.sweep.masks), "cells") as bar:
        for method, mask in product(params.rows, params.sweep.masks):
            path = layout.inpaint(dataset, method) / f"{mask}.npz"
            cell = unpack(path)
            first = first or cell.record["image_ids"]
            if cell.record["image_ids"] != first:
                raise InputError(
                    f"{path} completes other images than the first cell of {dataset}, but comparisons are paired; run "
                    "the inpaint stages again."
                )
            yield cell
            bar.advance()
