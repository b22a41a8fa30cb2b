"""Cells of a tiny world, for the tests of the engine; workers import what they do with them by name."""

import copy
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.store import save_circuit
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.codec.vqgan import VQGAN
from pipeline.diffusion.unet import UNet
from pipeline.experiment.cells import unpack
from pipeline.experiment.inpaint import Bench
from pipeline.experiment.inpaint_steered import any_row
from pipeline.experiment.layout import Layout
from pipeline.experiment.masks import write_masks
from pipeline.experiment.params import check_params, read_yaml
from pipeline.experiment.prepare import prepare
from pipeline.experiment.run_sweep import Part, survey
from pipeline.steering.calibration import CLASSES, NAMES
from pipeline.weights import save_weights

BASE = read_yaml(Path(__file__).parents[2] / "configs" / "base.yaml")


@dataclass
class KilledOnce:
    """A bench whose process is killed in the middle of one cell, the first time."""

    bench: Bench
    victim: str
    marker: Path

    def __call__(self, unit):
        fatal = str(unit) == self.victim and not self.marker.exists()
        self.bench(unit, FatalBar(self.marker) if fatal else None)


@dataclass
class FatalBar:
    """A bar that kills its process when it is told of a move for the third time."""

    marker: Path
    told: int = 0

    def advance(self, n=1):
        self.told += 1
        if self.told == 3:
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def say(self, note):
        pass


def tiny_world(root):
    """Parameters, and a root with all that cells are made from; networks have random weights."""
    values = copy.deepcopy(BASE)
    values |= {"profile": "tiny", "image_size": 16, "datasets": {"faces": BASE["datasets"]["faces"]}}
    values["datasets"]["faces"] |= {"train": 2, "val": 2, "test": 4}
    values["vqgan"]["network"] = {"channels": [32], "layers": 1, "codes": 8, "code_dim": 4, "attention": False}
    values["ddpm"]["unet"] |= {"patch": 4, "channels": [32], "layers": 1, "attention": [], "head_dim": 8}
    values["methods"]["ddnm"]["steps"] = 5
    values["methods"]["copaint"] |= {"steps": 5, "levels": 5}
    values["sweep"] |= {"datasets": ["faces"], "methods": ["ddnm", "copaint"], "steered": ["tiramisu"]}
    values["sweep"] |= {"masks": ["left", "wide"], "images": 3, "samples": 2, "batch": 4}
    params, layout = check_params(values), Layout(root, "tiny")
    prepare(params, layout, "faces")
    write_masks(params, layout)
    torch.manual_seed(0)
    save_weights(layout.ddpm("faces"), UNet(params.ddpm.unet, 16), {})
    save_weights(layout.vqgan("faces"), VQGAN(params.vqgan.network), {})
    circuit = Circuit(quadtree(16), states=2, vocabulary=Vocabulary.full(8))
    circuit.randomize(torch.Generator().manual_seed(0))
    save_circuit(layout.circuit("faces"), circuit, {})
    calibration = {"times": [500, 1000], "levels": [dict.fromkeys(NAMES, [0.5] * CLASSES)] * 2}
    layout.steering("faces").mkdir(parents=True)
    (layout.steering("faces") / "calibration.json").write_text(json.dumps(calibration))
    return params, layout


def bench_of(params, layout):
    return Bench(params=params, layout=layout, enter=any_row)


def units_of(bench):
    return list(survey(bench, Part()))


def settled(layout):
    """What must not depend on where cells run: records without their measurements, and pixels."""
    cells = [unpack(path) for path in sorted(layout.cells.glob("*.npz"))]
    assert cells
    return [
        ({key: value for key, value in cell.record.items() if key != "measured"}, cell.samples, cell.known)
        for cell in cells
    ]


def same(first, second):
    return len(first) == len(second) and all(
        a[0] == b[0] and np.array_equal(a[1], b[1]) and np.array_equal(a[2], b[2])
        for a, b in zip(first, second, strict=True)
    )


def attempts(layout):
    """How often each cell was taken up, by its log."""
    return {
        str(path.relative_to(layout.logs).with_suffix("")): path.read_text().count(": process ")
        for path in layout.logs.rglob("*.log")
    }
