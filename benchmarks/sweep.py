"""What it costs to run cells elsewhere: `python -m benchmarks.sweep` beside a finished run (see docs/cluster.md).

The same cells, all of one method and so of one size, are run inline, by one and two processes and by one and two actors
of Ray, each with an empty store and one thread per worker; then once more with a worker killed in the middle of a cell.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import Any

import torch

from benchmarks import measure
from pipeline.errors import UserError
from pipeline.experiment.cells import Cell, unpack
from pipeline.experiment.engine.backend import parse
from pipeline.experiment.engine.dispatch import run_units
from pipeline.experiment.inpaint import Bench, Unit
from pipeline.experiment.inpaint_steered import any_row
from pipeline.experiment.layout import WORK, Layout, find_root
from pipeline.experiment.params import Params, load_params
from pipeline.experiment.run_sweep import Part, survey

ENGINES = ("inline", "process:1", "process:2", "ray:1", "ray:2")
TARGET = 0.85
"""Least scaling efficiency of two workers, where there are two cores."""


def main() -> int:
    """Measure and print; with --write, also write docs/benchmarks/sweep.json and the block of docs/cluster.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--row", default="ddnm", help="method or steered row whose cells are run")
    parser.add_argument("--masks", type=int, default=6, help="how many of the sweep's")
    parser.add_argument("--engines", nargs="+", default=ENGINES, help=f"default: {' '.join(ENGINES)}")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers
    torch.set_num_threads(1)
    try:
        found = compare(shortened(load_params(), args.row, args.masks), args.engines)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(text(found))
    if args.write:
        measure.write_json(measure.DOCS / "benchmarks" / "sweep.json", found)
        measure.write_block("sweep", text(found), measure.DOCS / "cluster.md")
    return 0


def shortened(params: Params, row: str, masks: int) -> Params:
    """A sweep of one row."""
    sweep, kind = params.sweep, "steered" if row in params.steered else "methods"
    rows: dict[str, list[str]] = {"methods": [], "steered": [], kind: [row]}
    update = {**rows, "masks": sweep.masks[:masks]}
    return params.model_copy(update={"sweep": sweep.model_copy(update=update)})


def compare(params: Params, engines: Sequence[str]) -> dict[str, Any]:
    """Run the sweep everywhere, and see whether the same cells come out."""
    layout = Layout(find_root(), params.profile)
    bench = Bench(params=params, layout=layout, enter=any_row)
    runs = [run(bench, engine) for engine in engines]
    deaths = [run(bench, engine, kill=True) for engine in engines if engine.endswith(":2")]
    return {
        "machine": measure.machine() | {"cores": len(os.sched_getaffinity(0))},
        "row": params.rows[0],
        "images": params.sweep.images,
        "size": params.image_size,
        "cells": runs[0]["cells"],
        "runs": runs,
        "killed": deaths,
        "identical": len({one["digest"] for one in [*runs, *deaths]}) == 1,
    }


def run(bench: Bench, engine: str, kill: bool = False) -> dict[str, Any]:
    """Run all cells with an empty store; `kill` a worker half a cell after the first cell is done."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[WORK] = scratch
        units, layout = list(survey(bench, Part())), bench.layout
        unfinished = list(units)
        begun, ends, victims = time.perf_counter(), dict[Unit, float](), list[int]()
        for unit, _, error in run_units(units, bench, parse(engine), logs=layout.logs):
            if error is not None:
                raise error
            ends[unit] = time.perf_counter() - begun
            unfinished.remove(unit)
            if kill and len(ends) == 1:
                half = cells(layout)[0].record["measured"]["seconds"] / 2
                Timer(half, lambda: victims.append(kill_one(unfinished, layout.logs))).start()
        finished = cells(layout)
        sampling = [cell.record["measured"]["seconds"] for cell in finished]
        return {
            "engine": engine,
            "cells": len(finished),
            "seconds": max(ends.values()),
            "start": min(ends.values()) - sampling[0],
            "sampling": sum(sampling) / len(sampling),
            "rate": rate(ends, layout.logs),
            "killed": len(victims),
            "attempts": sum(path.read_text().count(": process ") for path in layout.logs.rglob("*.log")),
            "digest": digest(finished),
        }


def rate(ends: Mapping[Unit, float], logs: Path) -> float:
    """Cells per second of all workers together, each from the end of its first cell to the end of its last."""
    of_worker = defaultdict[int, list[float]](list)
    for unit, end in ends.items():
        of_worker[worker_of(logs / f"{unit}.log")].append(end)
    return sum((len(times) - 1) / (times[-1] - times[0]) for times in of_worker.values() if len(times) > 1)


def worker_of(log: Path) -> int:
    """The process that took up a cell last; 0 = this one, which writes no logs."""
    return int(re.findall(r": process (\d+) on", log.read_text())[-1]) if log.exists() else 0


def kill_one(unfinished: Sequence[Unit], logs: Path) -> int:
    """SIGKILL the process that took up one of these cells last, and say which it was."""
    process = next(worker for unit in unfinished if (worker := worker_of(logs / f"{unit}.log")))
    os.kill(process, signal.SIGKILL)
    return process


def cells(layout: Layout) -> list[Cell]:
    """All cells of the store, oldest first."""
    return [unpack(path) for path in sorted(layout.cells.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)]


def digest(finished: Sequence[Cell]) -> str:
    """Hash of all that must not depend on where cells run: records without their measurements, and pixels."""
    parts = []
    for cell in finished:
        record = {key: value for key, value in cell.record.items() if key != "measured"}
        parts.append(json.dumps(record, sort_keys=True).encode() + cell.samples.tobytes() + cell.known.tobytes())
    return hashlib.sha256(b"".join(sorted(parts))).hexdigest()


def efficiency(found: dict[str, Any], kind: str) -> float:
    """How much of twice the rate of one worker two have."""
    one, two = (next(one["rate"] for one in found["runs"] if one["engine"] == f"{kind}:{n}") for n in (1, 2))
    return float(two / (2 * one))


def text(found: dict[str, Any]) -> str:
    """The page's block."""
    rows = []
    for one in found["runs"]:
        workers = 2 if one["engine"].endswith(":2") else 1
        overhead = workers / one["rate"] - one["sampling"]
        figures = (one["seconds"], one["start"], one["sampling"], overhead, one["rate"])
        rows.append([one["engine"], *(f"{figure:.2f}" for figure in figures)])
    header = ["engine", "seconds", "until the first", "sampling, per cell", "the rest, per cell", "cells per second"]
    verdicts = [
        f"* {kind}: scaling efficiency of two workers {efficiency(found, kind):.2f} "
        f"(target {TARGET}, {'met' if efficiency(found, kind) >= TARGET else 'NOT met'})"
        for kind in ("process", "ray")
        if {f"{kind}:1", f"{kind}:2"} <= {one["engine"] for one in found["runs"]}
    ]
    for one in found["killed"]:
        verdict = "met" if one["attempts"] <= one["cells"] + 1 else "NOT met"
        verdicts.append(
            f"* {one['engine']}, {one['killed']} worker killed in the middle of a cell: {one['attempts']} attempts at "
            f"{one['cells']} cells (target: one more at most, {verdict})"
        )
    same = "bit for bit the same cells" if found["identical"] else "DIFFERENT cells"
    lines = [
        f"{measure.words(found['machine'])} {found['machine']['cores']} cores.",
        f"{found['cells']} cells of {found['row']}, {found['images']} images of {found['size']}x{found['size']} each; "
        "times by the clock, one thread per worker.",
        "",
        measure.table(header, rows),
        "",
        f"* all {len(found['runs']) + len(found['killed'])} runs: {same}",
        *verdicts,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
