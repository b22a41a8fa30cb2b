"""The dry run: what every method and steered row of params.yaml would take, before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.diffusion.denoiser import NetworkDenoiser
from pipeline.diffusion.unet import UNet
from pipeline.experiment import runtime
from pipeline.experiment.layout import Layout
from pipeline.experiment.models import as_denoiser, load_denoiser
from pipeline.experiment.params import Params
from pipeline.experiment.progress import clock

REPEATS = 3
"""Evaluations that are timed; the quickest counts."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast the network is.

    Attributes:
        forward: seconds per image of an evaluation.
        backward: seconds per image of a gradient through it, on top of the evaluation.
        batch: images at a time.
        where: the device.
        network: whose time it is, in words.
    """

    forward: float
    backward: float
    batch: int
    where: str
    network: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one method takes, or a steered row, of which that is its base's, a warm start not counted.

    Attributes:
        method: its name.
        swept: whether the sweep runs it.
        moves: moves of its walk, down and up.
        forwards: network evaluations per image; rejected trials of a line search come on top.
        backwards: gradients through the network per image.
        completions: images of the whole sweep.
        seconds: of the whole sweep, spent in the network.
    """

    method: str
    swept: bool
    moves: int
    forwards: int
    backwards: int
    completions: int
    seconds: float


def plan(params: Params, layout: Layout) -> str:
    """Time the network, and lay out what every method would take."""
    rate = measure(params, layout)
    return as_text(params, rate, rows(params, rate))


def rows(params: Params, rate: Rate) -> list[Row]:
    """A row for every method of params.yaml, in its order, and then for every steered row."""
    found, count = [], completions(params)
    for name in [*params.methods, *params.steered]:
        method = params.method(name)
        forwards, backwards = method.nfe(), method.nbe()
        found.append(
            Row(
                method=name,
                swept=name in params.rows,
                moves=len(method.moves()),
                forwards=forwards,
                backwards=backwards,
                completions=count,
                seconds=count * (forwards * rate.forward + backwards * rate.backward),
            )
        )
    return found


def completions(params: Params) -> int:
    """Images that one method makes in the whole sweep."""
    sweep = params.sweep
    return len(sweep.datasets) * len(sweep.masks) * sweep.images * sweep.samples


def measure(params: Params, layout: Layout) -> Rate:
    """Time the diffusion model on the sweep's batch, with and without a gradient.

    Raises:
        CheckpointError: there is a trained model, but it is damaged or of another shape than params.yaml says.
    """
    device = runtime.choose_device()
    denoiser, network = find_denoiser(params, layout, device)
    batch = min(params.sweep.batch, params.sweep.images * params.sweep.samples)
    x_t = torch.zeros((batch, *denoiser.shape), device=device)
    forward = _quickest(denoiser, x_t, device)
    both = _quickest(denoiser, x_t.requires_grad_(), device)
    return Rate(
        forward=forward / batch,
        backward=max(both - forward, 0.0) / batch,
        batch=batch,
        where=str(device),
        network=network,
    )


def find_denoiser(params: Params, layout: Layout, device: torch.device) -> tuple[NetworkDenoiser, str]:
    """The first trained model among those of the sweep, or a new one of its shape, and which it is in words."""
    block, side, precision = params.ddpm, params.image_size, params.sweep.precision
    for dataset in params.sweep.datasets:
        folder = layout.ddpm(dataset)
        if (folder / "model.json").exists():
            where = folder.relative_to(layout.root)
            return load_denoiser(folder, block, side, device, precision)[0], f"the trained model in {where}"
    denoiser = as_denoiser(UNet(block.unet, side), block, side, device, precision)
    where = layout.ddpm("").relative_to(layout.root)
    return denoiser, f"a freshly initialised network of the same shape, because {where} holds no trained model yet"


def _quickest(denoiser: NetworkDenoiser, x_t: torch.Tensor, device: torch.device) -> float:
    """Seconds of an evaluation at `x_t` [B, C, H, W] and, if it asks for gradients, of one; after one to warm up."""
    watch = runtime.Stopwatch(device)
    for _ in range(REPEATS + 1):
        with watch.lap(), torch.set_grad_enabled(x_t.requires_grad):
            prediction = denoiser.denoise(x_t, denoiser.schedule.T)
            if x_t.requires_grad:
                torch.autograd.grad(prediction.x_0.sum(), x_t)
    return min(watch.laps[1:])


def as_text(params: Params, rate: Rate, found: Sequence[Row]) -> str:
    """The plan for people: what was asked for, how fast the network is, and a line for every method."""
    sweep, swept = params.sweep, [row for row in found if row.swept]
    lines = [
        f"Profile {params.profile}: {len(sweep.datasets)} dataset(s) x {len(sweep.masks)} mask(s) x {sweep.images} "
        f"image(s) x {sweep.samples} sample(s) = {completions(params)} completions per method.",
        f"The network on {rate.where}, {rate.batch} image(s) at a time: {_ms(rate.forward)} forward and "
        f"{_ms(rate.backward)} backward per image,",
        f"measured just now on {rate.network}.",
        "",
        *_table(found),
        "",
        f"The sweep runs those with a *: {sum(row.completions * row.forwards for row in swept)} forwards and "
        f"{sum(row.completions * row.backwards for row in swept)} backwards, "
        f"about {clock(sum(row.seconds for row in swept))}.",
        "Not in it: rejected trials of line searches (copaint), what steering adds (the circuit) and a warm start "
        "spares, work outside the network, other stages.",
        "Cells that are finished are not run again.",
    ]
    return "\n".join(lines) + "\n"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _table(found: Sequence[Row]) -> list[str]:
    """Lines with the columns of the plan, numbers to the right."""
    head = ["method", "moves", "forwards", "backwards", "all forwards", "all backwards", "expected"]
    cells = [head]
    for row in found:
        every = [
            row.moves,
            row.forwards,
            row.backwards,
            row.completions * row.forwards,
            row.completions * row.backwards,
        ]
        cells.append([f"{row.method}{' *' if row.swept else ''}", *map(str, every), clock(row.seconds)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
