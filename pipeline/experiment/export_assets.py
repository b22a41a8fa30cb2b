"""Putting trained weights into assets/, small, with where they come from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from pipeline.codec.vqgan import VQGAN
from pipeline.diffusion.unet import UNet
from pipeline.errors import InputError
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import Params
from pipeline.experiment.record import read_json, write_json
from pipeline.weights import load_weights, save_weights

LIMIT = 20_000_000
"""Bytes that weights in the repository may take in all."""

BITS: dict[str, Literal[16, 8]] = {"vqgan": 8, "ddpm": 16}
"""How finely each kind is stored: rounding costs a VQ-GAN less than a diffusion model."""


def export_assets(params: Params, layout: Layout) -> None:
    """Copy every model of the profile to assets/embedded in float16, and write assets/index.json.

    Each model goes with its curve and record.

    Raises:
        InputError: all weights together are larger than `LIMIT`.
    """
    assets = layout.root / "assets"
    index: dict[str, Any] = {"schema": 1, "profile": params.profile, "models": {}}
    for dataset in params.sweep.datasets:
        for kind, source in (("vqgan", layout.vqgan(dataset)), ("ddpm", layout.ddpm(dataset))):
            target = assets / "embedded" / kind / dataset
            network = VQGAN(params.vqgan.network) if kind == "vqgan" else UNet(params.ddpm.unet, params.image_size)
            description = load_weights(source, network)
            sha256 = save_weights(target, network, {**description, "made_from": description["sha256"]}, bits=BITS[kind])
            for name in ("curve.jsonl", "record.json"):
                shutil.copyfile(source / name, target / name)
            index["models"][f"{kind}/{dataset}"] = entry(
                kind, dataset, sha256, target, read_json(source / "record.json")
            )
    size = sum(path.stat().st_size for path in assets.rglob("*.safetensors"))
    if size > LIMIT:
        raise InputError(
            f"{assets}: the weights take {size:,} bytes, but at most {LIMIT:,} may be shipped; train smaller networks."
        )
    write_json(assets / "index.json", index)


def entry(kind: str, dataset: str, sha256: str, target: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Where a model comes from."""
    return {
        "sha256": sha256,
        "bytes": (target / "model.safetensors").stat().st_size,
        "command": f"make repro PROFILE={record['profile']}",
        "stage": f"{record['stage']}@{dataset}",
        "fingerprint": record["fingerprint"],
        "metrics": record["metrics"],
        "seconds": record["measured"]["seconds"],
        "git_commit": record["measured"]["git_commit"],
        "versions": record["measured"]["versions"],
    }
