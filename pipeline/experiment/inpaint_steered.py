"""The stage inpaint_steered: one (dataset, steered row), all masks, as the stage inpaint does for one method."""

from __future__ import annotations

from dataclasses import asdict

from pipeline.experiment import runtime
from pipeline.experiment.guides import load_prior
from pipeline.experiment.inpaint import Bench, plain, run_cells
from pipeline.experiment.layout import Layout
from pipeline.experiment.metering import TimedMeter
from pipeline.experiment.params import Params
from pipeline.experiment.sweep import Contestant, Sweep, module_of, open_sweep
from pipeline.methods.steered import Steered


def inpaint_steered(params: Params, layout: Layout, dataset: str, name: str) -> None:
    """Run the cells of `dataset` and the steered row `name` that the store lacks, and assemble the stage's output.

    Raises:
        CheckpointError: a part of what steers is missing or damaged, or does not go with the others.
    """
    run_cells(Bench(params=params, layout=layout, enter=steered), dataset, name)


def open_steered(params: Params, layout: Layout, dataset: str, name: str) -> Sweep:
    """Load what the cells share."""
    return open_sweep(params, layout, dataset, steered(params, layout, dataset, name))


def any_row(params: Params, layout: Layout, dataset: str, name: str) -> Contestant:
    """A method as it is, or steered: whichever has this name."""
    return (steered if name in params.steered else plain)(params, layout, dataset, name)


def steered(params: Params, layout: Layout, dataset: str, name: str) -> Contestant:
    """A steered row, with the trained parts that steer it."""
    row, device = params.row(name), runtime.choose_device()
    prior, inputs = load_prior(params, layout, dataset, device)
    base, meter = params.method(name), TimedMeter(device)
    return Contestant(
        name=name,
        method=Steered(base=base, steering=row.steering, prior=prior, warm=row.warm, meter=meter),
        params={"base": row.base, "warm": row.warm, "steering": asdict(row.steering), row.base: asdict(base)},
        code=(module_of(row.base), "pipeline.methods.steered"),
        inputs=inputs,
        meter=meter,
    )
