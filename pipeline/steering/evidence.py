"""What a diffusion model's estimate and the seen pixels say about each token, as soft evidence for the circuit.

The paper's evidence (Liu et al. 2024, section 5) is the encoder's posterior at a fixed temperature, averaged over draws
from the diffusion model: rule "posterior". It contains a prior already, which the circuit's then multiplies; "divided"
takes the circuit's own prior out again. "likelihood" asks what the features of the estimate would be if a token were
the true one: normal around its code, with a variance that was fitted on training images. Then nothing is counted twice,
and a token of which nothing is seen, at a time when the estimate knows nothing, says nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.queries import posterior
from pipeline.codec.codec import Codec
from pipeline.codec.vqgan import squared_distances
from pipeline.steering.calibration import Level


def features_of(codec: Codec, x: Tensor) -> Tensor:
    """The encoder's features of images [B, 3, S, S] in [-1, 1], [B, N, D]."""
    return codec.vqgan.encode(x).flatten(2).transpose(1, 2)


def distances(codec: Codec, features: Tensor) -> Tensor:
    """Squared distances [B, N, V] of features [B, N, D] to the codes."""
    flat = squared_distances(features.flatten(0, 1), codec.vqgan.codebook)
    return flat.view(*features.shape[:2], codec.codes)


def likelihood(codec: Codec, x: Tensor, classes: Tensor, level: Level) -> Tensor:
    """Log of N(features; code, variance of the token's class), up to a constant per token, [B, N, V].

    Args:
        codec: whose encoder is asked.
        x: estimates with the seen pixels pasted, [B, 3, S, S].
        classes: of the tokens, [B, N].
        level: what is known of estimates at their time.
    """
    return log_normal(distances(codec, features_of(codec, x)), level.code_variance[classes])


def log_normal(square: Tensor, variance: Tensor) -> Tensor:
    """Log-density up to a constant per token, [B, N, V], from squared distances [B, N, V] and variances [B, N]."""
    return square * (-0.5 / variance)[..., None]


def expected_codes(codec: Codec, marginals: Tensor) -> Tensor:
    """The codes' mean under laws of the tokens [B, N, V], in their places, [B, D, side, side]."""
    codes: Tensor = (marginals @ codec.vqgan.codebook).transpose(1, 2).unflatten(2, (codec.side, codec.side))
    return codes


def encoder_posterior(codec: Codec, draws: Tensor, temperature: float) -> Tensor:
    """Log of the mean over draws [K, B, 3, S, S] of the encoder's posteriors at a fixed temperature, [B, N, V].

    An estimate by Monte Carlo of w_i(c) = E[q(z_i = c | x_0)] (Liu et al. 2024, section 5).
    """
    log_q = codec.log_probs(draws.flatten(0, 1), temperature).unflatten(0, draws.shape[:2])
    return torch.logsumexp(log_q, 0) - math.log(len(draws))


def prior_marginals(circuit: Circuit) -> Tensor:
    """Log of the circuit's own p(z_i = c), [N, V]; 0 for codes that it rules out, evidence or not."""
    nothing = torch.zeros(1, circuit.tokens, circuit.codes, device=circuit.root.device)
    log_p = posterior(circuit, nothing).log_marginals[0]
    return log_p.masked_fill(log_p.isneginf(), 0.0)
