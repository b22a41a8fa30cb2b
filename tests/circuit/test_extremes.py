"""Whole grids of extreme numbers: float32 against float64, linear arithmetic against logs, bfloat16, CUDA."""

import numpy as np
import pytest
import torch

from circuit.worlds import distributions, random_tree
from pipeline.circuit import passes
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.evidence import SparseEvidence
from pipeline.circuit.flows import statistics
from pipeline.circuit.mpe import mpe
from pipeline.circuit.queries import log_evidence, log_prob, posterior
from pipeline.circuit.sampling import sample_posterior
from pipeline.circuit.structures import quadtree, ties
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.noise import Noise

GRIDS = {
    "quad-tree": lambda: (quadtree(8), ties("untied", 8)),
    "quad-tree, blocks": lambda: (quadtree(8), ties("blocks", 8)),
    "random tree": lambda: (random_tree(40, 64, 1), ties("untied", 8)),
    "deep chain": lambda: (random_tree(64, 64, 2), ties("shared", 8)),
}
STATES, CODES = 8, 12
NOTHING = float("-inf")
every_grid = pytest.mark.parametrize("grid", GRIDS)


def power(probabilities, axis, exponent):
    """Distributions made almost deterministic: the numbers to a power, normalised."""
    raised = (probabilities / probabilities.max(axis, keepdims=True)) ** exponent
    return raised / raised.sum(axis, keepdims=True)


def spread(rng, shape, axis, decades):
    """Distributions whose numbers are evenly spread over so many decades, the least being the last of them."""
    drawn = 10.0 ** -rng.uniform(0, decades, size=shape)
    return drawn / drawn.sum(axis, keepdims=True) + 1.01 * 10.0**-decades


PARAMETERS = {
    "plain": lambda rng, shape, axis: distributions(rng, shape, axis),
    "near-deterministic": lambda rng, shape, axis: power(distributions(rng, shape, axis), axis, 30),
    "near-deterministic, no zeros": lambda rng, shape, axis: np.maximum(
        power(distributions(rng, shape, axis), axis, 30), 1.01e-20
    ),
    "over 19 decades": lambda rng, shape, axis: spread(rng, shape, axis, 19),
}


def build(grid, parameters, codes=CODES, states=STATES, seed=1):
    """A float32 circuit and the same numbers in float64."""
    graph, table = GRIDS[grid]()
    circuit = Circuit(graph, states=states, vocabulary=Vocabulary.full(codes), ties=table)
    rng = np.random.default_rng(seed)
    for values, axis in ((circuit.root, 0), (circuit.weights, 2), (circuit.emissions, 1)):
        values.copy_(torch.from_numpy(PARAMETERS[parameters](rng, tuple(values.shape), axis)))
    double = Circuit(graph, states=states, vocabulary=Vocabulary.full(codes), ties=table)
    double.load_state_dict(circuit.state_dict())
    return circuit, double.double()


def evidence(kind, batch=3, tokens=64, codes=CODES, seed=2):
    """Log-evidence in float32, of an extreme kind."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(batch, tokens, codes))).float()
    chosen = torch.nn.functional.one_hot(logits.argmax(-1), codes).bool()
    if kind == "logits x 200":
        return 200 * logits
    if kind == "all weights 1e-30":
        return logits + float(np.log(1e-30))
    if kind == "all but one 1e-30":
        return torch.where(chosen, 0.0, float(np.log(1e-30)))
    if kind == "one-hot":
        return torch.where(chosen, 0.0, NOTHING)
    half = torch.from_numpy(rng.random((batch, tokens, 1)) < 0.5)
    return torch.where(half & ~chosen, NOTHING, torch.where(half, 0.0, logits))  # "half known"


KINDS = ["logits x 200", "all weights 1e-30", "all but one 1e-30", "one-hot", "half known"]


@every_grid
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_circuits_are_computed_the_way_they_need(grid, parameters):
    single, double = build(grid, parameters)
    assert single.is_safe == double.is_safe == (parameters != "near-deterministic")


@every_grid
@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_float64(grid, parameters, kind):
    single, double = build(grid, parameters)
    log_w = evidence(kind)
    if parameters == "near-deterministic" and kind in ("one-hot", "half known"):
        log_w = log_w.clamp_min(-150.0)  # one-hot evidence at random contradicts it
    ours, exact = posterior(single, log_w), posterior(double, log_w.double())
    for values in (ours.marginals, ours.cavity, ours.log_z):
        assert bool(values.isfinite().all())
    assert float((ours.marginals - exact.marginals).abs().max()) <= 5e-6
    assert float((ours.cavity - exact.cavity).abs().max()) <= 2e-5  # messages add up to 40 nats, rounded to 2e-6 each
    assert float(((ours.log_z - exact.log_z) / exact.log_z).abs().max()) <= 1e-6
    assert float((ours.marginals.sum(-1) - 1).abs().max()) <= 5e-6
    assert bool(ours.entropy().isfinite().all())


@every_grid
@pytest.mark.parametrize("parameters", ["plain", "over 19 decades", "near-deterministic, no zeros"])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_arithmetic_is_arithmetic_in_logs(grid, parameters, kind, monkeypatch):
    _, double = build(grid, parameters)
    log_w = evidence(kind).double()
    linear = posterior(double, log_w)
    monkeypatch.setitem(passes.SMALLEST, torch.float64, 2.0)  # no circuit is safe
    _, other = build(grid, parameters)
    assert not other.is_safe
    logs = posterior(other, log_w)
    torch.testing.assert_close(linear.marginals, logs.marginals, rtol=0, atol=1e-11)
    torch.testing.assert_close(linear.cavity, logs.cavity, rtol=0, atol=1e-11)
    torch.testing.assert_close(linear.log_z, logs.log_z, rtol=1e-12, atol=0)


@every_grid
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_flows_draws_and_probabilities_are_finite_and_those_of_float64(grid, parameters):
    single, double = build(grid, parameters)
    log_w = evidence("logits x 200")
    drawn = [sample_posterior(c, log_w.to(c.root.dtype), Noise(range(3)), 4) for c in (single, double)]
    assert float((drawn[0] == drawn[1]).double().mean()) > 0.99
    tokens = drawn[1].flatten(0, 1)
    probabilities = [log_prob(c, tokens) for c in (single, double)]
    torch.testing.assert_close(*probabilities, rtol=1e-6, atol=0)
    counts = [statistics(c, tokens) for c in (single, double)]
    for attribute in ("root", "weights", "emissions"):
        ours, exact = (getattr(c, attribute).double() for c in counts)
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-4)  # of 12 images, up to 16 tokens to a table
    best = [mpe(c, log_w.to(c.root.dtype)) for c in (single, double)]
    torch.testing.assert_close(best[0].log_value, best[1].log_value, rtol=1e-6, atol=0)


@every_grid
@pytest.mark.parametrize("kind", ["logits x 200", "one-hot"])
def test_gradients_stay_finite(grid, kind):
    for circuit in build(grid, "over 19 decades"):
        leaf = evidence(kind).to(circuit.root.dtype).requires_grad_()
        log_evidence(circuit, leaf).sum().backward()
        assert bool(leaf.grad.isfinite().all())
        torch.testing.assert_close(leaf.grad, posterior(circuit, leaf.detach()).marginals, rtol=0, atol=5e-6)


@every_grid
def test_sparse_evidence_in_float32_is_dense_evidence_in_float64(grid):
    single, double = build(grid, "plain")
    for scale in (1.0, 200.0):
        sparse = SparseEvidence.top(scale * evidence("logits x 200") / 200, 4)
        ours, exact = posterior(single, sparse), posterior(double, sparse.dense(CODES).double())
        assert float((ours.marginals - exact.marginals.gather(-1, sparse.codes)).abs().max()) <= 5e-6
        assert float((ours.cavity - exact.cavity.gather(-1, sparse.codes)).abs().max()) <= 5e-6
        assert float((ours.marginals.sum(-1) + ours.rest - 1).abs().max()) <= 5e-6
        assert bool((ours.rest >= 0).all())


@pytest.mark.parametrize("grid", ["quad-tree", "random tree"])
def test_bfloat16_moves_posteriors_by_a_few_thousandths(grid):
    single, _ = build(grid, "plain", codes=64, states=32)
    for scale in (1.0, 5.0):
        log_w = scale * evidence("logits x 200", batch=8, codes=64) / 200
        full, rounded = posterior(single, log_w), posterior(single, log_w, dtype=torch.bfloat16)
        apart = (full.marginals - rounded.marginals).abs().sum(-1) / 2
        assert 0 < float(apart.mean()) <= 0.003
        assert float(apart.max()) <= 0.01
        assert rounded.marginals.dtype == torch.float32
        assert float((rounded.marginals.sum(-1) - 1).abs().max()) <= 1e-6
        assert float((full.log_z - rounded.log_z).abs().max()) <= 0.1
        torch.testing.assert_close(log_evidence(single, log_w, dtype=torch.bfloat16), rounded.log_z)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_grid
@pytest.mark.parametrize("parameters", ["plain", "near-deterministic"])
def test_cuda_computes_what_the_cpu_computes(grid, parameters):
    single, _ = build(grid, parameters)
    log_w = evidence("logits x 200") / 100
    tokens = mpe(single, log_w).tokens
    here = posterior(single, log_w), log_prob(single, tokens), statistics(single, tokens)
    sparse = SparseEvidence.top(log_w, 4)
    few = posterior(single, sparse)
    single.cuda()
    there = posterior(single, log_w.cuda()), log_prob(single, tokens.cuda()), statistics(single, tokens.cuda())
    torch.testing.assert_close(there[0].marginals.cpu(), here[0].marginals, rtol=0, atol=1e-5)
    torch.testing.assert_close(there[0].cavity.cpu(), here[0].cavity, rtol=0, atol=1e-5)
    torch.testing.assert_close(there[0].log_z.cpu(), here[0].log_z, rtol=1e-5, atol=0)
    torch.testing.assert_close(there[1].cpu(), here[1], rtol=1e-5, atol=0)
    for attribute in ("root", "weights", "emissions"):
        torch.testing.assert_close(getattr(there[2], attribute).cpu(), getattr(here[2], attribute), rtol=0, atol=1e-4)
    on_device = SparseEvidence(sparse.codes.cuda(), sparse.log_w.cuda(), sparse.log_rest.cuda())
    torch.testing.assert_close(posterior(single, on_device).marginals.cpu(), few.marginals, rtol=0, atol=1e-5)
    assert torch.equal(mpe(single, log_w.cuda()).tokens.cpu(), tokens)
    drawn = sample_posterior(single, log_w.cuda(), Noise(range(3)), 2)  # CPU streams may be used on any device
    assert drawn.device.type == "cuda"
    assert drawn.shape == (3, 2, 64)
