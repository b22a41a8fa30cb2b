"""Semantic fusion: an image in which regions of several references appear, by what they mean, not by their pixels.

Liu, Niepert & Van den Broeck 2024 (arXiv 2401.03349), section 6.3. Reference j says about token i, with the law q_j of
its own token there and the share of the patch that lies in its region,

    w_i(c) = prod_j q_j(c)^(coherence coverage_ij),     q_j(c) ∝ N(h_i; e_c, s^2),

h_i the encoder's features of the reference and e_c the codes. Laws are normalised over the codes; with s^2 = D tau / 2
this is the encoder's softmax at temperature tau. A token that no region touches is told nothing.

No pixel is held. The diffusion model is sampled from as it is, and at early times its estimate of x_0 is steered: its
own likelihood evidence, at the variance fitted for tokens of which nothing is seen, times the references' goes into the
exact posterior, and the circuit's picture is joined with the estimate (`pipeline.steering.steer`).

How well references go together, before anything is drawn, is a query: `compatibility`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.queries import BITS, log_evidence
from pipeline.codec.codec import Codec
from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.sampling import sample
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError, InputError, at_least
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.steering.calibration import SHARES, Calibration
from pipeline.steering.evidence import distances, features_of
from pipeline.steering.prior import TokenPrior, given
from pipeline.steering.settings import Steering
from pipeline.steering.steer import Guide, Scene
from pipeline.watch import Watch, ignore


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One reference of each of B fusions.

    Attributes:
        x: images, [B, C, S, S] in [-1, 1].
        region: which of their pixels count, [B, 1, S, S] bool.
    """

    x: Tensor
    region: Tensor

    def __post_init__(self) -> None:
        """Check at the border.

        Raises:
            InputError: shapes or types do not fit, pixels are not finite, or a region is empty.
        """
        x, region = self.x, self.region
        if x.ndim != 4 or x.shape[2] != x.shape[3] or not x.is_floating_point():
            raise InputError(
                f"expected references [B, C, S, S] as floating-point numbers, got {list(x.shape)} {x.dtype}."
            )
        if region.dtype != torch.bool or region.shape != (len(x), 1, *x.shape[2:]):
            raise InputError(
                f"expected a region {[len(x), 1, *x.shape[2:]]} bool to go with references {list(x.shape)}, got "
                f"{list(region.shape)} {region.dtype}."
            )
        if not bool(x.isfinite().all()):
            raise InputError("expected references with pixels in [-1, 1], but some are NaN or infinite.")
        empty = torch.nonzero(~region.flatten(1).any(1)).flatten().tolist()
        if empty:
            raise InputError(f"expected regions of at least one pixel, but that of image {empty[0]} is empty.")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a reference says about every token.

    Attributes:
        log_q: log of the law of its own token there, [B, N, V].
        coverage: share of the token's patch that lies in the region, [B, N] in [0, 1].
    """

    log_q: Tensor
    coverage: Tensor

    @classmethod
    def of(cls, codec: Codec, reference: Reference, variance: float) -> Claim:
        """Ask the encoder, whose features lie around the codes with `variance` per dimension (above 0).

        Raises:
            InputError: images are not of the codec's size.
        """
        side, size = codec.side, reference.x.shape[-1]
        features = features_of(codec, reference.x)
        if features.shape[1] != side**2:
            raise InputError(
                f"expected references of the size that the codec writes as {side} x {side} tokens, but pictures of "
                f"{size} x {size} pixels become {features.shape[1]} tokens."
            )
        log_q = F.log_softmax(distances(codec, features) * (-0.5 / variance), -1)
        return cls(log_q=log_q, coverage=F.avg_pool2d(reference.region.to(log_q), size // side).flatten(1))

    @property
    def log_w(self) -> Tensor:
        """Log-evidence [B, N, V], exactly 0 where nothing is covered."""
        return self.coverage[..., None] * self.log_q


def spread(calibration: Calibration) -> float:
    """Variance of the encoder's features around the code of a token that is seen with all that is around it."""
    return float(calibration.levels[0].code_variance[SHARES - 1])


def read(codec: Codec, references: Sequence[Reference], variance: float) -> tuple[Claim, ...]:
    """What several references of the same fusions say; their regions may overlap.

    Raises:
        InputError: there are fewer than two, or their images differ in number or size, or are not of the codec's size.
    """
    if len(references) < 2:
        raise InputError(f"expected at least 2 references to bring together, got {len(references)}.")
    shapes = [list(reference.x.shape) for reference in references]
    if any(shape != shapes[0] for shape in shapes):
        raise InputError(f"expected references of one size and as many of each, got {' and '.join(map(str, shapes))}.")
    return tuple(Claim.of(codec, reference, variance) for reference in references)


def joined(claims: Sequence[Claim], coherence: float = 1.0) -> Tensor:
    """Log-evidence [B, N, V] of all references: their product, to the power `coherence`."""
    return coherence * torch.stack([claim.log_w for claim in claims]).sum(0)


@dataclass(frozen=True)
class Compatibility:
    """How well references go together.

    Attributes:
        nats: log p(all) - sum_j log p(reference j), [B] float64.
        covered: tokens about which any of them says something, [B] int64.
    """

    nats: Tensor
    covered: Tensor

    @property
    def bits(self) -> Tensor:
        """The same in bits, [B]."""
        return self.nats / BITS

    @property
    def bits_per_token(self) -> Tensor:
        """Bits per covered token, [B]."""
        return self.bits / self.covered


@torch.no_grad()
def compatibility(circuit: Circuit, claims: Sequence[Claim]) -> Compatibility:
    """Pointwise mutual information of references: how much likelier they are together than each by itself.

    Each reference is an observation e_j whose likelihood given the tokens is prod_i q_j(z_i)^coverage_ij, at coherence
    1; the circuit gives log p(e_1, ..., e_J) - sum_j log p(e_j) exactly, by J + 1 passes up. 0: as if they had nothing
    to do with each other; above: they ask for each other; below: an image with all of them would be a rare one.

    Only ratios count: a factor on one of the rows of a law appears, with the same power, once in log p(all) and once in
    that reference's own, and cancels. So it does not matter that the laws are normalised, nor how many codes lie near.
    Where regions overlap, what their laws say about the same token counts too.

    Args:
        circuit: over N tokens and V codes.
        claims: of the references, at least one.
    """
    parts = [log_evidence(circuit, claim.log_w) for claim in claims]
    coverage = torch.stack([claim.coverage for claim in claims]).sum(0)
    nats = log_evidence(circuit, joined(claims)) - torch.stack(parts).sum(0)
    return Compatibility(nats, (coverage > 0).sum(1))


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """How references are brought together.

    The one knob is `coherence`. It is the power to which the references' evidence is raised, and the share of `reach`
    T over which estimates are steered by it, from T down. At 0 nothing is steered and nothing is asked of the circuit:
    the draw is the diffusion model's own, to the bit. Small values set what kind of picture it will be; at 1 the tokens
    in the regions stay practically those of the references, and the diffusion model only finishes the pixels.

    Attributes:
        coherence: from 0, plain sampling, to 1.
        reach: share of T that is steered at coherence 1.
        weight: of the diffusion side in the weighted geometric mean, at steered times.
        steps: of the sampler.
        refresh: share of T after which the circuit is asked again.
        picture: "expected" decodes the expected code of each token, "joint" draws of all tokens together.
        draws: how many are decoded, if any are drawn.
    """

    coherence: float = 0.5
    reach: float = 0.9
    weight: float = 0.3
    steps: int = 50
    refresh: float = 0.03
    picture: Literal["expected", "joint"] = "expected"
    draws: int = 1

    def __post_init__(self) -> None:
        shares = {"coherence": self.coherence, "reach": self.reach, "weight": self.weight, "refresh": self.refresh}
        for name, value in shares.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} must be between 0 and 1, but is {value}")
        at_least(1, steps=self.steps, draws=self.draws)

    @property
    def steering(self) -> Steering:
        """The same as settings of steering."""
        return Steering(
            until=1.0 - self.reach * self.coherence,
            refresh=self.refresh,
            picture=self.picture,
            draws=self.draws,
            weighting="schedule",
            low=self.weight,
            high=self.weight,
        )


class ReferenceGuide(Guide):
    """A `Refine` for problems of which nothing is seen, told by references what is to be in the picture."""

    def __init__(
        self,
        fusion: Fusion,
        prior: TokenPrior,
        references: Sequence[Reference],
        schedule: Schedule,
        noise: NoiseSource,
    ) -> None:
        """Read the references; `noise` has a stream per fusion, apart from the sampler's.

        Raises:
            InputError: as `read`.
        """
        claims = read(given(prior.codec), references, spread(given(prior.calibration)))
        first = references[0]
        nothing = Problem(y=torch.zeros_like(first.x), known=torch.zeros_like(first.region))
        super().__init__(fusion.steering, prior, nothing, schedule, noise)
        self._told = joined(claims, fusion.coherence)

    def evidence(self, x_0: Tensor, scene: Scene) -> Tensor:
        """Log-evidence [B P, N, V] from the diffusion side and from the references."""
        told = self._told.repeat_interleave(len(x_0) // len(self._told), 0)
        return super().evidence(x_0, scene) + told


@torch.no_grad()
def fuse(
    denoiser: Denoiser,
    prior: TokenPrior,
    references: Sequence[Reference],
    noise: NoiseSource,
    fusion: Fusion,
    *,
    watch: Watch = ignore,
) -> Tensor:
    """Draw one image per fusion, [B, C, S, S] in [-1, 1].

    The sampler draws the same numbers whatever is fused and how coherently, so that levels can be compared: draws of
    the circuit come from other streams of `noise`, which has one per fusion.

    Raises:
        InputError: as `read`; or references are not of the denoiser's size.
    """
    guide = ReferenceGuide(fusion, prior, references, denoiser.schedule, noise.fork("fusion"))
    if references[0].x.shape[1:] != denoiser.shape:
        raise InputError(
            f"expected references of the diffusion model's size {list(denoiser.shape)}, got "
            f"{list(references[0].x.shape[1:])}."
        )
    return sample(denoiser, noise, fusion.steps, refine=guide, watch=watch)


@torch.no_grad()
def distance(codec: Codec, x: Tensor, references: Sequence[Reference]) -> Tensor:
    """How far images [B, C, S, S] are from what was asked for, [B] float64.

    The mean square distance per dimension of their features to those of the references, over the patches in the
    regions, by coverage.
    """
    features, total, weight = features_of(codec, x), torch.zeros(()), torch.zeros(())
    for reference in references:
        coverage = F.avg_pool2d(reference.region.double(), x.shape[-1] // codec.side).flatten(1)
        square = (features - features_of(codec, reference.x)).double().square().mean(-1)
        total, weight = total + (coverage * square).sum(1), weight + coverage.sum(1)
    return total / weight
