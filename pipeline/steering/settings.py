"""How an estimate is steered: the parameters, and the settings worth a name.

`PRESETS` has `ours` (the defaults), `paper` (the equations of Liu et al. 2024, arXiv 2401.03349: the encoder's
posterior at a fixed temperature as evidence, the mean and variance of eight joint draws, an x_0 drawn from the mixture,
the schedule of weights a_t = .8 + .2 exp(-2 t / T)) and `released` (the formula of the published code).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from pipeline.errors import ConfigError, at_least

Rule = Literal["likelihood", "posterior", "divided", "noisy"]
"""How tokens get their evidence: from an estimate of x_0, see `pipeline.steering.evidence`; "noisy" from x_t itself."""


@dataclass(frozen=True, kw_only=True)
class Steering:
    """How an estimate is steered.

    Attributes:
        formula: "exact", or "released" as the published code computes; of the others, that takes `until` and `known`.
        until: share of T down to which estimates are steered; 1 = never.
        refresh: share of T after which the circuit is asked again; 0 = at every step, as for methods with particles.
        rule: how the estimate becomes evidence; see `pipeline.steering.evidence`. "noisy" looks at x_t and the seen
            pixels instead, through the patch model.
        temperature: of the encoder's posterior; for the rules "posterior" and "divided".
        evidence_draws: draws from the diffusion side of which the encoder's posterior is the mean; 0 = its mean only.
        query: "exact", or "flow" for the query of the published code, which lacks the evidence of the token asked for.
        picture: "expected" decodes the expected code of each token, "joint" draws of all tokens together,
            "independent" draws of each token by itself; "patches" decodes nothing and takes mean and variance of x_0
            given x_t and the marginals, through the patch model.
        draws: how many are decoded, if any are drawn; their mean and variance are the circuit's side. The variance of
            one is fitted, as that of the expected picture is.
        weighting: "fitted" takes the weight of the diffusion side from the calibration, "schedule" from
            a_t = low + (high - low) exp(-decay t / T); "circuit" takes the circuit's side alone.
        low, high, decay: of that schedule.
        outcome: whether the "mean" of the mixture is the new estimate, or a "draw" from it, cut to [-1, 1].
        eps: "implied" by the new estimate, or "kept" as the denoiser said.
        known: "always" pastes seen pixels into every estimate, "steered" into those that are steered.
    """

    formula: Literal["exact", "released"] = "exact"
    until: float = 0.5
    refresh: float = 0.125
    rule: Rule = "likelihood"
    temperature: float = 0.1
    evidence_draws: int = 0
    query: Literal["exact", "flow"] = "exact"
    picture: Literal["expected", "joint", "independent", "patches"] = "expected"
    draws: int = 1
    weighting: Literal["fitted", "schedule", "circuit"] = "fitted"
    low: float = 0.8
    high: float = 1.0
    decay: float = 2.0
    outcome: Literal["mean", "draw"] = "mean"
    eps: Literal["implied", "kept"] = "implied"
    known: Literal["always", "steered"] = "always"

    def __post_init__(self) -> None:
        shares = {"until": self.until, "refresh": self.refresh, "low": self.low, "high": self.high}
        for name, value in shares.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} must be between 0 and 1, but is {value}")
        at_least(1, draws=self.draws)
        at_least(0, evidence_draws=self.evidence_draws, decay=self.decay)
        if not self.temperature > 0.0:
            raise ConfigError(f"temperature must be above 0, but is {self.temperature}")
        if self.rule in ("likelihood", "noisy") and self.evidence_draws:
            looks = "the mean" if self.rule == "likelihood" else "x_t"
            raise ConfigError(
                f"evidence_draws must be 0 for the rule {self.rule}, which looks at {looks}, but is "
                f"{self.evidence_draws}"
            )
        if self.picture == "expected" and self.draws > 1:
            raise ConfigError(f"draws must be 1 for the picture expected, where nothing is drawn, but is {self.draws}")
        if self.picture == "joint" and self.query == "flow":
            raise ConfigError("query must be exact for the picture joint, because flow gives each token by itself only")
        if self.formula == "released":
            self._refuse_what_released_ignores()

    def _refuse_what_released_ignores(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name not in ("formula", "until", "known") and value != setting.default:
                raise ConfigError(
                    f"{setting.name} cannot be set for the formula released, which has its own, but is {value}; leave "
                    "it out"
                )

    @property
    def asks(self) -> dict[str, str]:
        """What asks for a "codec" and what for "patches", by the part asked for."""
        if self.formula == "released":
            return {"codec": "the released formula"}
        parts = {
            f"the rule {self.rule}": "patches" if self.rule == "noisy" else "codec",
            f"the picture {self.picture}": "patches" if self.picture == "patches" else "codec",
        }
        if self.weighting != "circuit":
            parts[f"the weighting {self.weighting}"] = "codec"
        return {part: setting for setting, part in reversed(parts.items())}

    def scheduled(self, t: int, T: int) -> float:
        """Weight of the diffusion side at time t by the schedule."""
        return self.low + (self.high - self.low) * math.exp(-self.decay * t / T)


PRESETS = {
    "ours": Steering(),
    "paper": Steering(
        until=0.9,
        refresh=0.0,
        rule="posterior",
        evidence_draws=4,
        picture="joint",
        draws=8,
        weighting="schedule",
        outcome="draw",
        known="steered",
    ),
    "released": Steering(formula="released", until=0.9, known="steered"),
}
"""Ours, the paper's equations, and the published code's formula (an ablation)."""
