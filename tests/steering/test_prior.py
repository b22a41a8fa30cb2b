"""What a prior needs for which steering, what it refuses, and what steering by x_t shares with the other rules."""

import itertools

import pytest
import torch

from pipeline.circuit.circuit import Circuit
from pipeline.circuit.structures import quadtree
from pipeline.circuit.vocabulary import Vocabulary
from pipeline.codec.codec import Codec
from pipeline.codec.vqgan import VQGAN, VQGANParams
from pipeline.diffusion.denoiser import Prediction
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError, InputError
from pipeline.methods.blended import Blended
from pipeline.methods.steered import Steered
from pipeline.noise import Noise
from pipeline.problem import Problem
from pipeline.steering.calibration import CLASSES, NAMES, Calibration, Level
from pipeline.steering.patches import PatchModel
from pipeline.steering.prior import TokenPrior
from pipeline.steering.settings import PRESETS, Steering
from pipeline.steering.steer import Guide

torch.set_num_threads(1)

CODES, SCHEDULE = 8, Schedule.linear()
EXACT = Steering(rule="noisy", picture="patches", weighting="circuit", refresh=0.0, until=0.0)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def parts():
    """A circuit over 16x16 tokens, a codec for images of 32x32 pixels, its calibration, and a patch model."""
    torch.manual_seed(0)
    params = VQGANParams(channels=(32, 32), layers=1, codes=CODES, code_dim=4, attention=False)
    level = Level(**{name: torch.full((CLASSES,), 0.3) for name in NAMES})
    circuit = Circuit(quadtree(16), states=2, vocabulary=Vocabulary.full(CODES))
    return {
        "circuit": circuit.randomize(torch.Generator().manual_seed(0)),
        "codec": Codec(VQGAN(params).eval().requires_grad_(False)),
        "calibration": Calibration(times=(1000,), levels=(level,)),
        "patches": PatchModel(mean=0.3 * draw(CODES, 12), variance=torch.full((CODES, 12), 0.1), side=16),
    }


def prior_of(parts, *names):
    return TokenPrior(circuit=parts["circuit"], **{name: parts[name] for name in names})


CODEC, PATCHES = ("codec", "calibration"), ("patches",)


def problem():
    known = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    known[0, 0, :, :15] = True
    return Problem.observe(0.3 * draw(2, 3, 32, 32, seed=1), known)


def guide(parts, steering, *names):
    return Guide(steering, prior_of(parts, *names), problem(), SCHEDULE, Noise([1, 2]))


def prediction():
    return Prediction(x_0=0.4 * draw(2, 3, 32, 32, seed=2), eps=draw(2, 3, 32, 32, seed=3))


REFUSED = [
    (EXACT, CODEC, "the rule noisy asks for a patch model, but the prior has none"),
    (Steering(picture="patches"), CODEC, "the picture patches asks for a patch model, but the prior has none"),
    (Steering(), PATCHES, "the rule likelihood asks for a codec and its calibration, but the prior has none"),
    (Steering(rule="noisy"), PATCHES, "the picture expected asks for a codec and its calibration"),
    (Steering(rule="noisy", picture="patches"), PATCHES, "the weighting fitted asks for a codec and its calibration"),
    (PRESETS["released"], PATCHES, "the released formula asks for a codec and its calibration"),
]


@pytest.mark.parametrize(("steering", "names", "said"), REFUSED)
def test_a_part_that_is_asked_for_must_be_there(parts, steering, names, said):
    """Already where the method is put together."""
    with pytest.raises(ConfigError, match=said):
        Steered(base=Blended(steps=2), steering=steering, prior=prior_of(parts, *names))
    with pytest.raises(ConfigError, match=said):
        guide(parts, steering, *names)


RULES, PICTURES, WEIGHTINGS = (
    ("likelihood", "posterior", "noisy"),
    ("expected", "joint", "patches"),
    ("fitted", "circuit"),
)


@pytest.mark.parametrize("names", [CODEC, PATCHES, (*CODEC, *PATCHES)])
def test_what_is_not_refused_works(parts, names):
    """Every combination of rule, picture and weighting either is refused at construction or gives an estimate."""
    refused = 0
    for rule, picture, weighting in itertools.product(RULES, PICTURES, WEIGHTINGS):
        steering = Steering(rule=rule, picture=picture, weighting=weighting, until=0.0)
        wants = {"noisy": PATCHES}.get(rule, CODEC) + {"patches": PATCHES}.get(picture, CODEC)
        wants += () if weighting == "circuit" else CODEC
        if not set(wants) <= set(names):
            refused += 1
            with pytest.raises(ConfigError, match="asks for"):
                guide(parts, steering, *names)
            continue
        x_t = draw(2, 3, 32, 32, seed=4)
        found = guide(parts, steering, *names)(prediction(), x_t, 600)
        assert torch.equal(problem().paste(found.x_0), found.x_0)
        assert bool(found.x_0.isfinite().all())
        torch.testing.assert_close(SCHEDULE.diffuse(found.x_0, 600, found.eps), x_t, rtol=0, atol=1e-5)
    assert refused == {CODEC: 10, PATCHES: 17}.get(names, 0)


def test_parts_that_do_not_belong_together_are_refused(parts):
    small = PatchModel(mean=torch.zeros(CODES, 12), variance=torch.ones(CODES, 12), side=8)
    few = PatchModel(mean=torch.zeros(3, 12), variance=torch.ones(3, 12), side=16)
    for other, said in (
        ({"codec": parts["codec"]}, "a codec steers with its calibration, but only one of the two is there"),
        ({"calibration": parts["calibration"]}, "a codec steers with its calibration"),
        ({}, "a circuit steers with a codec or with patches, but neither is there"),
        ({"patches": small}, "the patches are for 64 tokens of 8 codes, but the circuit is over 256 of 8"),
        ({"patches": few}, "the patches are for 256 tokens of 3 codes, but the circuit is over 256 of 8"),
    ):
        with pytest.raises(ConfigError, match=said):
            TokenPrior(circuit=parts["circuit"], **other)
    one = Circuit(quadtree(16), states=1, vocabulary=Vocabulary.full(3))
    with pytest.raises(ConfigError, match="the codec writes 256 tokens of 8 codes, but the circuit is over 256 of 3"):
        TokenPrior(circuit=one, codec=parts["codec"], calibration=parts["calibration"])


def test_draws_for_evidence_are_refused_where_nothing_is_drawn():
    for rule, looks in (("likelihood", "the mean"), ("noisy", "x_t")):
        with pytest.raises(ConfigError, match=f"must be 0 for the rule {rule}, which looks at {looks}, but is 4"):
            Steering(rule=rule, evidence_draws=4)


def test_looking_at_x_t_without_one_is_refused(parts):
    x_0 = prediction().x_0
    for steering in (EXACT, Steering(picture="patches")):
        with pytest.raises(InputError, match=r"look at x_t: give it as mix\(x_0, t, x_t\)"):
            guide(parts, steering, *CODEC, *PATCHES).mix(x_0, 600)
    assert guide(parts, Steering(), *CODEC).mix(x_0, 600).mean.shape == x_0.shape


def test_the_circuit_alone_does_not_ask_the_network(parts):
    """And between the refreshed pictures the last one stays."""
    x_t, steered = draw(2, 3, 32, 32, seed=4), guide(parts, EXACT, *PATCHES)
    other = Prediction(x_0=-prediction().x_0, eps=prediction().eps)
    assert torch.equal(steered(prediction(), x_t, 600).x_0, steered(other, x_t, 600).x_0)
    assert not torch.equal(steered(other, 2 * x_t, 600).x_0, steered(other, x_t, 600).x_0)
    lazy = guide(parts, Steering(rule="noisy", picture="patches", weighting="circuit", refresh=0.1), *PATCHES)
    assert torch.equal(lazy(other, x_t, 900).x_0, lazy(other, 2 * x_t, 850).x_0)
    assert not torch.equal(lazy(other, x_t, 900).x_0, lazy(other, 2 * x_t, 700).x_0)


def test_below_until_the_network_goes_on(parts):
    late = guide(parts, Steering(rule="noisy", picture="patches", weighting="circuit", until=0.5), *PATCHES)
    assert torch.equal(late(prediction(), draw(2, 3, 32, 32), 500).x_0, problem().paste(prediction().x_0))


def test_particles_are_steered_as_images_of_their_own(parts):
    steered, x_t = guide(parts, EXACT, *PATCHES), draw(4, 3, 32, 32, seed=4)  # two particles for each problem
    twice = Prediction(x_0=prediction().x_0.repeat_interleave(2, 0), eps=prediction().eps.repeat_interleave(2, 0))
    found = steered(twice, x_t, 600).x_0
    alone = steered(prediction(), x_t[1::2], 600).x_0
    torch.testing.assert_close(found[1::2], alone, rtol=0, atol=1e-6)


def test_what_is_asked_for_is_counted(parts):
    steered = guide(parts, EXACT, *PATCHES)
    steered(prediction(), draw(2, 3, 32, 32), 600)
    assert {name: count for name, count in steered.meter.counts.items() if count} == {"circuit": 2}


def test_a_warm_start_asks_for_a_codec(parts):
    with pytest.raises(ConfigError, match=r"a warm start asks for a codec, .* but warm is 0\.9 without one"):
        Steered(base=Blended(steps=2), steering=EXACT, prior=prior_of(parts, *PATCHES), warm=0.9)
    with pytest.raises(ConfigError, match="asks for a codec or a patch model"):
        guide(parts, EXACT, *PATCHES).complete(prediction().x_0, 600, draw(2, 3, 32, 32))
    drawn = guide(parts, EXACT, *CODEC, *PATCHES).complete(prediction().x_0, 600, draw(2, 3, 32, 32))
    assert torch.equal(problem().paste(drawn), drawn)
