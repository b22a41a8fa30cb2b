"""A root with painted pictures and random models of them that fit together: what commands need, without training."""

import shutil
from pathlib import Path

import pytest
import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.store import load_circuit, save_circuit
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.codec.vqgan import VQGAN
from pipeline.data.images import to_float
from pipeline.data.shards import read_split
from pipeline.diffusion.unet import UNet
from pipeline.experiment.codecs import load_codec
from pipeline.experiment.layout import Layout
from pipeline.experiment.models import load_denoiser
from pipeline.experiment.params import load_params
from pipeline.experiment.prepare import prepare
from pipeline.experiment.profiles import apply
from pipeline.experiment.record import write_json
from pipeline.noise import Noise
from pipeline.steering.fit import Examples, fit
from pipeline.weights import save_weights

ROOT, SIZE, CODES, TEST = Path(__file__).parents[2], 16, 8, 5
CPU = torch.device("cpu")

TOY = {
    "image_size": SIZE,
    "datasets": {
        "faces": {
            "source": "procedural",
            "domain": "faces",
            "watch": "pipeline/data/faces.py",
            "train": 4,
            "val": 2,
            "test": TEST,
        }
    },
    "vqgan.network": {"channels": [32], "layers": 1, "codes": CODES, "code_dim": 4, "attention": False},
    "ddpm.unet": {"patch": 4, "channels": [32], "layers": 1, "attention": [], "head_dim": 8},
    "sweep": {"datasets": ["faces"], "images": 2, "samples": 1, "batch": 4, "masks": ["left"]},
}


def make_toy(root):
    """Make it in an empty folder; returns params and layout."""
    shutil.copytree(ROOT / "configs", root / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        apply(root, "smoke", TOY)
        params, layout = load_params(), Layout(root, "smoke")
        prepare(params, layout, "faces")
    torch.manual_seed(0)
    vqgan = VQGAN(params.vqgan.network)
    with torch.no_grad():
        vqgan.codebook.normal_()
    save_weights(layout.vqgan("faces"), vqgan, {})
    save_weights(layout.ddpm("faces"), UNet(params.ddpm.unet, SIZE), {})
    circuit = Circuit(quadtree(16), states=3, vocabulary=Vocabulary.full(CODES))
    save_circuit(layout.circuit("faces"), circuit.randomize(torch.Generator().manual_seed(0)), {})
    calibrate(params, layout)
    return params, layout


def calibrate(params, layout):
    """Fit on the training images, as the stage would."""
    codec, _ = load_codec(layout.vqgan("faces"), params.vqgan, CPU)
    denoiser, _ = load_denoiser(layout.ddpm("faces"), params.ddpm, SIZE, CPU)
    circuit, _ = load_circuit(layout.circuit("faces"))
    x_0 = to_float(read_split(layout.data("faces"), "train", layout.cache).images)
    known = torch.arange(SIZE).expand(len(x_0), 1, SIZE, SIZE) < SIZE // 2
    with torch.no_grad():
        examples = Examples(x_0=x_0, tokens=codec.encode(x_0), known=[known])
        found = fit(denoiser, codec, circuit, examples, Noise(range(len(x_0))), (500, 1000))
    write_json(layout.steering("faces") / "calibration.json", found.to_json())
