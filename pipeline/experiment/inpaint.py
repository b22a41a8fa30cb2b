"""The stage inpaint: one (dataset, method), all masks; models are loaded once, finished cells are not run again."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict

from pipeline.errors import UserError
from pipeline.experiment import runtime
from pipeline.experiment.cells import CellStore
from pipeline.experiment.layout import Layout
from pipeline.experiment.masks import read_masks
from pipeline.experiment.mirror import show
from pipeline.experiment.mishaps import CellError
from pipeline.experiment.params import Params
from pipeline.experiment.progress import progress
from pipeline.experiment.record import write_bytes, write_json
from pipeline.experiment.run_cell import run_cell, warm_up
from pipeline.experiment.sweep import Contestant, Sweep, fingerprint, module_of, open_sweep

log = logging.getLogger(__name__)


def inpaint(params: Params, layout: Layout, dataset: str, method_name: str) -> None:
    """Run the cells of `dataset` and `method_name` that the store lacks, and assemble the stage's output from it."""
    runtime.make_deterministic()
    method = params.method(method_name)
    contestant = Contestant(name=method_name, method=method, params=asdict(method), code=(module_of(method_name),))
    run_cells(open_sweep(params, layout, dataset, contestant))


def run_cells(sweep: Sweep) -> None:
    """Run the cells that the store lacks, and assemble the stage's output from it.

    Raises:
        UserError: some cells cannot be finished; all others are in the store.
    """
    params, layout, name = sweep.params, sweep.layout, sweep.contestant.name
    store = CellStore(layout.cells)
    masks = {mask: read_masks(layout.masks, mask, sweep.count) for mask in params.sweep.masks}
    prints = {mask: fingerprint(sweep, known) for mask, known in masks.items()}
    moves = sum(j < i for i, j in sweep.contestant.method.moves())  # the watch is told of every denoising move
    per_cell = sweep.count * params.sweep.samples * moves
    missing, failures = [mask for mask in masks if store.find(prints[mask]) is None], list[CellError]()
    if missing:
        warm_up(sweep)
    with progress(f"inpaint {sweep.dataset} {name}", per_cell * len(masks), "moves") as bar:
        bar.reach(per_cell * (len(masks) - len(missing)))
        for mask in missing:
            bar.say(mask)
            try:
                store.put(run_cell(sweep, masks[mask], prints[mask], bar))
            except CellError as error:
                log.warning("%s", error)
                failures.append(error)
    if failures:
        raise UserError(f"{len(failures)} of {len(masks)} cells failed, the others are kept. The first: {failures[0]}")
    out, records = layout.inpaint(sweep.dataset, name), []
    for mask in masks:
        cell = store.find(prints[mask])
        if cell is None:
            raise RuntimeError(f"The cell {prints[mask]} vanished from {layout.cells} while the stage ran.")
        write_bytes(out / f"{mask}.npz", store.path(prints[mask]).read_bytes())
        records.append(cell.record)
    write_json(out / "cells.json", {"cells": records})
    for path in out.iterdir():
        if path.stem not in masks and path.name != "cells.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    show(layout)
