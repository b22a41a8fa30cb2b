"""Probabilities and posteriors against the enumeration of every assignment, on every world."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from circuit.worlds import WORLDS, Enumeration, enumerated, make, normals, soft
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.queries import conditional_bits, log_evidence, log_prob, posterior
from pipeline.circuit.regions import latent_tree
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary

every_world = pytest.mark.parametrize("name", WORLDS)
NOTHING = float("-inf")


def with_zeros(log_w, seed):
    """Rule out some codes of each token, never all."""
    gone = torch.from_numpy(np.random.default_rng(seed).random(log_w.shape) < 0.25)
    return log_w.masked_fill(gone & (log_w < log_w.amax(-1, keepdim=True)), NOTHING)


def test_the_worlds_are_of_both_kinds():
    """Those with zeros are computed in logs, the others in linear arithmetic."""
    assert {name for name in WORLDS if not make(name).is_safe} == {name for name in WORLDS if WORLDS[name].zeros}


@every_world
def test_probabilities_are_those_of_the_enumeration_and_sum_to_one(name):
    world = enumerated(name)
    p = log_prob(make(name), world.all_tokens()).exp().numpy()
    assert abs(p.sum() - 1) < 1e-12
    np.testing.assert_allclose(p, world.p, rtol=1e-11, atol=0)


@every_world
def test_probabilities_in_float32_sum_to_one(name):
    circuit = make(name, torch.float32)
    p = log_prob(circuit, enumerated(name).all_tokens()).exp()
    assert p.dtype == torch.float64
    assert abs(float(p.sum()) - 1) < 1e-5


@every_world
def test_nothing_known_is_certain(name):
    circuit = make(name)
    tokens = enumerated(name).all_tokens()[:3]
    assert float(log_prob(circuit, tokens, torch.zeros(circuit.tokens, dtype=torch.bool)).abs().max()) < 1e-12
    assert (
        float(log_evidence(circuit, torch.zeros(1, circuit.tokens, circuit.codes, dtype=torch.float64)).abs()) < 1e-12
    )


@every_world
def test_summing_tokens_out_is_summing_the_enumeration(name):
    circuit, world = make(name), enumerated(name)
    rng = np.random.default_rng(1)
    tokens = torch.from_numpy(world.tokens[rng.choice(len(world.p), 6, p=world.p)])
    known = torch.from_numpy(rng.random((6, circuit.tokens)) < 0.5)
    expected = [
        world.p[(world.tokens == t)[:, k].all(1)].sum() for t, k in zip(tokens.numpy(), known.numpy(), strict=True)
    ]
    found = log_prob(circuit, tokens, known)
    np.testing.assert_allclose(found.exp().numpy(), expected, rtol=1e-12)
    one_hot = torch.where(torch.nn.functional.one_hot(tokens, circuit.codes).bool(), 0.0, NOTHING).double()
    evidence = torch.where(known[..., None], one_hot, 0.0)
    torch.testing.assert_close(log_evidence(circuit, evidence), found, rtol=0, atol=1e-12)
    known[:, -1] = False
    rows, hidden = [np.flatnonzero((world.tokens == t).all(1))[0] for t in tokens.numpy()], (~known).sum(1).numpy()
    bits = (log_prob(circuit, tokens, known).numpy() - np.log(world.p[rows])) / np.log(2) / hidden
    np.testing.assert_allclose(conditional_bits(circuit, tokens, known).numpy(), bits, rtol=0, atol=1e-12)


def test_bits_of_nothing_hidden_are_no_number_and_one_mask_serves_all():
    circuit, tokens = make("2x2, chain"), torch.zeros(2, 4, dtype=torch.int64)
    assert conditional_bits(circuit, tokens, torch.ones(4, dtype=torch.bool)).isnan().all()
    known = torch.tensor([True, False, True, False])
    assert torch.equal(conditional_bits(circuit, tokens, known), conditional_bits(circuit, tokens, known.expand(2, 4)))


@every_world
@pytest.mark.parametrize("kind", ["soft", "some codes ruled out", "some tokens known"])
def test_posteriors_are_those_of_the_enumeration(name, kind):
    circuit, world = make(name), enumerated(name)
    log_w = soft(circuit, 4, seed=2)
    if kind == "some codes ruled out":
        log_w = possible_rows(circuit, with_zeros(log_w.repeat(4, 1, 1), seed=3))
    if kind == "some tokens known":
        rng = np.random.default_rng(18)
        truth = torch.from_numpy(world.tokens[rng.choice(len(world.p), 4, p=world.p)])
        known = torch.from_numpy(rng.random((4, circuit.tokens)) < 0.6)[..., None]
        log_w = torch.where(known, torch.nn.functional.one_hot(truth, circuit.codes).double().log(), log_w)
    found = posterior(circuit, log_w)
    torch.testing.assert_close(log_evidence(circuit, log_w), found.log_z, rtol=0, atol=1e-12)
    for w, log_z, marginals, cavity in zip(log_w, found.log_z, found.marginals, found.cavity, strict=True):
        expected_z, expected = world.posterior(w)
        assert abs(float(log_z) - expected_z) < 1e-12
        np.testing.assert_allclose(marginals.numpy(), expected, rtol=0, atol=1e-12)
        for i in range(circuit.tokens):
            np.testing.assert_allclose(cavity[i].numpy(), world.cavity(w, i), rtol=0, atol=1e-12)
    assert float((found.marginals.sum(-1) - 1).abs().max()) < 1e-12


def test_a_cavity_allows_states_that_the_token_itself_rules_out():
    """Two states with a code each; token 0 is known to be 0, token 1 is not, so without itself token 0 is anything."""
    circuit = Circuit(latent_tree([-1], [0, 0]), states=2, vocabulary=Vocabulary.full(2)).double()
    circuit.emissions.copy_(torch.eye(2))
    found = posterior(circuit, torch.tensor([[[0.0, NOTHING], [0.0, 0.0]]], dtype=torch.float64))
    assert found.marginals.tolist() == [[[1.0, 0.0], [1.0, 0.0]]]
    assert found.cavity.tolist() == [[[0.5, 0.5], [1.0, 0.0]]]


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-43), (torch.float64, 1e-322)])
def test_parameters_too_small_to_have_digits_are_computed_in_logs(dtype, tiny):
    """Every explanation of the first two tokens needs one tiny step, so that only their ratios count."""
    circuit = Circuit(latent_tree([-1, 0], [0, 1, 1]), states=2, vocabulary=Vocabulary.full(2)).to(dtype)
    circuit.weights.copy_(torch.tensor([[[1, 3 * tiny], [2 * tiny, 1]]], dtype=torch.float64))
    circuit.emissions[0] = torch.tensor([[3 * tiny, 1], [1, tiny]], dtype=torch.float64)  # [code, state of the root]
    circuit.emissions[1] = torch.tensor([[1, 5 * tiny], [tiny, 1]], dtype=torch.float64)
    circuit.emissions[2] = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)
    root, weights, e = (
        [Fraction(x) for x in b.flatten().tolist()] for b in (circuit.root, circuit.weights, circuit.emissions)
    )
    path = {(r, c): root[r] * weights[2 * r + c] * e[r] * e[4 + c] for r in (0, 1) for c in (0, 1)}
    expected = [sum(p * e[8 + 2 * code + c] for (_, c), p in path.items()) / sum(path.values()) for code in (0, 1)]
    evidence = torch.tensor([[[0.0, NOTHING], [0.0, NOTHING], [0.0, 0.0]]], dtype=dtype)
    found = posterior(circuit, evidence).marginals[0, 2].double().numpy()
    np.testing.assert_allclose(found, np.array(expected, dtype=float), rtol=1e-6)


def possible_rows(circuit, log_w):
    """The images whose evidence the circuit allows, by enumeration; at least one."""
    world = Enumeration(circuit)
    rows = [k for k, w in enumerate(log_w) if (world.p * world.weights(np.exp(w.numpy()))).sum() > 0]
    assert rows
    return log_w[rows[:4]]


@every_world
def test_the_posterior_is_the_gradient_of_log_z(name):
    circuit = make(name)
    log_w = possible_rows(circuit, with_zeros(soft(circuit, 6, seed=4), seed=5))
    found, leaf = posterior(circuit, log_w), log_w.clone().requires_grad_()
    log_evidence(circuit, leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, found.marginals, rtol=0, atol=1e-10)
    step, rng = 1e-5, np.random.default_rng(6)
    for _ in range(5):
        image, token, code = (int(rng.integers(n)) for n in log_w.shape)
        ends = log_w.repeat(2, 1, 1)[[image, image + len(log_w)]]
        ends[0, token, code] -= step
        ends[1, token, code] += step
        below, above = log_evidence(circuit, ends).tolist()
        assert abs((above - below) / (2 * step) - float(found.marginals[image, token, code])) < 1e-6


@every_world
def test_the_gradient_is_right_where_codes_tie(name):
    circuit = make(name, torch.float32)
    log_w = torch.zeros(1, circuit.tokens, circuit.codes)
    log_w[..., 0] = 1e-9  # rounds away in the weights, not in the evidence
    leaf = log_w.clone().requires_grad_()
    log_evidence(circuit, leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, posterior(circuit, log_w).marginals, rtol=0, atol=1e-6)


@every_world
def test_cavities_do_not_see_the_token_s_own_evidence(name):
    circuit = make(name)
    log_w = soft(circuit, 1, seed=7)
    found = posterior(circuit, log_w)
    changed = log_w.repeat(circuit.tokens, 1, 1)
    own = torch.arange(circuit.tokens)
    changed[own, own] += normals(circuit, 8, circuit.tokens, circuit.codes) * 3
    torch.testing.assert_close(posterior(circuit, changed).cavity[own, own], found.cavity[0], rtol=0, atol=1e-12)
    torch.testing.assert_close((found.cavity.log() + log_w).softmax(-1), found.marginals, rtol=0, atol=1e-12)


@every_world
def test_scaling_evidence_scales_z_and_nothing_else(name):
    circuit = make(name)
    log_w = soft(circuit, 2, seed=9)
    factor = normals(circuit, 10, 2, circuit.tokens, 1) * 30
    before, after = posterior(circuit, log_w), posterior(circuit, log_w + factor)
    torch.testing.assert_close(after.log_z, before.log_z + factor.sum((1, 2)), rtol=0, atol=1e-11)
    torch.testing.assert_close(after.marginals, before.marginals, rtol=0, atol=1e-12)


@every_world
def test_entropies_and_logs_follow_from_the_marginals(name):
    circuit = make(name)
    found = posterior(circuit, soft(circuit, 2, seed=11))
    p = found.marginals.numpy()
    expected = -np.where(p > 0, p * np.log2(np.where(p > 0, p, 1)), 0).sum(-1)
    np.testing.assert_allclose(found.entropy().numpy(), expected, atol=1e-12)
    torch.testing.assert_close(found.log_marginals.exp(), found.marginals)


def test_the_flow_only_formula_is_another_posterior():
    """Documents the difference to code published with Liu et al. 2024, which calls a library's `conditional` query.

    That query returns r_i(c) ~ sum_n F_n f_n(c): the posterior F_n of each input's latent state times its emissions,
    without the factor w_i(c) / fw_n, as if the token were hidden. Here one latent with two states and emissions
    (4/5, 1/5), (1/5, 4/5) holds four tokens with weights (3, 1), (0, 1), none and none. All numbers are exact
    fractions. r is right where there is no evidence; where there is, it is off by a total variation of 8/41 and 16/41:
    it gives code 0 of the second token, which is ruled out, a probability of 16/41.
    """
    circuit = Circuit(quadtree(2), states=2, vocabulary=Vocabulary.full(2), ties=(0,) * 4).double()
    circuit.emissions.copy_(torch.tensor([[[0.8, 0.2], [0.2, 0.8]]]))
    weights = [[3, 1], [0, 1], [1, 1], [1, 1]]
    f = [[Fraction(4, 5), Fraction(1, 5)], [Fraction(1, 5), Fraction(4, 5)]]  # [state][code]
    fw = [[sum(w[c] * f[n][c] for c in (0, 1)) for w in weights] for n in (0, 1)]
    mass = [fw[n][0] * fw[n][1] * fw[n][2] * fw[n][3] / 2 for n in (0, 1)]
    flow = [m / sum(mass) for m in mass]
    r = [[sum(flow[n] * f[n][c] for n in (0, 1)) for c in (0, 1)] for _ in range(4)]
    exact = [[sum(flow[n] * f[n][c] * w[c] / fw[n][i] for n in (0, 1)) for c in (0, 1)] for i, w in enumerate(weights)]
    distance = [sum(abs(a - b) for a, b in zip(x, y, strict=True)) / 2 for x, y in zip(r, exact, strict=True)]
    assert distance == [Fraction(8, 41), Fraction(16, 41), 0, 0]

    found = posterior(circuit, torch.tensor([weights], dtype=torch.float64).log())
    np.testing.assert_allclose(found.marginals[0].numpy(), np.array(exact, dtype=float), rtol=0, atol=1e-15)
    apart = (found.marginals[0] - torch.tensor(np.array(r, dtype=float))).abs().sum(-1) / 2
    np.testing.assert_allclose(apart.numpy(), [8 / 41, 16 / 41, 0, 0], atol=1e-15)


@every_world
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_is_the_same_alone_and_in_a_batch(name, dtype):
    circuit = make(name, dtype)
    atol = 1e-6 if dtype == torch.float32 else 1e-13
    log_w = soft(circuit, 32, seed=12)
    together = posterior(circuit, log_w)
    alone = [posterior(circuit, log_w[k : k + 1]) for k in (0, 13, 31)]
    torch.testing.assert_close(
        torch.cat([a.marginals for a in alone]), together.marginals[[0, 13, 31]], rtol=0, atol=atol
    )
    torch.testing.assert_close(torch.cat([a.log_z for a in alone]), together.log_z[[0, 13, 31]], rtol=0, atol=10 * atol)


@every_world
def test_taking_turns_changes_nothing(name):
    circuit, world = make(name), enumerated(name)
    log_w, tokens = soft(circuit, 7, seed=13), world.all_tokens()[:50]
    whole = posterior(circuit, log_w), log_prob(circuit, tokens), log_evidence(circuit, log_w)
    circuit.memory = 1
    assert len(list(circuit.turns(7, 10))) == 7
    turns = posterior(circuit, log_w), log_prob(circuit, tokens), log_evidence(circuit, log_w)
    for attribute in ("marginals", "messages", "log_z"):
        torch.testing.assert_close(getattr(turns[0], attribute), getattr(whole[0], attribute), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(turns[1], whole[1], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(turns[2], whole[2], rtol=1e-13, atol=1e-13)


def test_turns_cover_a_batch_within_memory():
    circuit = make("2x2, quad-tree")
    circuit.memory = 8 * 100 * 3
    assert list(circuit.turns(7, 100)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    circuit.root[0] = 0.0  # in logs, pairs of 3 states are held, in float64 whatever the circuit's type
    assert list(circuit.turns(2, 100)) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize("name", [name for name in WORLDS if not WORLDS[name].ties])
def test_an_empty_batch_gives_empty_answers(name):
    circuit = make(name)
    nothing = torch.zeros(0, circuit.tokens, circuit.codes, dtype=torch.float64)
    found = posterior(circuit, nothing)
    assert found.marginals.shape == nothing.shape
    assert found.log_z.shape == log_evidence(circuit, nothing).shape == (0,)
    assert log_prob(circuit, torch.zeros(0, circuit.tokens, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize("name", [name for name in WORLDS if WORLDS[name].ties])
def test_tied_tables_are_copied_tables(name):
    tied = make(name)
    untied = Circuit(tied.graph, states=tied.states, vocabulary=tied.vocabulary).double()
    untied.root.copy_(tied.root)
    untied.weights.copy_(tied.weights)
    untied.emissions.copy_(tied.emissions[list(tied.table)])
    log_w, tokens = soft(tied, 3, seed=14), enumerated(name).all_tokens()[::7]
    torch.testing.assert_close(log_prob(untied, tokens), log_prob(tied, tokens), rtol=1e-13, atol=0)
    ours, theirs = posterior(tied, log_w), posterior(untied, log_w)
    torch.testing.assert_close(theirs.marginals, ours.marginals, rtol=0, atol=1e-13)
    torch.testing.assert_close(theirs.cavity, ours.cavity, rtol=0, atol=1e-13)


@every_world
def test_naming_the_tokens_otherwise_renames_the_answers(name):
    """Row by row, in Morton order or any other: only which latent a token hangs from counts."""
    circuit = make(name)
    order = np.random.default_rng(15).permutation(circuit.tokens)
    homes = [circuit.graph.homes[i] for i in order]
    table = [circuit.table[i] for i in order]
    other = Circuit(
        latent_tree(circuit.graph.parents, homes), states=circuit.states, vocabulary=circuit.vocabulary, ties=table
    ).double()
    assert other.graph.parents == circuit.graph.parents
    for mine, theirs in zip(circuit.buffers(), other.buffers(), strict=True):
        if mine.is_floating_point():
            theirs.copy_(mine)
    log_w = soft(circuit, 2, seed=16)
    found, renamed = posterior(circuit, log_w), posterior(other, log_w[:, order])
    torch.testing.assert_close(renamed.marginals, found.marginals[:, order], rtol=0, atol=1e-13)
    torch.testing.assert_close(renamed.log_z, found.log_z, rtol=0, atol=1e-12)


def test_a_parameter_that_becomes_zero_is_noticed():
    circuit = make("2x2, quad-tree")
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    assert circuit.is_safe
    before = float(log_prob(circuit, tokens))
    circuit.emissions[0, 0] = 0.0
    assert not circuit.is_safe
    assert float(log_prob(circuit, tokens)) == NOTHING
    circuit.emissions.copy_(make("2x2, quad-tree").emissions)
    assert circuit.is_safe
    assert float(log_prob(circuit, tokens)) == before


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-200, 0.3])
def test_both_ways_to_compute_agree_whatever_a_parameter_is(value):
    """Linear arithmetic and logs, on both sides of the border between them."""
    circuit = make("2x4, random tree")
    circuit.weights[:, 0, :] = torch.tensor([value, 1.0 - value])
    circuit.emissions[:, 0, 0], circuit.emissions[:, 1:, 0] = value, (1.0 - value) / 2
    world = Enumeration(circuit)
    np.testing.assert_allclose(log_prob(circuit, world.all_tokens()).exp().numpy(), world.p, rtol=1e-11, atol=1e-300)
    log_w = soft(circuit, 1, seed=17)
    np.testing.assert_allclose(posterior(circuit, log_w).marginals[0].numpy(), world.posterior(log_w[0])[1], atol=1e-12)
