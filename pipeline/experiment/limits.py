"""Settings of the right type that cannot run: what params.yaml is refused for beyond unknown keys and wrong types."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any

from pipeline.data.images import SPLITS
from pipeline.data.masks import MASKS
from pipeline.data.sources import Folder, ShardSet
from pipeline.errors import ConfigError

LARGEST = {
    "image_size": 1024,
    "trunk.images_per_domain": 10**6,
    "vqgan.network.channels": 4096,
    "vqgan.network.layers": 64,
    "vqgan.network.code_dim": 4096,
    "ddpm.schedule.T": 10**5,
    "ddpm.unet.channels": 4096,
    "ddpm.unet.layers": 64,
    "ddpm.trainer.learning_rate": 10,
    "vqgan.trainer.learning_rate": 10,
    "circuit.teacher.trainer.learning_rate": 10,
    "transformer.trainer.learning_rate": 10,
    "circuit.model.states": 2**16,
    "circuit.model.doublings": 16,
    "circuit.teacher.network.width": 2**14,
    "transformer.network.width": 2**14,
    "circuit.teacher.network.layers": 256,
    "transformer.network.layers": 256,
    "sweep.images": 10**6,
    "sweep.samples": 1000,
    "report.bootstrap": 10**6,
}
"""Largest values of parameters, with room to spare."""

if TYPE_CHECKING:
    from pipeline.codec.vqgan import VQGANParams
    from pipeline.diffusion.unet import UNetParams
    from pipeline.experiment.params import Params
    from pipeline.training.settings import TrainerParams


def faults(params: Params) -> Iterator[str]:
    """What is impossible, one sentence each, beginning with the key; what comes later relies on what came before."""
    yield from _names(params)
    yield from _paths(params)
    yield from _largest(params)
    yield from _least("ddpm.schedule", params.ddpm.schedule, 2, "T")
    yield from _least("trunk", params.trunk, 1, "images_per_domain", "steps")
    yield from _trainer("ddpm.trainer", params.ddpm.trainer)
    yield from _trainer("vqgan.trainer", params.vqgan.trainer)
    yield from _trainer("circuit.teacher.trainer", params.circuit.teacher.trainer)
    yield from _trainer("transformer.trainer", params.transformer.trainer)
    yield from _vqgan(params.vqgan.network, params.image_size)
    yield from _unet(params.ddpm.unet, params.image_size)
    yield from _lengths(params)


def check_chosen(params: Params, chosen: Mapping[str, str]) -> None:
    """Hold names given on the command line to params.yaml.

    Raises:
        ConfigError: there is no such `dataset`, `method` or `steered` row.
    """
    for option, name in chosen.items():
        blocks = getattr(params, option if option == "steered" else f"{option}s")
        if name not in blocks:
            hint = suggest(name, blocks)
            raise ConfigError(
                f"--{option}: {brief(name)} has no block in params.yaml{hint}{'' if hint.endswith('?') else '.'}"
            )


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
            yield from _folder(f"{section}.{name}", name)
    yield from _known("sweep.datasets", sweep.datasets, params.datasets, "a block under datasets")
    yield from _known("sweep.methods", sweep.methods, params.methods, "a block under methods")
    yield from _known("sweep.masks", sweep.masks, [*MASKS, *params.mask_files], "a mask, or a key of mask_files")
    taken = [name for name in params.mask_files if name in MASKS]
    yield from _known("mask_files", taken, [], "free: it names a built-in mask")
    yield from _known("steering.masks", params.steering.masks, [*MASKS, *params.mask_files], "a mask")
    for name in params.steered:
        yield from _folder(f"steered.{name}", name)
        if name in params.methods:
            yield f"steered.{name}: is the name of a method; call the steered one otherwise"
        yield from _known(f"steered.{name}.base", [params.row(name).base], params.methods, "a block under methods")
    yield from _known("sweep.steered", sweep.steered, params.steered, "a block under steered")
    yield from _known(
        "report.reference", [params.report.reference], params.rows, "one of sweep.methods or sweep.steered"
    )


def _folder(key: str, name: str) -> Iterator[str]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        yield f"{key[:99]}: a name becomes a folder, so it consists of at most 64 letters, digits, _ and -"


def _paths(params: Params) -> Iterator[str]:
    """Paths that are empty, or begin with the home of somebody who is not there."""
    paths: dict[str, Any] = {f"mask_files.{name}": path for name, path in params.mask_files.items()}
    paths["lpips.path"] = "unset" if params.lpips.path is None else params.lpips.path
    for name, source in params.datasets.items():
        for field in ("path",) if isinstance(source, Folder) else SPLITS if isinstance(source, ShardSet) else ():
            paths[f"datasets.{name}.{field}"] = getattr(source, field)
    for key, given in paths.items():
        for path in [given] if isinstance(given, str) else given or [""]:
            if not path.strip():
                yield f"{key}: expected a path, but it is empty"
            try:
                Path(path).expanduser()
            except RuntimeError:
                yield f"{key}: {brief(path)} begins with the home folder of somebody who is not on this machine"


def _largest(params: Params) -> Iterator[str]:
    """Numbers that no machine could hold what they ask for."""
    for key, most in LARGEST.items():
        found = attrgetter(key)(params)
        for number in found if isinstance(found, tuple) else (found,):
            if number > most:
                yield f"{key}: must be at most {most}, but is {number}"
    for name in params.methods:
        for key, value in vars(params.method(name)).items():
            most = 1000 if key in ("repeats", "travel_repeats", "particles") else 10**5
            if type(value) is int and value > most:
                yield f"methods.{name}.{key}: must be at most {most}, but is {value}"


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
    split = params.sweep.split
    for name in params.sweep.datasets:
        source = params.datasets[name]
        there = getattr(source, f"{split}_images" if isinstance(source, ShardSet) else split)
        if there is not None and params.sweep.images > there:
            yield f"sweep.images: {params.sweep.images} are asked for, but {name} has {there} in {split}"
