"""What steers: a circuit over tokens, and a codec or a patch model between tokens and images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pipeline.circuit.circuit import Circuit
from pipeline.codec.codec import Codec
from pipeline.errors import ConfigError
from pipeline.steering.calibration import Calibration
from pipeline.steering.patches import PatchModel
from pipeline.steering.settings import Steering

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True)
class TokenPrior:
    """What steers: a distribution over tokens, and what relates tokens to images.

    Attributes:
        circuit: p(z).
        codec: between tokens and images.
        calibration: how far codec and diffusion model can be trusted; there if and only if the codec is.
        patches: p(x_0 | z), for steering by x_t itself; may be there with or without a codec.
    """

    circuit: Circuit
    codec: Codec | None = None
    calibration: Calibration | None = None
    patches: PatchModel | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not belong together.

        Raises:
            ConfigError: a part is missing, or the parts are over different grids or vocabularies.
        """
        codec, circuit, patches = self.codec, self.circuit, self.patches
        if (codec is None) != (self.calibration is None):
            raise ConfigError("a codec steers with its calibration, but only one of the two is there")
        if codec is None and patches is None:
            raise ConfigError("a circuit steers with a codec or with patches, but neither is there")
        for name, part in (("codec writes", codec), ("patches are for", patches)):
            if part is not None and (part.side**2, part.codes) != (circuit.tokens, circuit.codes):
                raise ConfigError(
                    f"the {name} {part.side**2} tokens of {part.codes} codes, but the circuit is over "
                    f"{circuit.tokens} of {circuit.codes}"
                )

    def check(self, steering: Steering) -> None:
        """Refuse steering that asks for a part that is not there.

        Raises:
            ConfigError: which setting asks for which part.
        """
        for part, setting in steering.asks.items():
            if getattr(self, part) is None:
                needed = "a codec and its calibration" if part == "codec" else "a patch model"
                raise ConfigError(f"{setting} asks for {needed}, but the prior has none")


def given(part: Part | None) -> Part:
    """A part of a prior that must be there; `TokenPrior.check` says so in better words, and earlier.

    Raises:
        ConfigError: it is not there.
    """
    if part is None:
        raise ConfigError("steering like this asks for a codec or a patch model that the prior does not have")
    return part
