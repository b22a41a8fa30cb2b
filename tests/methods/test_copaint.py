"""What is CoPaint's own: its line search, its special cases, its memory."""

import math
import weakref
from dataclasses import replace
from itertools import groupby

import pytest
import torch

from golden.tape import Recorded
from pipeline.diffusion.analytic import MixtureDenoiser
from pipeline.diffusion.denoiser import Counted, Prediction
from pipeline.diffusion.schedule import Schedule
from pipeline.errors import ConfigError, UserError
from pipeline.methods.copaint import PRESETS, CoPaint
from pipeline.noise import Noise
from pipeline.problem import Problem

torch.set_num_threads(1)

SHAPE, SEEDS = (3, 4, 4), [11, 12, 13, 14]
SHORT = CoPaint(steps=20)
EAGER = CoPaint(steps=20, lr=5.0)
"""Steps so long that trials are rejected."""
SETTINGS = {
    "short": SHORT,
    "eager": EAGER,
    "one": replace(EAGER, gradient_steps=1),
    "travel": replace(EAGER, travel_length=5, travel_repeats=2),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def world():
    return MixtureDenoiser(
        Schedule.linear(),
        SHAPE,
        weights=torch.tensor([0.6, 0.4], dtype=torch.float64),
        means=0.3 * draw(2, 48, seed=1),
        basis=torch.linalg.qr(draw(48, 4, seed=2))[0],
        scales=torch.tensor([1.0, 0.7, 0.5, 0.3], dtype=torch.float64),
        floor=0.1,
    )


def problem(rows=slice(0, 4)):
    """Four images with four masks: left, top, nothing and everything known."""
    known = torch.zeros(4, 1, 4, 4, dtype=torch.bool)
    known[0, :, :, :2] = known[1, :, :2] = known[3] = True
    prior = world()
    x_0 = prior.means[0] + (draw(4, 4, seed=3) * prior.scales) @ prior.basis.T + 0.1 * draw(4, 48, seed=4)
    return Problem.observe(x_0.view(4, *SHAPE).clamp(-1, 1)[rows], known[rows])


def run(method, denoiser, rows=slice(0, 4)):
    with torch.no_grad():
        return method(denoiser, problem(rows), Noise(SEEDS[rows], dtype=torch.float64))


class Rows:
    """A denoiser that sees one image at a time, so that batches can be compared bit by bit."""

    def __init__(self, inner):
        self.inner, self.schedule, self.shape = inner, inner.schedule, inner.shape

    def denoise(self, x_t, t):
        rows = [self.inner.denoise(x, t) for x in x_t.split(1)]
        return Prediction(x_0=torch.cat([row.x_0 for row in rows]), eps=torch.cat([row.eps for row in rows]))


class Kept:
    """What autograd keeps for gradients: how many tensors now, at most, and whether each evaluation recorded."""

    def __init__(self, inner):
        self.inner, self.schedule, self.shape = inner, inner.schedule, inner.shape
        self.alive, self.peak, self.recorded = weakref.WeakSet(), 0, []

    def denoise(self, x_t, t):
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda box: box.tensor):
            prediction = self.inner.denoise(x_t, t)
        self.recorded.append((t, prediction.x_0.requires_grad))
        return prediction

    def pack(self, tensor):
        box = Box()
        box.tensor = tensor
        self.alive.add(box)
        self.peak = max(self.peak, len(self.alive))
        return box


class Box:
    tensor: torch.Tensor


def levels(recorded):
    """The iterates and trials of each optimisation of one image, with its time."""
    pairs = zip(recorded.times, recorded.states, strict=True)
    return [(t, [x_t for _, x_t in group]) for t, group in groupby(pairs, key=lambda pair: pair[0])]


def objectives(shown, t, states, lam):
    """The objective of one image, written down once more."""
    for x_t in states:
        x_0 = world().denoise(x_t, t).x_0.clamp(-1, 1)
        misfit = ((shown.y - x_0) * shown.known) ** 2
        yield float(misfit.sum() + lam * ((x_t - states[0]) ** 2).sum())


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("row", range(4))
def test_no_accepted_step_raises_the_objective_and_rejected_trials_are_counted(name, row):
    method, rows = replace(SETTINGS[name], lam_decay=1.0), slice(row, row + 1)
    recorded = Recorded(Counted(world()))
    run(method, recorded, rows)
    rejected = 0
    for t, states in levels(recorded):
        first, *trials = objectives(problem(rows), t, states, method.lam)
        best, accepted = first, 0
        for value in trials:
            if value <= best * (1 + 1e-12):
                best, accepted = value, accepted + 1
        assert accepted == method.gradient_steps
        assert trials[-1] == best  # the accepted trial is what the step goes on from
        rejected += len(trials) - accepted
    assert recorded.inner.forwards == method.nfe() + rejected
    assert recorded.inner.backwards == method.nbe()
    assert (rejected > 0) == (name != "short" and row != 2)


def test_a_trial_goes_down_the_gradient_and_a_rejected_one_is_shortened():
    recorded = Recorded(world())
    run(EAGER, recorded, slice(0, 1))
    factors = []
    for k, (t, states) in enumerate(levels(recorded)):
        lam, shown = EAGER.lam * EAGER.lam_decay**k, problem(slice(0, 1))
        start = states[0].clone().requires_grad_()
        misfit = shown.residual(world().denoise(start, t).x_0.clamp(-1, 1)).square().sum()
        (slope,) = torch.autograd.grad(misfit + lam * (start - states[0]).square().sum(), start)
        size = EAGER.lr * EAGER.lr_decay**k * math.sqrt(world().schedule.alpha_bar[t] / world().schedule.alpha_bar[1])
        torch.testing.assert_close(states[1], states[0] - size * slope, rtol=1e-9, atol=1e-12)
        values = list(objectives(shown, t, states, lam))
        if values[1] > values[0]:
            factors.append(0.8)
            torch.testing.assert_close(states[2], states[0] - 0.8 * size * slope, rtol=1e-9, atol=1e-12)
    assert factors


@pytest.mark.parametrize("name", SETTINGS)
def test_an_image_neither_sees_its_neighbours_nor_is_evaluated_for_them(name):
    """Where the images of a batch reject different trials, too."""
    method = SETTINGS[name]
    together = Counted(Rows(world()))
    x, forwards = run(method, together), 0
    for row in range(4):
        alone = Counted(Rows(world()))
        assert torch.equal(run(method, alone, slice(row, row + 1)), x[row : row + 1])
        forwards += alone.forwards
    assert together.forwards == forwards
    rejected = forwards - 4 * method.nfe()
    assert 4 * method.nbe() <= together.backwards <= 4 * method.nbe() + rejected
    assert (rejected > 0) == (name != "short")


def test_the_published_search_is_coupled():
    method = replace(EAGER, search="batch")
    x, alone = run(method, Rows(world())), run(method, Rows(world()), slice(0, 1))
    assert torch.equal(alone, run(EAGER, Rows(world()), slice(0, 1)))
    assert float((x[:1] - alone).abs().max()) > 1e-3


@pytest.mark.parametrize("stop", ["clean", "first_level"])
def test_without_gradient_steps_it_is_ddim(stop):
    method = replace(SHORT, levels=20, gradient_steps=0, stop=stop)
    denoiser, schedule = Counted(world()), world().schedule
    x_t = Noise(SEEDS, dtype=torch.float64).normal(SHAPE)
    for t, s in schedule.steps(20)[: 20 if stop == "clean" else 19]:
        prediction = world().denoise(x_t, t).clipped()
        x_t = schedule.ddim(prediction.x_0, prediction.eps, t, s, torch.zeros_like(x_t), 0.0)
    torch.testing.assert_close(run(method, denoiser), x_t.clamp(-1, 1), rtol=0, atol=1e-12)
    assert (denoiser.forwards, denoiser.backwards) == (4 * method.nfe(), 0)
    assert (method.nfe(), method.nbe()) == (20 if stop == "clean" else 19, 0)


def test_travel_without_gradient_steps_evaluates_only_steps_down():
    method, denoiser = replace(SETTINGS["travel"], gradient_steps=0), Counted(world())
    run(method, denoiser)
    assert denoiser.forwards == 4 * method.nfe() == 4 * sum(j < i for i, j in method.moves())


def test_seen_pixels_are_approached():
    """Five times nearer than without gradient steps, in squares."""
    with_steps, without = (
        float(problem().residual(run(method, world())).square().sum())
        for method in (CoPaint(steps=100), CoPaint(steps=100, gradient_steps=0))
    )
    assert with_steps < 0.2 * without


@pytest.mark.parametrize("name", SETTINGS)
def test_graphs_are_freed(name):
    """What is kept does not grow with steps, a level's last evaluation records nothing, and nothing is left over."""
    peaks = []
    for steps in (10, 40):
        kept = Kept(world())
        x = run(replace(SETTINGS[name], steps=steps, levels=40, lr=0.02), kept)
        assert not x.requires_grad
        assert not kept.alive
        peaks.append(kept.peak)
        for _, group in groupby(kept.recorded, key=lambda pair: pair[0]):
            flags = [flag for _, flag in group]
            assert flags[0]
            assert not flags[-1]
    assert 0 < peaks[1] <= peaks[0]


def test_weights_that_ask_for_gradients_get_none():
    prior = world()
    prior.means.requires_grad_()
    run(SHORT, prior)
    assert prior.means.grad is None


def test_a_search_without_success_ends_where_it_began():
    """After the bounded number of trials; then the level is a DDIM step."""
    method = replace(EAGER, lr=1e30, trials=3)
    counted, plain = Counted(Rows(world())), run(replace(method, gradient_steps=0), Rows(world()), slice(0, 1))
    assert torch.equal(run(method, counted, slice(0, 1)), plain)
    assert counted.forwards == method.nfe() + 3 * (method.steps - 1)


class Broken:
    """A denoiser whose answers are not numbers for one image, below a time."""

    def __init__(self, inner, part):
        self.inner, self.schedule, self.shape, self.part = inner, inner.schedule, inner.shape, part

    def denoise(self, x_t, t):
        prediction = self.inner.denoise(x_t, t)
        if t > 500:
            return prediction
        bad = torch.full_like(prediction.x_0[-1:], math.nan)
        if self.part == "gradient":
            bad = prediction.x_0[-1:] + (x_t[-1:] - x_t[-1:].detach()).abs().sqrt()  # slope 1 / 0 in x_t
        return Prediction(x_0=torch.cat([prediction.x_0[:-1], bad]), eps=prediction.eps)


@pytest.mark.parametrize("part", ["value", "gradient"])
def test_what_is_not_a_number_is_refused(part):
    with pytest.raises(UserError, match=r"at time 4\d\d .*not a number.*weights"):
        run(SHORT, Broken(world(), part))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 300}, ["levels", "300", "250"]),
        ({"steps": 1}, ["steps", "2"]),
        ({"shrink": 1.0}, ["shrink", "1.0"]),
        ({"shrink": 0.0}, ["shrink", "0.0"]),
        ({"trials": 0}, ["trials"]),
        ({"gradient_steps": -1}, ["gradient_steps"]),
        ({"lam": math.nan}, ["lam"]),
        ({"slack": -1.0}, ["slack"]),
        ({"travel_length": 0}, ["travel_length"]),
    ],
)
def test_impossible_settings_are_refused(settings, words):
    with pytest.raises(ConfigError) as error:
        CoPaint(**settings)
    assert all(word in str(error.value) for word in words)


def test_presets():
    assert PRESETS["paper"] == PRESETS["copaint_repo"] == PRESETS["tiramisu"]
    assert all(method.search == "image" for method in PRESETS.values())
