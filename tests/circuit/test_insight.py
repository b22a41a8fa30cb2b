"""Entropies, reveals and ranked completions against the enumeration of every assignment."""

import itertools
import math

import numpy as np
import pytest
import torch

from circuit.worlds import WORLDS, enumerated, make, soft
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.evidence import SparseEvidence
from pipeline.circuit.insight import (
    Completions,
    completions,
    entropy_map,
    log_posterior,
    log_reveal,
    log_reveal_in_turn,
    most_probable,
)
from pipeline.circuit.queries import BITS, conditional_bits
from pipeline.circuit.regions import latent_tree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.errors import ConfigError, InputError
from pipeline.noise import Noise

every_world = pytest.mark.parametrize("name", WORLDS)
small = pytest.mark.parametrize("name", [name for name in WORLDS if not name.startswith("4x4")])
NOTHING = float("-inf")


def some_grids(name, count, seed=1):
    """Grids [count, N] drawn from the enumeration."""
    world = enumerated(name)
    return torch.from_numpy(world.tokens[np.random.default_rng(seed).choice(len(world.p), count, p=world.p)])


def weighted(name, log_w):
    """p(z | w) of every grid, for log-evidence [N, V]."""
    world = enumerated(name)
    p = world.p * world.weights(np.exp(log_w.double().numpy()))
    return p / p.sum()


def row_of(name, grid):
    """Number of a grid in the enumeration."""
    return int(np.ravel_multi_index(tuple(grid.tolist()), (enumerated(name).codes,) * len(grid)))


@every_world
def test_entropies_are_those_of_the_enumeration(name):
    circuit = make(name)
    log_w = soft(circuit, 2, 3)
    found = entropy_map(circuit, log_w)
    for row, own in zip(found, log_w, strict=True):
        p = enumerated(name).posterior(own)[1]
        bits = -(p * np.log2(np.where(p > 0, p, 1.0))).sum(1)
        np.testing.assert_allclose(row.numpy(), bits, rtol=0, atol=1e-11)


def test_entropies_of_sparse_evidence_are_whole():
    circuit = make("2x2, quad-tree")
    sparse = SparseEvidence.top(soft(circuit, 2, 3), 2)
    assert torch.allclose(entropy_map(circuit, sparse), entropy_map(circuit, sparse.dense(circuit.codes)))


@every_world
def test_posteriors_of_grids_are_those_of_the_enumeration(name):
    circuit = make(name)
    log_w, grids = soft(circuit, 2, 4), some_grids(name, 10).view(2, 5, -1)
    found = log_posterior(circuit, log_w, grids)
    for k in range(2):
        p = weighted(name, log_w[k])
        expected = [p[row_of(name, grid)] for grid in grids[k]]
        np.testing.assert_allclose(found[k].exp().numpy(), expected, rtol=1e-10)


@small
def test_posteriors_of_all_grids_sum_to_one(name):
    circuit, world = make(name), enumerated(name)
    log_w = soft(circuit, 1, 5)
    total = log_posterior(circuit, log_w, world.all_tokens()[None]).exp().sum()
    assert abs(float(total) - 1) < 1e-11


def test_what_evidence_rules_out_has_probability_zero():
    circuit = make("2x2, quad-tree")
    log_w = torch.zeros(1, 4, 4, dtype=torch.float64)
    log_w[0, 1, 2] = NOTHING
    found = log_posterior(circuit, log_w, torch.tensor([[[0, 2, 1, 1], [0, 1, 1, 1]]]))
    assert found[0, 0] == NOTHING
    assert found[0, 1].isfinite()


@every_world
def test_reveals_sum_to_one(name):
    """Over all values of the tokens revealed, given the others known or not."""
    circuit = make(name)
    grid, tokens = some_grids(name, 1), range(circuit.tokens)
    known = torch.tensor([k % 3 == 0 for k in tokens])
    shown = [1, circuit.tokens - 1] if circuit.tokens > 2 else [1]
    reveal = torch.tensor([k in shown for k in tokens])
    values = torch.tensor(list(itertools.product(range(circuit.codes), repeat=len(shown))))
    grids = grid.repeat(len(values), 1)
    grids[:, shown] = values
    grids = torch.where(known, grid, grids)
    grids = grids.unique(dim=0)
    found = log_reveal(circuit, grids, known, reveal)
    assert abs(float(found.exp().sum()) - 1) < 1e-11


@every_world
def test_a_reveal_is_a_ratio_of_sums_of_the_enumeration(name):
    circuit, world = make(name), enumerated(name)
    grids, rng = some_grids(name, 5, seed=2), np.random.default_rng(3)
    known = torch.from_numpy(rng.random(grids.shape) < 0.4)
    reveal = torch.from_numpy(rng.random(grids.shape) < 0.5)
    found = log_reveal(circuit, grids, known, reveal)
    for row, grid, k, r in zip(found, grids.numpy(), known.numpy(), reveal.numpy(), strict=True):
        before, after = (world.p[(world.tokens == grid)[:, shown].all(1)].sum() for shown in (k, k | r))
        assert math.isclose(float(row), math.log(after / before), rel_tol=0, abs_tol=1e-10)


def test_revealing_all_that_is_hidden_is_what_conditional_bits_say():
    circuit, grids = make("2x4, random tree"), some_grids("2x4, random tree", 4)
    known = torch.arange(8) < 3
    bits = -log_reveal(circuit, grids, known, ~known) / BITS / 5
    assert torch.allclose(bits, conditional_bits(circuit, grids, known), rtol=0, atol=1e-12)


@every_world
def test_reveals_in_turn_are_a_chain(name):
    circuit, grids = make(name), some_grids(name, 3, seed=4)
    known = torch.arange(circuit.tokens) == 0
    order = torch.arange(circuit.tokens - 1, 0, -1)
    each = log_reveal_in_turn(circuit, grids, known, order)
    assert each.shape == (3, len(order))
    assert torch.allclose(each.sum(1), log_reveal(circuit, grids, known, ~known), rtol=0, atol=1e-10)
    alone = log_reveal(circuit, grids, known, torch.arange(circuit.tokens) == order[0])
    assert torch.allclose(each[:, 0], alone, rtol=0, atol=1e-12)


def echo():
    """Three tokens that are always the same."""
    circuit = Circuit(latent_tree([-1], [0, 0, 0]), states=2, vocabulary=Vocabulary.full(2), ties=(0, 0, 0)).double()
    circuit.emissions.copy_(torch.eye(2))
    return circuit


def test_reveals_of_what_is_impossible():
    circuit, grid = echo(), torch.tensor([[0, 1, 0]])
    nothing, everything = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    assert log_reveal(circuit, grid, nothing, everything).item() == NOTHING
    each = log_reveal_in_turn(circuit, grid, nothing, torch.tensor([0, 1, 2]))
    assert each.tolist() == [[pytest.approx(math.log(0.5)), NOTHING, NOTHING]]
    later = log_reveal_in_turn(circuit, grid, nothing, torch.tensor([2, 0, 1]))
    assert later.tolist() == [[pytest.approx(math.log(0.5)), pytest.approx(0.0), NOTHING]]
    for call in (
        lambda: log_reveal(circuit, grid, everything, everything),
        lambda: log_reveal_in_turn(circuit, grid, everything, torch.tensor([0])),
    ):
        with pytest.raises(InputError, match=r"image 0: the circuit gives its known tokens probability 0"):
            call()


@small
def test_completions_are_ranked_and_counted(name):
    circuit = make(name)
    log_w = soft(circuit, 2, 6)
    for k, found in enumerate(completions(circuit, log_w, Noise([1, 2]), 300)):
        p = weighted(name, log_w[k])
        rows = [row_of(name, grid) for grid in found.tokens]
        assert len(set(rows)) == len(rows) == len(found)
        np.testing.assert_allclose(found.log_prob.exp().numpy(), p[rows], rtol=1e-10)
        assert (found.log_prob.diff() <= 0).all()
        assert int(found.count.sum()) == 300
        expected = 300 * p[rows[0]]
        assert abs(int(found.count[0]) - expected) < 6 * math.sqrt(expected) + 3


def test_completions_keep_what_is_known():
    circuit, [grid] = make("2x4, random tree"), some_grids("2x4, random tree", 1)
    log_w = torch.zeros(1, 8, 3, dtype=torch.float64)
    log_w[0, :3] = NOTHING
    log_w[0, range(3), grid[:3].tolist()] = 0.0
    [found] = completions(circuit, log_w, Noise([5]), 40)
    assert (found.tokens[:, :3] == grid[:3]).all()
    shown = torch.arange(8) < 3
    expected = log_reveal(circuit, found.tokens, shown, ~shown)
    assert torch.allclose(found.log_prob, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["2x2, quad-tree", "2x4, blocks, tied, pruned", "2x4, random tree, zeros"])
def test_completions_depend_on_their_own_image_only(name):
    circuit = make(name)
    log_w = soft(circuit, 3, 7)
    together = completions(circuit, log_w, Noise([1, 2, 3]), 20)
    again = completions(circuit, log_w, Noise([1, 2, 3]), 20)
    for k in range(3):
        [alone] = completions(circuit, log_w[k : k + 1], Noise([k + 1]), 20)
        for other in (alone, again[k]):
            assert torch.equal(together[k].tokens, other.tokens)
            assert torch.allclose(together[k].log_prob, other.log_prob, rtol=0, atol=1e-10)
            assert torch.equal(together[k].count, other.count)


def made_of(*grids):
    """Completions of these grids, the first the likeliest."""
    return Completions(
        torch.tensor(grids), -torch.arange(len(grids)).double(), torch.ones(len(grids), dtype=torch.int64)
    )


def test_diverse_completions_are_farthest_first():
    found = made_of([0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1])
    assert found.diverse(1).tokens.tolist() == [[0, 0, 0, 0]]
    two = found.diverse(2)
    assert two.tokens.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert two.log_prob.tolist() == [0.0, -4.0]
    three = found.diverse(3)  # 0011 is 2 from both; 0001 and 1110 are 1 from one of them
    assert three.tokens.tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]
    assert len(found.diverse(9)) == 5
    equal = made_of([0, 0], [0, 1], [1, 0])
    assert equal.diverse(2).tokens.tolist() == [[0, 0], [0, 1]]  # of equals the likelier
    with pytest.raises(ConfigError, match="at least 1, but 0"):
        found.diverse(0)


@small
def test_the_most_probable_completion_is_at_most_as_likely_as_its_tokens(name):
    circuit, world = make(name), enumerated(name)
    log_w = soft(circuit, 2, 8)
    found = most_probable(circuit, log_w)
    for k in range(2):
        scored = world.joint * world.weights(np.exp(log_w[k].numpy()))
        scored /= scored.sum()
        assert math.isclose(float(found.log_joint[k].exp()), scored.max(), rel_tol=1e-10)
        tokens = scored.sum(0)[row_of(name, found.tokens[k])]
        assert math.isclose(float(found.log_prob[k].exp()), tokens, rel_tol=1e-10)
    assert (found.log_joint <= found.log_prob + 1e-12).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c, w: completions(c, w, Noise([1]), 0), ConfigError, "at least 1 draw, but 0"),
        (lambda c, w: completions(c, w, Noise([1, 2]), 3), InputError, "one stream of noise for each of 1"),
        (lambda c, w: log_posterior(c, w, torch.zeros(1, 4, dtype=torch.int64)), InputError, r"\[1, K, 4\]"),
        (lambda c, w: log_posterior(c, w, torch.zeros(2, 1, 4, dtype=torch.int64)), InputError, r"\[1, K, 4\]"),
        (lambda c, w: entropy_map(c, w[:, :2]), InputError, r"expected log-evidence \[B, 4, 4\]"),
        (
            lambda c, w: log_reveal(c, torch.zeros(1, 4).long(), torch.zeros(4), torch.ones(4).bool()),
            InputError,
            "expected known",
        ),
        (
            lambda c, w: log_reveal_in_turn(c, torch.zeros(1, 4).long(), torch.zeros(4).bool(), torch.tensor([1, 1])),
            InputError,
            "order of different tokens 0 to 3",
        ),
        (
            lambda c, w: log_reveal_in_turn(c, torch.zeros(1, 4).long(), torch.zeros(4).bool(), torch.tensor([4])),
            InputError,
            "order of different tokens 0 to 3",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    circuit = make("2x2, quad-tree")
    with pytest.raises(error, match=message):
        call(circuit, soft(circuit, 1, 9))
