"""The stage train_trunk: painted pictures of all embedded domains -> the pipeline's own perceptual trunk."""

from __future__ import annotations

from dataclasses import asdict

from pipeline.codec.trunk import save_trunk
from pipeline.experiment.job import Job, Task
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import Params
from pipeline.training import trunk

LARGEST = 64
"""Side of the largest pictures the trunk is trained on, in pixels: larger ones take long to paint."""


def train_trunk(params: Params, layout: Layout) -> None:
    """Train the trunk and write it, its curve, its accuracies and its record."""
    task = Task(
        stage="train_trunk",
        name="all",
        params={"seed": params.seed, "image_size": params.image_size, "trunk": asdict(params.trunk)},
        inputs={},
        code=("pipeline.training.trunk",),
    )
    with Job(task, layout, layout.trunk, steps=params.trunk.steps) as job:
        trained, accuracies = trunk.train_trunk(
            params.trunk,
            size=min(params.image_size, LARGEST),
            seed=params.seed,
            folder=job.folder,
            device=job.device,
            log=job.log,
            tick=job.tick,
        )
        save_trunk(layout.trunk, trained, accuracies)
        mean = sum(accuracies.values()) / len(accuracies)
        job.finish({"test/accuracy": mean, **{f"test/{name}": value for name, value in accuracies.items()}}, [])
