"""Inpainting pictures of one's own with the trained models of the profile: `python -m stages.inpaint_files`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.queries import BITS, log_prob
from pipeline.codec.codec import Codec
from pipeline.data.images import to_float, to_uint8
from pipeline.data.masks import Polarity
from pipeline.errors import CheckpointError, ConfigError, UserError, at_least
from pipeline.experiment import provenance, runtime
from pipeline.experiment.completion import complete, image_seed
from pipeline.experiment.costs import Costs, attempt
from pipeline.experiment.guides import load_guides
from pipeline.experiment.inpaint_steered import any_row
from pipeline.experiment.layout import Layout
from pipeline.experiment.limits import suggest
from pipeline.experiment.masks import MaskSet
from pipeline.experiment.mishaps import CellError, Finite, NotFiniteError, in_batches
from pipeline.experiment.models import load_denoiser
from pipeline.experiment.own_images import OwnImage, Pixels, read_own_images
from pipeline.experiment.own_results import KIND, Painted, whole_folder, write_samples
from pipeline.experiment.params import Params
from pipeline.experiment.progress import Bar, progress
from pipeline.experiment.record import write_json
from pipeline.experiment.sweep import SHELL, Contestant

log = logging.getLogger(__name__)

CODE = (*SHELL, "pipeline.experiment.own_images")
"""Modules whose sources decide samples, beside the method's."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """How pictures are to be inpainted.

    Attributes:
        dataset: whose models are used.
        method: a method, or a steered row.
        samples: completions per picture.
        seed: of all random streams.
        white: what white means in mask files.
        large: whether samples are also written at the picture's own size.
    """

    dataset: str
    method: str
    samples: int
    seed: int
    white: Polarity = "known"
    large: bool = False

    def __post_init__(self) -> None:
        at_least(1, samples=self.samples)
        at_least(0, seed=self.seed)

    def seeds(self, key: str) -> list[int]:
        """Seeds of a picture's samples: those that the sweep gives to an image of this key."""
        return [image_seed(self.seed, self.dataset, key, k) for k in range(self.samples)]


def inpaint_files(
    params: Params, layout: Layout, given: Sequence[str], order: Order, out: Path, *, replace: bool = False
) -> None:
    """Write into the folder `out`: samples as `<picture>/<number>.png`, `sheet.png` and `record.json`.

    A picture's samples are drawn together and apart from other pictures': they depend on its name and content, its
    mask and the order, and on no other picture.

    Args:
        params: of the pipeline.
        layout: where the models lie.
        given: pictures and masks in turns, as in `read_own_images`.
        order: what to do.
        out: appears whole or not at all.
        replace: whether `out` may hold results of this command, which are then deleted.

    Raises:
        UserError: a picture, a mask, a name or `out` cannot be used, or models are missing.
    """
    runtime.make_deterministic()
    check(params, layout, order)
    with whole_folder(out, replace) as folder:
        images = read_own_images(given, params.image_size, order.white)
        for image in images:
            log.info("%s: %s; %.0f %% hidden", image.path, image.reduction, 100 * (1 - image.known.mean()))
        painter, started = open_painter(params, layout, order), runtime.now()
        done = paint_all(painter, images)
        files = write_samples(folder, done, order.large)
        write_json(folder / "record.json", record(painter, done, started) | {"files": files})
    log.info("%s: %d samples of each of %d pictures", out / "sheet.png", order.samples, len(images))


def check(params: Params, layout: Layout, order: Order) -> None:
    """Refuse names that params.yaml does not know, and models that are not there.

    Raises:
        ConfigError: there is no such dataset or method.
        CheckpointError: models are missing; the message says which stages make them.
    """
    names = [*params.methods, *params.steered]
    if order.dataset not in params.datasets:
        raise ConfigError(
            f"there is no dataset {order.dataset!r} in params.yaml{suggest(order.dataset, params.datasets)}"
        )
    if order.method not in names:
        raise ConfigError(
            f"there is no method or steered row {order.method!r} in params.yaml{suggest(order.method, names)}"
        )
    needed = {"train_ddpm": layout.ddpm(order.dataset) / "model.json"}
    if order.method in params.steered:
        needed |= {
            "train_vqgan": layout.vqgan(order.dataset) / "model.json",
            "train_circuit": layout.circuit(order.dataset) / "model.json",
            "fit_steering": layout.steering(order.dataset) / "calibration.json",
        }
    missing = [f"{stage}@{order.dataset}" for stage, path in needed.items() if not path.exists()]
    if missing:
        raise CheckpointError(
            f"{layout.runs}: {order.method} needs trained models of {order.dataset} that are not there; "
            f"run the stages that make them: dvc repro {' '.join(missing)}"
        )


@dataclass(frozen=True, kw_only=True)
class Painter:
    """What inpainting takes.

    Attributes:
        params: of the pipeline.
        layout: where everything lies.
        order: what to do.
        contestant: the method.
        denoiser: its network.
        judge: codec and circuit, which rank samples; None if they are not there.
        inputs: digests of all of it.
        device: where it works.
        costs: of what is finished.
    """

    params: Params
    layout: Layout
    order: Order
    contestant: Contestant
    denoiser: Finite
    judge: tuple[Codec, Circuit] | None
    inputs: dict[str, str]
    device: torch.device
    costs: Costs = field(default_factory=Costs)


def open_painter(params: Params, layout: Layout, order: Order) -> Painter:
    """Load the models."""
    device, dataset = runtime.choose_device(), order.dataset
    contestant = any_row(params, layout, dataset, order.method)
    denoiser, ddpm = load_denoiser(layout.ddpm(dataset), params.ddpm, params.image_size, device, params.sweep.precision)
    inputs = {"denoiser": str(ddpm["sha256"]), "code": provenance.code_digest(*contestant.code, *CODE)}
    judge = None
    if all((folder / "model.json").exists() for folder in (layout.vqgan(dataset), layout.circuit(dataset))):
        codec, circuit, digests = load_guides(params, layout, dataset, device)
        judge, inputs = (codec, circuit), inputs | digests
    return Painter(
        params=params,
        layout=layout,
        order=order,
        contestant=contestant,
        denoiser=Finite(denoiser),
        judge=judge,
        inputs=inputs | dict(contestant.inputs),
        device=device,
    )


def paint_all(painter: Painter, images: Sequence[OwnImage]) -> list[Painted]:
    """Inpaint every picture."""
    order = painter.order
    moves = sum(j < i for i, j in painter.contestant.method.moves())  # the watch is told of every denoising move
    with progress(f"inpaint {order.dataset} {order.method}", len(images) * order.samples * moves, "moves") as bar:
        return [paint(painter, image, bar) for image in images]


@torch.no_grad()
def paint(painter: Painter, image: OwnImage, bar: Bar) -> Painted:
    """Inpaint one picture, all samples in batches of their own, in smaller ones where memory ends.

    Raises:
        UserError: memory does not suffice for one sample, or a value is not finite.
    """
    bar.say(image.key)
    method, meter, seeds = painter.contestant.method, painter.contestant.meter, painter.order.seeds(image.key)
    samples = np.empty((len(seeds), *image.image.shape), np.uint8)

    def sample(rows: range) -> None:
        batch = seeds[rows.start : rows.stop]
        pixels, known = image.image[None].repeat(len(batch), 0), image.known[None].repeat(len(batch), 0)
        with attempt(painter.denoiser, meter, bar, len(batch), painter.costs, painter.device) as (counted, watch):
            x = complete(method, counted, pixels, known, batch, painter.device, watch=watch)
        samples[rows.start : rows.stop] = to_uint8(x.cpu()).numpy()

    try:
        in_batches(len(seeds), painter.params.sweep.batch, sample, f"{image.key}, {painter.order.method}")
    except CellError as error:
        raise UserError(str(error)) from error
    except NotFiniteError as error:
        raise UserError(f"{image.key}, {painter.order.method}: {str(error).format('a sample')}.") from error
    samples = image.paste(samples)
    return Painted(given=image, samples=samples, bits=judged(painter, samples))


def judged(painter: Painter, samples: Pixels) -> list[float]:
    """Bits per token of each sample."""
    if painter.judge is None:
        return []
    codec, circuit = painter.judge
    tokens = codec.encode(to_float(samples).to(painter.device))
    return [round(float(bits), 5) for bits in -log_prob(circuit, tokens) / (BITS * tokens.shape[1])]


def record(painter: Painter, done: Sequence[Painted], started: str) -> dict[str, Any]:
    """Everything that decided the samples, and what they cost; deterministic but for "measured"."""
    params, order, contestant, costs = painter.params, painter.order, painter.contestant, painter.costs
    total = len(done) * order.samples
    return {
        "schema": 1,
        "kind": KIND,
        "profile": painter.layout.profile,
        "dataset": order.dataset,
        "method": contestant.name,
        "params": dict(contestant.params),
        "seed": order.seed,
        "samples": order.samples,
        "white": order.white,
        "image_size": params.image_size,
        "precision": params.sweep.precision,
        "prior": {"schedule": asdict(params.ddpm.schedule), "target": params.ddpm.target},
        "inputs": painter.inputs,
        "images": [entry(order, painted) for painted in done],
        "evaluations": costs.each(total),
        "measured": runtime.circumstances(painter.device, started, costs.seconds)
        | {"seconds_per_image": costs.seconds / total, "batch_size": min(params.sweep.batch, order.samples)},
    }


def entry(order: Order, painted: Painted) -> dict[str, Any]:
    """What the record says of one picture."""
    given = painted.given
    return {
        "key": given.key,
        "path": str(given.path),
        "sha256": provenance.file_digest(given.path),
        "frame": list(given.frame),
        "side": given.side,
        "mask": given.mask,
        "mask_digest": MaskSet(given.mask, given.known[None]).digest,
        "hidden": float(1.0 - given.known.mean()),
        "seeds": order.seeds(given.key),
        "bits_per_token": painted.bits,
        "ranking": painted.ranking,
    }
