"""One cell of a sweep: every image of a (dataset, mask, method) sampled, counted and timed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.images import to_uint8
from pipeline.experiment import runtime
from pipeline.experiment.cells import Cell
from pipeline.experiment.completion import complete, image_seed
from pipeline.experiment.costs import Costs, attempt
from pipeline.experiment.masks import MaskSet
from pipeline.experiment.mishaps import CellError, Finite, NotFiniteError, in_batches
from pipeline.experiment.progress import Bar
from pipeline.experiment.sweep import Sweep, essence


@torch.no_grad()
def warm_up(sweep: Sweep) -> None:
    """Evaluate the network once, so that the first cell does not pay for allocations and algorithm choices."""

    def evaluate(rows: range) -> None:
        sweep.denoiser.denoise(torch.zeros((len(rows), *sweep.denoiser.shape), device=sweep.device), 1)

    most = min(sweep.params.sweep.batch, sweep.count * sweep.params.sweep.samples)
    with suppress(CellError):  # every cell will say that memory does not suffice
        in_batches(most, most, evaluate, _name(sweep))


def run_cell(sweep: Sweep, mask: MaskSet, name: str, bar: Bar) -> Cell:
    """Sample every image of a cell, and time it; where memory ends, go on in smaller batches.

    Raises:
        CellError: a value is not finite, or memory does not suffice for one image.
    """
    started, images, draws = runtime.now(), sweep.images.images[: sweep.count], sweep.params.sweep.samples
    jobs, costs = [(i, k) for i in range(len(images)) for k in range(draws)], Costs()
    samples = np.empty((len(images), draws, *images.shape[1:]), np.uint8)

    def sample(rows: range) -> None:
        batch = jobs[rows.start : rows.stop]
        for job, image in zip(batch, run_batch(sweep, mask, batch, bar, costs), strict=True):
            samples[job] = image

    sizes = in_batches(len(jobs), sweep.params.sweep.batch, sample, _name(sweep, mask))
    total = len(jobs)
    record = essence(sweep, mask) | {
        "kind": "cell",
        "fingerprint": name,
        "profile": sweep.layout.profile,
        "evaluations": costs.each(total),
        "measured": runtime.circumstances(sweep.device, started, costs.seconds)
        | {"seconds_per_image": costs.seconds / total, "batch_size": max(sizes), "batch_sizes": sizes}
        | ({"split": {part: spent / total for part, spent in costs.split.items()}} if sweep.contestant.meter else {}),
    }
    return Cell(record, samples, mask.known)


def run_batch(
    sweep: Sweep, mask: MaskSet, batch: Sequence[tuple[int, int]], bar: Bar, costs: Costs
) -> NDArray[np.uint8]:
    """Sample a batch of (image, sample), uint8 [B, S, S, 3]; costs and bar do not count a batch that fails.

    Raises:
        CellError: a value is not finite.
    """
    keys, rows = sweep.images.keys, [i for i, _ in batch]
    denoiser, meter = Finite(sweep.denoiser), sweep.contestant.meter
    try:
        with attempt(denoiser, meter, bar, len(batch), costs, sweep.device) as (counted, watch):
            x = complete(
                sweep.contestant.method,
                counted,
                sweep.images.images[rows],
                mask.known[rows],
                [image_seed(sweep.params.seed, sweep.dataset, keys[i], k) for i, k in batch],
                sweep.device,
                watch=watch,
            )
        if not x.isfinite().all():
            raise NotFiniteError("the completion of {} is not finite", x)
    except NotFiniteError as error:
        raise CellError(_refusal(sweep, mask, [keys[i] for i in rows], error)) from error
    return to_uint8(x.cpu()).numpy()


def _refusal(sweep: Sweep, mask: MaskSet, keys: Sequence[str], error: NotFiniteError) -> str:
    """The sentence for a cell some of whose values are not finite; a method may ask for several pictures an image."""
    each, rest = divmod(error.count, len(keys))
    found = [keys[error.rows[0] // each]] if rest == 0 else list(keys)
    image = f"image {found[0]}" if len(found) == 1 else f"one of the images {', '.join(found)}"
    return (
        f"{_name(sweep, mask)}: {str(error).format(image)}, so nothing of this cell is written; train the network "
        f"again ({sweep.layout.ddpm(sweep.dataset)}), or lower the step size of {sweep.contestant.name} in params.yaml."
    )


def _name(sweep: Sweep, mask: MaskSet | None = None) -> str:
    """What is sampled, for people."""
    where = f", mask {mask.name}" if mask else ""
    return f"{sweep.dataset}{where}, {sweep.contestant.name}, images of shape {sweep.denoiser.shape}"
