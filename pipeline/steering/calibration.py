"""How far a diffusion model and a circuit can be trusted at each time, fitted on training images.

What an estimate of x_0 says about a token depends on how noisy x_t was and on how much is seen around the token: the
encoder looks beyond a patch, and neighbouring errors go together. So every number is kept by time and by the class of a
token, its own patch seen wholly, in part or not at all (strips are not aligned with patches), and how much is seen of
the 5 x 5 patches around it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, fields
from reprlib import repr as brief
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import CheckpointError, misfit

SHARES = 5
"""Classes by the share of what is seen around a token."""

CLASSES = 3 * SHARES
"""First the tokens seen wholly, then those seen in part, then the hidden ones."""

REACH = 2
"""Patches on each side that count as around a token."""


def classify(known: Tensor, side: int) -> Tensor:
    """Class of every token, [B, side^2] int64 in 0..CLASSES - 1, of `known` [B, 1, H, W] bool."""
    seen = F.avg_pool2d(known.double(), known.shape[-1] // side)
    padded = F.pad(seen, (REACH,) * 4, mode="replicate")
    around = F.avg_pool2d(padded, 2 * REACH + 1, stride=1)
    kind = torch.where(seen == 1.0, 0, torch.where(seen > 0.0, 1, 2))
    share = (SHARES * around + 1e-9).floor().long().clamp_max(SHARES - 1)  # a rounding error must not decide
    return (SHARES * kind + share).flatten(1)


def to_pixels(values: Tensor, size: int) -> Tensor:
    """Spread numbers of tokens [B, side^2] over their patches, [B, 1, size, size]."""
    side = math.isqrt(values.shape[1])
    patch = size // side
    grid = values.view(-1, 1, side, side)
    return grid.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


@dataclass(frozen=True, kw_only=True)
class Level:
    """What is known of estimates at one time.

    Attributes:
        code_variance: of an estimate's features around the true code, per dimension, as a likelihood should have it,
            [CLASSES].
        diffusion_variance: of the diffusion model's estimate around x_0, [CLASSES].
        circuit_variance: of the circuit's picture around x_0, [CLASSES].
        weight: of the diffusion model in the weighted geometric mean, in [0, 1], [CLASSES].
    """

    code_variance: Tensor
    diffusion_variance: Tensor
    circuit_variance: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The levels at which estimates were looked at; in between, logs of variances and weights are interpolated.

    Attributes:
        times: rising, [L].
        levels: what was found at each.
    """

    times: tuple[int, ...]
    levels: tuple[Level, ...]

    def at(self, t: int) -> Level:
        """The level at time t; beyond the ends, that of the end."""
        after = bisect_left(self.times, t)
        if after == 0 or after == len(self.times):
            return self.levels[min(after, len(self.times) - 1)]
        before = self.times[after - 1]
        part = (t - before) / (self.times[after] - before)
        low, high = self.levels[after - 1], self.levels[after]
        return Level(
            code_variance=_between(low.code_variance, high.code_variance, part),
            diffusion_variance=_between(low.diffusion_variance, high.diffusion_variance, part),
            circuit_variance=_between(low.circuit_variance, high.circuit_variance, part),
            weight=torch.lerp(low.weight, high.weight, part),
        )

    def to(self, device: torch.device) -> Calibration:
        """The same on `device`."""
        moved = [Level(**{name: getattr(level, name).to(device) for name in NAMES}) for level in self.levels]
        return Calibration(times=self.times, levels=tuple(moved))

    def to_json(self) -> dict[str, Any]:
        """As plain lists."""
        rows = [{name: getattr(level, name).tolist() for name in NAMES} for level in self.levels]
        return {"times": list(self.times), "levels": rows}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: something is missing, or is no number that makes sense.
        """
        times, rows = values.get("times"), values.get("levels")
        whole = isinstance(times, list) and all(type(t) is int and t > 0 for t in times)
        if not whole or not times or times != sorted(set(times)):
            raise _damaged(f"times is {brief(times)}")
        if not isinstance(rows, list) or len(rows) != len(times):
            count = len(rows) if isinstance(rows, list) else "no"
            raise _damaged(f"there are {count} levels at {len(times)} times")
        return cls(times=tuple(times), levels=tuple(_level(row) for row in rows))


NAMES = tuple(field.name for field in fields(Level))


def _between(low: Tensor, high: Tensor, part: float) -> Tensor:
    return torch.lerp(low.log(), high.log(), part).exp()


def _level(row: Any) -> Level:
    if not isinstance(row, dict) or set(row) != set(NAMES):
        raise _damaged(f"a level has {brief(list(row) if isinstance(row, dict) else row)}")
    return Level(**{name: _table(name, row[name]) for name in NAMES})


def _table(name: str, numbers: Any) -> Tensor:
    if misfit(numbers, [float]) or len(numbers) != CLASSES:
        raise _damaged(f"{name} is {brief(numbers)}")
    table = torch.tensor(numbers, dtype=torch.float32)
    fits = (table >= 0) & (table <= 1) if name == "weight" else (table > 0) & table.isfinite()
    if not bool(fits.all()):
        raise _damaged(f"{name} is {brief(numbers)}")
    return table


def _damaged(found: str) -> CheckpointError:
    return CheckpointError(
        f"expected a calibration with rising times, and {CLASSES} variances above 0 of each kind and as many weights "
        f"in [0, 1] for each, but {found}; run the stage fit_steering again."
    )
