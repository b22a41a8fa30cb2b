"""The most probable explanation against the enumeration of all latents and tokens."""

import numpy as np
import pytest
import torch

from circuit.worlds import WORLDS, enumerated, make, soft
from pipeline.circuit.mpe import mpe

every_world = pytest.mark.parametrize("name", WORLDS)


def value_of(circuit, tokens, states, log_w):
    """log of p(states, tokens) prod_i w_i(z_i), from the numbers themselves."""
    value = circuit.root[states[0]].log()
    for k, parent in enumerate(circuit.graph.parents):
        if parent >= 0:
            value = value + circuit.weights[k - 1, states[parent], states[k]].log()
    for i, home in enumerate(circuit.graph.homes):
        code = tokens[i]
        emitted = circuit.emissions[circuit.table[i], circuit.compact[code], states[home]] * circuit.share[code]
        value = value + emitted.log() + log_w[i, code]
    return float(value)


@every_world
def test_it_is_the_maximum_over_all_latents_and_tokens(name):
    circuit, world = make(name), enumerated(name)
    log_w = soft(circuit, 2, seed=1)
    log_w[0] = 0.0
    found = mpe(circuit, log_w)
    for w, tokens, states, value in zip(log_w, found.tokens, found.states, found.log_value.tolist(), strict=True):
        joint = world.joint * world.weights(np.exp(w.numpy()))
        assert value == pytest.approx(float(np.log(joint.max())), abs=1e-11)
        assert value_of(circuit, tokens, states, w) == pytest.approx(value, abs=1e-11)
        row, column = np.unravel_index(joint.argmax(), joint.shape)
        if (joint > joint.max() * (1 - 1e-9)).sum() == 1:  # no tie
            assert tokens.tolist() == world.tokens[column].tolist()
            assert states.tolist() == world.states[row].tolist()


@every_world
def test_known_tokens_come_back(name):
    circuit, world = make(name), enumerated(name)
    truth = torch.from_numpy(world.tokens[[world.p.argmax()]])
    one_hot = torch.nn.functional.one_hot(truth, circuit.codes).double().log()
    assert torch.equal(mpe(circuit, one_hot).tokens, truth)


@every_world
def test_images_are_explained_alone_in_turns_and_in_float32(name):
    circuit = make(name)
    log_w = soft(circuit, 4, seed=2)
    whole = mpe(circuit, log_w)
    single = mpe(make(name, torch.float32), log_w.float())
    torch.testing.assert_close(single.log_value, whole.log_value, rtol=1e-6, atol=1e-5)
    circuit.memory = 1
    turns = mpe(circuit, log_w)
    assert torch.equal(turns.tokens, whole.tokens)
    assert torch.equal(turns.states, whole.states)
    assert torch.equal(turns.log_value, whole.log_value)


def test_ties_go_to_the_lowest_index():
    circuit = make("2x2, chain")
    for values in (circuit.root, circuit.weights, circuit.emissions):
        values.fill_(1 / 3)
    found = mpe(circuit, torch.zeros(1, 4, 3))
    assert found.tokens.tolist() == [[0, 0, 0, 0]]
    assert found.states.tolist() == [[0, 0, 0, 0]]
    assert float(found.log_value) == pytest.approx(8 * np.log(1 / 3))
