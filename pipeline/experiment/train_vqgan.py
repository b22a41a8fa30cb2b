"""The stage train_vqgan: images of one dataset -> a VQ-GAN."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codec.codec import Codec
from pipeline.codec.trunk import load_trunk, perceptual_distance
from pipeline.codec.vqgan import VQGAN, usage
from pipeline.data.images import to_float, to_uint8
from pipeline.data.shards import read_manifest, read_split
from pipeline.experiment.job import Job, Task, seed_everything
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import Params, VQGANBlock
from pipeline.experiment.pictures import write_sheet
from pipeline.experiment.provenance import file_digest
from pipeline.noise import stream_seed
from pipeline.training.batches import ImageBatches
from pipeline.training.vqgan import Perception, VQGANTraining
from pipeline.weights import load_weights, read_description, save_weights

SHOWN = 16


def train_vqgan(params: Params, layout: Layout, dataset: str) -> None:
    """Train the VQ-GAN of `dataset` and write it, its curve, reconstructions and its record."""
    block, out, manifest = params.vqgan, layout.vqgan(dataset), read_manifest(layout.data(dataset))
    start = Path(block.init.format(dataset=dataset)) if block.init else None
    task = Task(
        stage="train_vqgan",
        name=dataset,
        params={"seed": params.seed, "image_size": params.image_size, "vqgan": _plain(block)},
        inputs={
            "data": manifest["splits"]["train"]["digest"],
            "trunk": file_digest(layout.trunk / "trunk.safetensors"),
            "init": str(read_description(start)["sha256"]) if start else None,
        },
        code=("pipeline.training.vqgan", "pipeline.training.batches", "pipeline.codec.trunk"),
    )
    seed = stream_seed(params.seed, "vqgan", dataset)
    seed_everything(seed)
    vqgan = VQGAN(block.network)
    if start:
        load_weights(start, vqgan)
    with Job(task, layout, out, steps=block.trainer.steps) as job:
        trunk = load_trunk(layout.trunk).to(job.device).requires_grad_(False)
        training = VQGANTraining(
            vqgan,
            lambda x, y: perceptual_distance(trunk, x, y),
            perceptual_weight=block.perceptual_weight,
            adversarial_weight=block.adversarial_weight,
            adversarial_start=block.adversarial_start,
            revive_every=block.revive_every,
            flip=block.flip,
            params=block.trainer,
            seed=seed,
        )
        images = read_split(layout.data(dataset), "train", layout.cache).images
        job.fit(training, ImageBatches(images), block.trainer, seed)
        codec = Codec(vqgan.to(job.device).eval())
        test = read_split(layout.data(dataset), "test", layout.cache).images
        metrics = judge(codec, test, lambda x, y: perceptual_distance(trunk, x, y), job.device)
        shown = test[:SHOWN]
        made = to_uint8(codec.reconstruct(to_float(shown).to(job.device)).cpu()).numpy()
        write_sheet(out / "reconstructions.png", paired(shown, made), columns=8)
        save_weights(
            out,
            vqgan,
            {"kind": "vqgan", "fingerprint": job.fingerprint, "image_size": params.image_size, **_plain(block)},
        )
        job.finish(
            {**metrics, "parameters": float(sum(p.numel() for p in vqgan.parameters()))}, ["reconstructions.png"]
        )


def _plain(block: VQGANBlock) -> dict[str, object]:
    """What decides the weights."""
    values = {name: value for name, value in block.model_dump().items() if name != "init"}
    return values | {
        "network": asdict(block.network),
        "trainer": {k: v for k, v in asdict(block.trainer).items() if k not in ("log_every", "workers")},
    }


def paired(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Interleave images [N, S, S, 3] and their reconstructions in rows of eight, images above."""
    rows = [block for k in range(0, len(first), 8) for block in (first[k : k + 8], second[k : k + 8])]
    return np.concatenate(rows)


@torch.no_grad()
def judge(codec: Codec, images: NDArray[np.uint8], distance: Perception, device: torch.device) -> dict[str, float]:
    """Quality of reconstructions of test images: PSNR in dB, perceptual distance, use of the codebook."""
    psnr: list[Tensor] = []
    perceptual: list[Tensor] = []
    tokens: list[Tensor] = []
    for batch in to_float(images).split(64):
        x = batch.to(device)
        z = codec.encode(x)
        made = codec.decode(z)
        psnr.append(10.0 * torch.log10(4.0 / (x - made).square().flatten(1).mean(1)))
        perceptual.append(distance(made, x))
        tokens.append(z)
    share, perplexity = usage(torch.cat(tokens).cpu(), codec.codes)
    return {
        "test/psnr": float(torch.cat(psnr).mean()),
        "test/psnr_worst": float(torch.cat(psnr).min()),
        "test/perceptual": float(torch.cat(perceptual).mean()),
        "test/usage": share,
        "test/perplexity": perplexity,
    }
