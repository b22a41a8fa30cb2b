"""Flows: expected counts against the enumeration and against parameter times derivative."""

import numpy as np
import pytest
import torch

from circuit.worlds import WORLDS, enumerated, make
from pipeline.circuit.flows import Statistics, count, statistics
from pipeline.circuit.queries import log_prob

every_world = pytest.mark.parametrize("name", WORLDS)


def draw(name, images, seed):
    world = enumerated(name)
    return torch.from_numpy(world.tokens[np.random.default_rng(seed).choice(len(world.p), images, p=world.p)])


def enumerated_counts(circuit, world, tokens):
    """Sums over images of p(states | tokens), collected by hand."""
    parents, homes, h = circuit.graph.parents, circuit.graph.homes, circuit.states
    root, weights = np.zeros(h), np.zeros((len(parents) - 1, h, h))
    emissions = np.zeros(tuple(circuit.emissions.shape))
    for grid in tokens.numpy():
        place = np.ravel_multi_index(grid, (world.codes,) * len(homes))
        p = world.joint[:, place] / world.p[place]
        np.add.at(root, world.states[:, 0], p)
        for k in range(1, len(parents)):
            np.add.at(weights[k - 1], (world.states[:, parents[k]], world.states[:, k]), p)
        for i, home in enumerate(homes):
            np.add.at(emissions[circuit.table[i], int(circuit.compact[grid[i]])], world.states[:, home], p)
    return root, weights, emissions


@every_world
def test_counts_are_those_of_the_enumeration(name):
    circuit, tokens = make(name), draw(name, 9, seed=1)
    counted = statistics(circuit, tokens)
    for found, expected in zip(
        (counted.root, counted.weights, counted.emissions),
        enumerated_counts(circuit, enumerated(name), tokens),
        strict=True,
    ):
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


@every_world
def test_counts_are_parameter_times_derivative(name):
    circuit, tokens = make(name), draw(name, 9, seed=2)
    counted = statistics(circuit, tokens)
    parameters = [circuit.root, circuit.weights, circuit.emissions]
    for parameter in parameters:
        parameter.requires_grad_()
    log_prob(circuit, tokens).sum().backward()
    for found, parameter in zip((counted.root, counted.weights, counted.emissions), parameters, strict=True):
        if parameter.numel():
            torch.testing.assert_close(found, (parameter * parameter.grad).detach(), rtol=0, atol=1e-12)


@every_world
def test_derivatives_of_tokens_with_some_hidden_are_finite_and_right(name):
    """With zeros too, where the derivative by a zero is given as 0; the others against central differences."""
    circuit, tokens = make(name), draw(name, 3, seed=3)
    known = torch.from_numpy(np.random.default_rng(4).random(tokens.shape) < 0.6)
    circuit.emissions.requires_grad_()
    log_prob(circuit, tokens, known).sum().backward()
    grad = circuit.emissions.grad
    assert bool(grad.isfinite().all())
    circuit.emissions.requires_grad_(False)
    rng, step = np.random.default_rng(5), 1e-6
    places = np.argwhere(circuit.emissions.numpy() > 10 * step)
    for t, c, h in places[rng.choice(len(places), 4)]:
        ends = []
        for sign in (1, -1):
            circuit.emissions[t, c, h] += sign * step
            ends.append(float(log_prob(circuit, tokens, known).sum()))
            circuit.emissions[t, c, h] -= sign * step
        assert abs((ends[0] - ends[1]) / (2 * step) - float(grad[t, c, h])) < 1e-5 * max(1, abs(float(grad[t, c, h])))


@every_world
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_latent_and_token_is_counted_once_for_each_image(name, dtype):
    circuit, tokens = make(name, dtype), draw(name, 40, seed=6)
    counted, atol = statistics(circuit, tokens), 1e-4 if dtype == torch.float32 else 1e-11
    assert counted.images == 40
    np.testing.assert_allclose(counted.root.sum().numpy(), 40, rtol=0, atol=atol)
    np.testing.assert_allclose(counted.weights.sum((1, 2)).numpy(), 40, rtol=0, atol=atol)
    uses = [40 * circuit.table.count(t) for t in range(len(circuit.emissions))]
    np.testing.assert_allclose(counted.emissions.sum((1, 2)).numpy(), uses, rtol=0, atol=atol * circuit.tokens)
    codes = torch.zeros_like(counted.emissions[..., 0])
    for i, t in enumerate(circuit.table):
        codes[t] += torch.bincount(circuit.compact[tokens[:, i]], minlength=codes.shape[1])
    torch.testing.assert_close(counted.emissions.sum(-1), codes, rtol=0, atol=atol * circuit.tokens)
    *_, log_share = circuit.read(tokens)
    expected = float((log_prob(circuit, tokens) - log_share).sum())
    assert abs(counted.log_prob - expected) < 1e-10 * abs(expected) + atol


@every_world
def test_counts_add_up_in_any_order_and_in_turns(name):
    circuit, tokens = make(name), draw(name, 12, seed=7)
    whole = statistics(circuit, tokens)
    parts = Statistics.empty(circuit)
    for rows in (slice(7, 12), slice(0, 1), slice(1, 7)):
        count(circuit, tokens[rows], parts)
    sums = Statistics.empty(circuit)
    sums.add(statistics(circuit, tokens[5:]))
    sums.add(statistics(circuit, tokens[:5]))
    circuit.memory = 1
    turns = statistics(circuit, tokens)
    for other in (parts, sums, turns):
        assert other.images == 12
        assert abs(other.log_prob - whole.log_prob) < 1e-9
        for attribute in ("root", "weights", "emissions"):
            torch.testing.assert_close(getattr(other, attribute), getattr(whole, attribute), rtol=0, atol=1e-10)


def test_decay_and_weights_of_sums():
    circuit, tokens = make("2x2, chain"), draw("2x2, chain", 5, seed=8)
    once, mixed = statistics(circuit, tokens), statistics(circuit, tokens)
    mixed.decay(0.25)
    mixed.add(once, 0.5)
    assert (mixed.images, mixed.log_prob) == (3.75, pytest.approx(0.75 * once.log_prob))
    for attribute in ("root", "weights", "emissions"):
        torch.testing.assert_close(getattr(mixed, attribute), 0.75 * getattr(once, attribute))


def test_counting_goes_on_when_a_parameter_becomes_zero():
    """Counts begun in float32 take those of a circuit with zeros, which is computed in float64."""
    circuit, tokens = make("2x2, quad-tree", torch.float32), torch.tensor([[1, 2, 3, 1]])
    counted = statistics(circuit, tokens)
    circuit.emissions[0, 0] = 0.0
    circuit.emissions /= circuit.emissions.sum(1, keepdim=True)
    count(circuit, tokens, counted)
    assert counted.images == 2
    assert float(counted.emissions.sum()) == pytest.approx(8, abs=1e-5)


def test_counts_do_not_depend_on_how_parameters_lie_in_memory():
    circuit, tokens = make("2x2, quad-tree"), draw("2x2, quad-tree", 5, seed=9)
    expected = statistics(circuit, tokens)
    circuit.emissions = circuit.emissions.transpose(1, 2).contiguous().transpose(1, 2)
    assert not circuit.emissions.is_contiguous()
    torch.testing.assert_close(statistics(circuit, tokens).emissions, expected.emissions, rtol=0, atol=1e-14)
