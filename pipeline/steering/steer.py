"""Steering: what a circuit knows about the seen pixels corrects a diffusion model's estimate of x_0 at early times.

Liu, Niepert & Van den Broeck 2024 (arXiv 2401.03349), sections 4 and 5. The estimate becomes soft evidence over tokens
(`pipeline.steering.evidence`), the circuit's exact posterior is decoded to a picture, and the two are joined by the
weighted geometric mean p ∝ p_DM^a p_TPM^(1-a) (eq. 4), in closed form, since both are normal per pixel. The result
takes the place of p(x_0 | x_t) in the step of whichever sampler is steered. With a patch model x_t itself is the
evidence, and where that model and the circuit are the law of the images, the circuit's side alone is exact
(`pipeline.steering.patches`).

Where this differs from the paper's code, and why: docs/steering.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.circuit.queries import posterior
from pipeline.circuit.sampling import inverse_cdf, sample_posterior
from pipeline.diffusion.denoiser import Prediction
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import InputError
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.steering import evidence, released
from pipeline.steering.calibration import Level, classify, to_pixels
from pipeline.steering.fusion import LEAST_VARIANCE, Normal, draw_truncated, geometric_mean
from pipeline.steering.meter import Meter
from pipeline.steering.prior import TokenPrior, given
from pipeline.steering.settings import Steering


@dataclass(frozen=True)
class Scene:
    """Problems as a sampler asks about them, each repeated for its particles.

    Attributes:
        problem: [B P, ...].
        classes: of the tokens, [B P, N].
        noise: where draws come from.
        level: how far codec and diffusion model can be trusted, if there is a codec.
        x_t: what the sampler holds, [B P, C, H, W], if that was told.
        alpha_bar: at the time of x_t.
    """

    problem: Problem
    classes: Tensor
    noise: Repeated
    level: Level | None
    x_t: Tensor | None
    alpha_bar: float


class Guide:
    """A `Refine` for one batch of problems."""

    def __init__(
        self,
        steering: Steering,
        prior: TokenPrior,
        problem: Problem,
        schedule: Schedule,
        noise: NoiseSource,
        meter: Meter | None = None,
    ) -> None:
        """Get ready for `problem`; `noise` has a stream per problem, apart from the sampler's.

        Raises:
            ConfigError: the steering asks for a part that the prior does not have.
        """
        prior.check(steering)
        self.steering, self.prior, self.problem, self.schedule = steering, prior, problem, schedule
        self.meter = meter or Meter()
        self._noise = noise
        self._classes = classify(problem.known, math.isqrt(prior.circuit.tokens))
        self._last: tuple[int, Normal] | None = None
        self._marginals: Tensor | None = None

    @torch.no_grad()
    def __call__(self, prediction: Prediction, x_t: Tensor, t: int) -> Prediction:
        """Steer `prediction` about x_t [B P, C, H, W], P particles for each problem."""
        steering, scene = self.steering, self._scene(len(x_t), t, x_t)
        if t <= steering.until * self.schedule.T:
            if steering.known == "steered":
                return prediction
            x_0 = scene.problem.paste(prediction.x_0)
        elif steering.formula == "released":
            return self._released(prediction, t, scene)
        else:
            x_0 = scene.problem.paste(self._outcome(self._mix(prediction.x_0, t, scene), scene))
        eps = self.schedule.eps(x_t, x_0, t) if steering.eps == "implied" else prediction.eps
        return Prediction(x_0=x_0, eps=eps, v=prediction.v)

    def mix(self, x_0: Tensor, t: int, x_t: Tensor | None = None) -> Normal:
        """What is known of x_0 given the diffusion model's estimate `x_0` [B P, C, H, W] at time t, and what was seen.

        The means of known pixels are what was seen; their variance says nothing.

        Raises:
            InputError: the rule noisy or the picture patches, but no `x_t` [B P, C, H, W] to look at.
        """
        scene = self._scene(len(x_0), t, x_t)
        mixed = self._mix(x_0, t, scene)
        return Normal(mean=scene.problem.paste(mixed.mean), variance=mixed.variance)

    def complete(self, x_0: Tensor, t: int, x_t: Tensor | None = None) -> Tensor:
        """Draw tokens jointly given the seen pixels and an estimate [B P, C, H, W] at time t; decode and paste them.

        Raises:
            InputError: as `mix`.
            ConfigError: there is no codec.
        """
        scene = self._scene(len(x_0), t, x_t)
        log_w = self.evidence(x_0, scene)
        with self.meter.part("circuit", len(x_0)):
            tokens = sample_posterior(self.prior.circuit, log_w, scene.noise)[:, 0]
        with self.meter.part("decode", len(x_0)):
            return scene.problem.paste(given(self.prior.codec).decode(tokens))

    def _scene(self, images: int, t: int, x_t: Tensor | None) -> Scene:
        particles, calibration = images // len(self.problem), self.prior.calibration
        problem, classes = self.problem, self._classes
        if particles > 1:
            y, known = (x.repeat_interleave(particles, 0) for x in (problem.y, problem.known))
            problem, classes = Problem(y=y, known=known), classes.repeat_interleave(particles, 0)
        level = None if calibration is None else calibration.at(t)
        alpha_bar = float(self.schedule.alpha_bar[t])
        return Scene(problem, classes, Repeated(self._noise, particles), level, x_t, alpha_bar)

    def _mix(self, x_0: Tensor, t: int, scene: Scene) -> Normal:
        circuit, steering = self._recent(x_0, t, scene), self.steering
        if steering.weighting == "circuit":
            return circuit
        diffusion, level = self._diffusion(x_0, scene), given(scene.level)
        with self.meter.part("fusion"):
            fitted = steering.weighting == "fitted"
            weight = self._pixels(level.weight, scene) if fitted else steering.scheduled(t, self.schedule.T)
            mixed = geometric_mean(diffusion, circuit, weight)
        self.meter.look(t, diffusion, circuit, mixed)
        return mixed

    def _diffusion(self, x_0: Tensor, scene: Scene) -> Normal:
        """The diffusion model's side, with the seen pixels pasted."""
        x_0 = scene.problem.paste(x_0.clamp(-1.0, 1.0))
        return Normal(mean=x_0, variance=self._pixels(given(scene.level).diffusion_variance, scene))

    def _pixels(self, table: Tensor, scene: Scene) -> Tensor:
        """Numbers of classes [CLASSES] at every pixel, [B P, 1, H, W]."""
        return to_pixels(table[scene.classes], scene.problem.y.shape[-1]).to(scene.problem.y)

    def _recent(self, x_0: Tensor, t: int, scene: Scene) -> Normal:
        """The circuit's picture, the last one if time has hardly moved; particles change places, so theirs is new."""
        if self._last is not None and len(x_0) == len(self.problem):
            then, picture = self._last
            if abs(then - t) < self.steering.refresh * self.schedule.T:
                return picture
        picture = self.picture(self.evidence(x_0, scene), scene)
        self._last = (t, picture)
        return picture

    def evidence(self, x_0: Tensor, scene: Scene) -> Tensor:
        """Log-evidence [B P, N, V] about the tokens, from the diffusion model's estimate, or from x_t."""
        if self.steering.rule == "noisy":
            with self.meter.part("fusion"):
                return given(self.prior.patches).log_evidence(looked_at(scene), scene.alpha_bar, scene.problem)
        steering, codec, diffusion = self.steering, given(self.prior.codec), self._diffusion(x_0, scene)
        draws = diffusion.mean[None]
        if steering.evidence_draws:
            z = scene.noise.normal((steering.evidence_draws, *diffusion.mean.shape[1:])).transpose(0, 1)
            draws = (diffusion.mean + diffusion.variance.sqrt() * z).clamp(-1.0, 1.0)
            draws = torch.where(scene.problem.known, scene.problem.y, draws)
        with self.meter.part("encode", draws.shape[0] * draws.shape[1]):
            if steering.rule == "likelihood":
                return evidence.likelihood(codec, draws[0], scene.classes, given(scene.level))
            log_q = evidence.encoder_posterior(codec, draws, steering.temperature)
        return log_q - self._prior_marginals() if steering.rule == "divided" else log_q

    def _prior_marginals(self) -> Tensor:
        if self._marginals is None:
            self._marginals = evidence.prior_marginals(self.prior.circuit)
        return self._marginals

    def picture(self, log_w: Tensor, scene: Scene) -> Normal:
        """What the circuit says about x_0 given log-evidence [B P, N, V]."""
        if self.steering.picture == "patches":
            with self.meter.part("circuit", len(log_w)):
                marginals = self._ask_marginals(log_w)
            with self.meter.part("fusion"):
                patches = given(self.prior.patches)
                return patches.estimate(looked_at(scene), scene.alpha_bar, marginals, scene.problem)
        steering, codec = self.steering, given(self.prior.codec)
        fitted = self._pixels(given(scene.level).circuit_variance, scene)
        with self.meter.part("circuit", len(log_w)):
            codes = self._ask(log_w, scene)
        with self.meter.part("decode", codes.shape[0] * codes.shape[1]):
            decoded = codec.decode_embeddings(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])
        if steering.draws == 1:
            return Normal(mean=decoded[:, 0], variance=fitted)
        return Normal(mean=decoded.mean(1), variance=decoded.var(1).clamp_min(LEAST_VARIANCE))

    def _ask(self, log_w: Tensor, scene: Scene) -> Tensor:
        """Codes to decode, [B P, draws, D, side, side]: those of drawn tokens, or expected ones."""
        steering, codec, circuit = self.steering, given(self.prior.codec), self.prior.circuit
        if steering.picture == "joint":
            tokens = sample_posterior(circuit, log_w, scene.noise, steering.draws)
        else:
            marginals = self._ask_marginals(log_w)
            if steering.picture == "expected":
                return evidence.expected_codes(codec, marginals)[:, None]
            uniform = scene.noise.uniform((steering.draws, circuit.tokens))
            tokens = inverse_cdf(marginals.log()[:, None], uniform)
        codes: Tensor = codec.embed(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return codes

    def _ask_marginals(self, log_w: Tensor) -> Tensor:
        """Law of each token, [B P, N, V]."""
        circuit, exact = self.prior.circuit, self.steering.query == "exact"
        return posterior(circuit, log_w).marginals if exact else released.flow_query(circuit, log_w)

    def _outcome(self, mixed: Normal, scene: Scene) -> Tensor:
        if self.steering.outcome == "mean":
            return mixed.mean
        return draw_truncated(mixed, -1.0, 1.0, scene.noise.uniform(mixed.mean.shape[1:]))

    def _released(self, prediction: Prediction, t: int, scene: Scene) -> Prediction:
        codec, circuit = given(self.prior.codec), self.prior.circuit
        x_0 = released.steer(prediction, t, scene.problem, codec, circuit, self.schedule, scene.noise, self.meter)
        return Prediction(x_0=x_0, eps=prediction.eps, v=prediction.v)


class Repeated:
    """Streams of problems, shared by the particles of each."""

    def __init__(self, noise: NoiseSource, particles: int) -> None:
        self.noise, self.particles = noise, particles

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw standard normal values, [B P, *shape]."""
        return self.noise.normal((self.particles, *shape)).flatten(0, 1)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draw numbers in [0, 1), [B P, *shape] float64."""
        return self.noise.uniform((self.particles, *shape)).flatten(0, 1)


def looked_at(scene: Scene) -> Tensor:
    """The x_t of a scene.

    Raises:
        InputError: it was not told.
    """
    if scene.x_t is None:
        raise InputError("the rule noisy and the picture patches look at x_t: give it as mix(x_0, t, x_t).")
    return scene.x_t
