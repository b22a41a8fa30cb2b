"""The published code's query and formula, piece by piece."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from circuit.worlds import make
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.queries import posterior
from pipeline.circuit.sampling import inverse_cdf
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.errors import ConfigError
from pipeline.noise import Noise
from pipeline.problem import Problem
from pipeline.steering import released
from pipeline.steering.fusion import Normal, binned_mixture, draw_binned
from pipeline.steering.prior import TokenPrior
from pipeline.steering.settings import PRESETS, Steering
from pipeline.steering.steer import Guide
from steering.worlds import (
    LINEAR,
    PIXELS,
    SEEDS,
    codec,
    draw,
    estimate,
    flat,
    flow_by_hand,
    guide,
    masks,
    noise,
    prior,
    problem,
    squares,
)

NAME = "2x2, quad-tree"


# --- the published query ---


def test_the_flow_query_of_the_regression_world():
    """The 2 x 2 world of tests/circuit: r is off by 8/41 and 16/41 where there is evidence, and right elsewhere."""
    circuit = Circuit(quadtree(2), states=2, vocabulary=Vocabulary.full(2), ties=(0,) * 4).double()
    circuit.emissions.copy_(torch.tensor([[[0.8, 0.2], [0.2, 0.8]]]))
    log_w = torch.tensor([[[3, 1], [0, 1], [1, 1], [1, 1]]], dtype=torch.float64).log()
    found, exact = released.flow_query(circuit, log_w), posterior(circuit, log_w).marginals
    torch.testing.assert_close(found.sum(-1), torch.ones(1, 4).double())
    apart = (found - exact).abs().sum(-1)[0] / 2
    np.testing.assert_allclose(apart.numpy(), [8 / 41, 16 / 41, 0, 0], atol=1e-15)


@pytest.mark.parametrize("name", ["2x2, quad-tree", "2x2, quad-tree, pruned", "2x2, chain", "2x2, star"])
def test_the_flow_query_is_enumerated_and_right_where_evidence_says_nothing(name):
    circuit = make(name)
    log_w = 2 * draw(3, 4, circuit.codes, seed=1)
    log_w[:, 2] = 0.7
    found = released.flow_query(circuit, log_w)
    for k in range(3):
        np.testing.assert_allclose(found[k].numpy(), flow_by_hand(name, log_w[k]), atol=1e-12)
    exact = posterior(circuit, log_w).marginals
    torch.testing.assert_close(found[:, 2], exact[:, 2])
    assert float((found - exact).abs().sum(-1)[:, [0, 1, 3]].min()) > 1e-3


def test_the_flow_query_in_turns_is_the_same():
    circuit = make(NAME)
    log_w = draw(9, 4, circuit.codes, seed=1)
    whole = released.flow_query(circuit, log_w)
    circuit.memory = 1
    torch.testing.assert_close(released.flow_query(circuit, log_w), whole)


def test_the_flow_query_refuses_circuits_with_zeros():
    circuit = make("2x2, quad-tree, pruned, zeros")
    with pytest.raises(ConfigError, match="smooth the circuit"):
        released.flow_query(circuit, torch.zeros(1, 4, circuit.codes))


# --- the published formula ---


def many_codes(codes=25):
    """One latent with two states, four tokens."""
    circuit = Circuit(quadtree(2), states=2, vocabulary=Vocabulary.full(codes)).double()
    return circuit.randomize(torch.Generator().manual_seed(3))


def test_the_law_of_a_token_by_hand():
    """Kappa 0 and 1, and in between; the weights of the 20 likeliest codes, and the leak to the other five."""
    circuit, seen = many_codes(), torch.tensor([[0.0, 1.0, 0.5, 0.25]], dtype=torch.float64)
    distance = draw(1, 4, 25, seed=5).abs() + 0.2
    found = released.token_law(distance, seen, circuit)[0].numpy()
    w = []
    for i, kappa in enumerate(seen[0].tolist()):
        q = np.exp(-distance[0, i].numpy())
        q = (q / q.sum()) ** (1 / (0.1 - 0.09 * kappa))
        w.append(q / q.sum())
    f = circuit.emissions.numpy()  # [N, V, H]: its own table for each token
    flow = circuit.root.numpy() * np.prod([w[i] @ f[i] for i in range(4)], 0)
    flow /= flow.sum()
    for i, kappa in enumerate(seen[0].tolist()):
        law = (f[i] @ flow) ** (1 - kappa) * w[i] ** kappa
        law /= law.sum()
        out = np.argsort(w[i])[:5]
        law[out] = 1e-8
        np.testing.assert_allclose(found[i], law, rtol=1e-9, atol=0)
        assert (found[i] == 1e-8).sum() == 5


def test_a_small_vocabulary_has_no_leak():
    circuit = make(NAME)
    law = released.token_law(draw(2, 4, 4, seed=6).abs(), torch.full((2, 4), 0.3).double(), circuit)
    torch.testing.assert_close(law.sum(-1), torch.ones(2, 4).double())


def test_the_variance_is_that_of_one_of_250_steps():
    prediction, _ = estimate()
    for t in (1000, 904, 3):
        low, high = LINEAR.log_variances(t, max(t - 4, 0))
        with_v = released.step_law(prediction, prediction.x_0, t, LINEAR)
        without = released.step_law(replace(prediction, v=None), prediction.x_0, t, LINEAR)
        torch.testing.assert_close(with_v.variance, (prediction.v * high + (1 - prediction.v) * low).exp())
        torch.testing.assert_close(without.variance, torch.full_like(prediction.x_0, math.exp(low)))


def test_the_draw_is_from_the_tabulated_mixture():
    first = Normal(mean=0.5 * draw(2, 3, 4, 4, seed=7), variance=torch.full((2, 3, 4, 4), 0.05).double())
    second = Normal(mean=0.5 * draw(2, 3, 4, 4, seed=8), variance=torch.full((2, 3, 4, 4), 0.02).double())
    u = noise([1, 2]).uniform((3, 4, 4))
    expected = draw_binned(binned_mixture(first, second, 0.8 + 0.2 * math.exp(-1.9)), u)
    assert torch.equal(released.mixture(first, second, 0.95, u), expected)


def test_the_released_formula_is_put_together_from_these():
    prediction, x_t = estimate(t=950)
    found, world, shown, tape = guide(PRESETS["released"])(prediction, x_t, 950), prior(), problem(), noise()
    x = shown.paste(prediction.x_0.clamp(-1, 1))
    seen = shown.known.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).flatten(1)
    law = released.token_law((squares(world.codec, x) / 3).sqrt(), seen, world.circuit)
    tokens = inverse_cdf(law.log()[:, None], tape.uniform((8, 4)))
    images = torch.stack([world.codec.decode(tokens[:, k]) for k in range(8)])
    law = Normal(mean=images.mean(0), variance=images.var(0).clamp_min(1e-12))
    u = tape.uniform((3, PIXELS, PIXELS))
    expected = released.mixture(released.step_law(prediction, x, 950, LINEAR), law, 0.95, u)
    assert torch.equal(found.x_0, expected)
    assert found.eps is prediction.eps
    assert found.v is prediction.v
    middles = (found.x_0 + 1) * 128 - 0.5
    torch.testing.assert_close(middles, middles.round(), rtol=0, atol=1e-9)
    assert not torch.equal(shown.paste(found.x_0), found.x_0)  # it is drawn, seen pixels included


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_that_agree_give_numbers(spread, dtype):
    """Codes that are the same, or nearly: the variance of eight pictures is 0 or lost in rounding."""
    circuit = make(NAME, dtype)
    made = codec()
    with torch.no_grad():
        made.vqgan.codebook.copy_(0.3 + spread * made.vqgan.codebook)
    made.vqgan.to(dtype)
    world = TokenPrior(codec=made, circuit=circuit, calibration=flat())
    shown = Problem(y=problem().y.to(dtype), known=masks())
    for steering in (PRESETS["released"], PRESETS["paper"], Steering(until=0.5, refresh=0.0)):
        prediction, x_t = estimate(t=950)
        prediction = replace(prediction, x_0=3 * prediction.x_0.to(dtype), v=prediction.v.to(dtype))
        found = Guide(steering, world, shown, LINEAR, Noise(SEEDS, dtype=dtype))(prediction, x_t.to(dtype), 950)
        assert bool(found.x_0.isfinite().all())
        assert found.x_0.dtype == dtype
        assert float(found.x_0.abs().max()) <= 1
