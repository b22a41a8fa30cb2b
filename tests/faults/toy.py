"""A pipeline so small that it can be killed often, and what of its results must not depend on that."""

import hashlib
import json

import numpy as np

from pipeline.experiment.profiles import apply

PROFILE = "smoke"

SETTINGS = {
    "image_size": 16,
    "datasets": {
        "faces": {
            "source": "procedural",
            "domain": "faces",
            "watch": "pipeline/data/faces.py",
            "train": 24,
            "val": 4,
            "test": 6,
        }
    },
    "trunk.images_per_domain": 8,
    "trunk.steps": 2,
    "vqgan.network": {"channels": [32], "layers": 1, "codes": 8, "code_dim": 4, "attention": False},
    "vqgan.trainer.steps": 20,
    "vqgan.trainer.checkpoint_every": 5,
    "circuit.model.states": 3,
    "circuit.model.doublings": 1,
    "transformer.trainer.steps": 10,
    "ddpm.unet": {"patch": 4, "channels": [32], "layers": 1, "attention": [], "head_dim": 8},
    "ddpm.trainer.steps": 40,
    "ddpm.trainer.checkpoint_every": 4,
    "ddpm.pictures": 2,
    "ddpm.picture_steps": 2,
    "methods.ddnm.steps": 60,
    "methods.repaint.steps": 20,
    "sweep": {
        "datasets": ["faces"],
        "methods": ["ddnm", "repaint", "copaint"],
        "steered": ["tiramisu"],
        "masks": ["left", "expand1", "wide", "v_strip"],
        "images": 4,
        "samples": 2,
        "batch": 4,
    },
    "report.bootstrap": 50,
}


SMALLER = SETTINGS | {
    "methods.ddnm.steps": 12,
    "ddpm.trainer.steps": 16,
    "report.reference": "ddnm",
    "sweep": SETTINGS["sweep"] | {"methods": ["ddnm"], "steered": [], "masks": ["left", "expand1", "wide"]},
}
"""One method, and nothing but what its scores need."""

STAGES = {
    "prepare": ("--dataset", "faces"),
    "masks": (),
    "train_trunk": (),
    "resolve_lpips": (),
    "train_ddpm": ("--dataset", "faces"),
    "inpaint": ("--dataset", "faces", "--method", "ddnm"),
    "score": ("--dataset", "faces"),
}
"""The stages of the small world in their order, and their arguments."""

OUTS = {
    "prepare": "data/faces",
    "masks": "masks",
    "train_trunk": "trunk",
    "train_ddpm": "ddpm/faces",
    "inpaint": "inpaint/faces/ddnm",
    "score": "scores/faces",
}
"""What DVC deletes before it starts a stage again."""


def configure(root, settings=SETTINGS):
    """Write params.yaml of the small pipeline."""
    apply(root, PROFILE, settings, force=True)


def settled(root):
    """Everything below `root` that must not depend on interruptions, by file: records, weights, pixels, scores."""
    runs, found = root / "runs" / PROFILE, {}
    for path in sorted(path for path in runs.rglob("*") if path.is_file()):
        name, read = str(path.relative_to(runs)), READERS.get(path.name) or READERS.get(path.suffix)
        if read and "/." not in name:  # else a draft that a killed process left
            found[name] = read(path)
    return found


def without_measurements(record):
    return {key: value for key, value in record.items() if key != "measured"}


def digest(content):
    return hashlib.sha256(content).hexdigest()


def arrays(path):
    """Digests of the arrays of an .npz but the record of a cell, which cells.json holds as well."""
    with np.load(path) as content:
        return {name: digest(content[name].tobytes()) for name in content.files if name != "record"}


READERS = {
    "record.json": lambda path: without_measurements(json.loads(path.read_text())),
    "cells.json": lambda path: [without_measurements(cell) for cell in json.loads(path.read_text())["cells"]],
    "curve.jsonl": lambda path: [
        (row["step"], row["metrics"]) for row in map(json.loads, path.read_text().splitlines())
    ],
    ".npz": arrays,
    **dict.fromkeys(
        ("model.json", "calibration.json", "scores.csv", ".safetensors", ".tar", ".png"),
        lambda path: digest(path.read_bytes()),
    ),
}
