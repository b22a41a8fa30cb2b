"""What is refused at the border, by image and token; sparse evidence; pruned vocabularies."""

import re

import numpy as np
import pytest
import torch

from circuit.worlds import WORLDS, Enumeration, enumerated, make, soft
from pipeline.circuit.circuit import Circuit
from pipeline.circuit.evidence import SparseEvidence
from pipeline.circuit.flows import statistics
from pipeline.circuit.mpe import mpe
from pipeline.circuit.queries import log_evidence, log_prob, posterior
from pipeline.circuit.sampling import sample_posterior
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.errors import ConfigError, InputError
from pipeline.noise import Noise

every_world = pytest.mark.parametrize("name", WORLDS)
NOTHING, TOO_MUCH, NAN = float("-inf"), float("inf"), float("nan")

QUERIES = {
    "log_evidence": log_evidence,
    "posterior": posterior,
    "mpe": mpe,
    "sample": lambda circuit, evidence: sample_posterior(circuit, evidence, Noise(range(len(evidence)))),
}
every_query = pytest.mark.parametrize("query", QUERIES)
both_kinds = pytest.mark.parametrize("name", ["2x2, chain", "2x2, star, shared, zeros"])


@every_query
@both_kinds
@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize(
    ("value", "every_code", "message"),
    [(NOTHING, True, "ruled out"), (NAN, False, "NaN or +inf"), (TOO_MUCH, False, "NaN or +inf"), (NAN, True, "NaN")],
)
def test_bad_evidence_is_refused_by_image_and_tokens(query, name, turns, value, every_code, message):
    circuit = make(name)
    log_w = soft(circuit, 4, seed=1)
    log_w[2, 1:3, slice(None) if every_code else 1] = value
    log_w[3, 0] = value
    if turns:
        circuit.memory = 1
    with pytest.raises(InputError, match=rf"^image 2, tokens 1, 2: .*{re.escape(message)}"):
        QUERIES[query](circuit, log_w)


@every_query
@both_kinds
def test_bad_sparse_evidence_is_refused_by_image_and_tokens(query, name):
    circuit = make(name)
    sound = SparseEvidence.top(soft(circuit, 3, seed=2), 2)
    for log_w, log_rest, message in ((NAN, 0.0, "NaN"), (NOTHING, NOTHING, "ruled out"), (0.0, TOO_MUCH, "NaN or")):
        bad = SparseEvidence(sound.codes, sound.log_w.clone(), sound.log_rest.clone())
        bad.log_w[1, 3], bad.log_rest[1, 3] = log_w, log_rest
        with pytest.raises(InputError, match=f"^image 1, token 3: .*{message}"):
            QUERIES[query](circuit, bad)


@every_query
@pytest.mark.parametrize("shape", [(4, 3), (1, 4, 2), (1, 4, 4), (1, 3, 3), (1, 2, 2, 3)])
def test_evidence_of_another_shape_is_refused(query, shape):
    with pytest.raises(InputError, match=rf"expected log-evidence \[B, 4, 3\], got {re.escape(str(shape))}"):
        QUERIES[query](make("2x2, chain"), torch.zeros(shape))


@every_query
def test_evidence_that_is_no_floating_point_is_refused(query):
    with pytest.raises(InputError, match=r"floating-point numbers, got torch.int64"):
        QUERIES[query](make("2x2, chain"), torch.zeros(1, 4, 3, dtype=torch.int64))


@every_query
def test_sparse_evidence_of_another_shape_or_vocabulary_is_refused(query):
    circuit = make("2x2, chain")
    codes, w = torch.zeros(1, 4, 1, dtype=torch.int64), torch.zeros(1, 4, 1)
    for bad in (
        SparseEvidence(codes[:, :3], w[:, :3], w[:, :3, 0]),
        SparseEvidence(codes, w[:, :3], w[..., 0]),
        SparseEvidence(codes, w, w[:, :3, 0]),
    ):
        with pytest.raises(InputError, match=r"sparse evidence about 4 tokens"):
            QUERIES[query](circuit, bad)
    for code in (-1, 3):
        strange = codes.clone()
        strange[0, 2] = code
        with pytest.raises(InputError, match=r"^image 0, token 2: .*outside 0\.\.2"):
            QUERIES[query](circuit, SparseEvidence(strange, w, w[..., 0]))


def contradicting():
    """Two blocks of a 4x4 grid each hold one code; the other tokens are free."""
    circuit = Circuit(quadtree(4), states=2, vocabulary=Vocabulary.full(2)).double()
    circuit.weights.copy_(torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
    circuit.emissions[:8] = torch.eye(2).double()
    log_w = torch.zeros(3, 16, 2, dtype=torch.float64)
    log_w[1, 2, 0] = log_w[1, 7, 1] = NOTHING  # both below the block of tokens 2, 3, 6, 7
    return circuit, log_w


@every_query
@pytest.mark.parametrize("turns", [False, True])
def test_evidence_that_contradicts_the_circuit_is_refused_by_its_smallest_block(query, turns):
    circuit, log_w = contradicting()
    if turns:
        circuit.memory = 1
    with pytest.raises(InputError, match=r"^image 1, tokens 2, 3, 6, 7: their evidence contradicts"):
        QUERIES[query](circuit, log_w)
    QUERIES[query](circuit, log_w[[0, 2]])


def test_tokens_that_contradict_the_circuit_have_probability_zero_and_cannot_be_counted():
    circuit, _ = contradicting()
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    tokens[1, 3] = 1
    assert log_prob(circuit, tokens).tolist()[1] == NOTHING
    assert float(log_prob(circuit, tokens)[0]) > -20
    with pytest.raises(InputError, match=r"^image 1, tokens 2, 3, 6, 7: their evidence contradicts"):
        statistics(circuit, tokens)


def test_a_contradiction_between_blocks_names_all_below_their_latent():
    circuit, log_w = contradicting()
    circuit.weights.copy_(torch.eye(2).double())
    log_w[0, 0, 0] = log_w[0, 7, 1] = NOTHING
    with pytest.raises(InputError, match=r"^image 0, tokens 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.: "):
        posterior(circuit, log_w[:1])


@pytest.mark.parametrize("ask", [log_prob, statistics])
def test_tokens_that_are_none_are_refused(ask):
    circuit = make("2x2, chain")
    for tokens in (torch.zeros(4), torch.zeros(1, 5), torch.zeros(1, 4, 1)):
        with pytest.raises(InputError, match=r"expected tokens \[B, 4\] int64"):
            ask(circuit, tokens.long())
    with pytest.raises(InputError, match=r"torch.int32"):
        ask(circuit, torch.zeros(1, 4, dtype=torch.int32))
    for code in (-1, 3):
        tokens = torch.zeros(2, 4, dtype=torch.int64)
        tokens[1, 2] = code
        with pytest.raises(InputError, match=f"^image 1, token 2: expected a code from 0 to 2, got {code}"):
            ask(circuit, tokens)


@pytest.mark.parametrize(
    "known", [torch.ones(2, 3, dtype=torch.bool), torch.ones(4), torch.ones(1, 4, dtype=torch.bool)]
)
def test_a_mask_that_is_none_is_refused(known):
    with pytest.raises(InputError, match=r"expected known \[2, 4\] bool"):
        log_prob(make("2x2, chain"), torch.zeros(2, 4, dtype=torch.int64), known)


@pytest.mark.parametrize("name", ["2x2, quad-tree", "2x2, quad-tree, pruned, zeros"])
@pytest.mark.parametrize("number", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.float32, torch.float64])
def test_evidence_may_have_another_number_type_than_the_circuit(name, number, own):
    circuit = make(name, own)
    log_w = soft(circuit, 2, seed=3).to(number)
    for evidence in (log_w, SparseEvidence.top(log_w.double(), circuit.codes)):
        found = posterior(circuit, evidence)
        assert found.marginals.dtype == own
        assert found.log_z.dtype == torch.float64
        expected = posterior(make(name), evidence if isinstance(evidence, SparseEvidence) else evidence.double())
        torch.testing.assert_close(found.marginals.double(), expected.marginals, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.log_z, expected.log_z, rtol=0, atol=1e-5)


def sparse_of_a_kind(circuit, kind):
    """Evidence about 2 codes of each token: the likeliest, the unlikeliest, or those with others ruled out."""
    if kind == "all codes":
        return SparseEvidence.top(soft(circuit, 3, seed=4), circuit.codes)
    likeliest = SparseEvidence.top(soft(circuit, 3, seed=5), min(2, circuit.codes - 1))
    if kind == "top":
        return likeliest
    if kind == "only":
        return SparseEvidence(likeliest.codes, likeliest.log_w, torch.full_like(likeliest.log_rest, NOTHING))
    if kind == "unlikely":
        return SparseEvidence(likeliest.codes, likeliest.log_w - 40.0, likeliest.log_rest)
    return SparseEvidence(likeliest.codes, torch.full_like(likeliest.log_w, NOTHING), likeliest.log_rest)


@every_world
@pytest.mark.parametrize("kind", ["all codes", "top", "only", "unlikely", "ruled out"])
def test_sparse_evidence_says_what_its_dense_form_says(name, kind):
    circuit, world = make(name), enumerated(name)
    sparse = sparse_of_a_kind(circuit, kind)
    rows = [k for k, w in enumerate(sparse.dense(circuit.codes)) if world.p @ world.weights(np.exp(w.numpy())) > 0]
    if not rows:
        with pytest.raises(InputError, match="contradicts"):
            posterior(circuit, sparse)
        return
    sparse = SparseEvidence(sparse.codes[rows], sparse.log_w[rows], sparse.log_rest[rows])
    dense = sparse.dense(circuit.codes)
    found, expected = posterior(circuit, sparse), [world.posterior(w) for w in dense]
    for k, (log_z, marginals) in enumerate(expected):
        assert abs(float(found.log_z[k]) - log_z) < 1e-11
        np.testing.assert_allclose(
            found.marginals[k].numpy(), np.take_along_axis(marginals, sparse.codes[k].numpy(), -1), rtol=0, atol=1e-12
        )
    torch.testing.assert_close(log_evidence(circuit, sparse), found.log_z, rtol=0, atol=1e-12)
    assert float((found.marginals.sum(-1) + found.rest - 1).abs().max()) < 1e-12
    assert bool((found.rest >= 0).all())
    cavity = posterior(circuit, dense).cavity.gather(-1, sparse.codes)
    torch.testing.assert_close(found.cavity, cavity, rtol=0, atol=1e-12)
    same = [
        torch.equal(*(ask(circuit, e) for e in (sparse, dense)))
        for ask in (QUERIES["sample"], lambda *a: mpe(*a).tokens)
    ]
    assert all(same)


@pytest.mark.parametrize("left", [1e-3, 1e-9, 1e-15])
@pytest.mark.parametrize("log_w", [NOTHING, -30.0])
def test_ruling_out_what_the_circuit_expects_loses_no_digits(left, log_w):
    """Emissions of the other codes must not be had as 1 minus those told apart: float32 would have none left."""
    circuit = make("2x2, quad-tree", torch.float32)
    circuit.emissions[:, 2:] *= left
    circuit.emissions /= circuit.emissions.sum(1, keepdim=True)
    assert circuit.is_safe
    codes = torch.tensor([0, 1]).expand(1, 4, 2).contiguous()
    sparse = SparseEvidence(codes, torch.full((1, 4, 2), log_w), torch.zeros(1, 4))
    found = posterior(circuit, sparse)
    log_z, marginals = Enumeration(circuit.double()).posterior(sparse.dense(4)[0])
    assert abs(float(found.log_z) - log_z) < 1e-5
    np.testing.assert_allclose(found.marginals[0].numpy(), marginals[:, :2], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.rest[0].numpy(), marginals[:, 2:].sum(1), rtol=1e-5)


def test_the_likeliest_codes_are_kept_and_the_others_share_their_mean():
    log_w = torch.tensor([[[0.1, 0.4, 0.2, 0.3]]]).log()
    top = SparseEvidence.top(log_w, 2)
    assert top.codes.tolist() == [[[1, 3]]]
    assert len(top) == 1
    torch.testing.assert_close(top.dense(4).exp(), torch.tensor([[[0.15, 0.4, 0.15, 0.3]]]))
    everything = SparseEvidence.top(log_w, 4)
    assert everything.log_rest.tolist() == [[NOTHING]]
    torch.testing.assert_close(everything.dense(4), log_w)
    assert SparseEvidence.top(torch.tensor([[[0.0, NOTHING, NOTHING]]]), 1).log_rest.tolist() == [[NOTHING]]
    for s in (0, 5):
        with pytest.raises(ConfigError, match=f"s is {s}"):
            SparseEvidence.top(log_w, s)


def test_the_entropy_of_a_part_of_a_marginal_is_refused():
    circuit = make("2x2, chain")
    with pytest.raises(InputError, match="dense"):
        posterior(circuit, SparseEvidence.top(soft(circuit, 1, seed=6), 2)).entropy()


def test_sparse_evidence_is_taken_in_turns():
    circuit = make("2x2, quad-tree, pruned")
    sparse = SparseEvidence.top(soft(circuit, 5, seed=7), 2)
    whole = posterior(circuit, sparse)
    circuit.memory = 1
    turns = posterior(circuit, sparse)
    for attribute in ("log_z", "marginals", "messages", "rest"):
        torch.testing.assert_close(getattr(turns, attribute), getattr(whole, attribute), rtol=0, atol=1e-13)


# Pruned vocabularies


def test_pruning_keeps_what_occurs_and_counts_the_rest_as_the_nearest():
    counts = torch.tensor([10, 0, 3, 2, 7])
    codebook = torch.tensor([[0.0], [0.9], [1.0], [0.1], [5.0]])
    pruned = Vocabulary.pruned(counts, codebook, least=3)
    assert pruned.kept.tolist() == [0, 2, 4]
    assert pruned.compact.tolist() == [0, 1, 1, 0, 2]
    torch.testing.assert_close(
        pruned.log_share.exp(), torch.tensor([10.5 / 13, 0.5 / 4, 3.5 / 4, 2.5 / 13, 1.0], dtype=torch.float64)
    )
    assert (len(pruned), pruned.codes, pruned.whole) == (3, 5, False)
    with pytest.raises(ConfigError, match=r"no code occurs 11 times; lower circuit\.least_uses"):
        Vocabulary.pruned(counts, codebook, least=11)


def test_kept_codes_come_back_and_shares_sum_to_one():
    rng = np.random.default_rng(0)
    counts = torch.from_numpy(rng.integers(0, 8, 64))
    codebook = torch.from_numpy(rng.normal(size=(64, 3))).repeat(1, 1)
    codebook[5] = codebook[6]  # two codes with the same vector
    counts[5:7] = 7
    pruned = Vocabulary.pruned(counts, codebook, least=3)
    assert torch.equal(pruned.compact[pruned.kept], torch.arange(len(pruned)))
    assert bool((counts[pruned.kept] >= 3).all())
    assert len(pruned) == int((counts >= 3).sum())
    shares = torch.zeros(len(pruned), dtype=torch.float64).index_add_(0, pruned.compact, pruned.log_share.exp())
    torch.testing.assert_close(shares, torch.ones_like(shares), rtol=0, atol=1e-14)
    assert bool(pruned.log_share.isfinite().all())
    assert Vocabulary.pruned(counts, codebook, least=0).whole
    again = Vocabulary.from_lists(pruned.kept.tolist(), pruned.compact.tolist(), pruned.log_share.tolist())
    assert torch.equal(again.log_share, pruned.log_share)


def test_a_pruned_circuit_reads_codes_as_those_that_stand_for_them():
    circuit = make("2x2, quad-tree, pruned")
    tokens = enumerated("2x2, quad-tree, pruned").all_tokens()
    kept, known, log_share = circuit.read(tokens)
    assert known is None
    own = circuit.vocabulary.kept[kept]  # the kept codes themselves
    assert torch.equal(circuit.vocabulary.compact[own], kept)
    share = circuit.vocabulary.log_share
    torch.testing.assert_close(
        log_prob(circuit, tokens) - log_share, log_prob(circuit, own) - share[own].sum(1), rtol=0, atol=1e-12
    )
    assert bool((share[circuit.vocabulary.kept[circuit.compact]].exp() > 0).all())


def test_a_full_vocabulary_changes_nothing():
    full = Vocabulary.full(7)
    assert full.whole
    assert torch.equal(full.compact, full.kept)
    assert float(full.log_share.abs().sum()) == 0
