"""The stage score: finished cells of one dataset -> one row per sample and metric means per cell. Samples nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.images import to_float
from pipeline.data.shards import read_split
from pipeline.errors import InputError
from pipeline.experiment import runtime
from pipeline.experiment.cells import Cell, unpack
from pipeline.experiment.layout import Layout
from pipeline.experiment.lpips_trunk import load_lpips
from pipeline.experiment.metrics import METRICS, paste
from pipeline.experiment.mirror import show
from pipeline.experiment.params import Params
from pipeline.experiment.progress import progress
from pipeline.experiment.record import write_bytes, write_json

BATCH = 64

Row = dict[str, Any]


def score(params: Params, layout: Layout, dataset: str) -> None:
    """Measure every finished cell of `dataset`; write `scores.csv` and `score.json`."""
    runtime.make_deterministic()
    device = runtime.choose_device()
    lpips = load_lpips(layout.lpips, layout.trunk, device)
    test = read_split(layout.data(dataset), "test", layout.cache)
    truth = dict(zip(test.keys, test.images, strict=True))
    rows: list[Row] = []
    cells: list[dict[str, Any]] = []
    pairs = [(method, mask) for method in params.rows for mask in params.sweep.masks]
    with progress(f"score {dataset}", len(pairs), "cells") as bar:
        for method, mask in pairs:
            cell = unpack(layout.inpaint(dataset, method) / f"{mask}.npz")
            fresh = measure(cell, truth, lpips.distance, lpips.column, device)
            rows += fresh
            cells.append(summary(cell, fresh))
            bar.advance()
    write_bytes(layout.scores(dataset) / "scores.csv", table(rows).encode())
    kept = {"column": lpips.column, "trunk_sha256": lpips.trunk_sha256, "reason": lpips.reason}
    write_json(layout.scores(dataset) / "score.json", {"schema": 1, "dataset": dataset, "lpips": kept, "cells": cells})
    show(layout)


def measure(
    cell: Cell,
    truth: Mapping[str, NDArray[np.uint8]],
    distance: Callable[[Tensor, Tensor], Tensor],
    column: str,
    device: torch.device,
) -> list[Row]:
    """One row of metrics for every sample of a cell."""
    ids, count = cell.record["image_ids"], cell.samples.shape[1]
    missing = [key for key in ids if key not in truth]
    if missing:
        raise InputError(
            f"The cell {cell.record['fingerprint']} completes {missing[0]!r}, which is not among the test images."
        )
    jobs = [(i, k) for i in range(len(ids)) for k in range(count)]
    rows: list[Row] = []
    for start in range(0, len(jobs), BATCH):
        batch = jobs[start : start + BATCH]
        x = to_float(np.stack([cell.samples[i, k] for i, k in batch])).to(device)
        x_0 = to_float(np.stack([truth[ids[i]] for i, _ in batch])).to(device)
        known = torch.from_numpy(np.stack([cell.known[i] for i, _ in batch])).unsqueeze(1).to(device)
        with torch.inference_mode():
            values = {column: distance(paste(x, x_0, known), x_0), f"{column}_unpasted": distance(x, x_0)}
            values |= {name: metric(x, x_0, known) for name, metric in METRICS.items()}
        for row, (i, k) in enumerate(batch):
            place = {name: cell.record[name] for name in ("dataset", "mask", "method")}
            rows.append(place | {"image_id": ids[i], "sample": k} | {n: float(v[row]) for n, v in values.items()})
    return rows


def summary(cell: Cell, rows: list[Row]) -> dict[str, Any]:
    """A cell in one line: metric means and cost."""
    record, place = cell.record, ("dataset", "mask", "method", "image_id", "sample")
    return {
        "dataset": record["dataset"],
        "mask": record["mask"],
        "method": record["method"],
        "fingerprint": record["fingerprint"],
        "images": cell.samples.shape[0],
        "samples": cell.samples.shape[1],
        "metrics": {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name not in place},
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
