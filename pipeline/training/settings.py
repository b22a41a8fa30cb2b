"""How long and with what a network is trained: the `trainer` block of params.yaml."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError, at_least


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
class CircuitParams:
    """What circuit is learned, and between which structures validation chooses.

    Attributes:
        states: of each latent.
        structures: candidates: "hclt", a hidden Chow-Liu tree learned from the tokens, or "quadtree", the paper's.
        ties: candidates: whether each token has its own emission table ("untied"), or shares it with its 4x4 block
            ("blocks") or with all ("shared").
        spreads: candidates: share of a code's counts lent to similar codes.
        teacher: what tells the latents' first states: "context", a linear regression from the surroundings; "codes",
            the code vectors themselves; "transformer", a masked transformer; "none", chance.
        groups: groups of codes between which the Chow-Liu tree measures mutual information.
        least_uses: codes that occur less often in the training tokens are counted as their nearest neighbour.
        emission_backoff: images' worth of code frequencies in each state's emissions.
        weight_backoff: images' worth of state frequencies in each state's transitions.
        probe: passes of EM after which candidates are compared.
        doublings: how often the trained circuit's states are doubled and trained again.
    """

    states: int
    structures: tuple[Literal["hclt", "quadtree"], ...]
    ties: tuple[Literal["untied", "blocks", "shared"], ...]
    spreads: tuple[float, ...]
    teacher: Literal["context", "codes", "transformer", "none"] = "context"
    groups: int = 16
    least_uses: int = 1
    emission_backoff: float = 5.0
    weight_backoff: float = 2.0
    probe: int = 1
    doublings: int = 0

    def __post_init__(self) -> None:
        for name in ("structures", "ties", "spreads"):
            if not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(f"{name} must name at least one candidate, each once, but is {getattr(self, name)}")
        at_least(1, states=self.states, groups=self.groups)
        at_least(
            0,
            least_uses=self.least_uses,
            probe=self.probe,
            doublings=self.doublings,
            emission_backoff=self.emission_backoff,
        )
        at_least(0, weight_backoff=self.weight_backoff, **{"spreads": min(self.spreads)})


@dataclass(frozen=True, kw_only=True)
class EMParams:
    """How a circuit's parameters are learned from where latent variable distillation put them.

    Attributes:
        kind: "stochastic" averages expected counts over batches, "anemone" steps from the present parameters
            (`pipeline.circuit.em`), "full" counts all images before each step.
        epochs: passes over the training images at most; 0 keeps the initial circuit.
        patience: passes without a better validation likelihood before training stops.
        batch: images per step, of "stochastic" and "anemone".
        first_step: share of what is remembered that the first step replaces.
        last_step: the same at the end; in between it falls by equal factors.
    """

    kind: Literal["stochastic", "anemone", "full"] = "stochastic"
    epochs: int
    patience: int
    batch: int
    first_step: float = 0.3
    last_step: float = 0.03

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.patience < 1 or self.batch < 1:
            raise ConfigError(
                f"epochs must be at least 0, patience and batch at least 1, but they are {self.epochs}, "
                f"{self.patience}, {self.batch}"
            )
        if not 0.0 < self.last_step <= self.first_step <= 1.0:
            raise ConfigError(
                f"steps must fall within (0, 1], but go from first_step {self.first_step} to last_step {self.last_step}"
            )

    def step(self, done: float) -> float:
        """Share replaced when `done` in [0, 1] of the training is over; 1 for full-batch EM."""
        if self.kind == "full":
            return 1.0
        return self.first_step * math.pow(self.last_step / self.first_step, done)

    @property
    def memory(self) -> Literal["counts", "model"]:
        """What a step keeps a share of, see `pipeline.circuit.em.em_step`."""
        return "model" if self.kind == "anemone" else "counts"


@dataclass(frozen=True, kw_only=True)
class TrunkParams:
    """The training of the perceptual trunk.

    Attributes:
        images_per_domain: painted pictures of each embedded domain.
        steps: training steps.
    """

    images_per_domain: int
    steps: int
