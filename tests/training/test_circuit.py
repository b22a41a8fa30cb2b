"""Training a circuit: killed at any step it ends the same; it stops early and keeps the best; candidates compete."""

import pytest
import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.grow import split_states
from pipeline.circuit.queries import bits_per_token, log_prob
from pipeline.circuit.sampling import sample
from pipeline.circuit.structures import quadtree
from pipeline.circuit.teachers import code_features, embed
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.errors import ConfigError
from pipeline.noise import Noise
from pipeline.training.choice import Candidate, Corpus, choose, restore, snapshot
from pipeline.training.circuit import CircuitTraining, PassSampler, passes, trainer_params
from pipeline.training.fit import fit, read_checkpoint, write_checkpoint
from pipeline.training.settings import CircuitParams, EMParams

CPU = torch.device("cpu")


class Killed(Exception):  # noqa: N818 - a kill, not an error
    pass


@pytest.fixture(scope="module")
def corpus():
    truth = Circuit(quadtree(4), states=3, vocabulary=Vocabulary.full(6)).randomize(
        torch.Generator().manual_seed(1), 0.3
    )
    tokens = sample(truth, Noise(range(150)), 150)[:, 0]
    return Corpus(tokens[:90], tokens[90:], torch.eye(6))


PARAMS = CircuitParams(states=4, structures=("hclt", "quadtree"), ties=("untied", "shared"), spreads=(0.0, 0.2))


def em(kind="stochastic", epochs=3, patience=3):
    return EMParams(kind=kind, epochs=epochs, patience=patience, batch=30)


def started(corpus, rule, params=PARAMS):
    heard = []
    teacher = lambda regions: code_features(embed(corpus.train, corpus.codebook), regions)  # noqa: E731
    candidate, start = choose(corpus, teacher, params, rule, seed=2, device=CPU, tell=lambda *told: heard.append(told))
    return candidate, start, heard


def training(corpus, rule):
    _, start, _ = started(
        corpus, rule, CircuitParams(states=4, structures=("quadtree",), ties=("untied",), spreads=(0.1,))
    )
    known = {"half": torch.arange(16).lt(8).expand(len(corpus.val), -1)}
    return CircuitTraining(
        start.circuit,
        start.counted,
        start.prior,
        corpus.val,
        known=known,
        images=90,
        em=rule,
        params=trainer_params(rule, 3),
        seed=5,
    )


def run(module, corpus, rule, folder, *, die_at=None):
    rows = []

    def tick(step):
        if step == die_at:
            raise Killed

    fit(
        module,
        passes(corpus.train, rule, seed=4),
        params=trainer_params(rule, 3),
        folder=folder,
        device=CPU,
        log=lambda step, metrics: rows.append((step, metrics)),
        tick=tick,
    )
    return rows


@pytest.mark.parametrize("kind", ["stochastic", "anemone", "full"])
@pytest.mark.parametrize("die_at", [2, 5, 6])
def test_an_interrupted_training_ends_the_same(kind, die_at, corpus, tmp_path):
    rule = em(kind)
    whole = training(corpus, rule)
    rows = run(whole, corpus, rule, tmp_path / "whole")
    with pytest.raises(Killed):
        run(training(corpus, rule), corpus, rule, tmp_path / "killed", die_at=die_at)
    resumed = training(corpus, rule)
    more = run(resumed, corpus, rule, tmp_path / "killed")
    assert more == rows[len(rows) - len(more) :]
    assert len(more) < len(rows) or die_at == 2
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["stochastic", "anemone", "full"])
def test_what_is_kept_is_the_best_on_validation(kind, corpus, tmp_path):
    rule = em(kind, epochs=8, patience=8)
    module = training(corpus, rule)
    rows = run(module, corpus, rule, tmp_path)
    assert [step for step, _ in rows] == [3 * k for k in range(1, 9)]
    best = min(metrics["val/bits_per_token"] for _, metrics in rows)
    assert bits_per_token(module.best(), corpus.val) == pytest.approx(min(best, float(module.best_val)), abs=1e-9)
    assert rows[0][1].keys() == {
        "train/bits_per_token",
        "val/bits_per_token",
        "val/conditional_bits/half",
        "flows/states_used",
    }


def test_training_stops_when_validation_gets_worse_and_stays_stopped(tmp_path):
    generator = torch.Generator().manual_seed(0)
    corpus = Corpus(*(torch.randint(6, (n, 16), generator=generator) for n in (90, 60)), torch.eye(6))  # all chance
    rule = em(epochs=40, patience=2)
    module = training(corpus, rule)
    rows = run(module, corpus, rule, tmp_path)
    assert len(rows) < 40
    values = [metrics["val/bits_per_token"] for _, metrics in rows]
    assert min(values[-2:]) >= float(module.best_val)
    again = training(corpus, rule)
    assert run(again, corpus, rule, tmp_path) == []
    assert torch.equal(again.best().weights, module.best().weights)


def test_a_pass_sees_every_image_once():
    sampler = PassSampler(103, batch=25, seed=0)
    first = [rows.tolist() for rows in sampler]
    assert sorted(row for rows in first for row in rows) == list(range(103))
    assert len(first) == len(sampler) == 4
    sampler.set_epoch(1)
    assert [rows.tolist() for rows in sampler] != first


def test_the_best_candidate_on_validation_is_chosen(corpus):
    candidate, start, heard = started(corpus, em())
    assert len(heard) == 8
    assert {(told.structure, told.tie, told.spread) for told, _ in heard} == {
        (s, t, b) for s in ("hclt", "quadtree") for t in ("untied", "shared") for b in (0.0, 0.2)
    }
    best = min(heard, key=lambda told: told[1])
    assert candidate == best[0]
    assert bits_per_token(start.circuit, corpus.val) == pytest.approx(best[1], abs=1e-9)


def test_candidates_do_not_touch_each_other(corpus):
    _, _, together = started(corpus, em())
    one = CircuitParams(states=4, structures=("quadtree",), ties=("shared",), spreads=(0.2,))
    _, _, alone = started(corpus, em(), one)
    assert alone[0] == next(told for told in together if told[0] == Candidate("quadtree", "shared", 0.2))


def test_a_start_comes_back_whole(corpus, tmp_path):
    candidate, start, _ = started(corpus, em())
    write_checkpoint(tmp_path / "start.ckpt", {"candidate": 0, **snapshot(start)})
    again = restore(read_checkpoint(tmp_path / "start.ckpt"), candidate, corpus, PARAMS)
    assert torch.equal(again.counted.weights, start.counted.weights)
    assert torch.equal(again.prior.codes, start.prior.codes)
    assert torch.equal(log_prob(again.circuit, corpus.val), log_prob(start.circuit, corpus.val))


def test_chance_is_a_teacher_too(corpus):
    candidate, start = choose(corpus, None, PARAMS, em(), seed=2, device=CPU, tell=lambda *_: None)
    assert isinstance(candidate, Candidate)
    assert start.circuit.is_safe


def test_split_states_are_the_same_distribution_until_noise(corpus):
    _, start, _ = started(corpus, em())
    before = log_prob(start.circuit, corpus.val)
    same = split_states(start.circuit, noise=0.0, seed=0)
    assert same.states == 8
    assert torch.allclose(log_prob(same, corpus.val), before, rtol=0, atol=1e-4)
    other = split_states(start.circuit, noise=0.1, seed=0)
    assert not torch.allclose(log_prob(other, corpus.val), before, rtol=0, atol=1e-2)
    assert other.weights.sum(2).sub(1).abs().max() < 1e-5


@pytest.mark.parametrize(
    "wrong", [{"epochs": -1}, {"patience": 0}, {"batch": 0}, {"first_step": 0.0}, {"last_step": 0.5, "first_step": 0.3}]
)
def test_impossible_steps_are_refused(wrong):
    with pytest.raises(ConfigError):
        EMParams(**{"epochs": 1, "patience": 1, "batch": 10, **wrong})


@pytest.mark.parametrize("wrong", [{"ties": ()}, {"structures": ("hclt", "hclt")}, {"spreads": (-0.1,)}, {"states": 0}])
def test_impossible_candidates_are_refused(wrong):
    with pytest.raises(ConfigError):
        CircuitParams(**{"states": 2, "structures": ("hclt",), "ties": ("untied",), "spreads": (0.0,), **wrong})
