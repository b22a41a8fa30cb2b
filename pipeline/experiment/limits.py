"""Settings of the right type that cannot run: what params.yaml is refused for beyond unknown keys and wrong types."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pipeline.data.masks import MASKS
from pipeline.data.sources import ShardSet

if TYPE_CHECKING:
    from pipeline.codec.vqgan import VQGANParams
    from pipeline.diffusion.unet import UNetParams
    from pipeline.experiment.params import Params
    from pipeline.training.settings import TrainerParams


def faults(params: Params) -> Iterator[str]:
    """What is impossible, one sentence each, beginning with the key; what comes later relies on what came before."""
    yield from _names(params)
    yield from _least("ddpm.schedule", params.ddpm.schedule, 2, "T")
    yield from _least("trunk", params.trunk, 1, "images_per_domain", "steps")
    yield from _trainer("ddpm.trainer", params.ddpm.trainer)
    yield from _trainer("vqgan.trainer", params.vqgan.trainer)
    yield from _trainer("circuit.teacher.trainer", params.circuit.teacher.trainer)
    yield from _trainer("transformer.trainer", params.transformer.trainer)
    yield from _vqgan(params.vqgan.network, params.image_size)
    yield from _unet(params.ddpm.unet, params.image_size)
    yield from _lengths(params)


def suggest(name: str, allowed: Any) -> str:
    """The end of a sentence about an unknown name: the nearest that is allowed, or all."""
    close = get_close_matches(str(name), [str(a) for a in allowed], n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(map(str, allowed))}" if allowed else ""


def _names(params: Params) -> Iterator[str]:
    sweep = params.sweep
    chosen: dict[str, Iterable[str]] = {"datasets": params.datasets, "mask_files": params.mask_files}
    for section, names in chosen.items():
        for name in names:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
                yield f"{section}.{name}: a name becomes a folder, so it consists of letters, digits, _ and -"
    yield from _known("sweep.datasets", sweep.datasets, params.datasets, "a block under datasets")
    yield from _known("sweep.methods", sweep.methods, params.methods, "a block under methods")
    yield from _known("sweep.masks", sweep.masks, [*MASKS, *params.mask_files], "a mask, or a key of mask_files")
    taken = [name for name in params.mask_files if name in MASKS]
    yield from _known("mask_files", taken, [], "free: it names a built-in mask")
    yield from _known("steering.masks", params.steering.masks, [*MASKS, *params.mask_files], "a mask")
    for name in params.steered:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            yield f"steered.{name}: a name becomes a folder, so it consists of letters, digits, _ and -"
        if name in params.methods:
            yield f"steered.{name}: is the name of a method; call the steered one otherwise"
        yield from _known(f"steered.{name}.base", [params.row(name).base], params.methods, "a block under methods")
    yield from _known("sweep.steered", sweep.steered, params.steered, "a block under steered")
    yield from _known(
        "report.reference", [params.report.reference], params.rows, "one of sweep.methods or sweep.steered"
    )


def _known(key: str, names: list[str], allowed: Any, what: str) -> Iterator[str]:
    for name in names:
        if name not in allowed:
            yield f"{key}: {name!r} is not {what}{suggest(name, allowed)}"
    if len(set(names)) < len(names):
        yield f"{key}: {names} names something twice"


def _least(key: str, block: Any, least: int, *names: str) -> Iterator[str]:
    for name in names:
        if getattr(block, name) < least:
            yield f"{key}.{name}: must be at least {least}, but is {getattr(block, name)}"


def _trainer(key: str, block: TrainerParams) -> Iterator[str]:
    yield from _least(key, block, 1, "batch", "log_every")
    yield from _least(key, block, 0, "warmup", "workers")
    for name in ("learning_rate", "clip"):
        if getattr(block, name) <= 0:
            yield f"{key}.{name}: must be above 0, but is {getattr(block, name)}"


def _widths(key: str, channels: tuple[int, ...]) -> Iterator[str]:
    if not channels or any(width < 1 or width % 32 for width in channels):
        yield f"{key}.channels: must be multiples of 32, which are normalised in 32 groups, but are {list(channels)}"


def _vqgan(block: VQGANParams, image_size: int) -> Iterator[str]:
    key = "vqgan.network"
    yield from _least(key, block, 1, "layers", "codes", "code_dim")
    yield from _widths(key, block.channels)
    if block.codes > 2**16:
        yield f"{key}.codes: must be at most 65536, because tokens are stored in 16 bits, but is {block.codes}"
    if image_size % 16:
        yield f"image_size: must be a multiple of 16, because an image becomes 16x16 tokens, but is {image_size}"
    if block.factor * 16 != image_size:
        yield (
            f"{key}.channels: {len(block.channels)} levels reduce by {block.factor}, but image_size {image_size} needs "
            f"{image_size // 16} for 16x16 tokens"
        )


def _unet(block: UNetParams, image_size: int) -> Iterator[str]:
    key = "ddpm.unet"
    yield from _least(key, block, 1, "patch", "layers", "head_dim")
    yield from _widths(key, block.channels)
    if not 0 <= block.dropout < 1:
        yield f"{key}.dropout: must be at least 0 and below 1, but is {block.dropout}"
    smallest = block.patch * 2 ** (len(block.channels) - 1)
    if image_size % smallest:
        yield f"{key}: image_size {image_size} must be a multiple of {smallest} for its patch and levels"
    widths = {image_size // block.patch >> level: width for level, width in enumerate(block.channels)}
    for resolution in block.attention:
        if resolution not in widths:
            yield f"{key}.attention: no level has resolution {resolution}{suggest(str(resolution), list(widths))}"
    attending = [width for side, width in widths.items() if side in block.attention]
    for width in (*attending, block.channels[-1]):  # the middle attends too
        if width % block.head_dim:
            yield f"{key}.head_dim: must divide the {width} channels that attend, but is {block.head_dim}"


def _lengths(params: Params) -> Iterator[str]:
    """Walks longer than the schedule, and cells of more images than there are."""
    methods = {name: params.method(name) for name in params.methods}
    walks = {f"methods.{name}.{key}": getattr(m, key, 1) for name, m in methods.items() for key in ("levels", "steps")}
    for key, steps in {"ddpm.picture_steps": params.ddpm.picture_steps, **walks}.items():
        if steps > params.ddpm.schedule.T:
            yield f"{key}: {steps} are more than the {params.ddpm.schedule.T} times of ddpm.schedule.T"
    for name in params.sweep.datasets:
        source = params.datasets[name]
        there = source.test_images if isinstance(source, ShardSet) else source.test
        if there is not None and params.sweep.images > there:
            yield f"sweep.images: {params.sweep.images} are asked for, but {name} has {there} in test"
