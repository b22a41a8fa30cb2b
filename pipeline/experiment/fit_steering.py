"""The stage fit_steering: how far a dataset's diffusion model, codec and circuit can be trusted, on training images."""

from __future__ import annotations

import torch

from pipeline.data.images import to_float
from pipeline.data.shards import read_manifest, read_split
from pipeline.errors import ConfigError
from pipeline.experiment import runtime
from pipeline.experiment.guides import load_guides
from pipeline.experiment.job import Job, Task
from pipeline.experiment.layout import Layout
from pipeline.experiment.masks import mask_of
from pipeline.experiment.models import load_denoiser
from pipeline.experiment.params import Params
from pipeline.experiment.record import write_json
from pipeline.experiment.tokens import read_tokens
from pipeline.noise import Noise, stream_seed
from pipeline.steering.calibration import SHARES, Level
from pipeline.steering.fit import Examples, fit, times_of


def fit_steering(params: Params, layout: Layout, dataset: str) -> None:
    """Write `calibration.json`: variances and weights by time and class of token; and a record with a curve over time.

    Raises:
        ConfigError: more images are asked for than the training split has.
    """
    block, device, out = params.steering, runtime.choose_device(), layout.steering(dataset)
    there = read_manifest(layout.data(dataset))["splits"]["train"]
    if block.images > there["count"]:
        raise ConfigError(
            f"steering.images: {block.images} are asked for, but {dataset} has {there['count']} in train."
        )
    denoiser, ddpm = load_denoiser(layout.ddpm(dataset), params.ddpm, params.image_size, device)
    codec, circuit, inputs = load_guides(params, layout, dataset, device)
    images = read_split(layout.data(dataset), "train", layout.cache)
    examples = Examples(
        x_0=to_float(images.images[: block.images]).to(device),
        tokens=read_tokens(layout.tokens(dataset), "train").tokens[: block.images].to(device),
        known=[
            torch.from_numpy(mask_of(params, name, layout.root, block.images))[:, None].to(device)
            for name in block.masks
        ],
    )
    task = Task(
        stage="fit_steering",
        name=dataset,
        params={"seed": params.seed, "image_size": params.image_size, "steering": block.model_dump()},
        inputs=inputs | {"denoiser": ddpm["sha256"], "data": there["digest"]},
        code=("pipeline.steering.fit",),
    )
    times = times_of(denoiser.schedule.T, block.until, block.levels)
    seeds = [stream_seed(params.seed, "fit_steering", dataset, key) for key in images.keys[: block.images]]
    with Job(task, layout, out, steps=len(times)) as job:

        def tick(t: int, level: Level) -> None:
            job.tick(times.index(t) + 1)
            job.log(t, summary(level))

        found = fit(denoiser, codec, circuit, examples, Noise(seeds, device), times, tick=tick)
        write_json(out / "calibration.json", found.to_json())
        job.finish(summary(found.levels[-1]), ["calibration.json"])


def summary(level: Level) -> dict[str, float]:
    """A level in few numbers: means over the classes of tokens that are not wholly seen."""
    rest = slice(SHARES, None)
    return {
        "fit/estimate_rmse": float(level.diffusion_variance[rest].mean().sqrt()),
        "fit/picture_rmse": float(level.circuit_variance[rest].mean().sqrt()),
        "fit/circuit_weight": 1.0 - float(level.weight[rest].mean()),
    }
