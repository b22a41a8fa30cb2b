"""The stage inpaint: one (dataset, method), all masks; models are loaded once, finished cells are not run again."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from pipeline.data.images import ImageSet, to_uint8
from pipeline.data.shards import read_manifest, read_split
from pipeline.diffusion.denoiser import Counted, Denoiser
from pipeline.errors import ConfigError
from pipeline.experiment import provenance, runtime
from pipeline.experiment.cells import Cell, CellStore
from pipeline.experiment.completion import complete, image_seed
from pipeline.experiment.layout import Layout
from pipeline.experiment.masks import MaskSet, read_masks
from pipeline.experiment.mirror import show
from pipeline.experiment.models import load_denoiser
from pipeline.experiment.params import Params
from pipeline.experiment.progress import Bar, progress
from pipeline.experiment.record import write_bytes, write_json
from pipeline.methods import Method

SCHEMA = 1

SHELL = ("pipeline.experiment.completion", "pipeline.diffusion.unet", "pipeline.diffusion.precision")
"""Modules whose sources, and whatever they import, decide every cell's result."""


class Meter(Protocol):
    """What a method asks for beside its network."""

    counts: Counter[str]

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each part of the work."""
        ...

    def clear(self) -> None:
        """Go back to 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """What a row of the comparison runs, and what its record says of it.

    Attributes:
        name: of the row.
        method: what is run.
        params: its hyperparameters, as plain values.
        code: modules whose sources decide its results, beside those of the shell.
        inputs: digests of what it reads, beside data, masks and denoiser.
        meter: what it counts beside network evaluations, if it does.
    """

    name: str
    method: Method
    params: Mapping[str, Any]
    code: tuple[str, ...]
    inputs: Mapping[str, str] = field(default_factory=dict)
    meter: Meter | None = None


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What all cells of one (dataset, row) share."""

    params: Params
    layout: Layout
    dataset: str
    contestant: Contestant
    images: ImageSet
    data_digest: str
    denoiser: Denoiser
    denoiser_digest: str
    device: torch.device

    @property
    def count(self) -> int:
        """Images per cell."""
        return self.params.sweep.images


def inpaint(params: Params, layout: Layout, dataset: str, method_name: str) -> None:
    """Run the cells of `dataset` and `method_name` that the store lacks, and assemble the stage's output from it."""
    runtime.make_deterministic()
    method = params.method(method_name)
    contestant = Contestant(name=method_name, method=method, params=asdict(method), code=(module_of(method_name),))
    run_cells(open_sweep(params, layout, dataset, contestant))


def run_cells(sweep: Sweep) -> None:
    """Run the cells that the store lacks, and assemble the stage's output from it."""
    params, layout, name = sweep.params, sweep.layout, sweep.contestant.name
    store = CellStore(layout.cells)
    masks = {mask: read_masks(layout.masks, mask, sweep.count) for mask in params.sweep.masks}
    prints = {mask: fingerprint(sweep, known) for mask, known in masks.items()}
    batches = math.ceil(sweep.count * params.sweep.samples / params.sweep.batch)
    moves = sweep.contestant.method.moves()
    per_cell = batches * sum(j < i for i, j in moves)  # the watch is told of every denoising move
    missing = [mask for mask in masks if store.find(prints[mask]) is None]
    if missing:
        warm_up(sweep)
    with progress(f"inpaint {sweep.dataset} {name}", per_cell * len(masks), "moves") as bar:
        bar.reach(per_cell * (len(masks) - len(missing)))
        for mask in missing:
            bar.say(mask)
            store.put(run_cell(sweep, masks[mask], prints[mask], bar))
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


def open_sweep(params: Params, layout: Layout, dataset: str, contestant: Contestant) -> Sweep:
    """Load what the cells share."""
    device, manifest = runtime.choose_device(), read_manifest(layout.data(dataset))
    there = manifest["splits"]["test"]["count"]
    if params.sweep.images > there:
        raise ConfigError(
            f"sweep.images: {params.sweep.images} images per cell are asked for, but {dataset} has {there} in test."
        )
    denoiser, description = load_denoiser(
        layout.ddpm(dataset), params.ddpm, params.image_size, device, params.sweep.precision
    )
    return Sweep(
        params=params,
        layout=layout,
        dataset=dataset,
        contestant=contestant,
        images=read_split(layout.data(dataset), "test", layout.cache),
        data_digest=manifest["splits"]["test"]["digest"],
        denoiser=denoiser,
        denoiser_digest=str(description["sha256"]),
        device=device,
    )


def essence(sweep: Sweep, mask: MaskSet) -> dict[str, Any]:
    """Everything that decides a cell's result."""
    params = sweep.params
    return {
        "schema": SCHEMA,
        "dataset": sweep.dataset,
        "mask": mask.name,
        "method": sweep.contestant.name,
        "params": dict(sweep.contestant.params),
        "seed": params.seed,
        "image_size": params.image_size,
        "image_ids": list(sweep.images.keys[: sweep.count]),
        "samples": params.sweep.samples,
        "precision": params.sweep.precision,
        "prior": {"schedule": asdict(params.ddpm.schedule), "target": params.ddpm.target},
        "inputs": {
            "data": sweep.data_digest,
            "masks": mask.digest,
            "denoiser": sweep.denoiser_digest,
            "code": provenance.code_digest(*sweep.contestant.code, *SHELL),
            **sweep.contestant.inputs,
        },
        "versions": runtime.major_versions(),
    }


def module_of(method_name: str) -> str:
    """The module of a method."""
    return f"pipeline.methods.{method_name}"


def fingerprint(sweep: Sweep, mask: MaskSet) -> str:
    """Name of a cell in the store."""
    return provenance.digest(essence(sweep, mask))


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
