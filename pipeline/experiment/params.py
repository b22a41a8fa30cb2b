"""params.yaml, read strictly into the dataclasses it configures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from reprlib import repr as brief
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipeline.codec.vqgan import VQGANParams
from pipeline.data.sources import Folder, Procedural, ShardSet
from pipeline.diffusion.schedule import ScheduleParams
from pipeline.diffusion.unet import UNetParams
from pipeline.errors import ConfigError, reason
from pipeline.experiment.limits import faults, suggest
from pipeline.experiment.plain import odd, parse_yaml
from pipeline.methods import METHODS
from pipeline.steering.settings import PRESETS, Steering
from pipeline.training.settings import CircuitParams, EMParams, TrainerParams, TrunkParams
from pipeline.training.token_network import TransformerParams

Positive = Annotated[int, Field(gt=0)]
Names = Annotated[list[str], Field(min_length=1)]
SOURCES = {"procedural": Procedural, "folder": Folder, "shards": ShardSet}


def _template(path: str) -> str:
    if set("{}") & set(path.replace("{dataset}", "")):
        raise ValueError(f"only {{dataset}} is filled in, but it is {path!r}")
    return path


Template = Annotated[str, AfterValidator(_template)]


class Block(BaseModel):
    """A section of params.yaml: every key known, every type exact."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DDPMBlock(Block):
    """The diffusion model of each dataset.

    `init` names a folder of weights to start from, with {dataset} filled in; null starts from random weights.
    """

    init: Template | None
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

    init: Template | None
    network: VQGANParams
    flip: bool
    perceptual_weight: Annotated[float, Field(ge=0)]
    adversarial_weight: Annotated[float, Field(ge=0)]
    adversarial_start: Annotated[int, Field(ge=0)]
    revive_every: Positive
    trainer: TrainerParams


class MaskedBlock(Block):
    """The masked transformer that teaches a circuit, if `circuit.model.teacher` asks for it."""

    network: TransformerParams
    trainer: TrainerParams


class CircuitBlock(Block):
    """The circuit of each dataset; `mirror` lets it learn from mirror images of the training images as well."""

    mirror: bool
    model: CircuitParams
    em: EMParams
    teacher: MaskedBlock


class TransformerBlock(Block):
    """The autoregressive transformer that circuits are compared with; none if `trainer.steps` is 0."""

    network: TransformerParams
    trainer: TrainerParams


class LPIPSBlock(Block):
    """Where LPIPS finds its ImageNet-trained trunk.

    That is `path` if given, else torch's cache, else a download if `download`.
    """

    path: str | None
    download: bool


class SteeringBlock(Block):
    """What is looked at to fit how far steering can trust its models: training images only."""

    images: Positive
    levels: Positive
    until: Annotated[float, Field(ge=0, lt=1)]
    masks: Names


class SweepBlock(Block):
    """What is inpainted with what; `steered` are rows of the section of that name."""

    datasets: Names
    methods: Names
    steered: list[str]
    masks: Names
    split: Literal["test", "val"]
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

    profile: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    seed: Annotated[int, Field(ge=0)]
    image_size: Positive
    datasets: dict[str, Annotated[Procedural | Folder | ShardSet, Field(discriminator="source")]]
    trunk: TrunkParams
    lpips: LPIPSBlock
    vqgan: VQGANBlock
    circuit: CircuitBlock
    transformer: TransformerBlock
    ddpm: DDPMBlock
    mask_files: dict[str, str]
    steering: SteeringBlock
    methods: dict[str, dict[str, Any]]
    steered: dict[str, dict[str, Any]]
    sweep: SweepBlock
    report: ReportBlock

    @model_validator(mode="after")
    def _fits_together(self) -> Params:
        """Refuse combinations that cannot run."""
        for name, block in self.methods.items():
            build_method(name, block)
        for name, block in self.steered.items():
            build_row(name, block)
        for sentence in faults(self):
            raise ValueError(sentence)
        return self

    @property
    def rows(self) -> list[str]:
        """Everything that is compared: the methods of the sweep, then what is steered."""
        return [*self.sweep.methods, *self.sweep.steered]

    def method(self, name: str) -> Any:
        """The method `name` with its hyperparameters; of a steered row, its base."""
        name = self.row(name).base if name in self.steered else name
        return build_method(name, self.methods[name])

    def row(self, name: str) -> SteeredRow:
        """What the steered row `name` is made of."""
        return build_row(name, self.steered[name])


def build_method(name: str, block: dict[str, Any]) -> Any:
    """Make a method from its block of params.yaml.

    Raises:
        ValueError: the method or one of its parameters is unknown, or a value has the wrong type.
    """
    if name not in METHODS:
        raise ValueError(f"methods.{name}: unknown method{suggest(name, METHODS)}")
    cls = METHODS[name]
    fields = [field.name for field in dataclasses.fields(cls)]
    for key in block:
        if key not in fields:
            raise ValueError(f"methods.{name}.{key}: unknown parameter{suggest(key, fields)}")
    try:
        return TypeAdapter(cls).validate_json(json.dumps(block), strict=True)
    except ValidationError as error:
        raise ValueError(f"methods.{name}.{_sentence(error)}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class SteeredRow:
    """A method that is steered.

    Attributes:
        base: the name of its block under `methods`.
        warm: share of T above which the circuit's completion stands in for the network; 1 = never.
        steering: how it is steered.
    """

    base: str
    warm: float
    steering: Steering


def build_row(name: str, block: dict[str, Any]) -> SteeredRow:
    """Make a row from its block under `steered`: `base`, and what differs from `preset` (ours, if not given).

    Raises:
        ValueError: something is unknown or missing, or a value has the wrong type.
    """
    key, block = f"steered.{name}", dict(block)
    fields = [field.name for field in dataclasses.fields(Steering)]
    for entry in block:
        if entry not in ("base", "preset", "warm", *fields):
            raise ValueError(f"{key}.{entry}: unknown parameter{suggest(entry, ['base', 'preset', 'warm', *fields])}")
    base, preset, warm = block.pop("base", None), block.pop("preset", "ours"), block.pop("warm", 1.0)
    if not isinstance(base, str):
        raise ValueError(f"{key}.base: expected the name of a block under methods, but it is {base!r}")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"{key}.preset: unknown preset{suggest(str(preset), PRESETS)}")
    if isinstance(warm, bool) or not isinstance(warm, int | float) or not 0.0 < warm <= 1.0:
        raise ValueError(f"{key}.warm: expected a number above 0 and at most 1, but it is {warm!r}")
    values = dataclasses.asdict(PRESETS[preset]) | block
    try:
        steering = TypeAdapter(Steering).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ValueError(f"{key}.{_sentence(error)}") from error
    return SteeredRow(base=base, warm=float(warm), steering=steering)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping, as DVC does (`1e-4` is a number).

    Raises:
        ConfigError: the file is missing, is no YAML, or holds something else.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path}: expected YAML, but found no file; `python -m stages.profile NAME` writes params.yaml."
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: expected YAML, but it cannot be read ({reason(error)}).") from error
    value = parse_yaml(content, str(path))
    if not isinstance(value, dict):
        found = "is empty" if value is None else f"holds {brief(value)}"
        raise ConfigError(f"{path}: expected a mapping of sections, but it {found}.")
    return value


def check_params(values: dict[str, Any], name: str = "params.yaml") -> Params:
    """Turn the content of params.yaml into its types.

    Raises:
        ConfigError: a key is unknown or missing, a type is wrong, or values do not go together; one sentence with the
            key.
    """
    sentence = odd(values)
    if sentence is None:
        try:
            return Params.model_validate_json(json.dumps(values))
        except ValidationError as error:
            sentence = _sentence(error)
    raise ConfigError(f"{name}: {sentence}{'' if sentence.endswith('?') else '.'}")


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read params.yaml.

    Raises:
        ConfigError: see `check_params`.
    """
    return check_params(read_yaml(Path(path)), str(path))


def _fields(place: tuple[Any, ...]) -> list[str]:
    """Names of the parameters in the section at `place`."""
    section: Any = Params
    if place[:1] == ("datasets",):
        section, place = SOURCES[place[2]], ()
    for part in place:
        section = section.model_fields[part].annotation
    return list(section.model_fields if issubclass(section, Block) else section.__dataclass_fields__)


def _sentence(error: ValidationError) -> str:
    """The first problem in words: where, what is expected, what came."""
    problem = error.errors(include_url=False)[0]
    loc = problem["loc"]
    place = ".".join(str(part) for k, part in enumerate(loc) if not (k == 2 and loc[0] == "datasets"))
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{place}: unknown key{suggest(str(loc[-1]), _fields(loc[:-1]))}"
    if problem["type"] == "union_tag_invalid":
        tag = problem["ctx"]["tag"]
        return f"{place}.source: {tag!r} is none of {', '.join(SOURCES)}{suggest(tag, SOURCES)}"
    if problem["type"] == "union_tag_not_found":
        return f"{place}.source: missing"
    if problem["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{place}: missing"
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if not place:
        return message
    if problem["type"] == "value_error":
        return f"{place}: {message}"
    return f"{place}: {message[0].lower()}{message[1:]}, but it is {brief(problem['input'])}"
