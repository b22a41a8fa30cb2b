"""The whole sweep at once: every cell that the store lacks, wherever cells run; DVC then only assembles them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.experiment.cells import CellStore
from pipeline.experiment.engine.backend import Backend
from pipeline.experiment.inpaint import Bench, Unit, finish
from pipeline.experiment.inpaint_steered import any_row
from pipeline.experiment.layout import Layout
from pipeline.experiment.limits import suggest
from pipeline.experiment.params import Params
from pipeline.experiment.progress import progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which part of the sweep is meant; empty = all there is."""

    datasets: Sequence[str] = ()
    rows: Sequence[str] = ()
    masks: Sequence[str] = ()


def run_sweep(params: Params, layout: Layout, backend: Backend, part: Part) -> None:
    """Run the missing cells of a part of the sweep; a cell that fails does not keep the others from being run.

    Raises:
        ConfigError: `part` names what is not in the sweep.
        UserError: something the cells need is missing or damaged, or some cells cannot be finished.
    """
    bench = Bench(params=params, layout=layout, enter=any_row)
    there = survey(bench, part)
    missing = [unit for unit, found in there.items() if not found]
    log.info(plan(there))
    with progress("sweep", len(there), "cells") as bar:
        bar.reach(len(there) - len(missing))

        def tell(unit: Unit) -> None:
            bar.say(str(unit))
            bar.advance()

        finish(missing, bench, backend, layout, tell)


def survey(bench: Bench, part: Part) -> dict[Unit, bool]:
    """Every cell of the part, row by row, and whether the store has it."""
    sweep, store = bench.params.sweep, CellStore(bench.layout.cells)
    datasets = _named("datasets", part.datasets, sweep.datasets)
    rows, masks = _named("rows", part.rows, bench.params.rows), _named("masks", part.masks, sweep.masks)
    return {
        unit: store.find(name) is not None
        for dataset in datasets
        for row in rows
        for unit, name in bench.names(dataset, row, masks).items()
    }


def plan(there: Mapping[Unit, bool]) -> str:
    """What is there and what is missing, in words."""
    cells, found = Counter(unit.group for unit in there), Counter(unit.group for unit in there if there[unit])
    lines = [f"{len(there)} cells: {found.total()} are there, {len(there) - found.total()} are missing."]
    lines += [f"  {' '.join(group)}: {found[group]} of {count}" for group, count in cells.items()]
    return "\n".join(lines)


def _named(what: str, asked: Sequence[str], swept: Sequence[str]) -> Sequence[str]:
    for name in asked:
        if name not in swept:
            raise ConfigError(f"--{what}: {name!r} is not in the sweep of params.yaml{suggest(name, swept)}")
    return asked or swept
