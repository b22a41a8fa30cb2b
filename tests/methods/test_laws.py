"""Laws of every method, checked on exact denoisers; a new method is tested by its lines in METHODS and PRESETS."""

import dataclasses
import math
from dataclasses import dataclass, replace

import pytest
import torch

from pipeline.diffusion.analytic import MixtureDenoiser
from pipeline.diffusion.denoiser import Counted
from pipeline.diffusion.sampling import sample
from pipeline.diffusion.schedule import Schedule
from pipeline.experiment.params import build_method
from pipeline.methods import METHODS, PRESETS
from pipeline.methods.daps import DAPS
from pipeline.methods.ddnm import DDNM
from pipeline.methods.ddrm import DDRM
from pipeline.methods.pigdm import PiGDM
from pipeline.noise import Noise
from pipeline.problem import Problem
from pipeline.watch import ignore

torch.set_num_threads(1)

LINEAR, COSINE, SHAPE = Schedule.linear(), Schedule.cosine(), (3, 4, 4)
SEEDS = [11, 12, 13, 14]
SHORT = 20
"""Levels walked where a law holds for every length."""

UNCLAIMED = {
    ("known_pixels_are_exact", "blended"): "the last step denoises known pixels that were noised",
    ("known_pixels_are_exact", "ddnm-copaint_repo"): "stops one level before the clean image",
    ("nothing_known_gives_the_prior", "ddnm-paper"): "more fresh noise than a step removes: narrower than the prior",
    ("nothing_known_gives_the_prior", "ddnm-paper_travel"): "as ddnm-paper",
    ("nothing_known_gives_the_prior", "ddnm-copaint_repo"): "noise of every step damped by sqrt(1 - alpha_bar^2)",
    ("known_pixels_are_exact", "ddrm-paper"): "the last step returns the network's estimate of known pixels",
    ("known_pixels_are_exact", "ddrm-paper_100"): "as ddrm-paper",
    ("known_pixels_are_exact", "ddrm-copaint_repo"): "stops one level before the clean image",
    ("known_pixels_are_exact", "ddrm-noisy"): "noise is added to what was seen",
    ("nothing_known_gives_the_prior", "ddrm-paper"): "more fresh noise than a step removes: narrower than the prior",
    ("nothing_known_gives_the_prior", "ddrm-paper_100"): "as ddrm-paper",
    ("known_pixels_are_exact", "dps"): "known pixels pull, nothing pastes them",
    ("known_pixels_are_near", "dps-paper"): "measurement noise of .05 goes beyond the tolerance",
    ("known_pixels_are_near", "dps-copaint_repo"): "a pull of length 1 is too long for so few pixels and never settles",
    ("no_gradients_are_recorded", "dps"): "differentiates the estimate of x_0; see test_dps.py",
    ("known_pixels_are_exact", "copaint"): "a soft pull, and stops one level before the clean image",
    ("known_pixels_are_near", "copaint"): "a soft pull, and clipped pictures are unlikely under the prior",
    ("evaluations_are_as_announced", "copaint-paper"): "rejected trials come on top; see test_copaint.py",
    ("evaluations_are_as_announced", "copaint-imagenet"): "as copaint-paper",
    ("evaluations_are_as_announced", "copaint-tt"): "as copaint-paper",
    ("no_gradients_are_recorded", "copaint"): "descends along them",
    ("known_pixels_are_exact", "repaint"): "the last step returns the network's estimate of known pixels",
    ("known_pixels_are_exact", "resampling-paper"): "as repaint",
    ("known_pixels_are_exact", "resampling-copaint_repo"): "stops one level before the clean image",
    ("nothing_known_gives_the_prior", "resampling-copaint_repo"): "returns its initial noise, as the released code",
    ("nothing_known_gives_the_prior", "diffpir-paper"): "all noise fresh, more than a step removes: narrower",
    ("nothing_known_gives_the_prior", "daps-paper"): "five Euler steps of the ODE fall short of the prior's spread",
    ("nothing_known_gives_the_prior", "daps-fast"): "as daps-paper",
    ("no_gradients_are_recorded", "tds"): "differentiates the estimate of x_0; see test_extended.py",
    ("no_gradients_are_recorded", "pigdm"): "as tds",
    ("known_pixels_are_exact", "pigdm"): "known pixels pull, nothing pastes them",
}
"""(law, case or method) -> why the method does not claim it. Each entry must be true: the law has to fail there."""

ALSO = {
    "ddnm-deterministic": DDNM(eta=0.0),
    "ddrm-seen": DDRM(eta=0.0, ties="seen"),
    "ddrm-noisy": DDRM(steps=100, eta=0.0, sigma_y=0.03),
    "daps-ten": DAPS(ode_steps=10),
    "pigdm-score": PiGDM(guidance="score"),
}
"""Settings beyond the presets, at which a law holds that the presets do not claim."""


# --- worlds ---


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture():
    """Three kinds of image [3, 4, 4] of which some pixels lie near the ends of [-1, 1]."""
    return MixtureDenoiser(
        LINEAR,
        SHAPE,
        weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        means=0.45 * draw(3, 48, seed=1),
        basis=torch.linalg.qr(draw(48, 4, seed=2))[0],
        scales=torch.tensor([1.0, 0.7, 0.5, 0.3], dtype=torch.float64),
        floor=0.04,
        v=0.65,
    )


def pictures(count=4):
    """Images [B, 3, 4, 4] of the mixture's first kind, clipped to [-1, 1]."""
    world = mixture()
    x_0 = world.means[0] + (draw(count, 4, seed=3) * world.scales) @ world.basis.T + 0.04 * draw(count, 48, seed=4)
    return x_0.clamp(-1, 1).view(count, *SHAPE)


def left(count=4):
    """The left half known, bool [B, 1, 4, 4]."""
    return (torch.arange(4) < 2).expand(count, 1, 4, 4).clone()


def mixed():
    """Four different masks: left, top, nothing and everything known."""
    known = torch.zeros(4, 1, 4, 4, dtype=torch.bool)
    known[0, :, :, :2] = known[1, :, :2] = known[3] = True
    return known


class PerImage:
    """A denoiser that sees one image at a time, so that batches can be compared bit by bit."""

    def __init__(self, inner):
        self.inner, self.schedule, self.shape = inner, inner.schedule, inner.shape

    def denoise(self, x_t, t):
        rows = [self.inner.denoise(x, t) for x in x_t.split(1)]
        joined = {name: torch.cat([getattr(row, name) for row in rows]) for name in ("x_0", "eps", "v")}
        return type(rows[0])(**joined)


class Spy:
    """A denoiser that looks whether anybody records gradients."""

    def __init__(self, inner):
        self.inner, self.schedule, self.shape, self.recorded = inner, inner.schedule, inner.shape, False

    def denoise(self, x_t, t):
        prediction = self.inner.denoise(x_t, t)
        self.recorded |= torch.is_grad_enabled() or x_t.requires_grad or prediction.x_0.requires_grad
        return prediction


class Rounded:
    """The numbers of a float64 noise source in another format."""

    def __init__(self, seeds, dtype):
        self.noise, self.dtype = Noise(seeds, dtype=torch.float64), dtype

    def normal(self, shape):
        return self.noise.normal(shape).to(self.dtype)

    def uniform(self, shape):
        return self.noise.uniform(shape)

    def choice(self, weights, n):
        return self.noise.choice(weights, n)


class Bulk:
    """One stream for thousands of images."""

    def __init__(self, count):
        self.count, self.generator = count, torch.Generator().manual_seed(0)

    def normal(self, shape):
        return torch.randn(self.count, *shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, shape):
        return torch.rand(self.count, *shape, generator=self.generator, dtype=torch.float64)

    def choice(self, weights, n):
        return torch.multinomial(weights, n, replacement=True, generator=self.generator)


def run(method, problem, seeds=SEEDS, *, denoiser=None, watch=ignore):
    with torch.no_grad():
        return method(denoiser or PerImage(mixture()), problem, Noise(seeds, dtype=torch.float64), watch=watch)


def short(method):
    return replace(method, steps=SHORT)


# --- laws ---


def results_are_images(method):
    problem = Problem.observe(torch.sign(pictures()), left())
    for dtype in (torch.float64, torch.float32):
        shown = Problem(y=problem.y.to(dtype), known=problem.known)
        with torch.no_grad():
            x = short(method)(mixture(), shown, Noise(SEEDS, dtype=dtype))
        assert x.shape == (4, *SHAPE)
        assert x.dtype == dtype
        assert torch.isfinite(x).all()
        assert float(x.abs().max()) <= 1.0


def seeds_decide(method):
    method, problem = short(method), Problem.observe(pictures(), left())
    first, again, other = run(method, problem), run(method, problem), run(method, problem, [21, 22, 23, 24])
    assert torch.equal(first, again)
    hidden = ~left().expand_as(first)
    assert ((first != other) & hidden).flatten(1).any(1).all()


def nothing_else_draws(method):
    problem = Problem.observe(pictures(), left())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(short(method), problem)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(run(short(method), problem), first)


def alone_is_as_in_a_batch(method):
    """Also with a different mask for every image."""
    for known in (left(), mixed()):
        together = run(short(method), Problem.observe(pictures(), known))
        for k, seed in enumerate(SEEDS):
            alone = run(short(method), Problem.observe(pictures()[k : k + 1], known[k : k + 1]), [seed])
            assert torch.equal(together[k : k + 1], alone)


def permuting_a_batch_permutes_results(method):
    order = [2, 0, 3, 1]
    plain = run(short(method), Problem.observe(pictures(), mixed()))
    permuted = run(short(method), Problem.observe(pictures()[order], mixed()[order]), [SEEDS[k] for k in order])
    assert torch.equal(plain[order], permuted)


def hidden_pixels_do_not_matter(method):
    plain = run(short(method), Problem.observe(pictures(), left()))
    for garbage in (-1.0, 0.5, math.nan):
        other = torch.where(left(), pictures(), torch.full_like(pictures(), garbage))
        assert torch.equal(run(short(method), Problem.observe(other, left())), plain)


def known_pixels_matter(method):
    plain = run(short(method), Problem.observe(pictures(), left()))
    other = run(short(method), Problem.observe(-pictures(), left()))
    assert ((plain != other) & ~left()).flatten(1).any(1).all()


def the_problem_is_left_alone(method):
    problem = Problem.observe(pictures(), left())
    run(short(method), problem, watch=lambda t, x_0: x_0.zero_())
    assert torch.equal(problem.y, torch.where(left(), pictures(), 0.0))
    assert torch.equal(problem.known, left())


def known_pixels_are_exact(method):
    for known in (left(), mixed(), torch.ones_like(left())):
        problem = Problem.observe(pictures(), known)
        x = run(short(method), problem)
        assert torch.equal(problem.paste(x), x)


def known_pixels_are_near(method):
    """Within six standard deviations of the noise at the last level but one, the latest at which they are put in."""
    level = method.steps - 2
    tolerance = 6 * math.sqrt(1 - LINEAR.alpha_bar[LINEAR.times(method.steps)[level]])
    for known in (left(), torch.ones_like(left())):
        problem = Problem.observe(pictures(), known)
        assert float(problem.residual(run(method, problem)).abs().max()) < min(tolerance, 0.25)


def evaluations_are_as_announced(method):
    for each in (method, short(method)):
        counted = Counted(mixture())
        run(each, Problem.observe(pictures(2), left(2)), SEEDS[:2], denoiser=counted)
        assert counted.forwards == 2 * each.nfe()
        assert counted.backwards == 2 * each.nbe()


def watching_is_told_and_changes_nothing(method):
    """Once per denoising move, and even if whoever looks on spoils what was shown."""
    seen = []

    def vandal(t, x_0):
        assert x_0.shape == (4, *SHAPE)
        seen.append(t)
        x_0.fill_(math.nan)

    problem = Problem.observe(pictures(), left())
    assert torch.equal(run(short(method), problem), run(short(method), problem, watch=vandal))
    assert len(seen) == sum(j < i for i, j in short(method).moves())
    assert set(seen) <= set(range(1, 1001))
    assert max(seen) == seen[0]
    assert min(seen) == seen[-1]


def no_gradients_are_recorded(method):
    world = mixture()
    world.means.requires_grad_()
    spy = Spy(world)
    x = run(short(method), Problem.observe(pictures(), left()), denoiser=spy)
    assert not spy.recorded
    assert not x.requires_grad


def single_precision_is_near_double(method):
    results = []
    for dtype in (torch.float32, torch.float64):
        problem = Problem(y=Problem.observe(pictures(), left()).y.to(dtype), known=left())
        with torch.no_grad():
            results.append(short(method)(mixture(), problem, Rounded(SEEDS, dtype)).double())
    assert float((results[0] - results[1]).abs().max()) < 1e-3


def nothing_known_gives_the_prior(method):
    """Mean and covariance of an exact Gaussian; see `assert_prior`."""
    count, world = 4000, gaussian()
    black = torch.zeros(count, *world.shape, dtype=torch.float64)
    problem = Problem.observe(black, torch.zeros(count, 1, 3, 3, dtype=torch.bool))
    with torch.no_grad():
        assert_prior(replace(method, steps=100)(world, problem, Bulk(count)), world)


def settings_are_frozen_names(method):
    assert dataclasses.is_dataclass(method)
    name = dataclasses.fields(method)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, name, getattr(method, name))
    with pytest.raises(TypeError):
        type(method)(getattr(method, name))


LAWS = [
    results_are_images,
    seeds_decide,
    nothing_else_draws,
    alone_is_as_in_a_batch,
    permuting_a_batch_permutes_results,
    hidden_pixels_do_not_matter,
    known_pixels_matter,
    the_problem_is_left_alone,
    known_pixels_are_exact,
    known_pixels_are_near,
    evaluations_are_as_announced,
    watching_is_told_and_changes_nothing,
    no_gradients_are_recorded,
    single_precision_is_near_double,
    nothing_known_gives_the_prior,
    settings_are_frozen_names,
]


def gaussian():
    """Images [1, 3, 3] from one Gaussian well within [-1, 1], so that clipping is no part of the law."""
    return MixtureDenoiser(
        COSINE,
        (1, 3, 3),
        weights=torch.ones(1, dtype=torch.float64),
        means=0.2 * draw(1, 9, seed=5).clamp(-1, 1),
        basis=torch.linalg.qr(draw(9, 3, seed=6))[0],
        scales=torch.tensor([0.25, 0.2, 0.1], dtype=torch.float64),
        floor=0.1,
        v=0.5,
    )


def assert_prior(x, world):
    """Mean within .08 of the largest standard deviation, covariance within .15 in relative Frobenius norm.

    With 4000 samples and 100 levels, correct samplers stay below .03 and .08 (finite steps, finite samples); a
    step that is one level off, or a variance that is not reduced by what the step keeps, exceeds them several times.
    """
    covariance = world.basis @ torch.diag(world.scales**2) @ world.basis.T
    covariance = covariance + world.floor**2 * torch.eye(9, dtype=torch.float64)
    flat = x.flatten(1)
    spread = float(covariance.diagonal().sqrt().max())
    assert float((flat.mean(0) - world.means[0]).abs().max()) < 0.08 * spread
    assert float((torch.cov(flat.T) - covariance).norm() / covariance.norm()) < 0.15


# --- the table of methods ---


def cases():
    """Every preset of every method in the registries, by "method-preset" (equals once), and the settings of `ALSO`."""
    presets = {}
    for name in METHODS:
        for preset, method in PRESETS[name].items():
            if method not in presets.values():
                presets[f"{name}-{preset}"] = method
    return presets | ALSO


def unclaimed(law, case):
    """The entry of `UNCLAIMED` for a law and a case."""
    return next((key for key in ((law.__name__, case), (law.__name__, case.split("-")[0])) if key in UNCLAIMED), None)


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(law, case):
    if unclaimed(law, case) is None:
        law(cases()[case])
    else:
        with pytest.raises(AssertionError):
            law(cases()[case])


def test_every_entry_of_the_unclaimed_is_about_a_law_and_a_method():
    laws = {law.__name__ for law in LAWS}
    names = {*cases(), *METHODS}
    assert {law for law, _ in UNCLAIMED} <= laws
    assert {name for _, name in UNCLAIMED} <= names


def test_every_method_has_its_presets_and_is_its_own_class():
    assert list(METHODS) == list(PRESETS)
    for name, presets in PRESETS.items():
        assert "paper" in presets
        assert all(type(method) is METHODS[name] for method in presets.values())
        assert METHODS[name].__module__ == f"pipeline.methods.{name}"


def test_the_plain_sampler_gives_the_prior():
    world = gaussian()
    assert_prior(sample(world, Bulk(4000), 100), world)


# --- the laws catch what they are for ---


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Replacement sampling with the seen pixels pasted at the end: right without a fault, wrong with one."""

    steps: int = 50
    fault: str = ""

    def nfe(self):
        return self.steps + (self.fault == "miscounts")

    def nbe(self):
        return 0

    def moves(self):
        return [(i, i - 1) for i in reversed(range(self.steps))]

    def __call__(self, denoiser, problem, noise, *, watch=ignore):
        schedule, shape = denoiser.schedule, denoiser.shape
        x_t = noise.normal(shape)
        for t, s in schedule.steps(self.steps):
            z, y_t = noise.normal(shape), schedule.diffuse(problem.y, t, noise.normal(shape))
            if self.fault == "global generator":
                z = torch.randn_like(z)
            if self.fault != "does not look":
                x_t = torch.where(problem.known, y_t, x_t)
            with torch.set_grad_enabled(self.fault == "records"):
                prediction = denoiser.denoise(x_t, max(s, 1) if self.fault == "one level late" else t)
            estimate = prediction.x_0
            if self.fault == "batch norm":
                estimate = estimate / (1e-3 * estimate.norm() + 1)
            if self.fault == "keeps all noise":
                x_t = schedule.diffuse(estimate, s, prediction.eps) + math.sqrt(1 - schedule.alpha_bar[s]) * z
            else:
                x_t = schedule.ancestral(estimate, x_t, t, s, z, prediction.v)
            watch(t, x_t if self.fault == "shows its state" else estimate)
        x = x_t if self.fault == "no clamp" else x_t.clamp(-1.0, 1.0)
        return x if self.fault == "no paste" else problem.paste(x)


FAULTS = {
    "miscounts": evaluations_are_as_announced,
    "global generator": nothing_else_draws,
    "does not look": known_pixels_matter,
    "records": no_gradients_are_recorded,
    "batch norm": alone_is_as_in_a_batch,
    "keeps all noise": nothing_known_gives_the_prior,
    "one level late": nothing_known_gives_the_prior,
    "shows its state": watching_is_told_and_changes_nothing,
    "no clamp": results_are_images,
    "no paste": known_pixels_are_exact,
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_an_eighth_method_needs_two_lines(monkeypatch, law):
    """Its line in each registry puts it under the laws and makes its block of params.yaml readable."""
    monkeypatch.setitem(METHODS, "toy", Toy)
    monkeypatch.setitem(PRESETS, "toy", {"paper": Toy()})
    assert "toy-paper" in cases()
    law(build_method("toy", {"steps": 50}))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_method_breaks_its_law(fault):
    with pytest.raises(AssertionError):
        FAULTS[fault](Toy(fault=fault))
