"""Images drawn by a circuit: the one place that joins the tractable prior with diffusion.

A grid of tokens z ~ circuit is painted with a codebook, a patch of pixels for each code, and Gaussian noise of standard
deviation sigma: x_0 = D[z] + sigma n. Then x_t given z is Gaussian with mean sqrt(alpha_bar) D[z] and variance
alpha_bar sigma^2 + 1 - alpha_bar, independent over pixels, so that what x_t says about token i is the soft evidence
w_i(c) = N(patch i of x_t; ...), and E[x_0 | x_t] follows from the circuit's exact marginals p(z_i = c | w). Known
pixels are evidence of the same form, with variance sigma^2; a patch may be known in part.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.passes import upward
from pipeline.circuit.queries import log_evidence, possible, posterior, read_evidence
from pipeline.circuit.sampling import sample_posterior
from pipeline.codec.grid import cut, put
from pipeline.diffusion.denoiser import Prediction
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError, InputError
from pipeline.noise import Noise
from pipeline.problem import Problem


def marginals(circuit: Circuit, log_w: Tensor) -> Tensor:
    """p(z_i = c | w), [B, N, V]; differentiable, since it is d log Z / d log w_i(c)."""
    if not log_w.requires_grad:
        return posterior(circuit, log_w).marginals
    (found,) = torch.autograd.grad(log_evidence(circuit, log_w).sum(), log_w, create_graph=True)
    return found


def root_posterior(circuit: Circuit, log_w: Tensor) -> Tensor:
    """p(state of the root | w), [B, H]."""
    inputs = read_evidence(circuit, log_w).inputs
    if circuit.is_safe:
        log_products = upward(circuit.sums(), inputs).products[0][0].log()
    else:
        log_products = possible(circuit, inputs, 0).products[0][0]
    return (circuit.root.log() + log_products).softmax(-1)


class CircuitDenoiser:
    """E[x_0 | x_t] for images painted from a circuit's tokens; computed in the circuit's number type."""

    def __init__(
        self, schedule: Schedule, circuit: Circuit, *, codebook: Tensor, sigma: float, v: float | None = None
    ) -> None:
        """Hold a circuit over N = side^2 tokens in row-major order; `v` is reported as is.

        Args:
            schedule: whose noise is taken away.
            circuit: over V codes.
            codebook: the patch of each code, [V, C, p, p].
            sigma: standard deviation of the pixels around their patch, above 0.
            v: variance fraction.

        Raises:
            ConfigError: the tokens are no square, the codebook is not one of the circuit's, or sigma is not above 0.
        """
        side = math.isqrt(circuit.tokens)
        if side**2 != circuit.tokens:
            raise ConfigError(f"a square image needs a square grid of tokens, but the circuit has {circuit.tokens}")
        if codebook.ndim != 4 or len(codebook) != circuit.codes or codebook.shape[2] != codebook.shape[3]:
            raise ConfigError(
                f"expected a codebook [{circuit.codes}, C, p, p] for the circuit's codes, got {tuple(codebook.shape)}"
            )
        if not sigma > 0:
            raise ConfigError(f"sigma must be above 0, but is {sigma}")
        self.circuit, self.codebook, self.sigma, self.v = circuit, codebook.to(circuit.root), sigma, v
        self.side, self.patch = side, codebook.shape[2]
        self.schedule = schedule
        self.shape = (codebook.shape[1], side * self.patch, side * self.patch)

    def patches(self, x: Tensor) -> Tensor:
        """Cut images [B, C, H, W] into [B, N, C p p], in the circuit's format."""
        return cut(x, self.side).to(self.circuit.root)

    def picture(self, patches: Tensor) -> Tensor:
        """Put patches [*, N, C p p] together, [*, C, H, W]."""
        return put(patches, self.shape[0])

    def evidence(self, x: Tensor, variance: float, seen: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """Log of N(patch; scale D[c], variance I) without its part that is the same for all codes, [B, N, V].

        Args:
            x: images, [B, C, H, W].
            variance: of each pixel.
            seen: which pixels count, [B, C, H, W] bool; all if not given.
            scale: of the codebook.
        """
        D = scale * self.codebook.flatten(1)
        pixels = self.patches(x)
        if seen is None:
            return (pixels @ D.T - 0.5 * D.square().sum(1)) / variance
        weight = self.patches(seen)
        return ((weight * pixels) @ D.T - 0.5 * weight @ D.square().T) / variance

    def noisy(self, t: int) -> tuple[float, float]:
        """Scale of the patches and variance of the pixels of x_t, given the tokens."""
        a = float(self.schedule.alpha_bar[t])
        return math.sqrt(a), a * self.sigma**2 + 1.0 - a

    def log_density(self, x_t: Tensor, t: int) -> Tensor:
        """Return log p(x_t) of images [B, C, H, W] at time t in 0..T, [B] float64; differentiable in x_t."""
        scale, variance = self.noisy(t)
        log_z = log_evidence(self.circuit, self.evidence(x_t, variance, scale=scale))
        flat = x_t.flatten(1).to(log_z)
        return log_z - 0.5 * flat.square().sum(1) / variance - 0.5 * flat.shape[1] * math.log(2 * math.pi * variance)

    def estimate(self, x_t: Tensor, t: int, log_w: Tensor) -> Tensor:
        """E[x_0 | x_t, evidence] at noisy pixels, where `log_w` is all that is known of the tokens."""
        scale, variance = self.noisy(t)
        gain = scale * self.sigma**2 / variance
        painted = self.picture(marginals(self.circuit, log_w) @ self.codebook.flatten(1)).to(x_t)
        return gain * x_t + (1.0 - gain * scale) * painted

    def predict(self, x_t: Tensor, x_0: Tensor, t: int) -> Prediction:
        """A prediction from its estimate of x_0."""
        v = None if self.v is None else torch.full_like(x_0, self.v)
        return Prediction(x_0=x_0, eps=self.schedule.eps(x_t, x_0, t), v=v)

    def denoise(self, x_t: Tensor, t: int) -> Prediction:
        """Return the exact posterior mean."""
        scale, variance = self.noisy(t)
        return self.predict(x_t, self.estimate(x_t, t, self.evidence(x_t, variance, scale=scale)), t)


class CircuitPosterior:
    """p(x_0 | known pixels) of each of a batch of problems, and the exact denoiser of that distribution.

    Attributes:
        log_w: what the known pixels say about the tokens, [B, N, V].
        modes: p(state of the root | known pixels), [B, H]: the circuit's coarsest latent tells kinds of image apart.
    """

    def __init__(self, prior: CircuitDenoiser, problem: Problem) -> None:
        """Condition `prior` on what is seen.

        Raises:
            InputError: images of another shape than the prior's.
        """
        if problem.y.shape[1:] != prior.shape:
            raise InputError(f"expected images {prior.shape} as the prior's, got {tuple(problem.y.shape[1:])}.")
        self.prior, self.problem = prior, problem
        self._known = problem.known.expand_as(problem.y)
        self.log_w = prior.evidence(problem.y, prior.sigma**2, self._known)
        self.modes = root_posterior(prior.circuit, self.log_w)

    @property
    def schedule(self) -> Schedule:
        """The prior's schedule."""
        return self.prior.schedule

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""
        return self.prior.shape

    @property
    def mean(self) -> Tensor:
        """E[x_0 | known pixels], [B, C, H, W]."""
        return self.problem.paste(self._painted(self.prior.codebook))

    @property
    def variance(self) -> Tensor:
        """Variance of each pixel, [B, C, H, W]; 0 where known."""
        mean = self._painted(self.prior.codebook)
        around = self._painted(self.prior.codebook.square()) - mean.square()
        return (around + self.prior.sigma**2).masked_fill(self._known, 0.0)

    def _painted(self, codebook: Tensor) -> Tensor:
        found = marginals(self.prior.circuit, self.log_w) @ codebook.flatten(1)
        return self.prior.picture(found).to(self.problem.y)

    def draw(self, noise: Noise, draws: int) -> Tensor:
        """Draw x_0 exactly, [B, draws, C, H, W]; `noise` has one stream per problem."""
        tokens = sample_posterior(self.prior.circuit, self.log_w, noise, draws)  # [B, draws, N]
        x = self.prior.picture(self.prior.codebook.flatten(1)[tokens])
        x = x.to(self.problem.y) + self.prior.sigma * noise.normal((draws, *self.shape)).to(self.problem.y)
        return torch.where(self._known[:, None], self.problem.y[:, None], x)

    def recognise(self, x: Tensor) -> Tensor:
        """p(state of the root | image), [n, H], of whole images [n, C, H, W]."""
        return root_posterior(self.prior.circuit, self.prior.evidence(x, self.prior.sigma**2))

    def denoise(self, x_t: Tensor, t: int) -> Prediction:
        """E[x_0 | x_t, known pixels] of each problem; differentiable in x_t."""
        scale, variance = self.prior.noisy(t)
        log_w = self.log_w + self.prior.evidence(x_t, variance, ~self._known, scale)
        x_0 = self.problem.paste(self.prior.estimate(x_t, t, log_w)).to(x_t)
        return self.prior.predict(x_t, x_0, t)
