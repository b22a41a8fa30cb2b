"""What tokens tell about tokens: exact mutual information and gains of blocks against the enumeration."""

import itertools

import numpy as np
import pytest
import torch

from circuit.worlds import WORLDS, enumerated, make, soft
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.evidence import SparseEvidence
from pipeline.circuit.information import block_gain, mutual_information
from pipeline.circuit.insight import entropy_map
from pipeline.circuit.regions import latent_tree
from pipeline.circuit.sampling import sample_posterior
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.errors import ConfigError, InputError
from pipeline.noise import Noise

every_world = pytest.mark.parametrize("name", WORLDS)
small = pytest.mark.parametrize("name", [name for name in WORLDS if name.startswith(("1x2", "2x2"))])
KINDS = ["none", "soft", "hard", "mixed"]
NOTHING = float("-inf")


def bits(p):
    """Entropy of a table of probabilities."""
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def told(circuit, name, kind, seed=0):
    """Log-evidence [1, N, V] that is possible: nothing, soft, some tokens known, or some codes ruled out."""
    if kind == "none":
        return torch.zeros(1, circuit.tokens, circuit.codes, dtype=torch.float64)
    log_w, world, rng = soft(circuit, 1, seed), enumerated(name), np.random.default_rng(seed)
    if kind == "soft":
        return log_w
    grid = world.tokens[rng.choice(len(world.p), p=world.p)]
    if kind == "hard":
        log_w.zero_()
        log_w[0, ::2] = NOTHING
    else:
        log_w[torch.from_numpy(rng.random(log_w.shape) < 0.4)] = NOTHING
    log_w[0, range(circuit.tokens), grid.tolist()] = 0.0
    return log_w


def table(name, log_w):
    """p(z | w) as an array with an axis per token."""
    world = enumerated(name)
    p = world.p * world.weights(np.exp(log_w.double().numpy()))
    return (p / p.sum()).reshape((world.codes,) * len(log_w))


def expected_information(p):
    """I(z_i; z_j) of all pairs of axes, entropies on the diagonal."""
    count = p.ndim
    single = [bits(p.sum(tuple(set(range(count)) - {i}))) for i in range(count)]
    out = np.diag(single)
    for i, j in itertools.combinations(range(count), 2):
        out[i, j] = out[j, i] = single[i] + single[j] - bits(p.sum(tuple(set(range(count)) - {i, j})))
    return out


@pytest.mark.parametrize("kind", KINDS)
@every_world
def test_information_is_that_of_the_enumeration(name, kind):
    circuit = make(name)
    log_w = told(circuit, name, kind, seed=1)
    found = mutual_information(circuit, log_w)
    expected = expected_information(table(name, log_w[0]))
    np.testing.assert_allclose(found.bits[0].numpy(), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.own[0].numpy(), np.diag(expected), rtol=0, atol=1e-10)
    others = (expected * (1 - np.eye(circuit.tokens))).sum(1)
    np.testing.assert_allclose(found.others[0].numpy(), others, rtol=0, atol=1e-10)


@every_world
def test_some_sources_say_what_all_say(name):
    circuit = make(name)
    log_w = soft(circuit, 2, 2)
    everything = mutual_information(circuit, log_w)
    assert everything.sources == tuple(range(circuit.tokens))
    assert torch.equal(everything.bits, everything.bits.transpose(1, 2))
    sources = (circuit.tokens - 1, 0)
    some = mutual_information(circuit, log_w, sources)
    assert torch.allclose(some.bits, everything.bits[:, list(sources)], rtol=0, atol=1e-12)
    assert torch.allclose(some.own, everything.own[:, list(sources)], rtol=0, atol=1e-12)
    alone = mutual_information(circuit, log_w[1:], sources[:1])
    assert torch.allclose(alone.bits[0], everything.bits[1, -1:], rtol=0, atol=1e-12)


def test_the_summed_information_is_the_expected_drop_of_entropies():
    """By asking for all entropies anew, given each value of the token."""
    circuit = make("2x4, blocks, tied, pruned")
    log_w = soft(circuit, 1, 3)
    before, token = entropy_map(circuit, log_w)[0], 5
    p = torch.from_numpy(enumerated("2x4, blocks, tied, pruned").posterior(log_w[0])[1])[token]
    after = torch.zeros(8, dtype=torch.float64)
    for code in range(circuit.codes):
        shown = log_w.clone()
        shown[0, token] = NOTHING
        shown[0, token, code] = 0.0
        after += p[code] * entropy_map(circuit, shown)[0]
    drop = (before - after).sum() - before[token]
    assert torch.allclose(mutual_information(circuit, log_w, [token]).others[0, 0], drop, rtol=0, atol=1e-11)


def test_sparse_evidence_is_as_good_as_dense():
    circuit = make("2x2, quad-tree, pruned")
    sparse = SparseEvidence.top(soft(circuit, 2, 4), 3)
    dense = sparse.dense(circuit.codes)
    assert torch.equal(mutual_information(circuit, sparse).bits, mutual_information(circuit, dense).bits)


def test_more_tokens_than_are_looked_at_together():
    """In single precision, sixty-four tokens: against the double, and gains are never negative."""
    circuit = Circuit(quadtree(8), states=4, vocabulary=Vocabulary.full(5)).double()
    circuit.randomize(torch.Generator().manual_seed(0), 0.3)
    log_w = soft(circuit, 1, 5)
    exact = mutual_information(circuit, log_w)
    found = mutual_information(circuit.float(), log_w.float())
    assert found.bits.dtype == torch.float32
    assert float((found.bits - exact.bits).abs().max()) < 2e-5
    assert (found.bits >= 0).all()


def exact_drops(p, block):
    """For every value of a block its probability, and the drop of the entropies of the tokens outside."""
    count, codes = p.ndim, p.shape[0]
    outside = [j for j in range(count) if j not in block]
    before = sum(bits(p.sum(tuple(set(range(count)) - {j}))) for j in outside)
    drops = {}
    for values in itertools.product(range(codes), repeat=len(block)):
        index = [slice(None)] * count
        for token, value in zip(block, values, strict=True):
            index[token] = slice(value, value + 1)
        chance = p[tuple(index)].sum()
        if chance > 0:
            part = p[tuple(index)] / chance
            drops[values] = chance, before - sum(bits(part.sum(tuple(set(range(count)) - {j}))) for j in outside)
    return drops


@pytest.mark.parametrize("kind", KINDS)
@small
def test_gains_of_blocks_are_those_of_the_enumeration(name, kind):
    """Exactly so for the values drawn, and on average within what the errors allow."""
    circuit = make(name)
    log_w, draws = told(circuit, name, kind, seed=2), 400
    p, drawn = table(name, log_w[0]), sample_posterior(circuit, log_w, Noise([3]), draws)[0].numpy()
    blocks = [[0], [1, 0], list(range(circuit.tokens))]
    found = block_gain(circuit, log_w, blocks, Noise([3]), draws)
    assert found.draws == draws
    for k, block in enumerate(blocks):
        drops = exact_drops(p, block)
        chances, values = np.array(list(drops.values())).T
        mean = np.dot(chances, values)
        deviation = np.sqrt(np.dot(chances, (values - mean) ** 2))
        assert abs(float(found.others[0, k]) - mean) <= 4.5 * deviation / draws**0.5 + 1e-10
        seen = [drops[tuple(grid[block].tolist())][1] for grid in drawn]
        assert float(found.others[0, k]) == pytest.approx(np.mean(seen), abs=1e-10)
        assert float(found.error[0, k]) == pytest.approx(np.std(seen, ddof=1) / draws**0.5, abs=1e-10)
        own = sum(bits(p.sum(tuple(set(range(p.ndim)) - {j}))) for j in block)
        assert float(found.own[0, k]) == pytest.approx(own, abs=1e-10)
    assert found.others[0, -1] == 0.0  # nobody is left


def test_gains_depend_on_their_own_image_only():
    circuit, blocks = make("2x4, random tree"), [[0, 1], [6]]
    log_w = soft(circuit, 3, 6)
    together, again = (block_gain(circuit, log_w, blocks, Noise([1, 2, 3]), 8) for _ in range(2))
    assert torch.equal(together.others, again.others)
    for k in range(3):
        alone = block_gain(circuit, log_w[k : k + 1], blocks, Noise([k + 1]), 8)
        for name in ("own", "others", "error"):
            assert torch.allclose(getattr(alone, name)[0], getattr(together, name)[k], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c, w: mutual_information(c, w, [0, 0]), InputError, "different tokens from 0 to 3, got 0, 0"),
        (lambda c, w: mutual_information(c, w, [4]), InputError, "different tokens from 0 to 3, got 4"),
        (lambda c, w: mutual_information(c, w, []), InputError, "different tokens from 0 to 3, got none"),
        (lambda c, w: mutual_information(c, w[..., :2]), InputError, r"expected log-evidence \[B, 4, 4\]"),
        (lambda c, w: block_gain(c, w, [[0], [-1]], Noise([1]), 4), InputError, "from 0 to 3, got -1"),
        (lambda c, w: block_gain(c, w, [[0]], Noise([1]), 1), ConfigError, "1 blocks and 1 draws"),
        (lambda c, w: block_gain(c, w, [], Noise([1]), 4), ConfigError, "0 blocks and 4 draws"),
    ],
)
def test_what_is_refused(call, error, message):
    circuit = make("2x2, quad-tree")
    with pytest.raises(error, match=message):
        call(circuit, soft(circuit, 1, 7))


def echo():
    """Two tokens that are always the same, one of two codes each."""
    circuit = Circuit(latent_tree([-1], [0, 0]), states=2, vocabulary=Vocabulary.full(2), ties=(0, 0)).double()
    circuit.emissions.copy_(torch.eye(2))
    return circuit


def test_a_token_tells_all_about_its_echo():
    found = mutual_information(echo(), torch.zeros(1, 2, 2, dtype=torch.float64))
    assert torch.allclose(found.bits, torch.ones(1, 2, 2, dtype=torch.float64))


def test_what_the_circuit_holds_to_be_impossible_is_refused():
    log_w = torch.tensor([[[0.0, NOTHING], [NOTHING, 0.0]]], dtype=torch.float64)
    with pytest.raises(InputError, match="contradicts the circuit"):
        mutual_information(echo(), log_w)
