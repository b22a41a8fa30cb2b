"""The stage train_ddpm: images of one dataset -> a diffusion model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from pipeline.data.images import to_float, to_uint8
from pipeline.data.shards import read_manifest, read_split
from pipeline.diffusion.denoiser import NetworkDenoiser
from pipeline.diffusion.sampling import sample
from pipeline.diffusion.unet import UNet
from pipeline.experiment.job import Job, Task, seed_everything
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import DDPMBlock, Params
from pipeline.experiment.pictures import write_sheet
from pipeline.noise import Noise, stream_seed
from pipeline.training.batches import ImageBatches
from pipeline.training.ddpm import DiffusionTraining
from pipeline.weights import load_weights, read_description, save_weights

VALIDATION_TIMES = 8


def train_ddpm(params: Params, layout: Layout, dataset: str) -> None:
    """Train the diffusion model of `dataset` and write it, its curve, its samples and its record."""
    block, out, manifest = params.ddpm, layout.ddpm(dataset), read_manifest(layout.data(dataset))
    start = Path(block.init.format(dataset=dataset)) if block.init else None
    task = Task(
        stage="train_ddpm",
        name=dataset,
        params={"seed": params.seed, "image_size": params.image_size, "ddpm": _plain(block)},
        inputs={
            "data": manifest["splits"]["train"]["digest"],
            "init": str(read_description(start)["sha256"]) if start else None,
        },
        code=("pipeline.training.ddpm", "pipeline.training.batches", "pipeline.diffusion.unet"),
    )
    seed = stream_seed(params.seed, "ddpm", dataset)
    seed_everything(seed)
    network = UNet(block.unet, params.image_size)
    if start:
        load_weights(start, network)
    training = DiffusionTraining(
        network,
        block.schedule.build(),
        target=block.target,
        flip=block.flip,
        vlb_weight=block.vlb_weight,
        params=block.trainer,
        seed=seed,
    )
    with Job(task, layout, out, steps=block.trainer.steps) as job:
        images = read_split(layout.data(dataset), "train", layout.cache).images
        job.fit(training, ImageBatches(images), block.trainer, seed)
        network.to(job.device).eval()
        metrics = validate(training, layout, dataset, job.device)
        draw(network, params, out / "samples.png", job.device)
        description = {"kind": "ddpm", "fingerprint": job.fingerprint, "image_size": params.image_size, **_plain(block)}
        save_weights(out, network, description)
        job.finish({**metrics, "parameters": float(sum(p.numel() for p in network.parameters()))}, ["samples.png"])


def _plain(block: DDPMBlock) -> dict[str, object]:
    """What decides the weights."""
    return {
        "schedule": asdict(block.schedule),
        "target": block.target,
        "flip": block.flip,
        "vlb_weight": block.vlb_weight,
        "unet": asdict(block.unet),
        "trainer": {k: v for k, v in asdict(block.trainer).items() if k not in ("log_every", "workers")},
    }


@torch.no_grad()
def validate(training: DiffusionTraining, layout: Layout, dataset: str, device: torch.device) -> dict[str, float]:
    """Mean loss on the validation images at evenly spaced times, with fixed noise."""
    x_0 = to_float(read_split(layout.data(dataset), "val", layout.cache).images).to(device)
    generator = torch.Generator().manual_seed(0)
    times = torch.linspace(1, training.schedule.T, VALIDATION_TIMES).round().long()
    totals: dict[str, list[float]] = {}
    for t in times:
        for batch in x_0.split(64):
            eps = torch.randn(batch.shape, generator=generator).to(device)
            _, parts = training.to(device).loss(batch, t.expand(len(batch)).to(device), eps)
            for name, value in parts.items():
                totals.setdefault(f"val/{name}", []).append(float(value) * len(batch))
    return {name: sum(values) / (len(x_0) * VALIDATION_TIMES) for name, values in totals.items()}


@torch.inference_mode()
def draw(network: UNet, params: Params, path: Path, device: torch.device) -> None:
    """Draw unconditional samples and write them as a contact sheet."""
    block, shape = params.ddpm, (3, params.image_size, params.image_size)
    denoiser = NetworkDenoiser(network, block.schedule.build(), shape, block.target)
    noise = Noise([stream_seed(params.seed, "pictures", k) for k in range(block.pictures)], device)
    write_sheet(path, to_uint8(sample(denoiser, noise, block.picture_steps).cpu()), columns=8)
