"""What is known of tokens under a mask, the model without structure, and evidence for pictures."""

from pathlib import Path

import pytest
import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.queries import log_evidence, log_prob, posterior
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.data.masks import MASKS
from pipeline.experiment.circuit_pictures import hard_evidence
from pipeline.experiment.circuit_scores import counting_flops, known_tokens, unigram
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import load_params

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def params():
    return load_params(ROOT / "params.yaml")


@pytest.mark.parametrize("mask", MASKS)
def test_a_token_is_known_if_all_its_pixels_are(params, mask):
    size = params.image_size
    known = known_tokens(params, Layout(ROOT, "x"), mask, 16, 3)
    assert known.shape == (3, 256)
    for k in range(3):
        pixels = torch.from_numpy(MASKS[mask](size, size, k))
        for token in range(256):
            row, column, patch = token // 16, token % 16, size // 16
            inside = pixels[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            assert known[k, token] == inside.all()


def test_what_rectangles_show(params):
    layout = Layout(ROOT, "x")
    left = known_tokens(params, layout, "left", 16, 1).view(16, 16)
    assert left[:, :8].all()
    assert not left[:, 8:].any()


def test_the_unigram_is_a_distribution_and_knows_positions():
    tokens = torch.zeros(200, 4, dtype=torch.int64)
    tokens[:, 2] = 3
    found = unigram(tokens, 5)
    assert torch.allclose(found.sum(1), torch.ones(4, dtype=torch.float64))
    assert (found > 0).all()
    assert found[2, 3] > 0.95
    assert found[0, 0] > 0.95


def test_hard_evidence_is_what_conditioning_means():
    circuit = Circuit(quadtree(4), states=3, vocabulary=Vocabulary.full(4)).double()
    circuit.randomize(torch.Generator().manual_seed(0))
    tokens = torch.randint(4, (5, 16), generator=torch.Generator().manual_seed(1))
    known = torch.rand(5, 16, generator=torch.Generator().manual_seed(2)) < 0.5
    evidence = hard_evidence(circuit, tokens, known)
    assert torch.allclose(log_evidence(circuit, evidence), log_prob(circuit, tokens, known), rtol=0, atol=1e-10)
    marginals = posterior(circuit, evidence).marginals
    assert torch.equal(marginals.argmax(-1)[known], tokens[known])


def test_operations_are_those_of_three_products():
    circuit = Circuit(quadtree(4), states=3, vocabulary=Vocabulary.full(4))
    assert counting_flops(circuit) == 3 * 4 * 2 * 3 * 3
