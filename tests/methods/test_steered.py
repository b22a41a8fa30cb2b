"""Laws of every method when it is steered."""

import math

import pytest
import torch

from methods.steered_bases import (
    BASES,
    NEVER,
    every_base,
    every_steering,
    near,
    run,
    shown,
    steered,
)
from methods.test_laws import LINEAR, SEEDS, SHAPE, PerImage, Spy, mixture
from pipeline.diffusion.denoiser import Counted, Prediction
from pipeline.noise import Noise
from pipeline.problem import Problem
from steering.worlds import PIXELS, masks, pictures

torch.set_num_threads(1)


class Tape:
    """A noise source that writes down what is drawn, its forks apart."""

    def __init__(self, inner, entries=None, name=""):
        self.inner, self.name = inner, name
        self.entries = [] if entries is None else entries

    def fork(self, name):
        return Tape(self.inner.fork(name), self.entries, f"{self.name}/{name}")

    def _keep(self, kind, drawn):
        self.entries.append((self.name, kind, drawn.clone()))
        return drawn

    def normal(self, shape):
        return self._keep("normal", self.inner.normal(shape))

    def uniform(self, shape):
        return self._keep("uniform", self.inner.uniform(shape))

    def choice(self, weights, n):
        return self._keep("choice", self.inner.choice(weights, n))


def taped(method):
    tape = Tape(Noise(SEEDS, dtype=torch.float64))
    with torch.no_grad():
        method(PerImage(mixture()), shown(), tape)
    return tape.entries


# --- laws ---


@every_base
def test_steering_that_never_acts_changes_nothing(name):
    """Bit for bit, in what is returned and in what whoever looks on is shown."""
    seen = {"base": [], "steered": []}
    base = run(BASES[name], watch=lambda t, x_0: seen["base"].append((t, x_0)))
    same = run(steered(name, NEVER), watch=lambda t, x_0: seen["steered"].append((t, x_0)))
    assert torch.equal(base, same)
    assert [t for t, _ in seen["base"]] == [t for t, _ in seen["steered"]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*seen.values(), strict=True))


@every_steering
@every_base
def test_results_are_images_that_steering_has_changed(name, how):
    base = run(BASES[name])
    for dtype in (torch.float64, torch.float32):
        world = steered(name, how)
        world.prior.codec.vqgan.to(dtype)
        world.prior.circuit.to(dtype)
        problem = shown()
        problem = Problem(y=problem.y.to(dtype), known=problem.known)
        with torch.no_grad():
            x = world(PerImage(mixture()), problem, Noise(SEEDS, dtype=dtype))
        assert x.shape == (4, *SHAPE)
        assert x.dtype == dtype
        assert bool(x.isfinite().all())
        assert float(x.abs().max()) <= 1
        if dtype == torch.float64:
            hidden = ~masks().expand_as(x)
            assert (x != base)[hidden].any()


@every_base
def test_every_estimate_that_a_method_steps_with_is_refined_and_taken(name):
    """As often as the network is asked, but for CoPaint, which steps with the last of its looks."""

    class Counts(PerImage):
        asked = 0

        def denoise(self, x_t, t):
            self.asked += 1
            return super().denoise(x_t, t)

    def moved(only):
        calls = []

        def push(prediction, x_t, t):
            calls.append((t, len(x_t)))
            x_0 = prediction.x_0 + 0.3 * (len(calls) - 1 == only)
            return Prediction(x_0=x_0, eps=LINEAR.eps(x_t, x_0, t), v=prediction.v)

        denoiser = Counts(mixture())
        with torch.no_grad():
            x = BASES[name](denoiser, shown(), Noise(SEEDS, dtype=torch.float64), refine=push)
        return x, calls, denoiser.asked

    plain, calls, count = moved(None)
    downs = sum(j < i for i, j in BASES[name].moves())
    assert len(calls) == (downs if name == "copaint" else count)
    assert {images for _, images in calls} == {4 * getattr(BASES[name], "particles", 1)}
    for k in (0, len(calls) - 1):
        x, _, _ = moved(k)
        assert ((x != plain) & ~masks())[:3].flatten(1).any(1).all()


@every_base
def test_seeds_decide_and_nothing_else_draws(name, how="drawn"):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(steered(name, how))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(run(steered(name, how)), first)
    other = run(steered(name, how), seeds=[21, 22, 23, 24])
    assert ((first != other) & ~masks())[:3].flatten(1).any(1).all()


@every_steering
@every_base
def test_an_image_is_completed_alone_as_in_a_batch(name, how):
    together = run(steered(name, how))
    for k in (0, 2):
        near(run(steered(name, how), shown([k]), [SEEDS[k]]), together[k : k + 1])
    order = [2, 0, 3, 1]
    near(run(steered(name, how), shown(order), [SEEDS[k] for k in order]), together[order])


@every_base
def test_hidden_pixels_do_not_matter(name):
    plain = run(steered(name))
    for garbage in (0.5, math.nan):
        other = Problem.observe(torch.where(masks(), pictures(), garbage), masks())
        assert torch.equal(run(steered(name), other), plain)


@every_base
def test_watching_is_told_once_per_denoising_move_and_changes_nothing(name):
    told = []

    def vandal(t, x_0):
        assert x_0.shape == (4, *SHAPE)
        told.append(t)
        x_0.fill_(math.nan)

    method = steered(name)
    assert torch.equal(run(method), run(method, watch=vandal))
    assert len(told) == sum(j < i for i, j in method.moves())
    assert method.moves() == BASES[name].moves()


@every_base
def test_the_problem_is_left_alone(name):
    problem = shown()
    run(steered(name), problem, watch=lambda t, x_0: x_0.zero_())
    assert torch.equal(problem.y, shown().y)
    assert torch.equal(problem.known, shown().known)


@every_steering
@every_base
def test_the_base_draws_as_if_it_were_not_steered(name, how):
    """All it draws from its streams, but for the choice of particles, whose weights are others."""
    plain, entries = taped(BASES[name]), taped(steered(name, how))
    own = [(kind, drawn) for place, kind, drawn in entries if not place]
    assert [kind for kind, _ in own] == [kind for _, kind, _ in plain]
    for (kind, drawn), (_, _, expected) in zip(own, plain, strict=True):
        assert kind == "choice" or torch.equal(drawn, expected)
    places = {place for place, _, _ in entries}
    assert places == ({""} if how == "ours" else {"", "/steering"})


@pytest.mark.parametrize("name", [name for name in BASES if name not in ("copaint", "dps", "pigdm", "tds")])
def test_no_gradients_are_recorded(name):
    world = mixture()
    world.means.requires_grad_()
    spy = Spy(world)
    x = run(steered(name), denoiser=spy)
    assert not spy.recorded
    assert not x.requires_grad


@every_base
def test_evaluations_are_those_of_the_base(name):
    counted, plain = Counted(PerImage(mixture())), Counted(PerImage(mixture()))
    run(steered(name), denoiser=counted)
    run(BASES[name], denoiser=plain)
    if name != "copaint":  # whose rejected trials differ
        assert (counted.forwards, counted.backwards) == (plain.forwards, plain.backwards)
        assert counted.forwards == 4 * steered(name).nfe()
        assert counted.backwards == 4 * steered(name).nbe()


def test_a_refinement_given_to_a_steered_method_comes_after_steering():
    met = []

    def last(prediction, x_t, t):
        met.append(prediction.x_0)
        return Prediction(x_0=0.0 * prediction.x_0, eps=prediction.eps, v=prediction.v)

    with torch.no_grad():
        x = steered("ddnm")(PerImage(mixture()), shown(), Noise(SEEDS, dtype=torch.float64), refine=last)
    problem = shown()
    assert all(torch.equal(problem.paste(x_0), x_0) for x_0 in met)
    assert len(met) == 6
    assert torch.equal(x, problem.paste(torch.zeros_like(x)))


# --- known pixels ---


@pytest.mark.parametrize("warm", [1.0, 0.6])
@pytest.mark.parametrize(
    "name", ["blended", "ddnm", "ddrm", "repaint", "resampling", "diffpir", "daps", "tds", "lanpaint"]
)
def test_known_pixels_are_exact_where_every_estimate_is_pasted(name, warm):
    """Also for bases whose last step returns the network's estimate of them: with `known` always it is pasted."""
    x = run(steered(name, warm=warm))
    assert torch.equal(shown().paste(x), x)


@pytest.mark.parametrize("name", ["ddnm", "diffpir", "daps", "tds", "lanpaint"])
def test_known_pixels_are_exact_where_the_base_pastes_them(name):
    for how in ("drawn", "released"):
        x = run(steered(name, how))
        assert torch.equal(shown().paste(x), x)


def test_the_world_is_as_small_as_it_says():
    assert SHAPE == (3, PIXELS, PIXELS)
