"""A walk that begins at a completion drawn from the circuit, instead of at noise."""

import math
from dataclasses import replace

import pytest
import torch

from methods.steered_bases import (
    BASES,
    NEVER,
    every_base,
    near,
    run,
    shown,
    steered,
)
from methods.test_laws import LINEAR, SEEDS, PerImage, mixture
from pipeline.diffusion.denoiser import Counted
from pipeline.errors import ConfigError
from pipeline.methods.blended import Blended
from pipeline.methods.copaint import CoPaint
from pipeline.methods.ddnm import DDNM
from pipeline.methods.repaint import RePaint
from pipeline.methods.steered import Steered
from pipeline.steering.meter import Meter
from pipeline.steering.settings import Steering
from steering.worlds import masks, prior

torch.set_num_threads(1)

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
