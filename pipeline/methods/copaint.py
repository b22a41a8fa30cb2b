"""CoPaint: before every step x_t is moved until the estimate of x_0 agrees with what was seen; then a DDIM step.

Zhang et al. 2023 (arXiv 2304.03322): with the one-step estimate of x_0, maximising the posterior of x_t given the seen
pixels is minimising, per image,

    || known (y - clip(x_0(x_t))) ||^2 + lam || x_t - x_t' ||^2,    x_t' = where the level began.

`gradient_steps` (G) steps of size a_t = lr lr_decay^k sqrt(alpha_bar_t / alpha_bar_first) are taken at the k-th level,
each shortened by `shrink` until the objective does not rise; a shortened size stays for the rest of the level. Time
travel (`tt`) optimises once more where it turns, then goes up with fresh noise. `fast` is CoPaint-Fast: 100 of the 250
levels, round(2.5 k), and one gradient step. The authors' repository is the one that compared the methods, so
`copaint_repo` is `paper` (CelebA-HQ); `imagenet` has another lam; Tiramisu ran with `tiramisu` on every dataset.

Different from the authors' code: (1) the accepted trial of a line search is the next iterate, and its evaluation serves
as the next objective or for the DDIM step: 1 + G + rejected trials forwards per level instead of 1 + 2 G + rejected
trials, with equal results. (2) The line search is per image; theirs compares the sum over a batch, so that neighbours
change each other's step sizes (`search="batch"`, in no preset). (3) It ends: after `trials` rejected trials an image
stays where it is for the rest of the level, and what is not a number is an error; theirs repeats without end. (4) A
rise within rounding is none (`slack`; theirs 0): early levels move so little that in float32 the comparison would be
decided by chance, at up to a third more forwards and for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser, Prediction
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.diffusion.schedule import Schedule, travel
from pipeline.errors import ConfigError, UserError, at_least
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.watch import Watch, ignore


@dataclass(frozen=True, kw_only=True)
class CoPaint:
    """Coherent inpainting by optimising x_t.

    Attributes:
        steps: number of levels walked.
        levels: evenly spaced levels of which the walk takes every (levels / steps)-th, rounded, from the earliest on.
        gradient_steps: gradient steps at each level (G), 0 = plain DDIM.
        lr: step size at the first level, up to the factor sqrt(alpha_bar_t / alpha_bar_first).
        lr_decay: factor of the step size from level to level; above 1 it grows.
        lam: weight of staying near the x_t with which a level began.
        lam_decay: factor of `lam` from level to level.
        shrink: factor of the step size after a rejected trial.
        trials: rejected trials after which an image stays where it is for the rest of the level.
        slack: rounding errors of the number format, relative to the objective, by which a trial may exceed it.
        search: "image" accepts a trial per image; "batch" accepts all or none, as the authors' code does.
        travel_length: how many levels a time travel goes back.
        travel_repeats: how often each stretch is walked; 1 = no travel.
        stop: "clean" ends at time 0; "first_level" ends at the earliest noisy level, one step short.
    """

    steps: int = 250
    levels: int = 250
    gradient_steps: int = 2
    lr: float = 0.02
    lr_decay: float = 1.012
    lam: float = 1e-4
    lam_decay: float = 1.01
    shrink: float = 0.8
    trials: int = 50
    slack: float = 64.0
    search: Literal["image", "batch"] = "image"
    travel_length: int = 1
    travel_repeats: int = 1
    stop: Literal["clean", "first_level"] = "first_level"

    def __post_init__(self) -> None:
        at_least(2 if self.stop == "first_level" else 1, steps=self.steps)
        at_least(1, trials=self.trials, travel_length=self.travel_length, travel_repeats=self.travel_repeats)
        at_least(0, gradient_steps=self.gradient_steps, lr=self.lr, lr_decay=self.lr_decay)
        at_least(0, lam=self.lam, lam_decay=self.lam_decay, slack=self.slack)
        if self.levels < self.steps:
            raise ConfigError(f"levels must be at least steps, {self.steps}, but is {self.levels}")
        if not 0.0 < self.shrink < 1.0:
            raise ConfigError(f"shrink must be above 0 and below 1, but is {self.shrink}")

    def moves(self) -> list[tuple[int, int]]:
        """Moves between level indices (-1 = clean) in order."""
        moves = list(travel(self.steps, self.travel_length, self.travel_repeats))
        return moves if self.stop == "clean" else moves[:-1]

    def nfe(self) -> int:
        """Network evaluations per image, without those of rejected trials."""
        return sum(look for _, _, look in self._walk()) * (1 + self.gradient_steps)

    def nbe(self) -> int:
        """Backward evaluations per image.

        Where a batch disagrees about a trial, the graph of those who reject it is in the backward of those who accept
        it: up to one more for each rejected trial, none for an image on its own.
        """
        return sum(look for _, _, look in self._walk()) * self.gradient_steps

    def __call__(
        self,
        denoiser: Denoiser,
        problem: Problem,
        noise: NoiseSource,
        *,
        refine: Refine = unchanged,
        watch: Watch = ignore,
    ) -> Tensor:
        """Sample one completion per problem, [B, C, H, W] in [-1, 1]; draws x_T, then one noise per move up.

        Raises:
            UserError: the objective or its gradient is not a number.
        """
        schedule, times = denoiser.schedule, self._times(denoiser.schedule)
        x_t = noise.normal(denoiser.shape)
        for i, j, look in self._walk():
            t, s, k = times[i], times[j], self.steps - 1 - i
            if look:
                lam = self.lam * self.lam_decay**k
                lr = self.lr * self.lr_decay**k * math.sqrt(schedule.alpha_bar[t] / schedule.alpha_bar[times[0]])
                best = self._descend(Objective(denoiser=denoiser, problem=problem, x_t=x_t, t=t, lam=lam), lr)
                x_t = best.x_t
            if j > i:
                x_t = schedule.ascend(x_t, t, s, noise.normal(denoiser.shape))
            else:
                prediction = refine(Prediction(x_0=best.x_0, eps=best.eps), x_t, t)
                x_t = schedule.diffuse(prediction.x_0, s, prediction.eps)  # DDIM with eta = 0
                watch(t, prediction.x_0)
        return x_t.clamp(-1.0, 1.0)

    def _times(self, schedule: Schedule) -> list[int]:
        """Times of the level indices 0, 1, ..., steps - 1 and, at -1, of the clean image."""
        levels = schedule.times(self.levels)[::-1]
        return [*(levels[round(k * self.levels / self.steps)] for k in range(self.steps)), 0]

    def _walk(self) -> list[tuple[int, int, bool]]:
        """The moves, and whether x_t is looked at before: before a step down, and where time travel turns."""
        moves = self.moves()
        came_down = [False, *(j < i for i, j in moves[:-1])]
        optimising = self.gradient_steps > 0
        return [(i, j, j < i or (down and optimising)) for (i, j), down in zip(moves, came_down, strict=True)]

    def _descend(self, objective: Objective, lr: float) -> Point:
        """Take the gradient steps of one level; the last evaluation records no graph, for nothing follows from it."""
        x_t = objective.x_t
        sizes = x_t.new_full((len(x_t), 1, 1, 1), lr)
        here = [objective.at(x_t, torch.arange(len(x_t), device=x_t.device), record=self.gradient_steps > 0)]
        for left in reversed(range(self.gradient_steps)):
            here, sizes = self._search(objective, here, sizes, record=left > 0)
        return latest(here)

    def _search(
        self, objective: Objective, here: list[Point], sizes: Tensor, *, record: bool
    ) -> tuple[list[Point], Tensor]:
        """Find the next iterate of every image and the step sizes [B, 1, 1, 1] with which it was reached."""
        slope, start = gradient(here), latest(here)
        rows, there = start.rows, list[Point]()
        for left in reversed(range(self.trials + 1)):
            trial = objective.at(start.x_t[rows] - sizes[rows] * slope[rows], rows, record=record)
            rejected = self._rejects(trial.value, start.value[rows]) & (left > 0)  # the last has size 0
            rows = rows[rejected]
            if len(rows) < len(trial.rows):
                there.append(trial)
            if not len(rows):
                break
            objective.refuse_nan(start.value[rows], slope[rows])
            sizes = sizes.index_copy(0, rows, sizes[rows] * (self.shrink if left > 1 else 0.0))
            del trial  # its graph must not live on while the next is recorded
        return there, sizes

    def _rejects(self, after: Tensor, before: Tensor) -> Tensor:
        """Whether each trial [b] raises the objective by more than rounding, or makes it NaN."""
        if self.search == "batch":
            after, before = after.sum().expand_as(after), before.sum().expand_as(before)
        return ~(after <= before * (1.0 + self.slack * torch.finfo(before.dtype).eps))


@dataclass(frozen=True, kw_only=True)
class Point:
    """Iterates of some images of a batch, and what was found there.

    Attributes:
        rows: which images, [b] int64.
        x_t: the iterates, [b, C, H, W].
        x_0: clipped estimates there, [b, C, H, W], without graph.
        eps: estimated noise, [b, C, H, W], without graph.
        value: the objective, [b], with the graph that leads back to `x_t` if it was recorded.
    """

    rows: Tensor
    x_t: Tensor
    x_0: Tensor
    eps: Tensor
    value: Tensor


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is minimised at one level.

    Attributes:
        denoiser: estimates x_0.
        problem: what was seen.
        x_t: where the level begins, [B, C, H, W].
        t: time of the level.
        lam: weight of staying near `x_t`.
    """

    denoiser: Denoiser
    problem: Problem
    x_t: Tensor
    t: int
    lam: float

    def at(self, x_t: Tensor, rows: Tensor, *, record: bool) -> Point:
        """Evaluate the objective of images `rows` [b] at `x_t` [b, C, H, W]; `record` keeps the graph."""
        x_t = x_t.detach().requires_grad_(record)
        with torch.set_grad_enabled(record):
            prediction = self.denoiser.denoise(x_t, self.t).clipped()
            known, y = self.problem.known[rows], self.problem.y[rows]
            misfit = torch.where(known, y - prediction.x_0, 0.0).square().flatten(1).sum(1)
            value = misfit + self.lam * (x_t - self.x_t[rows]).square().flatten(1).sum(1)
        return Point(rows=rows, x_t=x_t, x_0=prediction.x_0.detach(), eps=prediction.eps.detach(), value=value)

    def refuse_nan(self, value: Tensor, slope: Tensor) -> None:
        """Stop a line search that no step size can end.

        Raises:
            UserError: `value` or `slope` is not a number.
        """
        if value.isnan().any() or not slope.isfinite().all():
            raise UserError(
                f"CoPaint needs finite estimates of x_0 with finite gradients, but at time {self.t} the objective or "
                "its gradient is not a number. Check the denoiser's weights, or set sweep.precision to float32."
            )


def gradient(points: Sequence[Point]) -> Tensor:
    """Derivative of every image's objective by its own iterate, [B, C, H, W]; frees the graphs."""
    values = [point.value for point in points]
    ones = [torch.ones_like(value) for value in values]
    return merge(points, torch.autograd.grad(values, [point.x_t for point in points], ones))


def latest(points: Sequence[Point]) -> Point:
    """The last point of every image of the batch, without graph."""
    names = [field.name for field in fields(Point)]
    return Point(**{name: merge(points, [getattr(point, name).detach() for point in points]) for name in names})


def merge(points: Sequence[Point], tensors: Sequence[Tensor]) -> Tensor:
    """Put what belongs to each point's rows into one batch, later over earlier; the first point is the whole batch."""
    whole = tensors[0]
    for point, tensor in zip(points[1:], tensors[1:], strict=True):
        whole = whole.index_copy(0, point.rows, tensor)
    return whole


PRESETS = {
    "paper": CoPaint(),
    "copaint_repo": CoPaint(),
    "imagenet": CoPaint(lam=1e-2, lam_decay=1.0),
    "fast": CoPaint(steps=100, gradient_steps=1, lr_decay=1.03),
    "tt": CoPaint(travel_length=10, travel_repeats=2),
    "tiramisu": CoPaint(),
}
"""Settings by publication; what they do not name is as in `paper`."""
