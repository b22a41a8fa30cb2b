"""params.yaml, read strictly into the dataclasses it configures."""

from __future__ import annotations

import dataclasses
import json
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.codec.vqgan import VQGANParams
from pipeline.data.masks import MASKS
from pipeline.data.sources import Folder, Procedural, ShardSet
from pipeline.diffusion.schedule import ScheduleParams
from pipeline.diffusion.unet import UNetParams
from pipeline.errors import ConfigError
from pipeline.methods import METHODS
from pipeline.training.settings import TrainerParams, TrunkParams

Positive = Annotated[int, Field(gt=0)]


class Block(BaseModel):
    """A section of params.yaml: every key known, every type exact."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DDPMBlock(Block):
    """The diffusion model of each dataset.

    `init` names a folder of weights to start from, with {dataset} filled in; null starts from random weights.
    """

    init: str | None
    schedule: ScheduleParams
    target: Literal["eps", "v", "x_0"]
    flip: bool
    vlb_weight: Annotated[float, Field(ge=0)]
    unet: UNetParams
    trainer: TrainerParams
    pictures: Positive
    picture_steps: Positive


class VQGANBlock(Block):
    """The VQ-GAN of each dataset; `init` as in `ddpm`."""

    init: str | None
    network: VQGANParams
    flip: bool
    perceptual_weight: Annotated[float, Field(ge=0)]
    adversarial_weight: Annotated[float, Field(ge=0)]
    adversarial_start: Annotated[int, Field(ge=0)]
    revive_every: Positive
    trainer: TrainerParams


class LPIPSBlock(Block):
    """Where LPIPS finds its ImageNet-trained trunk.

    That is `path` if given, else torch's cache, else a download if `download`.
    """

    path: str | None
    download: bool


class SweepBlock(Block):
    """What is inpainted with what."""

    datasets: list[str]
    methods: list[str]
    masks: list[str]
    images: Positive
    samples: Positive
    batch: Positive
    precision: Literal["float32", "bfloat16"]


class ReportBlock(Block):
    """What the report shows."""

    reference: str
    images: Positive
    bootstrap: Positive


class Params(Block):
    """The whole of params.yaml."""

    profile: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    seed: Annotated[int, Field(ge=0)]
    image_size: Positive
    datasets: dict[str, Annotated[Procedural | Folder | ShardSet, Field(discriminator="source")]]
    trunk: TrunkParams
    lpips: LPIPSBlock
    vqgan: VQGANBlock
    ddpm: DDPMBlock
    mask_files: dict[str, str]
    methods: dict[str, dict[str, Any]]
    sweep: SweepBlock
    report: ReportBlock

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        """Refuse combinations that cannot run."""
        _known("sweep.datasets", self.sweep.datasets, self.datasets, "a block under datasets")
        _known("sweep.methods", self.sweep.methods, self.methods, "a block under methods")
        _known("sweep.masks", self.sweep.masks, [*MASKS, *self.mask_files], "a mask, or a key of mask_files")
        _known("mask_files", [name for name in self.mask_files if name in MASKS], [], "free: it names a built-in mask")
        _known("report.reference", [self.report.reference], self.sweep.methods, "one of sweep.methods")
        if self.image_size % 16:
            raise ValueError(
                f"image_size: must be a multiple of 16, because an image becomes 16x16 tokens, but is {self.image_size}"
            )
        if self.vqgan.network.factor * 16 != self.image_size:
            raise ValueError(
                f"vqgan.network.channels: {len(self.vqgan.network.channels)} levels reduce by "
                f"{self.vqgan.network.factor}, but image_size {self.image_size} needs {self.image_size // 16} for "
                "16x16 tokens"
            )
        smallest = self.ddpm.unet.patch * 2 ** (len(self.ddpm.unet.channels) - 1)
        if self.image_size % smallest:
            raise ValueError(
                f"ddpm.unet: image_size {self.image_size} must be a multiple of {smallest} for its patch and levels"
            )
        for name, block in self.methods.items():
            build_method(name, block)
        return self

    def method(self, name: str) -> Any:
        """The method `name` with its hyperparameters."""
        return build_method(name, self.methods[name])


def _known(key: str, names: list[str], allowed: Any, what: str) -> None:
    for name in names:
        if name not in allowed:
            raise ValueError(f"{key}: {name!r} is not {what}{_suggest(name, allowed)}")
    if len(set(names)) < len(names):
        raise ValueError(f"{key}: {names} names something twice")


def _suggest(name: str, allowed: Any) -> str:
    close = get_close_matches(str(name), [str(a) for a in allowed], n=1)
    return (
        f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(map(str, allowed))}" if allowed else ""
    )


def build_method(name: str, block: dict[str, Any]) -> Any:
    """Make a method from its block of params.yaml.

    Raises:
        ValueError: the method or one of its parameters is unknown, or a value has the wrong type.
    """
    if name not in METHODS:
        raise ValueError(f"methods.{name}: unknown method{_suggest(name, METHODS)}")
    cls = METHODS[name]
    fields = [field.name for field in dataclasses.fields(cls)]
    for key in block:
        if key not in fields:
            raise ValueError(f"methods.{name}.{key}: unknown parameter{_suggest(key, fields)}")
    try:
        return TypeAdapter(cls).validate_json(json.dumps(block), strict=True)
    except ValidationError as error:
        raise ValueError(f"methods.{name}.{_sentence(error)}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping, as DVC does (`1e-4` is a number).

    Raises:
        ConfigError: the file is missing, is no YAML, or holds something else.
    """
    try:
        value = YAML(typ="safe", pure=True).load(path)
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML, but {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(value).__name__}.")
    return value


def check_params(values: dict[str, Any], name: str = "params.yaml") -> Params:
    """Turn the content of params.yaml into its types.

    Raises:
        ConfigError: a key is unknown or missing, a type is wrong, or values do not go together; one sentence with the
            key.
    """
    try:
        return Params.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(f"{name}: {_sentence(error)}.") from error
    except (TypeError, ValueError) as error:  # what JSON cannot hold, such as a date or nan
        raise ConfigError(f"{name}: expected plain numbers, words, lists and mappings, but {error}.") from error


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read params.yaml.

    Raises:
        ConfigError: see `check_params`.
    """
    return check_params(read_yaml(Path(path)), str(path))


def _sentence(error: ValidationError) -> str:
    """The first problem in words: where, what is expected, what came."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"] if part not in ("procedural", "folder", "shards"))
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{place}: unknown key"
    if problem["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{place}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not place:
        return message
    if problem["type"] == "value_error":
        return f"{place}: {message}"
    return f"{place}: {message[0].lower()}{message[1:]}, but it is {problem['input']!r}"
