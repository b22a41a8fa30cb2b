"""One more method needs its file, its line in the registries and its block in params.yaml; nothing else changes."""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from methods import test_laws as laws
from pipeline.diffusion.denoiser import Counted
from pipeline.errors import ConfigError, at_least
from pipeline.experiment.completion import complete
from pipeline.experiment.params import check_params, read_yaml
from pipeline.experiment.plan import Rate, rows
from pipeline.methods import METHODS, PRESETS
from pipeline.watch import ignore

torch.set_num_threads(1)

BASE = read_yaml(Path(__file__).parents[2] / "configs" / "base.yaml")
BLOCK = {"steps": 30, "twice": True}


@dataclass(frozen=True, kw_only=True)
class Eighth:
    """Ancestral sampling with the seen pixels pasted into the estimate; `twice` asks again after pasting."""

    steps: int = 40
    twice: bool = False

    def __post_init__(self):
        at_least(1, steps=self.steps)

    def moves(self):
        return [(i, i - 1) for i in reversed(range(self.steps))]

    def nfe(self):
        return self.steps * (1 + self.twice)

    def nbe(self):
        return 0

    def __call__(self, denoiser, problem, noise, *, watch=ignore):
        schedule, shape = denoiser.schedule, denoiser.shape
        x_t = noise.normal(shape)
        for t, s in schedule.steps(self.steps):
            prediction = denoiser.denoise(x_t, t)
            if self.twice:
                nearer = schedule.diffuse(problem.y, t, prediction.eps)
                prediction = denoiser.denoise(torch.where(problem.known, nearer, x_t), t)
            x_0 = problem.paste(prediction.x_0)
            x_t = schedule.ancestral(x_0, x_t, t, s, noise.normal(shape), prediction.v)
            watch(t, x_0)
        return problem.paste(x_t.clamp(-1.0, 1.0))


@pytest.fixture
def registered(monkeypatch):
    """The registries with one more line."""
    monkeypatch.setitem(METHODS, "eighth", Eighth)
    monkeypatch.setitem(PRESETS, "eighth", {"paper": Eighth(), "twice": Eighth(twice=True)})


def values(**block):
    """The base with one more block, and the method in the sweep."""
    changed = copy.deepcopy(BASE)
    changed["methods"]["eighth"] = BLOCK | block
    changed["sweep"]["methods"] = [*changed["sweep"]["methods"], "eighth"]
    return changed


@pytest.mark.parametrize("case", ["eighth-paper", "eighth-twice"])
@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
def test_the_laws_hold_it_to_account(registered, law, case):
    assert case in laws.cases()
    laws.test_law(law, case)


def test_its_block_becomes_the_method(registered):
    assert check_params(values()).method("eighth") == Eighth(**BLOCK)


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"stesp": 3}, "methods.eighth.stesp: unknown parameter; did you mean 'steps'?"),
        ({"twice": 3}, "methods.eighth.twice: input should be a valid boolean"),
        ({"steps": 0}, "steps must be at least 1, but is 0"),
        ({"steps": 2000}, "methods.eighth.steps: 2000 are more than the 1000 times of ddpm.schedule.T"),
    ],
)
def test_its_block_is_checked_as_every_other(registered, block, sentence):
    with pytest.raises(ConfigError) as caught:
        check_params(values(**block))
    assert sentence in str(caught.value)


def test_without_its_line_it_is_unknown():
    with pytest.raises(ConfigError, match=r"methods\.eighth: unknown method"):
        check_params(values())


def test_the_dry_run_counts_it(registered):
    rate = Rate(forward=1.0, backward=1.0, batch=1, where="cpu", network="none")
    [row] = [row for row in rows(check_params(values()), rate) if row.method == "eighth"]
    assert (row.swept, row.moves, row.forwards, row.backwards) == (True, 30, 60, 0)


def test_the_sweep_s_way_to_a_completion_takes_it(registered):
    method, counted = check_params(values(steps=5)).method("eighth"), Counted(laws.mixture())
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    known = laws.left(3)[:, 0].numpy()
    told = []
    x = complete(method, counted, images, known, [1, 2, 3], torch.device("cpu"), watch=lambda t, x_0: told.append(t))
    assert x.shape == (3, 3, 4, 4)
    assert counted.forwards == 3 * method.nfe()
    assert len(told) == len(method.moves())
    assert asdict(method) == {"steps": 5, "twice": True}
