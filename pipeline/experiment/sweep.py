"""What a sweep's cells share, and what decides their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch

from pipeline.data.images import ImageSet
from pipeline.data.shards import read_manifest, read_split
from pipeline.diffusion.denoiser import Denoiser
from pipeline.errors import ConfigError
from pipeline.experiment import provenance, runtime
from pipeline.experiment.layout import Layout
from pipeline.experiment.masks import MaskSet
from pipeline.experiment.models import load_denoiser
from pipeline.experiment.params import Params
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


def open_sweep(params: Params, layout: Layout, dataset: str, contestant: Contestant) -> Sweep:
    """Load what the cells share."""
    device, split = runtime.choose_device(), params.sweep.split
    described = read_manifest(layout.data(dataset))["splits"][split]
    there = described["count"]
    if params.sweep.images > there:
        raise ConfigError(
            f"sweep.images: {params.sweep.images} images per cell are asked for, but {dataset} has {there} in {split}."
        )
    denoiser, description = load_denoiser(
        layout.ddpm(dataset), params.ddpm, params.image_size, device, params.sweep.precision
    )
    return Sweep(
        params=params,
        layout=layout,
        dataset=dataset,
        contestant=contestant,
        images=read_split(layout.data(dataset), split, layout.cache),
        data_digest=described["digest"],
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
