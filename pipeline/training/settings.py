"""How long and with what a network is trained: the `trainer` block of params.yaml."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainerParams:
    """Length, optimiser and number format of a training.

    Attributes:
        steps: training steps in all; 0 keeps the initial weights.
        checkpoint_every: steps between two checkpoints; training resumes at one exactly.
        batch: images per step.
        learning_rate: peak learning rate.
        warmup: steps over which the learning rate rises from 0.
        decay: "constant", or "cosine" to a hundredth of the peak at the last step.
        ema: decay of the running average of the weights, which is what is kept in the end; 0 keeps the raw weights.
        clip: largest norm of a gradient; larger ones are scaled down.
        precision: Lightning's name of the number format.
        log_every: steps between two rows of the training curve.
        workers: processes that load images; they change the speed, never the batches.
    """

    steps: int
    checkpoint_every: int
    batch: int
    learning_rate: float
    warmup: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    ema: float = 0.999
    clip: float = 1.0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    log_every: int = 50
    workers: int = 0

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1 or self.steps < 0 or self.steps % self.checkpoint_every:
            raise ConfigError(
                f"steps ({self.steps}) must be a multiple of checkpoint_every ({self.checkpoint_every}), "
                "because training resumes at checkpoints only"
            )
        if not 0.0 <= self.ema < 1.0:
            raise ConfigError(f"ema must be at least 0 and below 1, but is {self.ema}")

    @property
    def epochs(self) -> int:
        """Stretches between checkpoints."""
        return self.steps // self.checkpoint_every

    def rate(self, step: int) -> float:
        """Factor on the learning rate at `step`, counted from 0."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.decay == "constant":
            return rise
        done = min(1.0, step / max(self.steps, 1))
        return rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done)))


@dataclass(frozen=True, kw_only=True)
class TrunkParams:
    """The training of the perceptual trunk.

    Attributes:
        images_per_domain: painted pictures of each embedded domain.
        steps: training steps.
    """

    images_per_domain: int
    steps: int
