"""A small world: everything that the pipeline reads, made in seconds, nothing trained."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.store import save_circuit
from pipeline.circuit.structures import quadtree, ties
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.codec.trunk import Trunk, TrunkConfig, save_trunk
from pipeline.codec.vqgan import VQGAN
from pipeline.diffusion.unet import UNet
from pipeline.experiment.cells import Cell, pack
from pipeline.experiment.encode import encode
from pipeline.experiment.layout import Layout
from pipeline.experiment.lpips_trunk import resolve as resolve_lpips
from pipeline.experiment.masks import read_masks, write_masks
from pipeline.experiment.params import check_params
from pipeline.experiment.plain import parse_yaml
from pipeline.experiment.prepare import prepare
from pipeline.experiment.profiles import apply, resolve
from pipeline.experiment.record import write_bytes, write_json
from pipeline.experiment.tables import KEYS
from pipeline.steering.calibration import CLASSES, NAMES
from pipeline.weights import save_weights

ROOT = Path(__file__).parents[2]
CODES, IMAGES, SIZE = 8, 2, 16

SETTINGS = {
    "image_size": SIZE,
    "datasets": {
        "faces": {
            "source": "procedural",
            "domain": "faces",
            "watch": "pipeline/data/faces.py",
            "train": 3,
            "val": 2,
            "test": 2,
        }
    },
    "mask_files": {"mine": "mine"},
    "vqgan.network": {"channels": [32], "layers": 1, "codes": CODES, "code_dim": 4, "attention": False},
    "ddpm.unet": {"patch": 4, "channels": [32], "layers": 1, "attention": [], "head_dim": 8},
    "sweep": {
        "datasets": ["faces"],
        "images": IMAGES,
        "masks": ["left", "wide", "mine"],
        "methods": ["ddnm"],
        "steered": [],
    },
    "report.reference": "ddnm",
}


@cache
def settings():
    """The parameters of the world."""
    return check_params(parse_yaml(resolve(ROOT, "smoke", SETTINGS), "params.yaml"))


def make_world(root: Path):
    """Fill `root`; returns (params, layout)."""
    torch.manual_seed(0)
    shutil.copytree(ROOT / "configs", root / "configs")
    apply(root, "smoke", SETTINGS)
    params, layout = settings(), Layout(root, "smoke")
    own = np.zeros((SIZE, SIZE), bool)
    own[:5] = True
    (root / "mine").mkdir()
    for k in range(2):
        write_bytes(root / "mine" / f"{k}.png", png(own if k else ~own))
    prepare(params, layout, "faces")
    write_masks(params, layout)
    save_trunk(layout.trunk, Trunk(TrunkConfig(width=8, heads={"domain": 3})), {"domain": 0.5})
    resolve_lpips(None, False, layout.lpips)
    make_models(params, layout)
    encode(params, layout, "faces")
    make_results(params, layout)
    shutil.rmtree(root / "work")
    return params, layout


def png(known):
    """A mask as a PNG."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(known).save(buffer, "PNG")
    return buffer.getvalue()


def make_models(params, layout):
    """Networks, a circuit and a calibration, all random."""
    shape = {"fingerprint": "0" * 64, "image_size": SIZE}
    save_weights(layout.vqgan("faces"), VQGAN(params.vqgan.network), {"kind": "vqgan", **shape})
    save_weights(layout.ddpm("faces"), UNet(params.ddpm.unet, SIZE), {"kind": "ddpm", **shape})
    circuit = Circuit(quadtree(16), states=2, vocabulary=Vocabulary.full(CODES), ties=ties("blocks", 16))
    save_circuit(layout.circuit("faces"), circuit.randomize(torch.Generator().manual_seed(0)), {"fingerprint": "0"})
    level = {name: [0.5] * CLASSES for name in NAMES}
    write_json(layout.steering("faces") / "calibration.json", {"times": [100, 200], "levels": [level, level]})
    for folder, stage in (
        (layout.vqgan, "train_vqgan"),
        (layout.ddpm, "train_ddpm"),
        (layout.circuit, "train_circuit"),
    ):
        write_json(folder("faces") / "record.json", training_record(stage))
        line = {"step": 1, "seconds": 0.5, "metrics": {"train/loss": 1.0}}
        write_bytes(folder("faces") / "curve.jsonl", f"{json.dumps(line)}\n{json.dumps(line | {'step': 2})}\n".encode())
        write_bytes(folder("faces") / "samples.png", png(np.eye(SIZE, dtype=bool)))


def measured(**more):
    return {
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.5,
        "device": "cpu",
        "hardware": {"processor": "x", "cores": 2, "threads": 1, "memory_gib": 8.0, "gpu": None},
        "versions": {"python": "3.11", "torch": "2.15"},
        "git_commit": None,
        "execution": "local",
        **more,
    }


def training_record(stage):
    return {
        "schema": 1,
        "kind": "train",
        "stage": stage,
        "dataset": "faces",
        "fingerprint": "0" * 64,
        "profile": "smoke",
        "params": {"seed": 1},
        "inputs": {"data": "0" * 64},
        "metrics": {"test/psnr": 20.0},
        "artifacts": ["samples.png"],
        "measured": measured(),
    }


def make_results(params, layout):
    """Cells and scores, as the stages write them."""
    cells, rows = [], []
    for mask in params.sweep.masks:
        known = read_masks(layout.masks, mask, IMAGES).known
        record = cell_record(mask)
        cells.append(record)
        cell = Cell(record, np.full((IMAGES, 1, SIZE, SIZE, 3), 99, np.uint8), known)
        write_bytes(layout.inpaint("faces", "ddnm") / f"{mask}.npz", pack(cell))
        rows += [("faces", mask, "ddnm", image, 0, *["0.5"] * len(COLUMNS)) for image in record["image_ids"]]
    write_json(layout.inpaint("faces", "ddnm") / "cells.json", {"cells": cells})
    text = "\n".join(",".join(map(str, row)) for row in [(*KEYS, *COLUMNS), *rows])
    write_bytes(layout.scores("faces") / "scores.csv", f"{text}\n".encode())
    summaries = [
        {name: cell[name] for name in ("dataset", "mask", "method", "fingerprint", "evaluations")}
        | {"images": IMAGES, "samples": 1, "metrics": dict.fromkeys(COLUMNS, 0.5), "seconds_per_image": 0.1}
        for cell in cells
    ]
    lpips = {"column": "lpips_domain", "trunk_sha256": "0" * 64, "reason": "no network"}
    write_json(
        layout.scores("faces") / "score.json", {"schema": 1, "dataset": "faces", "lpips": lpips, "cells": summaries}
    )


COLUMNS = ("lpips_domain", "lpips_domain_unpasted", "psnr", "psnr_hidden", "ssim", "ssim_hidden")


def cell_record(mask):
    return {
        "schema": 1,
        "kind": "cell",
        "fingerprint": mask * 4,
        "profile": "smoke",
        "dataset": "faces",
        "mask": mask,
        "method": "ddnm",
        "params": {"steps": 20},
        "seed": 1,
        "image_size": SIZE,
        "image_ids": [f"faces-test-{k:06d}" for k in range(IMAGES)],
        "samples": 1,
        "inputs": {"data": "0" * 64, "masks": "0" * 64, "denoiser": "0" * 64, "code": "0" * 64},
        "evaluations": {"forwards": 20.0, "backwards": 0.0, "circuit": 0.0, "codec": 0.0},
        "measured": measured(seconds_per_image=0.1, batch_size=2),
    }
