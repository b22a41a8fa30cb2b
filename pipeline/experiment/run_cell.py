"""One cell of a sweep: every image of a (dataset, mask, method) sampled, counted and timed."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.data.images import to_uint8
from pipeline.diffusion.denoiser import Counted
from pipeline.experiment import runtime
from pipeline.experiment.cells import Cell
from pipeline.experiment.completion import complete, image_seed
from pipeline.experiment.masks import MaskSet
from pipeline.experiment.progress import Bar
from pipeline.experiment.sweep import Sweep, essence


@torch.no_grad()
def warm_up(sweep: Sweep) -> None:
    """Evaluate the network once, so that the first cell does not pay for allocations and algorithm choices."""
    shape = (min(sweep.params.sweep.batch, sweep.count * sweep.params.sweep.samples), *sweep.denoiser.shape)
    sweep.denoiser.denoise(torch.zeros(shape, device=sweep.device), 1)


def run_cell(sweep: Sweep, mask: MaskSet, name: str, bar: Bar) -> Cell:
    """Sample every image of a cell, and time it."""
    params, contestant, started = sweep.params, sweep.contestant, runtime.now()
    images = sweep.images.images[: sweep.count]
    jobs = [(i, k) for i in range(len(images)) for k in range(params.sweep.samples)]
    samples = np.empty((len(images), params.sweep.samples, *images.shape[1:]), np.uint8)
    counted, watch = Counted(sweep.denoiser), runtime.Stopwatch(sweep.device)
    meter = contestant.meter
    if meter:
        meter.clear()
    for start in range(0, len(jobs), params.sweep.batch):
        batch = jobs[start : start + params.sweep.batch]
        rows = [i for i, _ in batch]
        seeds = [image_seed(params.seed, sweep.dataset, sweep.images.keys[i], k) for i, k in batch]
        with watch.lap():
            x = complete(
                contestant.method,
                counted,
                images[rows],
                mask.known[rows],
                seeds,
                sweep.device,
                watch=lambda t, x_0: bar.advance(),
            )
        for (i, k), image in zip(batch, to_uint8(x.cpu()), strict=True):
            samples[i, k] = image.numpy()
    total = len(jobs)
    record = essence(sweep, mask) | {
        "kind": "cell",
        "fingerprint": name,
        "profile": sweep.layout.profile,
        "evaluations": {
            "forwards": counted.forwards / total,
            "backwards": counted.backwards / total,
            "circuit": meter.counts["circuit"] / total if meter else 0.0,
            "codec": (meter.counts["encode"] + meter.counts["decode"]) / total if meter else 0.0,
        },
        "measured": runtime.circumstances(sweep.device, started, watch.seconds)
        | {"seconds_per_image": watch.seconds / total, "batch_size": min(params.sweep.batch, total)}
        | ({"split": {part: seconds / total for part, seconds in meter.seconds.items()}} if meter else {}),
    }
    return Cell(record, samples, mask.known)
