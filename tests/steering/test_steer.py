"""The guide against a recomputation by enumeration, and what it promises to whoever samples."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm

from circuit.worlds import enumerated, make
from pipeline.circuit.sampling import sample_posterior
from pipeline.codec.codec import Codec
from pipeline.errors import ConfigError
from pipeline.problem import Problem
from pipeline.steering.calibration import classify, to_pixels
from pipeline.steering.evidence import prior_marginals
from pipeline.steering.meter import Meter
from pipeline.steering.prior import TokenPrior
from pipeline.steering.settings import PRESETS, Steering
from steering.worlds import (
    LINEAR,
    PIXELS,
    SEEDS,
    calibration,
    codec,
    estimate,
    flow_by_hand,
    guide,
    masks,
    noise,
    pictures,
    prior,
    problem,
    rows,
    squares,
)

NAME, T = "2x2, quad-tree", 800
ALL = {"until": 0.5, "refresh": 0.0}


def nearly(found, expected):
    """Calibrations are kept in single precision."""
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-6, atol=2e-6)


# --- by hand ---


def pixels(table, classes):
    return to_pixels(table[classes].double(), PIXELS)


def evidence_by_hand(steering, world, level, x, classes, shown, tape, name):
    made = world.codec
    if steering.rule == "likelihood":
        return -squares(made, x) / (2 * level.code_variance[classes].double())[..., None]
    looks = [x]
    if steering.evidence_draws:
        z = tape.normal((steering.evidence_draws, 3, PIXELS, PIXELS))
        std = pixels(level.diffusion_variance, classes).sqrt()
        looks = [shown.paste((x + std * z[:, k]).clamp(-1, 1)) for k in range(steering.evidence_draws)]
    log_w = (
        torch.stack([torch.softmax(-squares(made, y) / (3 * steering.temperature), -1) for y in looks]).mean(0).log()
    )
    if steering.rule == "divided":
        p = enumerated(name).posterior(torch.zeros(4, world.circuit.codes))[1]
        log_w = log_w - torch.from_numpy(np.where(p > 0, np.log(np.where(p > 0, p, 1)), 0))
    return log_w


def picture_by_hand(steering, world, level, log_w, classes, tape, name):
    made, fitted = world.codec, pixels(level.circuit_variance, classes)
    if steering.picture == "joint":
        tokens = sample_posterior(world.circuit, log_w, tape, steering.draws)
    else:
        ask = (
            (lambda w: enumerated(name).posterior(w)[1])
            if steering.query == "exact"
            else (lambda w: flow_by_hand(name, w))
        )
        p = torch.from_numpy(np.stack([ask(w) for w in log_w]))
        if steering.picture == "expected":
            codes = (p @ made.vqgan.codebook).view(-1, 2, 2, 3).permute(0, 3, 1, 2)
            return made.decode_embeddings(codes), fitted
        u = tape.uniform((steering.draws, 4))
        tokens = (p.cumsum(-1)[:, None] <= u[..., None]).sum(-1)
    images = torch.stack([made.decode(tokens[:, k]) for k in range(steering.draws)])
    if steering.draws == 1:
        return images[0], fitted
    mean = images.mean(0)
    return mean, ((images - mean) ** 2).sum(0).div(steering.draws - 1).clamp_min((1 / 255) ** 2)


def by_hand(steering, prediction, x_t, t, name=NAME, trust=None):
    """Estimate and noise after steering."""
    world, shown, tape = prior(name, trust), problem(), noise()
    level, classes = world.calibration.at(t), classify(shown.known, 2)
    x = shown.paste(prediction.x_0.clamp(-1, 1))
    log_w = evidence_by_hand(steering, world, level, x, classes, shown, tape, name)
    m2, v2 = picture_by_hand(steering, world, level, log_w, classes, tape, name)
    v1 = pixels(level.diffusion_variance, classes)
    a = pixels(level.weight, classes)
    if steering.weighting == "schedule":
        a = steering.low + (steering.high - steering.low) * math.exp(-steering.decay * t / 1000)
    precision = a / v1 + (1 - a) / v2
    mean = (a * x / v1 + (1 - a) * m2 / v2) / precision
    if steering.outcome == "draw":
        u, std = tape.uniform((3, PIXELS, PIXELS)).numpy(), precision.rsqrt().expand_as(mean).numpy()
        ends = [(end - mean.numpy()) / std for end in (-1, 1)]
        mean = torch.from_numpy(truncnorm.ppf(u, *ends, loc=mean.numpy(), scale=std))
    x_0 = shown.paste(mean)
    eps = prediction.eps
    if steering.eps == "implied":
        root = math.sqrt(LINEAR.alpha_bar[t])
        eps = (x_t - root * x_0) / math.sqrt(1 - LINEAR.alpha_bar[t])
    return x_0, eps


RULES = [("likelihood", 0), ("posterior", 0), ("posterior", 3), ("divided", 0), ("divided", 2)]
PICTURES = [("expected", "exact", 1), ("expected", "flow", 1)]
PICTURES += [("joint", "exact", n) for n in (1, 4)] + [("independent", q, n) for q, n in (("exact", 1), ("flow", 3))]


@pytest.mark.parametrize(("rule", "picture"), list(product(RULES, PICTURES)), ids=str)
def test_an_estimate_is_steered_as_the_equations_say(rule, picture):
    for weighting, outcome, eps in (("fitted", "mean", "implied"), ("schedule", "draw", "kept")):
        steering = Steering(
            **ALL,
            rule=rule[0],
            evidence_draws=rule[1],
            temperature=0.3,
            picture=picture[0],
            query=picture[1],
            draws=picture[2],
            weighting=weighting,
            low=0.3,
            outcome=outcome,
            eps=eps,
        )
        prediction, x_t = estimate()
        found = guide(steering)(prediction, x_t, T)
        x_0, noise_ = by_hand(steering, prediction, x_t, T)
        nearly(found.x_0, x_0)
        nearly(found.eps, noise_)
        assert found.v is prediction.v


@pytest.mark.parametrize("rule", ["likelihood", "posterior", "divided"])
@pytest.mark.parametrize("name", ["2x2, quad-tree, pruned", "2x2, quad-tree, pruned, zeros", "2x2, chain"])
def test_circuits_of_all_kinds_steer(name, rule):
    """Also those that rule codes out, of which nothing is divided."""
    steering = Steering(**ALL, rule=rule)
    prediction, x_t = estimate()
    nearly(guide(steering, name=name)(prediction, x_t, T).x_0, by_hand(steering, prediction, x_t, T, name)[0])


def test_what_the_prior_says_is_enumerated():
    circuit = make("2x2, quad-tree, pruned, zeros")
    p = enumerated("2x2, quad-tree, pruned, zeros").posterior(torch.zeros(4, circuit.codes))[1]
    assert (p == 0).any()
    np.testing.assert_allclose(prior_marginals(circuit).numpy(), np.log(np.where(p > 0, p, 1)), atol=1e-9)


# --- what samplers rely on ---


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("t", [501, 901, 1000])
def test_results_are_finite_images(preset, t):
    prediction, x_t = estimate(t=t)
    found = guide(PRESETS[preset])(replace(prediction, x_0=5 * prediction.x_0), x_t, t)
    assert bool(found.x_0.isfinite().all() and found.eps.isfinite().all())
    if t > PRESETS[preset].until * 1000:
        assert float(found.x_0.abs().max()) <= 1


@pytest.mark.parametrize("preset", ["ours", "paper"])
def test_known_pixels_are_exact_and_noise_goes_with_the_image(preset):
    for t in (950, 501):
        prediction, x_t = estimate(t=t)
        steering = replace(PRESETS[preset], until=0.5)
        found, shown = guide(steering)(prediction, x_t, t), problem()
        assert torch.equal(shown.paste(found.x_0), found.x_0)
        torch.testing.assert_close(LINEAR.diffuse(found.x_0, t, found.eps), x_t, rtol=0, atol=1e-12)
        assert not torch.equal(found.x_0, prediction.x_0)


def test_below_until_known_pixels_are_pasted_or_nothing_is_done():
    prediction, x_t = estimate(t=500)
    found = guide(Steering(until=0.5))(prediction, x_t, 500)
    assert torch.equal(found.x_0, problem().paste(prediction.x_0))
    torch.testing.assert_close(LINEAR.diffuse(found.x_0, 500, found.eps), x_t, rtol=0, atol=1e-12)
    assert found.v is prediction.v
    assert guide(Steering(until=0.5, eps="kept"))(prediction, x_t, 500).eps is prediction.eps
    assert guide(Steering(until=0.5, known="steered"))(prediction, x_t, 500) is prediction
    assert guide(Steering(until=0.5, known="steered"))(prediction, x_t, 501) is not prediction
    assert guide(Steering(until=1.0, known="steered"))(prediction, x_t, 1000) is prediction


def test_a_weight_of_1_pastes_only_and_one_of_0_is_the_picture():
    prediction, x_t = estimate()
    for low, expected in ((1.0, prediction.x_0.clamp(-1, 1)), (0.0, None)):
        steering = Steering(**ALL, weighting="schedule", low=low, high=low)
        found = guide(steering)(prediction, x_t, T).x_0
        if expected is None:
            world, shown = prior(), problem()
            level, classes = world.calibration.at(T), classify(shown.known, 2)
            x = shown.paste(prediction.x_0.clamp(-1, 1))
            log_w = evidence_by_hand(steering, world, level, x, classes, shown, None, NAME)
            expected, _ = picture_by_hand(steering, world, level, log_w, classes, None, NAME)
        nearly(found, problem().paste(expected))


def test_mix_says_what_is_known_and_pastes():
    """The mean is the estimate that the outcome "mean" takes."""
    prediction, x_t = estimate()
    mixed = guide(Steering(**ALL)).mix(prediction.x_0, T)
    assert torch.equal(mixed.mean, guide(Steering(**ALL))(prediction, x_t, T).x_0)
    assert torch.equal(problem().paste(mixed.mean), mixed.mean)
    assert mixed.variance.shape == (4, 1, PIXELS, PIXELS)


def test_a_completion_is_decoded_from_tokens_drawn_given_everything():
    prediction, _ = estimate()
    found, world, shown = guide(Steering(**ALL)).complete(prediction.x_0, T), prior(), problem()
    level, classes = world.calibration.at(T), classify(shown.known, 2)
    x = shown.paste(prediction.x_0.clamp(-1, 1))
    log_w = evidence_by_hand(Steering(), world, level, x, classes, shown, None, NAME)
    tokens = sample_posterior(world.circuit, log_w, noise())[:, 0]
    assert torch.equal(found, shown.paste(world.codec.decode(tokens)))


# --- images do not meet ---

RANDOM = Steering(
    **ALL, rule="posterior", evidence_draws=2, picture="joint", draws=3, outcome="draw", weighting="schedule", low=0.3
)
STEERINGS = {
    "ours": Steering(),
    "ours, every step": Steering(**ALL),
    "paper": PRESETS["paper"],
    "released": PRESETS["released"],
    "everything drawn": RANDOM,
    "independent": replace(RANDOM, picture="independent", refresh=0.15),
}
WALK = (1000, 960, 940, 910)


def walk(steering, index, particles=1):
    """Estimates of images `index` along a walk, for particles one after another."""
    shown = Problem.observe(pictures()[index], masks()[index])
    made = guide(steering, shown=shown, seeds=[SEEDS[k] for k in index])
    places = [k * particles + p for k in index for p in range(particles)]
    found = []
    for t in WALK:
        prediction, x_t = estimate(4 * particles, t)
        found.append(made(rows(prediction, places), x_t[places], t))
    return torch.stack([one.x_0 for one in found]).unflatten(1, (len(index), particles))


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("name", STEERINGS)
def test_an_image_is_steered_alone_as_in_any_batch(name, particles):
    together = walk(STEERINGS[name], [0, 1, 2, 3], particles)
    close = {"rtol": 0, "atol": 1e-9}
    for k in range(4):
        torch.testing.assert_close(walk(STEERINGS[name], [k], particles)[:, 0], together[:, k], **close)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(walk(STEERINGS[name], order, particles), together[:, order], **close)


@pytest.mark.parametrize("name", STEERINGS)
def test_hidden_pixels_do_not_matter(name):
    for garbage in (-1.0, math.nan):
        shown = Problem.observe(torch.where(masks(), pictures(), garbage), masks())
        prediction, x_t = estimate()
        found = [guide(STEERINGS[name], shown=s)(prediction, x_t, 950).x_0 for s in (shown, problem())]
        assert torch.equal(*found)


def test_particles_are_steered_as_images_of_their_own():
    """Where nothing is drawn, each particle as if it were alone."""
    together = walk(Steering(**ALL), [0, 1, 2, 3], 3)
    for p in range(3):
        made = guide(Steering(**ALL))
        for step, t in enumerate(WALK):
            prediction, x_t = estimate(12, t)
            alone = made(rows(prediction, slice(p, None, 3)), x_t[p::3], t).x_0
            torch.testing.assert_close(together[step, :, p], alone, rtol=0, atol=1e-9)


def test_particles_of_an_image_draw_apart():
    prediction, x_t = estimate(1, 950)
    shown = Problem.observe(pictures(1), torch.zeros(1, 1, PIXELS, PIXELS, dtype=torch.bool))
    for name in ("paper", "released", "everything drawn", "independent"):
        made = guide(STEERINGS[name], shown=shown, seeds=[7])
        found = made(rows(prediction, [0, 0, 0]), x_t.repeat(3, 1, 1, 1), 950).x_0
        assert not torch.equal(found[0], found[1])
        assert not torch.equal(found[1], found[2])


# --- how often the circuit is asked ---


@pytest.mark.parametrize(
    ("refresh", "asked"),
    [
        (0.0, list(range(1000, 500, -20))),
        (0.02, list(range(1000, 500, -20))),
        (0.1, [1000, 900, 800, 700, 600]),
        (0.15, [1000, 840, 680, 520]),
        (1.0, [1000]),
    ],
)
def test_the_circuit_is_asked_as_often_as_refresh_says(refresh, asked):
    meter = Meter()
    made, seen, before = guide(Steering(until=0.5, refresh=refresh), meter=meter), [], 0
    for t in range(1000, 0, -20):
        prediction, x_t = estimate(t=t)
        made(prediction, x_t, t)
        if meter.counts["circuit"] > before:
            seen.append(t)
        before = meter.counts["circuit"]
    assert seen == asked
    for part in ("encode", "circuit", "decode"):
        assert meter.counts[part] == 4 * len(asked)


def test_going_back_asks_again_when_time_has_moved():
    meter = Meter()
    made, counts = guide(Steering(refresh=0.1), meter=meter), []
    for t in (1000, 950, 901, 900, 960, 1000, 950):
        prediction, x_t = estimate(t=t)
        made(prediction, x_t, t)
        counts.append(meter.counts["circuit"] // 4)
    assert counts == [1, 1, 1, 2, 2, 3, 3]


def test_a_picture_is_kept_but_mixed_anew():
    """With another estimate, and with the variances and the weight of its own time."""
    made, world, shown = guide(Steering(refresh=1.0)), prior(), problem()
    first, x_t = estimate(t=1000)
    made(first, x_t, 1000)
    second = replace(first, x_0=-first.x_0)
    found = made(second, x_t, 700).x_0
    classes, level = classify(shown.known, 2), world.calibration.at(700)
    x = [shown.paste(p.x_0.clamp(-1, 1)) for p in (first, second)]
    log_w = evidence_by_hand(Steering(), world, world.calibration.at(1000), x[0], classes, shown, None, NAME)
    m2, v2 = picture_by_hand(Steering(), world, world.calibration.at(1000), log_w, classes, None, NAME)
    v1, a = pixels(level.diffusion_variance, classes), pixels(level.weight, classes)
    expected = (a * x[1] / v1 + (1 - a) * m2 / v2) / (a / v1 + (1 - a) / v2)
    nearly(found, shown.paste(expected))


def test_particles_always_ask_anew():
    meter = Meter()
    made = guide(Steering(refresh=1.0), meter=meter)
    for t in (1000, 999, 998):
        prediction, x_t = estimate(12, t)
        made(prediction, x_t, t)
    assert meter.counts["circuit"] == 3 * 12


@pytest.mark.parametrize(
    ("steering", "encode", "decode"),
    [
        (Steering(**ALL), 1, 1),
        (Steering(**ALL, picture="joint", draws=5), 1, 5),
        (Steering(**ALL, picture="independent", draws=2), 1, 2),
        (Steering(**ALL, rule="posterior", evidence_draws=3), 3, 1),
        (PRESETS["paper"], 4, 8),
        (PRESETS["released"], 1, 8),
    ],
)
def test_images_are_counted(steering, encode, decode):
    meter = Meter()
    made = guide(steering, meter=meter)
    for t in (1000, 910):
        prediction, x_t = estimate(t=t)
        made(prediction, x_t, t)
    made(*estimate(t=1), 1)
    assert {part: meter.counts[part] for part in ("encode", "circuit", "decode")} == {
        "encode": 8 * encode,
        "circuit": 8,
        "decode": 8 * decode,
    }
    made.complete(estimate()[0].x_0, T)
    assert meter.counts["circuit"] == 12


def test_parts_of_different_grids_or_vocabularies_are_refused():
    circuit = make(NAME)
    for wrong in (codec(codes=5), codec(side=4)):
        with pytest.raises(ConfigError, match="but the circuit is over 4 of 4"):
            TokenPrior(codec=wrong, circuit=circuit, calibration=calibration())
    assert isinstance(TokenPrior(codec=codec(), circuit=circuit, calibration=calibration()).codec, Codec)
