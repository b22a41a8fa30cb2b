"""The stage strip: what network and circuit said of x_0 on the way, for a steered row and its base from the same seeds.

After Figure 1 of Liu et al. 2024 (arXiv 2401.03349). In the base's own walk, the circuit's picture and the mixture are
computed aside and not used.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.data.images import to_float
from pipeline.diffusion.denoiser import Prediction
from pipeline.experiment import runtime
from pipeline.experiment.completion import image_seed
from pipeline.experiment.inpaint_steered import open_steered
from pipeline.experiment.layout import Layout
from pipeline.experiment.masks import read_masks
from pipeline.experiment.params import Params
from pipeline.experiment.progress import progress
from pipeline.experiment.record import write_json
from pipeline.experiment.strip_pictures import draw
from pipeline.experiment.sweep import Sweep
from pipeline.methods.steered import Steered
from pipeline.noise import Noise
from pipeline.problem import Problem
from pipeline.steering.fusion import Normal
from pipeline.steering.meter import Meter
from pipeline.steering.steer import Guide
from pipeline.watch import ignore

log = logging.getLogger(__name__)

IMAGES = 2
"""Test images shown at most."""
MASKS = slice(0, 3, 2)
"""Masks of the sweep that are shown: the first and the third."""
TIMES = 5
"""Times shown, evenly spread over those that are steered."""
SIDES = ("network", "circuit", "mixture")


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One run of a method.

    Attributes:
        views: by time, what network, circuit and both together say of x_0, [3, B, C, H, W].
        result: where it ended, [B, C, H, W].
    """

    views: dict[int, Tensor]
    result: Tensor


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Images under one mask, walked to twice.

    Attributes:
        mask: its name.
        images: keys of the images.
        truth: [B, C, H, W].
        problem: what is seen of it.
        base: the base's walk.
        steered: that of the steered row.
    """

    mask: str
    images: list[str]
    truth: Tensor
    problem: Problem
    base: Walk
    steered: Walk


class Onlooker(Meter):
    """Keeps what it is shown, the first time at each t; of particles, what is said of the first."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem
        self.views: dict[int, Tensor] = {}

    def look(self, t: int, diffusion: Normal, circuit: Normal, mixed: Normal) -> None:
        """Keep the three means, the mixture's with the seen pixels, as it is used."""
        sides = torch.stack([diffusion.mean, circuit.mean, mixed.mean])
        sides = sides[:, :: sides.shape[1] // len(self.problem)]
        sides[2] = self.problem.paste(sides[2])
        self.views.setdefault(t, sides)


def strip(params: Params, layout: Layout, dataset: str) -> None:
    """Write strip.png and strip.json: the first steered row of the sweep beside its base; no picture if there is none.

    Raises:
        CheckpointError: a part of what steers is missing or damaged, or does not go with the others.
    """
    runtime.make_deterministic()
    out, name = layout.strip(dataset), shown_row(params)
    (out / "strip.png").unlink(missing_ok=True)
    if name is None:
        log.info("strip %s: no row of sweep.steered mixes as shown here, so there is no picture", dataset)
        write_json(out / "strip.json", {"schema": 1, "dataset": dataset, "row": None})
        return
    sweep, row = open_steered(params, layout, dataset, name), params.row(name)
    masks = params.sweep.masks[MASKS]
    with progress(f"strip {dataset}", len(masks), "masks") as bar:
        scenes = []
        for mask in masks:
            scenes.append(walk_twice(sweep, mask))
            bar.advance()
    times = spread(list(scenes[0].steered.views), TIMES)
    draw(out / "strip.png", scenes, times, sweep.denoiser.schedule.T, (row.base, name))
    write_json(
        out / "strip.json",
        {
            "schema": 1,
            "dataset": dataset,
            "row": name,
            "base": row.base,
            "params": dict(sweep.contestant.params),
            "T": sweep.denoiser.schedule.T,
            "times": times,
            "scenes": [numbers(scene, times) for scene in scenes],
        },
    )


def shown_row(params: Params) -> str | None:
    """The first steered row of the sweep whose mixture there is to see; the published formula mixes in its own way."""
    return next((name for name in params.sweep.steered if params.row(name).steering.formula == "exact"), None)


@torch.no_grad()
def walk_twice(sweep: Sweep, mask: str) -> Scene:
    """Run base and steered row on the first images under a mask, with the seeds of their cells."""
    count, device = min(IMAGES, sweep.count), sweep.device
    known = read_masks(sweep.layout.masks, mask, sweep.count).known[:count]
    keys = list(sweep.images.keys[:count])
    truth = to_float(sweep.images.images[:count]).to(device)
    problem = Problem.observe(truth, torch.from_numpy(known).unsqueeze(1).to(device))
    seeds = [image_seed(sweep.params.seed, sweep.dataset, key, 0) for key in keys]
    runs = [run(sweep, problem, Noise(seeds, device)) for run in (walk_aside, walk_steered)]
    return Scene(mask=mask, images=keys, truth=truth, problem=problem, base=runs[0], steered=runs[1])


def steered_of(sweep: Sweep) -> Steered:
    """The row's method."""
    method = sweep.contestant.method
    if not isinstance(method, Steered):
        raise TypeError(f"expected a steered row, but {sweep.contestant.name} runs {type(method).__name__}")
    return method


def walk_steered(sweep: Sweep, problem: Problem, noise: Noise) -> Walk:
    """Run the steered row and look on."""
    seen = Onlooker(problem)
    result = dataclasses.replace(steered_of(sweep), meter=seen)(sweep.denoiser, problem, noise)
    return Walk(views=seen.views, result=result)


def walk_aside(sweep: Sweep, problem: Problem, noise: Noise) -> Walk:
    """Run the base, and see what steering would have made of its estimates."""
    method, schedule, seen = steered_of(sweep), sweep.denoiser.schedule, Onlooker(problem)
    guide = Guide(method.steering, method.prior, problem, schedule, noise.fork("steering"), seen)

    def look(prediction: Prediction, x_t: Tensor, t: int) -> Prediction:
        if t > method.steering.until * schedule.T:
            guide.mix(prediction.x_0, t, x_t)
        return prediction

    return Walk(result=method.base(sweep.denoiser, problem, noise, refine=look, watch=ignore), views=seen.views)


def spread(times: list[int], count: int) -> list[int]:
    """At most `count` of the times, evenly spread in their order, both ends among them."""
    count = min(count, len(times))
    return [times[round(k * (len(times) - 1) / max(1, count - 1))] for k in range(count)]


def numbers(scene: Scene, times: list[int]) -> dict[str, Any]:
    """Root mean square errors at hidden pixels, on the scale [-1, 1]: of every view and of results, for each image."""
    told: dict[str, Any] = {"mask": scene.mask, "images": scene.images}
    for name, walk in (("base", scene.base), ("steered", scene.steered)):
        sides = {side: [_errors(scene, walk.views[t][k]) for t in times] for k, side in enumerate(SIDES)}
        told[name] = sides | {"result": _errors(scene, walk.result)}
    return told


def _errors(scene: Scene, x: Tensor) -> list[float]:
    hidden = (~scene.problem.known).expand_as(x)
    squares = ((x - scene.truth).square() * hidden).sum((1, 2, 3)) / hidden.sum((1, 2, 3))
    return [round(value, 4) for value in squares.sqrt().tolist()]
