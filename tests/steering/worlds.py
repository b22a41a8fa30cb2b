"""A codec without a network, circuits and calibrations small enough to be checked by hand."""

import dataclasses

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from circuit.worlds import enumerated, make
from pipeline.codec.codec import Codec
from pipeline.diffusion.denoiser import Prediction
from pipeline.diffusion.schedule import Schedule
from pipeline.noise import Noise
from pipeline.problem import Problem
from pipeline.steering.calibration import CLASSES, NAMES, Calibration, Level
from pipeline.steering.prior import TokenPrior
from pipeline.steering.steer import Guide

LINEAR = Schedule.linear()
SEEDS = [11, 12, 13, 14]
SIDE = 2
PIXELS = 4
"""Images are 4 x 4 pixels in 2 x 2 patches."""


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Patches(nn.Module):
    """Features are mean colours of patches, with a little of the whole picture; images are codes and a texture."""

    def __init__(self, codebook, side=SIDE, size=PIXELS):
        super().__init__()
        self.side, self.patch = side, size // side
        self.register_buffer("codebook", codebook)
        self.texture = 0.1 * draw(1, 3, size, size, seed=40)

    def encode(self, x):
        colours = F.avg_pool2d(x, self.patch)
        return colours + 0.2 * colours.mean((2, 3), keepdim=True)

    def decode(self, embeddings):
        wide = embeddings.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)
        return wide + self.texture.to(wide)


def codec(codes=4, side=SIDE, size=PIXELS):
    made = Codec(Patches(0.6 * draw(codes, 3, seed=41), side, size))
    made.side = side
    return made


def calibration(seed=0, levels=3):
    """Random numbers of the sizes that are met, far from equal between classes."""
    generator = torch.Generator().manual_seed(seed)

    def level():
        tables = {name: 0.02 + torch.rand(CLASSES, generator=generator) for name in NAMES}
        return Level(**{**tables, "weight": 0.9 * tables["weight"].clamp_max(1.0)})

    return Calibration(
        times=tuple(1000 * (k + 1) // levels for k in range(levels)), levels=tuple(level() for _ in range(levels))
    )


def flat(**values):
    """One level whose tables are the same number for every class."""
    numbers = {"code_variance": 0.1, "diffusion_variance": 0.2, "circuit_variance": 0.3, "weight": 0.5} | values
    tables = {name: torch.full((CLASSES,), float(number)) for name, number in numbers.items()}
    return Calibration(times=(1,), levels=(Level(**tables),))


def prior(name="2x2, quad-tree", trust=None):
    circuit = make(name)
    return TokenPrior(codec=codec(circuit.codes), circuit=circuit, calibration=trust or calibration())


def pictures(count=4):
    return (0.5 * draw(count, 3, PIXELS, PIXELS, seed=42)).clamp(-1, 1)


def masks():
    """Left; a strip that is not aligned with the patches; nothing; everything."""
    known = torch.zeros(4, 1, PIXELS, PIXELS, dtype=torch.bool)
    known[0, :, :, :2] = known[1, :, 1:3] = known[3] = True
    return known


def problem():
    return Problem.observe(pictures(), masks())


def noise(seeds=SEEDS):
    return Noise(seeds, dtype=torch.float64)


def estimate(count=4, t=800):
    """Estimates and the noisy images that they go with."""
    x_0, x_t = 0.8 * draw(count, 3, PIXELS, PIXELS, seed=43), draw(count, 3, PIXELS, PIXELS, seed=44)
    v = torch.sigmoid(draw(count, 3, PIXELS, PIXELS, seed=45))
    return Prediction(x_0=x_0, eps=LINEAR.eps(x_t, x_0, t), v=v), x_t


def rows(prediction, index):
    """Some images of a prediction."""
    return Prediction(**{f.name: getattr(prediction, f.name)[index] for f in dataclasses.fields(prediction)})


def guide(steering, trust=None, shown=None, seeds=SEEDS, name="2x2, quad-tree", meter=None):
    return Guide(steering, prior(name, trust), shown or problem(), LINEAR, noise(seeds), meter)


def flow_by_hand(name, log_w):
    """r_i(c) = sum_n p(state n of its latent | w) p(c | n), by enumeration, [N, V]."""
    world, circuit = enumerated(name), make(name)
    weighted = (world.joint * world.weights(np.exp(log_w.numpy()))).sum(1)
    out = []
    for token, home in enumerate(circuit.graph.homes):
        p = np.array([weighted[world.states[:, home] == n].sum() for n in range(circuit.states)]) / weighted.sum()
        out.append(
            circuit.emissions[circuit.table[token]][circuit.compact].numpy() * circuit.share.numpy()[:, None] @ p
        )
    return np.stack(out)


def squares(made, x):
    """Squared distances of the features to the codes, one by one."""
    features, codes = made.vqgan.encode(x), made.vqgan.codebook.detach()
    return torch.stack([(features - code[:, None, None]).square().sum(1) for code in codes], -1).flatten(1, 2)
