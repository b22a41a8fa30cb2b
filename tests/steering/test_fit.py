"""Fitting: error variances and least-squares weights come out where they are known, or are solved for directly."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from circuit.worlds import make
from pipeline.circuit.queries import posterior
from pipeline.circuit.sampling import sample
from pipeline.diffusion.denoiser import Prediction
from pipeline.noise import Noise
from pipeline.steering.calibration import CLASSES, NAMES, SHARES, classify, to_pixels
from pipeline.steering.evidence import distances, features_of
from pipeline.steering.fit import (
    LEAST,
    SEEN_TEMPER,
    SHARED,
    TEMPERS,
    Examples,
    Temper,
    class_means,
    fit,
    fit_level,
    mixing_weights,
    times_of,
)
from steering.worlds import LINEAR, PIXELS, codec, draw

NAME = "2x2, quad-tree"
COUNT = 40


def left_and_strip(count=COUNT):
    known = torch.zeros(2, count, 1, PIXELS, PIXELS, dtype=torch.bool)
    known[0, :, :, :, :2] = known[1, :, :, 1:3] = True
    return list(known)


def examples(count=COUNT):
    """Images that the codec decodes from tokens that the circuit draws, with noise of their own."""
    circuit, made = make(NAME), codec()
    tokens = sample(circuit, Noise(range(count)), count)[:, 0]
    x_0 = (made.decode(tokens) + 0.05 * draw(count, 3, PIXELS, PIXELS, seed=1)).clamp(-1, 1)
    return Examples(x_0=x_0, tokens=tokens, known=left_and_strip(count))


@dataclass
class Off:
    """A denoiser that knows the truth and is off by an error of known size."""

    x_0: torch.Tensor
    size: float
    schedule = LINEAR
    shape = (3, PIXELS, PIXELS)

    def denoise(self, x_t, t):
        x_0 = self.x_0 + self.size * t / 1000 * draw(*self.x_0.shape, seed=t)
        return Prediction(x_0=x_0, eps=LINEAR.eps(x_t, x_0, t))


def off(shown, size=0.4):
    return shown.x_0 + size * draw(*shown.x_0.shape, seed=2)


def levels_equal(first, second, **tolerances):
    for name in NAMES:
        torch.testing.assert_close(getattr(first, name), getattr(second, name), **tolerances)


def pieces(shown, estimate, temper):
    """What the fit looks at, by hand: per mask the classes of hidden pixels, and estimate, picture and truth there."""
    made, circuit = codec(), make(NAME)
    views = []
    for known in shown.known:
        x = torch.where(known, shown.x_0, estimate)
        views.append((known, x, classify(known, made.side)))
    totals = np.zeros((2, CLASSES))
    for _, x, classes in views:
        true_codes = made.vqgan.codebook[shown.tokens]
        error = (features_of(made, x) - true_codes).square().mean(-1)
        for k in range(CLASSES):
            totals[:, k] += float(error[classes == k].sum()), int((classes == k).sum())
    shared = totals[0].sum() / totals[1].sum()
    raw = np.maximum((totals[0] + shared) / (totals[1] + 1), LEAST)
    factor = np.where(np.arange(CLASSES) < SHARES, SEEN_TEMPER, temper)
    variance = torch.from_numpy(raw * factor)
    found = []
    for known, x, classes in views:
        log_w = -0.5 * distances(made, features_of(made, x)) / variance[classes][..., None]
        codes = posterior(circuit, log_w).marginals @ made.vqgan.codebook
        picture = made.decode_embeddings(codes.transpose(1, 2).unflatten(2, (2, 2)))
        hidden = (~known).expand_as(x)
        place = to_pixels(classes, PIXELS).expand_as(x)
        found.append([v[hidden].numpy() for v in (place, x, picture, shown.x_0)])
    return variance, [np.concatenate(part) for part in zip(*found, strict=True)]


def gain(shown, estimate, temper):
    """By how much the best mixture of each class lowers the square error."""
    _, (place, x, picture, truth) = pieces(shown, estimate, temper)
    total = 0.0
    for k in set(place):
        here = place == k
        move, missing = (picture - x)[here], (truth - x)[here]
        b = np.clip(move @ missing / (move @ move), 0, 1)
        total += (missing**2).sum() - ((missing - b * move) ** 2).sum()
    return total


# --- variances ---


def test_known_error_variances_come_out():
    """Estimates off by .4 per pixel: .16, and less where clipped to [-1, 1]; here nothing is clipped."""
    shown = examples(400)
    level = fit_level(codec(), make(NAME), shown, off(shown))
    seen = {int(k) for known in shown.known for k in to_pixels(classify(known, 2), PIXELS)[~known].unique()}
    assert len(seen) > 1
    for k in seen:
        assert float(level.diffusion_variance[k]) == pytest.approx(0.16, rel=0.08)


def test_the_variance_of_features_is_that_around_the_true_codes():
    shown = examples()
    level = fit_level(codec(), make(NAME), shown, off(shown))
    tempers = [t for t in TEMPERS if torch.allclose(level.code_variance, pieces(shown, off(shown), t)[0].float())]
    assert len(tempers) == 1


def test_the_temper_is_the_one_that_lowers_the_error_most():
    shown = examples()
    chosen = set()
    for estimate in (off(shown), -shown.x_0):
        level = fit_level(codec(), make(NAME), shown, estimate)
        gains = {temper: gain(shown, estimate, temper) for temper in TEMPERS}
        best = max(gains, key=gains.get)
        torch.testing.assert_close(level.code_variance, pieces(shown, estimate, best)[0].float())
        chosen.add(best)
    assert len(chosen) > 1  # otherwise the choice would not have been tested


def test_every_class_shares_in_the_mean_over_all():
    classes = torch.tensor([[0, 0, 3, -1]])
    values = torch.tensor([[1.0, 2.0, 6.0, 100.0]])
    means = class_means([(classes, values), (classes, values)])
    overall = 18.0 / 6
    assert means.dtype == torch.float64
    assert means.tolist() == pytest.approx(
        [(6 + overall) / 5, *[overall] * 2, (12 + overall) / 3, *[overall] * (CLASSES - 4)]
    )


def test_variances_have_a_floor():
    means = class_means([(torch.zeros(4, dtype=torch.int64), torch.zeros(4))])
    assert means.tolist() == [LEAST] * CLASSES
    assert class_means([]).tolist() == [LEAST] * CLASSES


# --- weights ---


def test_the_weights_solve_the_least_squares_problem_of_their_class():
    """Against numpy's solution of (picture - estimate) b = truth - estimate, up to what a class shares with all."""
    shown = examples()
    level = fit_level(codec(), make(NAME), shown, off(shown))
    temper = max(TEMPERS, key=lambda t: gain(shown, off(shown), t))
    _, (place, x, picture, truth) = pieces(shown, off(shown), temper)
    move, missing = picture - x, truth - x
    for k in range(CLASSES):
        rows = np.concatenate([move[place == k], np.sqrt(SHARED) * move])
        aims = np.concatenate([missing[place == k], np.sqrt(SHARED) * missing])
        (b,), *_ = np.linalg.lstsq(rows[:, None], aims, rcond=None)
        a, v1, v2 = (float(getattr(level, n)[k]) for n in ("weight", "diffusion_variance", "circuit_variance"))
        moved = (1 - a) / v2 / (a / v1 + (1 - a) / v2)
        assert moved == pytest.approx(np.clip(b, 0, 1), abs=1e-5)
        assert 0 < moved < 1
    mean_square = (picture - truth) ** 2
    for k in set(place):
        expected = (mean_square[place == k].sum() / 3 + mean_square.mean()) / ((place == k).sum() / 3 + 1)
        assert float(level.circuit_variance[k]) == pytest.approx(expected, rel=1e-5)


def test_no_other_weight_has_a_smaller_error():
    shown = examples()
    level = fit_level(codec(), make(NAME), shown, off(shown))
    temper = max(TEMPERS, key=lambda t: gain(shown, off(shown), t))
    _, (place, x, picture, truth) = pieces(shown, off(shown), temper)

    def error(k, a):
        here = place == k
        v1, v2 = float(level.diffusion_variance[k]), float(level.circuit_variance[k])
        b = (1 - a) * v1 / (a * v2 + (1 - a) * v1)
        own = ((1 - b) * x + b * picture - truth)[here]
        return (own**2).sum() + SHARED * (((1 - b) * x + b * picture - truth) ** 2).sum()

    for k in set(place):
        least = error(k, float(level.weight[k]))
        assert all(error(k, a) >= least - 1e-9 for a in np.linspace(0, 1, 101))


@pytest.mark.parametrize(
    ("along", "weight"),
    [(-3.0, 1.0), (0.0, 1.0), (4.0, 0.0), (9.0, 0.0)],
)
def test_a_picture_that_leads_away_gets_no_weight_and_one_that_falls_short_all(along, weight):
    sums = torch.full((CLASSES,), along, dtype=torch.float64)
    ones = torch.ones(CLASSES, dtype=torch.float64)
    found = Temper(code_variance=ones, circuit_variance=ones, along=sums, away=4.0 * ones)
    assert mixing_weights(ones, found).tolist() == [weight] * CLASSES


def test_what_mixing_gains_is_the_fall_of_the_square_error():
    """b (2 along - b away), b in [0, 1]: a picture can be had as it is at most."""
    zero = torch.zeros(CLASSES, dtype=torch.float64)
    found = Temper(code_variance=zero, circuit_variance=zero, along=zero, away=zero)
    cases = {(1.0, 2.0): 0.5, (-1.0, 2.0): 0.0, (2.0, 2.0): 2.0, (6.0, 2.0): 10.0, (0.0, 0.0): 0.0}
    for (along, away), expected in cases.items():
        one = torch.eye(CLASSES, dtype=torch.float64)[3]
        assert replace(found, along=along * one, away=away * one).gain == pytest.approx(expected)


# --- odd data ---


def finite(level):
    return all(bool(getattr(level, name).isfinite().all()) for name in NAMES)


def test_classes_without_pixels_are_as_all_together():
    shown = examples()
    level = fit_level(codec(), make(NAME), shown, off(shown))
    hidden = {int(k) for known in shown.known for k in to_pixels(classify(known, 2), PIXELS)[~known].unique()}
    empty = sorted(set(range(CLASSES)) - hidden)
    assert empty
    for name in NAMES[1:]:
        table = getattr(level, name)
        assert len(table[empty].unique()) == 1
        others = table[sorted(hidden)]
        assert float(others.min()) <= float(table[empty[0]]) <= float(others.max())


@pytest.mark.parametrize("case", ["all seen", "nothing seen", "perfect estimate", "one image", "black"])
def test_odd_data_gives_numbers(case):
    shown = examples(1 if case == "one image" else 6)
    estimate = off(shown)
    if case == "all seen":
        shown = replace(shown, known=[torch.ones_like(shown.known[0])])
    if case == "nothing seen":
        shown = replace(shown, known=[torch.zeros_like(shown.known[0])])
    if case == "perfect estimate":
        estimate = shown.x_0
    if case == "black":
        estimate = torch.zeros_like(estimate)
    level = fit_level(codec(), make(NAME), shown, estimate)
    assert finite(level)
    for name in NAMES[:3]:
        assert float(getattr(level, name).min()) >= 0.999 * LEAST
    assert float(level.weight.min()) >= 0
    assert float(level.weight.max()) <= 1
    if case == "perfect estimate":
        assert (level.weight == 1).all()  # the circuit can only spoil it


# --- the whole ---


def run(shown, seeds=None, times=(300, 900)):
    seeds = range(len(shown.x_0)) if seeds is None else seeds
    return fit(Off(shown.x_0, 0.5), codec(), make(NAME), shown, Noise(seeds, dtype=torch.float64), times)


def test_levels_are_fitted_in_order_and_told():
    told = []
    shown = examples(10)
    noise = Noise(range(10), dtype=torch.float64)
    trust = fit(
        Off(shown.x_0, 0.5),
        codec(),
        make(NAME),
        shown,
        noise,
        (300, 900),
        tick=lambda t, level: told.append((t, level)),
    )
    assert told == list(zip(trust.times, trust.levels, strict=True))
    assert trust.times == (300, 900)
    for t, level in zip(trust.times, trust.levels, strict=True):
        estimate = (shown.x_0 + 0.5 * t / 1000 * draw(10, 3, 4, 4, seed=t)).clamp(-1, 1)
        levels_equal(level, fit_level(codec(), make(NAME), shown, estimate), rtol=0, atol=0)
        assert all(getattr(level, name).dtype == torch.float32 for name in NAMES)


def test_a_fit_is_the_same_again():
    for first, again in zip(run(examples()).levels, run(examples()).levels, strict=True):
        levels_equal(first, again, rtol=0, atol=0)


def test_the_noise_of_each_time_is_that_of_the_images():
    """One draw per time, and the denoiser sees what it gives."""
    shown, seen = examples(3), []

    class Records(Off):
        def denoise(self, x_t, t):
            seen.append((t, x_t))
            return super().denoise(x_t, t)

    fit(Records(shown.x_0, 0.5), codec(), make(NAME), shown, Noise([4, 5, 6], dtype=torch.float64), (300, 900))
    tape = Noise([4, 5, 6], dtype=torch.float64)
    for t, x_t in seen:
        assert torch.equal(x_t, LINEAR.diffuse(shown.x_0, t, tape.normal((3, PIXELS, PIXELS))))
    assert [t for t, _ in seen] == [300, 900]


def test_the_order_of_images_does_not_matter():
    shown = examples()
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    other = Examples(x_0=shown.x_0[order], tokens=shown.tokens[order], known=[known[order] for known in shown.known])
    levels_equal(
        fit_level(codec(), make(NAME), shown, off(shown)),
        fit_level(codec(), make(NAME), other, off(shown)[order]),
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("until", "levels", "times"),
    [
        (0.5, 6, [500, 600, 700, 800, 900, 1000]),
        (0.9, 2, [900, 1000]),
        (0.5, 1, [500]),
        (0.0, 3, [1, 500, 1000]),
        (0.999, 5, [999, 1000]),
    ],
)
def test_times_are_spread_evenly(until, levels, times):
    assert times_of(1000, until, levels) == times
