"""Draws against the enumeration: joint frequencies, what is known, and whose stream decides."""

import numpy as np
import pytest
import torch

from circuit.worlds import WORLDS, chi_square, enumerated, make, soft
from pipeline.circuit.queries import log_prob, posterior
from pipeline.circuit.sampling import inverse_cdf, sample, sample_posterior
from pipeline.errors import InputError
from pipeline.noise import Noise

DRAWS = 200_000
LEAST = 1e-3  # for p-values; seeds are fixed, so a test passes always or never
SMALL = [name for name in WORLDS if not name.startswith("4x4")]


def in_one_stream(circuit, log_w, seed):
    """DRAWS grids of one image, in a few calls."""
    noise, tenth = Noise([seed]), DRAWS // 10
    return torch.cat([sample_posterior(circuit, log_w[None], noise, tenth)[0] for _ in range(10)]).numpy()


def places(grids, codes):
    return np.ravel_multi_index(tuple(grids.T), (codes,) * grids.shape[1])


@pytest.mark.parametrize("name", [name for name in WORLDS if name.startswith(("1x2", "2x2"))])
@pytest.mark.parametrize("given", ["nothing", "evidence"])
def test_joint_frequencies_are_those_of_the_enumeration(name, given):
    circuit, world = make(name), enumerated(name)
    log_w = soft(circuit, 1, seed=1, scale=0.0 if given == "nothing" else 1.5)[0]
    p = world.p * world.weights(np.exp(log_w.numpy()))
    grids = in_one_stream(circuit, log_w, seed=2)
    observed = np.bincount(places(grids, circuit.codes), minlength=len(p))
    assert observed.sum() == DRAWS
    assert chi_square(observed, DRAWS * p / p.sum()) > LEAST


@pytest.mark.parametrize("name", ["2x4, random tree", "4x4, quad-tree, blocks", "4x4, random tree"])
def test_frequencies_of_pairs_are_those_of_the_enumeration(name):
    circuit, world = make(name), enumerated(name)
    log_w = soft(circuit, 1, seed=3, scale=1.0)[0]
    p = world.p * world.weights(np.exp(log_w.numpy()))
    grids = in_one_stream(circuit, log_w, seed=4)
    rng = np.random.default_rng(5)
    for pair in [rng.choice(circuit.tokens, 2, replace=False) for _ in range(6)]:
        cells = places(world.tokens[:, pair], circuit.codes)
        expected = np.bincount(cells, p / p.sum(), circuit.codes**2)
        observed = np.bincount(places(grids[:, pair], circuit.codes), minlength=circuit.codes**2)
        assert chi_square(observed, DRAWS * expected) > LEAST / 6


def test_draws_of_another_law_are_told_apart():
    """The chi-square test has teeth: independent draws from exact marginals fail it."""
    circuit, world = make("2x2, chain"), enumerated("2x2, chain")
    log_w = torch.zeros(4, 3, dtype=torch.float64)
    marginals = posterior(circuit, log_w[None]).marginals[0].numpy()
    rng = np.random.default_rng(6)
    grids = np.stack([rng.choice(3, DRAWS, p=p / p.sum()) for p in marginals], 1)
    assert chi_square(np.bincount(places(grids, 3), minlength=81), DRAWS * world.p) < 1e-12


@pytest.mark.parametrize("name", WORLDS)
def test_known_tokens_come_back_and_hidden_ones_follow(name):
    circuit, world = make(name), enumerated(name)
    rng = np.random.default_rng(7)
    truth = torch.from_numpy(world.tokens[rng.choice(len(world.p), 8, p=world.p)])
    known = torch.from_numpy(rng.random(truth.shape) < 0.5)
    one_hot = torch.nn.functional.one_hot(truth, circuit.codes).double().log()
    log_w = torch.where(known[..., None], one_hot, 0.0)
    drawn = sample_posterior(circuit, log_w, Noise(range(8)), 16)
    assert drawn.shape == (8, 16, circuit.tokens)
    assert drawn.dtype == torch.int64
    kept = known[:, None].expand_as(drawn)
    assert torch.equal(drawn[kept], truth[:, None].expand_as(drawn)[kept])
    assert bool((log_prob(circuit, drawn.flatten(0, 1)) > float("-inf")).all())  # nothing impossible


@pytest.mark.parametrize("name", [*SMALL, "4x4, quad-tree"])
def test_entropy_is_minus_the_mean_log_probability(name):
    circuit, world = make(name), enumerated(name)
    grids = sample(circuit, Noise([8]), 1, 20_000)[0]
    log_p = log_prob(circuit, grids)
    some = world.p > 0
    entropy = -(world.p[some] * np.log(world.p[some])).sum()
    error = float(log_p.std()) / 20_000**0.5
    assert abs(float(log_p.mean()) + entropy) < 4 * error + 1e-12


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_depends_on_its_image_s_stream_only(name, dtype):
    circuit = make(name, dtype)
    log_w = soft(circuit, 6, seed=9)
    together = sample_posterior(circuit, log_w, Noise(range(6)), 4)
    alone = [sample_posterior(circuit, log_w[k : k + 1], Noise([k]), 4) for k in range(6)]
    assert torch.equal(together, torch.cat(alone))
    order = [3, 0, 5, 1, 4, 2]
    assert torch.equal(sample_posterior(circuit, log_w[order], Noise(order), 4), together[order])
    circuit.memory = 1
    assert torch.equal(sample_posterior(circuit, log_w, Noise(range(6)), 4), together)


def test_streams_go_on_and_other_seeds_draw_otherwise():
    circuit = make("2x4, chain")
    noise = Noise([1, 2])
    first, second = sample(circuit, noise, 2, 8), sample(circuit, noise, 2, 8)
    assert torch.equal(first, sample(circuit, Noise([1, 2]), 2, 8))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("streams", [0, 1, 3])
def test_another_number_of_streams_than_images_is_refused(streams):
    circuit = make("2x2, chain")
    with pytest.raises(InputError, match=f"each of 2 images, got {streams}"):
        sample_posterior(circuit, soft(circuit, 2, seed=10), Noise(range(streams)))


def test_no_images_and_no_draws():
    circuit = make("2x2, chain")
    assert sample(circuit, Noise([]), 0, 3).shape == (0, 3, 4)
    assert sample(circuit, Noise([1, 2]), 2, 0).shape == (2, 0, 4)


def test_inverting_a_distribution_function_never_gives_what_has_no_weight():
    log_weights = torch.tensor([0.0, 0.2, 0.0, 0.3, 0.5, 0.0], dtype=torch.float64).log()
    uniform = torch.tensor([0.0, 0.1999, 0.2001, 0.4999, 0.5001, 1 - 2**-53, 1.0], dtype=torch.float64)
    for shift in (0.0, -700.0, 700.0):
        assert inverse_cdf(log_weights + shift, uniform).tolist() == [1, 1, 3, 3, 4, 4, 4]
    only = torch.full((5,), float("-inf"), dtype=torch.float64)
    only[2] = -1e300
    assert inverse_cdf(only, uniform).tolist() == [2] * 7


def test_unlikely_evidence_is_drawn_from_in_proportion():
    """Weights of 1e-300 for all but one impossible token leave the law of the others as it is."""
    circuit, world = make("2x2, chain"), enumerated("2x2, chain")
    log_w = soft(circuit, 1, seed=11)[0]
    p = world.p * world.weights(np.exp(log_w.numpy()))
    grids = in_one_stream(circuit, log_w - 690.0, seed=12)
    assert chi_square(np.bincount(places(grids, 3), minlength=81), DRAWS * p / p.sum()) > LEAST
