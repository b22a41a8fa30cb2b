"""The formula of the published code, as an ablation: what its departures from the paper's equations cost.

Written from a description of the code, not from its text. Per step, with kappa the share of a patch that is seen:

* tau = .1 - .09 kappa; w = softmax(log_softmax(-distance / sqrt(D)) / tau), of the distance to the codes, not its
  square;
* the query returns r_i(c) ∝ sum_n F_n f_n(c), the latents' posterior flows times their emissions: what it should return
  is multiplied by w_i(c) and divided by what the token says about its latent (`flow_query`);
* p ∝ r^(1 - kappa) w^kappa; codes that are not among the 20 of the largest w then weigh 1e-8;
* eight draws of each token by itself are decoded; their mean and variance are the circuit's side, the step's own
  variance (that of x_s given x_t, not of x_0) the diffusion side's;
* both are tabulated at 256 values (`fusion.binned_mixture`), with a floor under the circuit's, and x_0 is drawn from
  the mixture, seen pixels included; eps stays as it was.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.passes import downward, upward
from pipeline.circuit.queries import read_evidence
from pipeline.circuit.sampling import UniformSource, inverse_cdf
from pipeline.codec.codec import Codec
from pipeline.diffusion.denoiser import Prediction
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError
from pipeline.problem import Problem
from pipeline.steering.evidence import distances, features_of
from pipeline.steering.fusion import Normal, binned_mixture, draw_binned
from pipeline.steering.meter import Meter

LEVELS, TOP, DRAWS, LEAK = 250, 20, 8, 1e-8


@torch.no_grad()
def flow_query(circuit: Circuit, log_w: Tensor) -> Tensor:
    """The published query r_i(c) ∝ sum_n F_n f_n(c) for log-evidence [B, N, V]; [B, N, V], sums to 1.

    It is p(z_i = c | w) only where w_i says nothing.

    Raises:
        ConfigError: the circuit has parameters that are 0.
    """
    if not circuit.is_safe:
        raise ConfigError("the flow-only query is for circuits without parameters that are 0; smooth the circuit")
    parts = []
    for rows in circuit.turns(len(log_w), circuit.tokens * (4 * circuit.codes + 6 * circuit.states)):
        reading, sums = read_evidence(circuit, log_w[rows], first=rows.start), circuit.sums()
        flows = torch.cat(downward(sums, upward(sums, reading.inputs))[0]).index_select(0, circuit.homes)
        found = circuit.inputs().to_codes(flows)
        if not circuit.vocabulary.whole:
            found = found[..., circuit.compact] * circuit.share.to(found)
        parts.append(found / found.sum(-1, keepdim=True))
    return torch.cat(parts)


def steer(
    prediction: Prediction,
    t: int,
    problem: Problem,
    codec: Codec,
    circuit: Circuit,
    schedule: Schedule,
    noise: UniformSource,
    meter: Meter,
) -> Tensor:
    """Draw x_0 [B, C, H, W] from the published mixture at time t."""
    x = problem.paste(prediction.x_0.clamp(-1.0, 1.0))
    with meter.part("encode", len(x)):
        distance = (distances(codec, features_of(codec, x)) / codec.vqgan.codebook.shape[1]).sqrt()
    with meter.part("circuit", len(x)):
        seen = F.avg_pool2d(problem.known.to(x), x.shape[-1] // codec.side).flatten(1)
        law = token_law(distance, seen, circuit)
        tokens = inverse_cdf(law.log()[:, None], noise.uniform((DRAWS, circuit.tokens)))
    with meter.part("decode", DRAWS * len(x)):
        images = codec.decode(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    posterior = Normal(mean=images.mean(1), variance=images.var(1).clamp_min(1e-12))
    with meter.part("fusion"):
        return mixture(step_law(prediction, x, t, schedule), posterior, t / schedule.T, noise.uniform(x.shape[1:]))


def step_law(prediction: Prediction, x: Tensor, t: int, schedule: Schedule) -> Normal:
    """Around x [B, C, H, W], with the variance of one of 250 steps from time t."""
    s = max(t - schedule.T // min(LEVELS, schedule.T), 0)
    log_variance = torch.as_tensor(schedule.log_variance(t, s, prediction.v)).to(x)
    return Normal(mean=x, variance=log_variance.exp().expand_as(x))


def token_law(distance: Tensor, seen: Tensor, circuit: Circuit) -> Tensor:
    """The law of each token before draws, [B, N, V], which sums to about 1.

    Args:
        distance: of the features to the codes, divided by sqrt(D), [B, N, V].
        seen: share of each patch that is seen, [B, N].
        circuit: over N tokens and V codes.
    """
    seen = seen[..., None]
    log_w = F.log_softmax(F.log_softmax(-distance, -1) / (0.1 - 0.09 * seen), -1)
    law = torch.softmax((1.0 - seen) * flow_query(circuit, log_w).log() + seen * log_w, -1)
    kept = torch.zeros_like(law, dtype=torch.bool).scatter_(-1, log_w.topk(min(TOP, circuit.codes), -1).indices, True)
    return torch.where(kept, law, LEAK)


def mixture(prior: Normal, posterior: Normal, when: float, uniform: Tensor) -> Tensor:
    """Draw from the tabulated mixture at the share `when` of T, by numbers in [0, 1), all [B, C, H, W]."""
    weight = 0.8 + 0.2 * math.exp(-2.0 * when)
    rows = [
        draw_binned(binned_mixture(_row(prior, k), _row(posterior, k), weight), uniform[k : k + 1])
        for k in range(len(uniform))
    ]
    return torch.cat(rows)


def _row(normal: Normal, k: int) -> Normal:
    """One image: tables of 256 values for every pixel are large."""
    return Normal(mean=normal.mean[k : k + 1], variance=normal.variance[k : k + 1])
