"""Expectation-maximisation: what it promises about the likelihood, and what its smoothing promises."""

import math

import pytest
import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.em import (
    FLOOR,
    Prior,
    Smoothing,
    em_step,
    lend,
    maximise,
    nearness,
    normalise,
    own_statistics,
    prior,
    smoothed,
)
from pipeline.circuit.flows import Statistics, statistics
from pipeline.circuit.queries import log_prob
from pipeline.circuit.regions import latent_tree
from pipeline.circuit.sampling import sample
from pipeline.circuit.structures import quadtree, ties
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.noise import Noise

GRAPHS = {
    "quad-tree": quadtree(4),
    "chain": latent_tree([-1, *range(15)], range(16)),
    "tree": latent_tree([-1, 0, 0, 1, 1, 2], [3, 4, 5, 5, 1, 2, 0, 3, 4, 4, 5, 0, 2, 1, 3, 5]),
}


def circuit(graph="quad-tree", states=3, codes=4, tie="untied", seed=0):
    made = Circuit(GRAPHS[graph], states=states, vocabulary=Vocabulary.full(codes), ties=ties(tie, 4)).double()
    return made.randomize(torch.Generator().manual_seed(seed))


def drawn(count, seed=1, **kinds):
    return sample(circuit(seed=7, **kinds), Noise(range(seed, seed + count)), count)[:, 0]


def no_smoothing(made):
    tables, codes = made.emissions.shape[:2]
    return Prior(
        Smoothing(emissions=0.0, weights=0.0, spread=0.0),
        torch.full((tables, codes), 1.0 / codes, dtype=torch.float64),
        torch.zeros(codes, codes, dtype=torch.float64),
    )


@pytest.mark.parametrize("tie", ["untied", "shared"])
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_likelihood_never_falls_without_smoothing(graph, tie):
    made, tokens = circuit(graph, tie=tie), drawn(60)
    before = float(log_prob(made, tokens).sum())
    for _ in range(30):
        counted = statistics(made, tokens)
        counted.root -= 1.0 / made.states  # what maximise adds, so that the step is plain EM
        maximise(made, counted, no_smoothing(made))
        after = float(log_prob(made, tokens).sum())
        assert after >= before - 1e-9
        before = after
    assert after > float(log_prob(circuit(graph, tie=tie), tokens).sum()) + 5.0


def test_the_penalised_likelihood_never_falls_with_a_fixed_prior():
    made, tokens = circuit("chain"), drawn(40)
    codes = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).expand(16, 4)
    states = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).expand(15, 3)
    fixed = Prior(Smoothing(emissions=3.0, weights=2.0), codes, torch.zeros(4, 4, dtype=torch.float64), states)

    def objective():
        penalty = (made.root.log() / 3).sum() + (2.0 * states[:, None] * made.weights.log()).sum()
        return float(log_prob(made, tokens).sum() + penalty + (3.0 * codes[..., None] * made.emissions.log()).sum())

    before = objective()
    for _ in range(30):
        maximise(made, statistics(made, tokens), fixed)
        after = objective()
        assert after >= before - 1e-9
        before = after


def test_a_seen_latent_is_counted_at_once():
    """With one state per code at one token, EM stands still at the frequencies."""
    made = Circuit(latent_tree([-1], [0, 0]), states=2, vocabulary=Vocabulary.full(2)).double()
    tokens = torch.tensor([[0, 1]] * 3 + [[0, 0]] * 2 + [[1, 1]] * 5)
    made.emissions.copy_(torch.tensor([[[1, FLOOR], [FLOOR, 1]], [[0.5, 0.5], [0.5, 0.5]]]))
    for _ in range(3):
        counted = statistics(made, tokens)
        counted.root -= 0.5
        maximise(made, counted, no_smoothing(made))
        assert made.root.tolist() == pytest.approx([0.5, 0.5], abs=1e-9)
        assert made.emissions[1, :, 0].tolist() == pytest.approx([0.4, 0.6], abs=1e-9)
        assert made.emissions[1, :, 1].tolist() == pytest.approx([0.0, 1.0], abs=1e-9)


def test_statistics_add_up_whatever_the_order():
    made, tokens = circuit("tree"), drawn(50)
    whole = statistics(made, tokens)
    for order in (range(5), reversed(range(5))):
        parts = Statistics.empty(made)
        for k in order:
            parts.add(statistics(made, tokens[10 * k : 10 * (k + 1)]))
        for name in ("root", "weights", "emissions"):
            assert torch.allclose(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-10)
        assert parts.images == 50
        assert parts.log_prob == pytest.approx(whole.log_prob, abs=1e-9)


@pytest.mark.parametrize("memory", ["counts", "model"])
def test_a_whole_step_over_everything_is_plain_em(memory):
    tokens, smoothing = drawn(40), Smoothing(emissions=1.0, weights=1.0, spread=0.2)
    plain, stepped = circuit(), circuit()
    rule = prior(plain, tokens, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), smoothing)
    maximise(plain, statistics(plain, tokens), rule)
    counted = statistics(circuit(seed=5), tokens)  # forgotten altogether
    log_probability = em_step(stepped, counted, tokens, images=40, step=1.0, memory=memory, prior=rule)
    assert log_probability == pytest.approx(float(log_prob(circuit(), tokens).mean()), abs=1e-12)
    for name in ("root", "weights", "emissions"):
        assert torch.allclose(getattr(plain, name), getattr(stepped, name), rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", ["counts", "model"])
def test_batches_learn_what_there_is_to_learn(memory):
    tokens, held_out = drawn(400), drawn(200, seed=5000)
    made = circuit(seed=3)
    rule = prior(made, tokens, torch.eye(4), Smoothing(emissions=1.0, weights=1.0))
    before, counted = float(log_prob(made, held_out).mean()), own_statistics(made, 400)
    for step in range(60):
        rows = torch.randperm(400, generator=torch.Generator().manual_seed(step))[:100]
        em_step(made, counted, tokens[rows], images=400, step=0.5 * 0.95**step, memory=memory, prior=rule)
    after = float(log_prob(made, held_out).mean())
    truth = float(log_prob(circuit(seed=7), held_out).mean())
    assert after > before + 0.5 * (truth - before)
    assert after < truth + 0.2


def test_a_state_that_is_not_visited_stays_where_it_was():
    """The proximal step weighs what is remembered by how often a state is reached."""
    made = Circuit(latent_tree([-1, 0], [0, 1]), states=2, vocabulary=Vocabulary.full(2)).double()
    made.root.copy_(torch.tensor([1 - 1e-9, 1e-9]))
    made.weights.copy_(torch.tensor([[[0.7, 0.3], [0.2, 0.8]]]))
    made.emissions.copy_(torch.tensor([[[1 - 1e-9, 1e-9], [1e-9, 1 - 1e-9]], [[0.6, 0.1], [0.4, 0.9]]]))
    tokens = torch.tensor([[0, 0], [0, 1]] * 5)
    counted = Statistics.empty(made)
    em_step(made, counted, tokens, images=10, step=0.5, memory="model", prior=no_smoothing(made))
    assert made.weights[0, 1].tolist() == pytest.approx([0.2, 0.8], abs=1e-6)
    assert made.weights[0, 0].tolist() != pytest.approx([0.7, 0.3], abs=1e-3)


def test_own_statistics_are_what_samples_of_the_circuit_give():
    made = circuit("tree", tie="shared", codes=3)
    tokens = sample(made, Noise(range(4000)), 4000)[:, 0]
    counted, expected = statistics(made, tokens), own_statistics(made, 4000)
    for name in ("root", "weights", "emissions"):
        a, b = getattr(counted, name), getattr(expected, name)
        assert a.sum() == pytest.approx(float(b.sum()), rel=1e-9)
        assert ((a - b).abs() <= 5.0 * (b + 1.0).sqrt() * 4.0).all()  # posteriors vary less than hard counts
    again = own_statistics(made, 1.0)
    normalise(made, again)
    assert torch.allclose(own_statistics(made, 1.0).weights, again.weights, atol=1e-12)


@pytest.mark.parametrize("tie", ["untied", "blocks", "shared"])
def test_probabilities_are_positive_and_sum_to_one_also_from_nothing(tie):
    made, tokens = circuit(tie=tie).float(), drawn(10)
    rule = prior(made, tokens, torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), Smoothing(spread=0.3))
    maximise(made, Statistics.empty(made), rule)
    assert made.is_safe
    assert torch.allclose(made.root.sum(), torch.ones(()))
    assert torch.allclose(made.weights.sum(2), torch.ones(()))
    assert torch.allclose(made.emissions.sum(1), torch.ones(()))
    assert torch.isfinite(log_prob(made, tokens)).all()


def test_codes_lend_to_the_nearest_and_keep_what_they_have():
    codebook = torch.tensor([[0.0], [1.0], [1.1], [9.0]])
    near = nearness(codebook)
    assert torch.allclose(near.sum(0), torch.ones(4, dtype=torch.float64))
    assert near.diagonal().eq(0).all()
    assert near[2, 1] > near[0, 1] > near[3, 1]
    counts = torch.tensor([[[10.0], [0.0], [0.0], [0.0]]], dtype=torch.float64)
    lent = lend(counts, near, 0.3)
    assert lent.sum() == pytest.approx(13.0)
    assert lent[0, 0, 0] == 10.0


def test_smoothing_leaves_the_counts_alone():
    made, tokens = circuit(), drawn(10)
    rule = prior(made, tokens, torch.eye(4), Smoothing(spread=0.5))
    counted = statistics(made, tokens)
    kept = counted.emissions.clone()
    smoothed(counted, rule)
    assert torch.equal(counted.emissions, kept)


def test_the_prior_knows_the_frequencies_at_each_table():
    made = circuit(tie="shared")
    tokens = torch.zeros(100, 16, dtype=torch.int64)
    tokens[:, 0] = 1
    codes = prior(made, tokens, torch.eye(4), Smoothing()).codes
    assert codes.shape == (1, 4)
    assert codes[0, :2].tolist() == pytest.approx([15 / 16, 1 / 16], abs=1e-3)
    assert (codes > 0).all()


@pytest.mark.parametrize("wrong", [{"emissions": -1.0}, {"weights": math.nan}, {"spread": -0.1}])
def test_negative_smoothing_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Smoothing(**wrong)
