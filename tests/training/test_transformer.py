"""Transformers over tokens: what may see what, that probabilities add up to one, and that training can be resumed."""

import itertools
import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.training.batches import TokenBatches, loader
from pipeline.training.fit import fit
from pipeline.training.settings import TrainerParams
from pipeline.training.token_network import (
    TokenTransformer,
    TransformerParams,
    bits_per_token,
    forward_flops,
    principal_directions,
    region_features,
)
from pipeline.training.transformer import AutoregressiveTraining, MaskedTraining, corrupt, rectangles

CODES, SIDE = 8, 4
LENGTH = SIDE * SIDE
SIZE = TransformerParams(width=16, layers=2, heads=2, dropout=0.1)
PARAMS = TrainerParams(
    steps=6, checkpoint_every=2, batch=4, learning_rate=1e-2, warmup=2, decay="cosine", ema=0.0, log_every=1
)
TOKENS = torch.randint(CODES, (24, LENGTH), generator=torch.Generator().manual_seed(0))
VAL = torch.randint(CODES, (5, LENGTH), generator=torch.Generator().manual_seed(1))
KINDS = {AutoregressiveTraining: True, MaskedTraining: False}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(*, causal, params=SIZE, codes=CODES, length=LENGTH, spread=10.0):
    """A network whose weights are far enough from 0 that everything matters."""
    torch.manual_seed(0)
    made = TokenTransformer(params, codes=codes, length=length, causal=causal)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight *= spread
    return made


def source(count):
    """Tokens that count upwards from a random start: 3 bits in the first token, none in the others."""
    start = torch.randint(CODES, (count, 1), generator=torch.Generator().manual_seed(2))
    return (start + torch.arange(LENGTH)) % CODES


# --- the networks ---


def test_a_causal_network_sees_earlier_tokens_only():
    made = network(causal=True).eval()
    before = made(TOKENS[:1])
    for place in range(LENGTH):
        changed = TOKENS[:1].clone()
        changed[0, place] = (changed[0, place] + 1) % CODES
        moved = (made(changed) - before).abs().amax(-1)[0] > 0
        assert not moved[: place + 1].any()
        assert moved[place + 1 :].all()


def test_the_other_network_sees_all():
    made = network(causal=False).eval()
    changed = TOKENS[:1].clone()
    changed[0, -1] = (changed[0, -1] + 1) % CODES
    assert ((made(changed) - made(TOKENS[:1])).abs().amax(-1) > 0).all()


def test_probabilities_of_all_sequences_add_up_to_one():
    made = network(causal=True, codes=3, length=5)
    everything = torch.tensor(list(itertools.product(range(3), repeat=5)))
    probability = torch.exp2(-5 * bits_per_token(made, everything))
    assert probability.sum().item() == pytest.approx(1, abs=1e-6)
    assert probability.max() > 3 * probability.min()


def test_bits_do_not_depend_on_the_batch_and_leave_the_network_as_it_was():
    made = network(causal=True).train()
    bits = bits_per_token(made, TOKENS)
    assert bits.shape == (len(TOKENS),)
    assert bits.dtype == torch.float64
    torch.testing.assert_close(bits_per_token(made, TOKENS, batch=5), bits, rtol=1e-5, atol=0)
    assert made.training


def test_features_of_a_region_do_not_depend_on_its_tokens():
    made, regions = network(causal=False).train(), [(5,), (0, 1, 4, 5), tuple(range(LENGTH))]
    features = region_features(made, TOKENS, regions, batch=7)
    assert features.shape == (len(TOKENS), len(regions), SIZE.width)
    for number, region in enumerate(regions):
        inside = TOKENS.clone()
        inside[:, region] = (inside[:, region] + 1) % CODES
        assert torch.equal(region_features(made, inside, regions, batch=7)[:, number], features[:, number])
        outside = TOKENS + 1 - torch.isin(torch.arange(LENGTH), torch.tensor(region)).long()
        moved = (region_features(made, outside % CODES, regions, batch=7)[:, number] != features[:, number]).any(1)
        assert moved.all() if len(region) < LENGTH else not moved.any()


def test_features_are_means_of_states_with_the_region_hidden():
    made, region = network(causal=False).eval(), [2, 3]
    seen = TOKENS.clone()
    seen[:, region] = made.blank
    expected = made.hidden(seen)[:, region].mean(1)
    torch.testing.assert_close(region_features(made, TOKENS, [region], batch=5)[:, 0], expected)


def test_wide_features_are_projected_alike_for_all_regions():
    made, regions = network(causal=False).eval(), [(2, 3), (0, 1, 4, 5), (7,)]
    whole, few = (region_features(made, TOKENS, regions, kept=kept) for kept in (SIZE.width, 3))
    assert few.shape == (len(TOKENS), len(regions), 3)
    basis = principal_directions(whole.flatten(0, 1), 3)
    torch.testing.assert_close(basis.t() @ basis, torch.eye(3))
    torch.testing.assert_close(few, whole @ basis)
    centred = whole.flatten(0, 1) - whole.mean((0, 1))
    best = torch.linalg.svdvals(centred)[:3].square().sum()
    torch.testing.assert_close((centred @ basis).square().sum(), best, rtol=1e-4, atol=0)


def test_a_network_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match="causal=True"):
        bits_per_token(network(causal=False), TOKENS)
    with pytest.raises(ValueError, match="causal=False"):
        region_features(network(causal=True), TOKENS, [(0,)])


def test_operations_are_those_of_the_matrix_products():
    layer = 24 * LENGTH * SIZE.width**2 + 4 * LENGTH**2 * SIZE.width
    expected = SIZE.layers * layer + 2 * LENGTH * SIZE.width * CODES
    assert forward_flops(network(causal=True)) == forward_flops(network(causal=False)) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0}, "width must be at least 1"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"heads": 3}, "heads must divide the width of 16, but is 3"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_impossible_sizes_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        TransformerParams(**({"width": 16, "layers": 2, "heads": 2} | change))


# --- what is hidden from the masked one ---


def test_rectangles_have_every_size_at_every_place():
    drawn = rectangles(4000, SIDE, torch.device("cpu"), torch.Generator().manual_seed(0)).view(-1, SIDE, SIDE)
    found = set()
    for one in drawn:
        rows, columns = one.any(1).nonzero().flatten().tolist(), one.any(0).nonzero().flatten().tolist()
        assert one.sum() == len(rows) * len(columns)
        assert rows == list(range(rows[0], rows[-1] + 1))
        assert columns == list(range(columns[0], columns[-1] + 1))
        found.add((len(rows), len(columns), rows[0], columns[0]))
    spans = [(size, first) for size in (1, 2, 4) for first in range(SIDE - size + 1)]
    assert found == {(h, w, top, left) for h, top in spans for w, left in spans}


def test_only_tokens_of_the_rectangle_are_changed_in_bert_s_shares():
    tokens = torch.randint(CODES, (4000, LENGTH), generator=torch.Generator().manual_seed(0))
    seen, hidden = corrupt(tokens, CODES, torch.Generator().manual_seed(1))
    assert torch.equal(seen[~hidden], tokens[~hidden])
    inside, truth = seen[hidden], tokens[hidden]
    assert (inside == CODES).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert (inside == truth).float().mean().item() == pytest.approx(0.1 + 0.1 / CODES, abs=0.01)
    other = inside[(inside != CODES) & (inside != truth)]
    assert torch.bincount(other, minlength=CODES).min() > 0.7 * len(other) / CODES


# --- training ---


class Killed(Exception):  # noqa: N818 - a kill, not an error
    pass


def train(module, folder, *, tokens=TOKENS, die_at=None):
    rows, params = [], module.trainer_params

    def tick(step):
        if step == die_at:
            raise Killed

    fit(
        module,
        loader(TokenBatches(tokens), batch=params.batch, steps=params.checkpoint_every, seed=1),
        params=params,
        folder=folder,
        device=torch.device("cpu"),
        log=lambda step, metrics: rows.append((step, metrics)),
        tick=tick,
    )
    return rows


def make(kind, size=SIZE, params=PARAMS, val=VAL):
    return kind(network(causal=KINDS[kind], params=size, spread=1.0), val, params, seed=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("die_at", [3, 4])
def test_interrupted_training_ends_the_same(kind, die_at, tmp_path):
    whole = make(kind)
    rows = train(whole, tmp_path / "whole")
    with pytest.raises(Killed):
        train(make(kind), tmp_path / "killed", die_at=die_at)
    resumed = make(kind)
    assert train(resumed, tmp_path / "killed") == rows[2:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_each_checkpoint_is_validated_with_the_weights_it_has(kind, tmp_path):
    module = make(kind)
    rows = train(module, tmp_path)
    assert [step for step, metrics in rows if "val/bits_per_token" in metrics] == [2, 4, 6]
    assert rows[-1][1]["val/bits_per_token"] == float(module.validation_bits())


def test_validation_is_not_averaged_over_steps_without_it(tmp_path):
    sparse = TrainerParams(**(vars(PARAMS) | {"log_every": 6}))
    every = train(make(AutoregressiveTraining), tmp_path / "every")
    [(step, metrics)] = train(make(AutoregressiveTraining, params=sparse), tmp_path / "sparse")
    assert step == 6
    for name in ("train/bits_per_token", "val/bits_per_token"):
        values = [found[name] for _, found in every if name in found]
        assert metrics[name] == pytest.approx(np.mean(values))


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_predicted_is_learned(kind, tmp_path):
    params = TrainerParams(steps=120, checkpoint_every=120, batch=16, learning_rate=1e-2, warmup=10, ema=0.0)
    module = make(kind, TransformerParams(width=32, layers=2, heads=2), params, source(64))
    first = float(module.validation_bits())
    train(module, tmp_path, tokens=source(256))
    unigram = math.log2(CODES)
    assert first > 0.9 * unigram
    assert float(module.validation_bits()) < 0.7 * unigram


# --- batches ---


@pytest.mark.parametrize("given", [TOKENS, TOKENS.numpy(), TOKENS.numpy().astype(np.uint16)])
def test_batches_are_tokens_at_the_rows(given):
    rows = np.array([3, 0, 7])
    batch = TokenBatches(given)[rows]
    assert len(TokenBatches(given)) == len(TOKENS)
    assert batch.dtype == torch.int64
    assert torch.equal(batch, TOKENS[[3, 0, 7]])
