"""Laws of every method when it is steered, and of the warm start, on images of 4 x 4 pixels and four tokens."""

import math
from dataclasses import replace

import pytest
import torch

from methods.test_laws import LINEAR, SEEDS, SHAPE, PerImage, Spy, mixture
from pipeline.diffusion.denoiser import Counted, Prediction
from pipeline.errors import ConfigError
from pipeline.methods import METHODS
from pipeline.methods.blended import Blended
from pipeline.methods.copaint import CoPaint
from pipeline.methods.ddnm import DDNM
from pipeline.methods.repaint import RePaint
from pipeline.methods.steered import Steered
from pipeline.noise import Noise
from pipeline.problem import Problem
from pipeline.steering.meter import Meter
from pipeline.steering.settings import PRESETS, Steering
from pipeline.watch import ignore
from steering.worlds import PIXELS, masks, pictures, prior

torch.set_num_threads(1)

SETTINGS = {
    "copaint": {"levels": 6},
    "repaint": {"jump": 2, "repeats": 2},
    "resampling": {"particles": 3},
    "daps": {"ode_steps": 2},
    "tds": {"particles": 3},
    "lanpaint": {"inner_steps": 2},
}
BASES = {name: METHODS[name](**{"steps": 6, **SETTINGS.get(name, {})}) for name in METHODS}
NEVER = Steering(until=1.0, known="steered")
STEERINGS = {
    "ours": Steering(until=0.4),
    "drawn": replace(PRESETS["paper"], until=0.5, evidence_draws=1, draws=2),
    "released": replace(PRESETS["released"], until=0.7),
}

every_base = pytest.mark.parametrize("name", BASES)
every_steering = pytest.mark.parametrize("how", STEERINGS)


def steered(name, how="ours", *, warm=1.0, meter=None):
    steering = STEERINGS[how] if isinstance(how, str) else how
    return Steered(base=BASES[name], steering=steering, prior=prior(), warm=warm, meter=meter or Meter())


def shown(index=(0, 1, 2, 3)):
    index = list(index)
    return Problem.observe(pictures()[index], masks()[index])


def run(method, problem=None, seeds=SEEDS, *, denoiser=None, watch=ignore):
    with torch.no_grad():
        return method(
            denoiser or PerImage(mixture()), problem or shown(), Noise(seeds, dtype=torch.float64), watch=watch
        )


def near(first, second):
    """Matrix products may round differently in other batches."""
    torch.testing.assert_close(first, second, rtol=0, atol=1e-7)


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


# --- warm start ---

WARM = {
    "blended": Blended(steps=10),
    "blended, ddim": Blended(steps=10, kernel="ddim", stop="first_level"),
    "ddnm": DDNM(steps=10, spacing="even"),
    "ddnm, travelling": DDNM(steps=10, spacing="even", travel_length=2, travel_repeats=2),
    "repaint": RePaint(steps=10, jump=2, repeats=2),
    "copaint": CoPaint(steps=10, levels=10, gradient_steps=2),
    "copaint, travelling": CoPaint(steps=10, levels=10, gradient_steps=1, travel_length=2, travel_repeats=2),
}
LEVELS = [1, 112, 223, 334, 445, 556, 667, 778, 889, 1000]


class Times(PerImage):
    """Writes down when the network is asked, and about how many images."""

    def __init__(self):
        super().__init__(mixture())
        self.asked = []

    def denoise(self, x_t, t):
        self.asked.append((t, len(x_t)))
        return super().denoise(x_t, t)


def asked(method):
    denoiser = Times()
    run(method, denoiser=denoiser)
    return denoiser.asked


@pytest.mark.parametrize("name", WARM)
@pytest.mark.parametrize("warm", [0.9, 0.7, 0.5, 0.05])
def test_a_warm_start_spares_the_first_evaluations_but_one(name, warm):
    """Exactly: the network is asked once at first, and then as often as the base asks at times of at most warm T.

    CoPaint's line search asks more or less often, depending on what it is told: its announced looks are compared.
    """
    base = WARM[name]
    assert LINEAR.times(10)[::-1] == LEVELS
    method = Steered(base=base, steering=Steering(), prior=prior(), warm=warm)
    found = asked(method)
    assert found[0] == (1000, 4)
    assert all(t <= 1000 * warm for t, _ in found[1:])
    if name.startswith("copaint"):
        looks = sum(look for i, _, look in base._walk() if LEVELS[i] <= 1000 * warm)
        assert sum(images for _, images in found) >= 4 * (1 + looks * (1 + base.gradient_steps))
        assert {t for t, _ in found[1:]} == {
            LEVELS[i] for i, _, look in base._walk() if look and LEVELS[i] <= 1000 * warm
        }
    else:
        downs = sum(j < i for i, j in base.moves() if LEVELS[i] <= 1000 * warm)
        assert found == [(1000, 4), *[one for one in asked(base) if one[0] <= 1000 * warm]]
        assert len(found) == 1 + downs


def test_how_many_evaluations_are_left_of_ten():
    """Of the levels 1000, 889, ..., 1 five are at most 500."""
    counts = {name: len(asked(Steered(base=WARM[name], steering=Steering(), prior=prior(), warm=0.5))) for name in WARM}
    assert counts["blended"] == 1 + 5
    assert counts["blended, ddim"] == 1 + 4
    assert counts["ddnm"] == 1 + 5
    assert (
        counts["ddnm, travelling"] == counts["repaint"] == 1 + sum(j < i for i, j in WARM["repaint"].moves() if i < 5)
    )


def test_a_warm_start_of_1_is_none():
    assert asked(Steered(base=WARM["ddnm"], steering=Steering(), prior=prior())) == [(t, 4) for t in LEVELS[::-1]]


@every_base
@pytest.mark.parametrize("how", ["ours", NEVER], ids=["steered", "not steered"])
def test_every_method_starts_warm(name, how):
    """Also those that follow a gradient, which is 0 while the circuit answers."""
    counted, plain = Counted(PerImage(mixture())), Counted(PerImage(mixture()))
    x = run(steered(name, how, warm=0.5), denoiser=counted)
    run(BASES[name], denoiser=plain)
    assert bool(x.isfinite().all())
    assert float(x.abs().max()) <= 1
    assert 0 < counted.forwards < plain.forwards
    assert counted.backwards <= plain.backwards
    near(run(steered(name, how, warm=0.5), shown([1]), SEEDS[1:2]), x[1:2])


@pytest.mark.parametrize("name", ["dps", "copaint", "pigdm", "tds"])
@pytest.mark.parametrize("warm", [0.9, 0.001])
def test_a_gradient_of_a_residual_of_0_is_0(name, warm):
    """The completion has the seen pixels, so DPS differentiates a norm at 0; with `warm` .001 at every time but 1."""
    base = BASES[name]
    base = replace(base, sigma_y=0.0) if name == "dps" else base
    x = run(Steered(base=base, steering=NEVER, prior=prior(), warm=warm))
    assert bool(x.isfinite().all())


def test_the_completion_is_drawn_once_and_stands_for_the_estimate():
    """Not steered, the base sees one image until `warm` T: decoded tokens, with the seen pixels pasted."""
    seen, method = [], Steered(base=WARM["ddnm"], steering=NEVER, prior=prior(), warm=0.5)
    run(method, watch=lambda t, x_0: seen.append((t, x_0)))
    early = [x_0 for t, x_0 in seen if t > 500]
    assert len(early) == 5
    assert all(torch.equal(x_0, early[0]) for x_0 in early)
    assert not torch.equal(seen[5][1], early[0])
    problem = shown()
    assert torch.equal(problem.paste(early[0]), early[0])
    every = prior().codec.decode(torch.cartesian_prod(*[torch.arange(4)] * 4))
    for k in range(4):
        assert torch.equal(problem.paste(early[0])[k], early[0][k])
        apart = ((every - early[0][k]).abs() * ~masks()[k]).flatten(1).amax(1)
        assert float(apart.min()) == 0


def test_completions_differ_between_seeds_and_particles():
    first, other = (
        run(Steered(base=WARM["ddnm"], steering=NEVER, prior=prior(), warm=0.001), seeds=s)
        for s in (SEEDS, [21, 22, 23, 24])
    )
    assert ((first != other) & ~masks())[2].any()
    seen = []

    class Keeps(PerImage):
        def denoise(self, x_t, t):
            seen.append(x_t)
            return super().denoise(x_t, t)

    run(steered("tds", NEVER, warm=0.001), shown([2]), SEEDS[2:3], denoiser=Keeps(mixture()))
    assert len(seen[0]) == 3


def test_a_warm_start_is_counted():
    """One look of the encoder, one draw and one picture more than steering takes."""
    counts = []
    for warm in (1.0, 0.5):
        meter = Meter()
        run(Steered(base=WARM["ddnm"], steering=Steering(refresh=1.0), prior=prior(), warm=warm, meter=meter))
        counts.append({part: meter.counts[part] for part in ("encode", "circuit", "decode")})
    assert counts == [dict.fromkeys(counts[0], 4), dict.fromkeys(counts[0], 8)]


@pytest.mark.parametrize("warm", [0.0, -0.5, 1.001, math.nan])
def test_a_warm_start_outside_of_the_walk_is_refused(warm):
    with pytest.raises(ConfigError, match="warm must be above 0 and at most 1"):
        steered("ddnm", warm=warm)


def test_the_world_is_as_small_as_it_says():
    assert SHAPE == (3, PIXELS, PIXELS)
