"""The stage inpaint: one (dataset, method), all masks; models are loaded once, finished cells are not run again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from pipeline.errors import UserError
from pipeline.experiment import runtime
from pipeline.experiment.cells import CellStore
from pipeline.experiment.engine.backend import Backend, chosen
from pipeline.experiment.engine.dispatch import UnitError, run_units
from pipeline.experiment.layout import Layout
from pipeline.experiment.masks import read_masks
from pipeline.experiment.mirror import show
from pipeline.experiment.mishaps import CellError
from pipeline.experiment.params import Params
from pipeline.experiment.progress import Bar, progress
from pipeline.experiment.record import write_bytes, write_json
from pipeline.experiment.run_cell import run_cell, warm_up
from pipeline.experiment.sweep import Contestant, Sweep, fingerprint, module_of, open_sweep

log = logging.getLogger(__name__)

Enter = Callable[[Params, Layout, str, str], Contestant]
"""Makes the contestant of a dataset and a row."""


@dataclass(frozen=True)
class Unit:
    """A cell to be run, in words that travel to whoever runs it."""

    dataset: str
    row: str
    mask: str

    @property
    def group(self) -> tuple[str, ...]:
        """What has to be opened for it."""
        return self.dataset, self.row

    def __str__(self) -> str:
        return f"{self.dataset}/{self.row}/{self.mask}"


@dataclass(kw_only=True)
class Bench:
    """Runs cells, and keeps open what the next may share: the network of a dataset, what a row needs beside it."""

    params: Params
    layout: Layout
    enter: Enter
    _sweep: Sweep | None = field(default=None, init=False)
    _warm: bool = field(default=False, init=False)

    def __getstate__(self) -> dict[str, object]:
        """What travels to a worker: nothing that is open."""
        return vars(self) | {"_sweep": None, "_warm": False}

    def open(self, dataset: str, row: str) -> Sweep:
        """What the cells of a row share."""
        runtime.make_deterministic()
        if self._sweep is None or self._sweep.dataset != dataset:
            self._sweep, self._warm = None, False  # two networks at once may be one too many
            contestant = self.enter(self.params, self.layout, dataset, row)
            self._sweep = open_sweep(self.params, self.layout, dataset, contestant)
        elif self._sweep.contestant.name != row:
            self._sweep = replace(self._sweep, contestant=self.enter(self.params, self.layout, dataset, row))
        return self._sweep

    def __call__(self, unit: Unit, bar: Bar | None = None) -> None:
        """Run a cell and put it into the store, unless it is there; without a bar, show one of its own."""
        if bar is None:
            with progress(str(unit), self.moves(unit), "moves") as bar:
                self(unit, bar)
            return
        sweep = self.open(unit.dataset, unit.row)
        mask = read_masks(self.layout.masks, unit.mask, sweep.count)
        name, store = fingerprint(sweep, mask), CellStore(self.layout.cells)
        if store.find(name) is None:
            if not self._warm:
                warm_up(sweep)
                self._warm = True
            bar.say(unit.mask)
            store.put(run_cell(sweep, mask, name, bar))

    def names(self, dataset: str, row: str, masks: Sequence[str]) -> dict[Unit, str]:
        """The cells of a row, and the name of each in the store."""
        sweep = self.open(dataset, row)
        return {
            Unit(dataset, row, mask): fingerprint(sweep, read_masks(self.layout.masks, mask, sweep.count))
            for mask in masks
        }

    def moves(self, unit: Unit) -> int:
        """Denoising moves of a cell, over all images and samples; each advances its bar."""
        sweep = self.open(unit.dataset, unit.row)
        return sweep.count * self.params.sweep.samples * sum(j < i for i, j in sweep.contestant.method.moves())


def inpaint(params: Params, layout: Layout, dataset: str, method_name: str) -> None:
    """Run the cells of `dataset` and `method_name` that the store lacks, and assemble the stage's output from it."""
    run_cells(Bench(params=params, layout=layout, enter=plain), dataset, method_name)


def plain(params: Params, layout: Layout, dataset: str, name: str) -> Contestant:
    """A method as it is."""
    method = params.method(name)
    return Contestant(name=name, method=method, params=asdict(method), code=(module_of(name),))


def run_cells(bench: Bench, dataset: str, row: str) -> None:
    """Run the cells that the store lacks where TIRAMISU_ENGINE says, and assemble the stage's output from the store.

    Raises:
        UserError: some cells cannot be finished; all others are in the store.
    """
    layout, backend = bench.layout, chosen()
    inline, store = backend.kind == "inline", CellStore(layout.cells)
    names = bench.names(dataset, row, bench.params.sweep.masks)
    missing = [unit for unit, name in names.items() if store.find(name) is None]
    worth = bench.moves(next(iter(names))) if inline else 1  # workers tell of finished cells only
    with progress(f"inpaint {dataset} {row}", worth * len(names), "moves" if inline else "cells") as bar:
        bar.reach(worth * (len(names) - len(missing)))
        work = partial(bench, bar=bar) if inline else bench
        finish(missing, work, backend, layout, lambda unit: None if inline else bar.advance())
    assemble(layout, names)


def finish(
    missing: Sequence[Unit],
    work: Callable[[Unit], None],
    backend: Backend,
    layout: Layout,
    tell: Callable[[Unit], None],
) -> None:
    """Run cells; one that cannot be finished does not keep the others from being run.

    Raises:
        UserError: some cells cannot be finished; all others are in the store.
    """
    failures = list[Exception]()
    for unit, _, error in run_units(missing, work, backend, logs=layout.logs):
        if error is None:
            tell(unit)
        elif isinstance(error, CellError | UnitError):
            log.warning("%s", error)
            failures.append(error)
        else:
            raise error
    if failures:
        failed = f"{len(failures)} of {len(missing)} cells failed"
        raise UserError(f"{failed}, the others are kept. The first: {failures[0]}")


def assemble(layout: Layout, names: Mapping[Unit, str]) -> None:
    """Make the output of a row from its cells in the store."""
    unit, store, records = next(iter(names)), CellStore(layout.cells), []
    out = layout.inpaint(unit.dataset, unit.row)
    for unit, name in names.items():
        cell = store.find(name)
        if cell is None:
            raise RuntimeError(f"The cell {name} vanished from {layout.cells} while the stage ran.")
        write_bytes(out / f"{unit.mask}.npz", store.path(name).read_bytes())
        records.append(cell.record)
    write_json(out / "cells.json", {"cells": records})
    masks = {unit.mask for unit in names}
    for path in out.iterdir():
        if path.stem not in masks and path.name != "cells.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    show(layout)
