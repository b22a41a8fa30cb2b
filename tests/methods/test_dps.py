"""DPS's own laws: its gradient, its special case, and that it forgets its graphs."""

import weakref
from dataclasses import replace

import pytest
import torch

from pipeline.diffusion.analytic import MixtureDenoiser
from pipeline.diffusion.sampling import sample
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError
from pipeline.methods.dps import DPS, PRESETS
from pipeline.noise import Noise
from pipeline.problem import Problem

torch.set_num_threads(1)

SHAPE, SEEDS = (3, 4, 4), [1, 2, 3]


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture():
    return MixtureDenoiser(
        Schedule.linear(),
        SHAPE,
        weights=torch.tensor([0.6, 0.4], dtype=torch.float64),
        means=0.5 * draw(2, 48, seed=1),
        basis=torch.linalg.qr(draw(48, 4, seed=2))[0],
        scales=torch.tensor([1.0, 0.7, 0.5, 0.3], dtype=torch.float64),
        floor=0.05,
        v=0.65,
    )


def problem():
    """Three images of which the left half, one row and everything are known."""
    known = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    known[0, :, :, :2] = known[1, :, 1] = known[2] = True
    return Problem.observe(draw(3, *SHAPE, seed=3).clamp(-1, 1), known)


def nothing():
    return Problem(y=torch.zeros(3, *SHAPE, dtype=torch.float64), known=torch.zeros(3, 1, 4, 4, dtype=torch.bool))


def streams():
    return Noise(SEEDS, dtype=torch.float64)


# --- without a pull ---


def unconditional_ddim(world, noise, steps, eta):
    schedule, x_t = world.schedule, noise.normal(world.shape)
    for t, s in schedule.steps(steps):
        prediction = world.denoise(x_t, t).clipped()
        x_t = schedule.ddim(prediction.x_0, prediction.eps, t, s, noise.normal(world.shape), eta)
    return x_t.clamp(-1, 1)


@pytest.mark.parametrize(("method", "given"), [(DPS(zeta=0.0), problem()), (DPS(), nothing())], ids=["zeta=0", "blind"])
def test_without_a_pull_it_is_the_unconditional_sampler(method, given):
    plain = replace(method, steps=30, sigma_y=0.0)
    with torch.no_grad():
        assert torch.equal(plain(mixture(), given, streams()), sample(mixture(), streams(), 30))
        for eta in (0.0, 1.0):
            x = replace(plain, kernel="ddim", eta=eta)(mixture(), given, streams())
            assert torch.equal(x, unconditional_ddim(mixture(), streams(), 30, eta))


def test_with_a_pull_it_is_not():
    with torch.no_grad():
        assert not torch.equal(
            DPS(steps=30, sigma_y=0.0)(mixture(), problem(), streams()), sample(mixture(), streams(), 30)
        )


# --- the gradient ---


def distances(method, x_t, t):
    """Every image's distance, by the definition: the norm of what is seen minus what is estimated."""
    given, x_0 = problem(), mixture().denoise(x_t, t).x_0
    estimate = x_0.clamp(-1, 1) if method.clip else x_0
    return given.residual(estimate).pow(2).sum((1, 2, 3)).sqrt()


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("t", [5, 300, 900])
def test_the_gradient_is_that_of_each_distance(t, clip):
    method, given = DPS(clip=clip), problem()
    x_t = given.y + 0.7 * draw(3, *SHAPE, seed=7)
    gradient = method.differentiate(mixture(), given.y, given.known, x_t, t)[1]
    for seed in range(4):
        direction, h = draw(3, *SHAPE, seed=20 + seed), 1e-6
        slope = (distances(method, x_t + h * direction, t) - distances(method, x_t - h * direction, t)) / (2 * h)
        assert torch.allclose((gradient * direction).sum((1, 2, 3)), slope, atol=1e-6)


class Far:
    """A denoiser whose estimate is ten times the state."""

    schedule, shape = Schedule.linear(), SHAPE

    def denoise(self, x_t, t):
        prediction = mixture().denoise(x_t, t)
        return type(prediction)(x_0=10 * x_t, eps=prediction.eps, v=prediction.v)


def test_a_clipped_estimate_pulls_nowhere():
    given, x_t = problem(), torch.ones(3, *SHAPE, dtype=torch.float64)
    assert not DPS().differentiate(Far(), given.y, given.known, x_t, 100)[1].any()
    assert DPS(clip=False).differentiate(Far(), given.y, given.known, x_t, 100)[1].any()


def test_nothing_to_pull_gives_zero_and_not_nan():
    """The norm has no derivative at 0."""
    given, x_t = nothing(), draw(3, *SHAPE, seed=9)
    gradient = DPS().differentiate(mixture(), given.y, given.known, x_t, 500)[1]
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("zeta", [0.05, 0.5])
def test_zeta_is_the_length_of_the_pull_along_the_gradient(zeta):
    """One step of the deterministic kernel, with and without."""
    first, free = [], []
    for states, length in ((first, zeta), (free, 0.0)):
        world = Asked(mixture())
        method = DPS(steps=2, kernel="ddim", eta=0.0, zeta=length, sigma_y=0.0)
        with torch.no_grad():
            method(world, problem(), streams())
        states += world.states
    given = problem()
    gradient = DPS().differentiate(mixture(), given.y, given.known, first[0], 1000)[1]
    assert torch.allclose(first[1], free[1] - zeta * gradient, atol=1e-14)


class Asked:
    """A denoiser that keeps what it is asked."""

    def __init__(self, inner):
        self.inner, self.schedule, self.shape, self.states = inner, inner.schedule, inner.shape, []

    def denoise(self, x_t, t):
        self.states.append(x_t.detach().clone())
        return self.inner.denoise(x_t, t)


def test_measurement_noise_goes_where_it_is_told():
    """Everywhere, it lengthens the residual at hidden pixels and so weakens the pull; nothing hidden, no difference."""
    everywhere, seen = (DPS(steps=30, noisy=noisy, sigma_y=0.5) for noisy in ("everywhere", "seen"))
    with torch.no_grad():
        one, other = (method(mixture(), problem(), streams()) for method in (everywhere, seen))
    assert torch.equal(one[2], other[2])
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


# --- memory ---


class Saved:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


class Meter:
    """Counts the tensors that graphs keep: those alive now, and the most there were at once."""

    def __init__(self):
        self.alive, self.most = weakref.WeakSet(), 0

    def pack(self, tensor):
        saved = Saved(tensor.detach())  # with its history, a tensor saved by its own node would hold that node
        self.alive.add(saved)
        self.most = max(self.most, len(self.alive))
        return saved

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda saved: saved.tensor)


def test_the_meter_sees_a_graph_that_is_kept():
    meter, x_t = Meter(), draw(1, *SHAPE, seed=4).requires_grad_()
    with meter.hooks():
        kept = mixture().denoise(x_t, 500)
        once = len(meter.alive)
        assert once > 0
        chained = mixture().denoise(kept.x_0, 400)
        assert len(meter.alive) > once
    del kept, chained
    assert len(meter.alive) == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_step_forgets_its_graph(preset):
    """After each step nothing is kept, so the peak of a long walk is that of a short one."""
    peaks = []
    for steps in (3, 40):
        meter, kept = Meter(), []

        def look(t, x_0, meter=meter, kept=kept):
            assert not x_0.requires_grad
            kept.append(len(meter.alive))

        with torch.no_grad(), meter.hooks():
            replace(PRESETS[preset], steps=steps)(mixture(), problem(), streams(), watch=look)
        assert set(kept) == {0}
        peaks.append(meter.most)
    assert peaks[0] == peaks[1] > 0


class Leaves:
    """A denoiser that remembers, weakly, what it returned, and checks that it is asked about leaves."""

    def __init__(self, inner):
        self.inner, self.schedule, self.shape, self.returned = inner, inner.schedule, inner.shape, []

    def denoise(self, x_t, t):
        assert x_t.is_leaf
        prediction = self.inner.denoise(x_t, t)
        self.returned += [weakref.ref(tensor) for tensor in (x_t, prediction.x_0, prediction.eps)]
        return prediction


def test_states_are_not_chained_and_predictions_do_not_outlive_their_step():
    world, alive = Leaves(mixture()), []
    with torch.no_grad():
        DPS(steps=20)(
            world,
            problem(),
            streams(),
            watch=lambda t, x_0: alive.append(sum(ref() is not None for ref in world.returned)),
        )
    assert alive == [0] * 20


def test_weights_collect_no_gradients():
    world = mixture()
    world.means.requires_grad_()
    with torch.no_grad():
        x = DPS(steps=10)(world, problem(), streams())
    assert world.means.grad is None
    assert not x.requires_grad


# --- settings ---


def test_backwards_are_forwards():
    assert [(method.nfe(), method.nbe()) for method in PRESETS.values()] == [(1000, 1000), (249, 249), (250, 250)]


@pytest.mark.parametrize("name", ["eta", "zeta", "sigma_y"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        DPS(**{name: value})
