"""What joining two estimates of an image costs: `python -m benchmarks.fusion` (see docs/benchmarks.md).

The closed form of `pipeline.steering.fusion` beside the 256-bin mixture that it replaces, for one image on one thread,
CPU time, in turns in one process; and how far either is from a grid of 4,096 bins without a floor.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import measure
from pipeline.errors import InputError, UserError
from pipeline.noise import Noise
from pipeline.steering import fusion
from pipeline.steering.fusion import Normal

SHAPE = (1, 3, 256, 256)
WEIGHT = 0.83
"""Of the diffusion model, where the paper's code steers."""

BLOCK, THINNED = 2048, 8
"""Pixels at a time, so that their bins stay in the processor's cache; one in so many is held against the grid."""

TARGET, TOLERANCE = 500.0, 1e-3
PEERS = ("bins, as described", "bins, no waste", "bins, no waste, in blocks")
MEAN, DRAW = "closed form, mean", "closed form, mean and draw"


@dataclass(frozen=True, kw_only=True)
class Estimates:
    """What is joined: both sides, and a uniform number for each pixel's draw."""

    prior: Normal
    posterior: Normal
    uniform: Tensor

    def parts(self, size: int) -> Iterator[Estimates]:
        """The same in blocks of pixels, [size] each."""
        tensors = (self.prior.mean, self.prior.variance, self.posterior.mean, self.posterior.variance, self.uniform)
        for m1, v1, m2, v2, u in zip(*(tensor.flatten().split(size) for tensor in tensors), strict=True):
            yield Estimates(prior=Normal(mean=m1, variance=v1), posterior=Normal(mean=m2, variance=v2), uniform=u)

    def thinned(self, step: int) -> Estimates:
        """Every `step`-th pixel, [pixels / step]."""
        pick = slice(None, None, step)
        prior, posterior = (
            Normal(mean=side.mean.flatten()[pick], variance=side.variance.flatten()[pick])
            for side in (self.prior, self.posterior)
        )
        return Estimates(prior=prior, posterior=posterior, uniform=self.uniform.flatten()[pick])


def make() -> Estimates:
    """Variances as where the paper's code steers, .26 to .28 squared and those of eight decoded draws; means apart."""
    noise = Noise([5])
    mean = noise.normal(SHAPE[1:]).mul(0.5).clamp(-1.0, 1.0)
    variance = noise.uniform(SHAPE[1:]).to(mean).mul(0.01).add(0.068)
    other = (mean + 0.3 * noise.normal(SHAPE[1:])).clamp(-1.0, 1.0)
    spread = noise.uniform(SHAPE[1:]).to(mean).mul(0.2).square().clamp(min=fusion.LEAST_VARIANCE)
    prior, posterior = Normal(mean=mean, variance=variance), Normal(mean=other, variance=spread)
    return Estimates(prior=prior, posterior=posterior, uniform=noise.uniform(SHAPE[1:]))


def closed(given: Estimates) -> Tensor:
    """Draw from the closed form."""
    joint = fusion.geometric_mean(given.prior, given.posterior, WEIGHT)
    return fusion.draw_truncated(joint, *fusion.window(given.prior), given.uniform)


def binned(given: Estimates) -> Tensor:
    """Draw from the bins."""
    law = fusion.binned_mixture(given.prior, given.posterior, WEIGHT)
    return fusion.draw_binned(law, given.uniform)


def in_blocks(given: Estimates) -> Tensor:
    """Draw from the bins, some pixels at a time."""
    return torch.cat([binned(part) for part in given.parts(BLOCK)]).view(given.uniform.shape)


def described_law(given: Estimates) -> Tensor:
    """The law of the bins step by step: two densities, cut, one with a floor, both normalised; logits; softmax."""
    places = fusion.centres(256, given.prior.mean)
    log_p = []
    for side, cut, floor in ((given.prior, 2.0, 0.0), (given.posterior, 100.0, fusion.DENSITY_FLOOR)):
        mean, deviation = side.mean[..., None], side.variance[..., None].sqrt()
        z = (places - mean) / deviation
        density = torch.exp(-0.5 * z**2) / (deviation * (2.0 * torch.pi) ** 0.5)
        density = torch.where(z.abs() <= cut, density, 0.0) + floor
        log_p.append(torch.log(density / density.sum(-1, keepdim=True)))
    return torch.softmax(WEIGHT * log_p[0] + (1.0 - WEIGHT) * log_p[1], -1)


def as_described(given: Estimates) -> Tensor:
    """Draw from the bins step by step."""
    law = described_law(given)
    return fusion.centres(256, law)[torch.multinomial(law.flatten(0, -2), 1)].view(given.uniform.shape)


def check_peers(given: Estimates) -> float:
    """How far the law step by step is from `binned_mixture`'s, over some pixels.

    Raises:
        InputError: they are not the same.
    """
    some = given.thinned(THINNED)
    apart = float((described_law(some) - fusion.binned_mixture(some.prior, some.posterior, WEIGHT)).abs().max())
    if not apart < 1e-5:
        raise InputError(f"the two laws of bins should have the same probabilities, but differ by {apart:.1e}.")
    return apart


def contestants(given: Estimates) -> dict[str, Callable[[], object]]:
    """What is timed."""

    def truncated() -> object:
        joint = fusion.geometric_mean(given.prior, given.posterior, WEIGHT)
        return fusion.truncated(joint, *fusion.window(given.prior))

    calls: dict[str, Callable[[], object]] = {
        MEAN: lambda: fusion.geometric_mean(given.prior, given.posterior, WEIGHT),
        "closed form, mean and variance of the cut law": truncated,
        DRAW: lambda: closed(given),
    }
    peers = (as_described, binned, in_blocks)
    calls |= {name: lambda peer=peer: peer(given) for name, peer in zip(PEERS, peers, strict=True)}
    return {name: torch.no_grad()(call) for name, call in calls.items()}


@torch.no_grad()
def grid_reference(
    prior: Normal, posterior: Normal, weight: float | Tensor, *, bins: int = 4096, floor: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the geometric mean, cut to `window(prior)`, summed over a fine grid in float64.

    Without a floor unless it is given. `weight` broadcasts to the means.
    """
    low, high = (end.double()[..., None] for end in fusion.window(prior))
    places = fusion.centres(bins, low)
    logs = []
    for side in (prior, posterior):
        mean, variance = side.mean.double()[..., None], side.variance.double()[..., None]
        logs.append(-0.5 * (places - mean) ** 2 / variance - 0.5 * torch.log(2.0 * torch.pi * variance))
    if floor:
        logs[1] = torch.log(logs[1].exp() + floor)
    a = torch.as_tensor(weight, dtype=torch.float64)[..., None]
    logits = torch.where((places >= low) & (places <= high), a * logs[0] + (1.0 - a) * logs[1], float("-inf"))
    law = logits.softmax(-1)
    mean = law @ places
    return mean, (law * (places - mean[..., None]) ** 2).sum(-1).sqrt()


def differences(given: Estimates) -> dict[str, dict[str, float]]:
    """Largest and mean differences to the fine grid, of means and standard deviations."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in ("closed form", "bins", "bins, no floor")}
    for part in given.thinned(THINNED).parts(BLOCK):
        mean, deviation = grid_reference(part.prior, part.posterior, WEIGHT)
        joint = fusion.geometric_mean(part.prior, part.posterior, WEIGHT)
        cut = fusion.truncated(joint, *fusion.window(part.prior))
        rivals = {"closed form": (cut.mean, cut.variance)}
        for name, floor in (("bins", fusion.DENSITY_FLOOR), ("bins, no floor", 0.0)):
            law = fusion.binned_mixture(part.prior, part.posterior, WEIGHT, floor=floor)
            rivals[name] = fusion.binned_moments(law)
        for name, (other, variance) in rivals.items():
            found[name].append(((other - mean).abs(), (variance.sqrt() - deviation).abs()))
    return {name: _summary(*map(torch.cat, zip(*apart, strict=True))) for name, apart in found.items()}


def _summary(mean: Tensor, deviation: Tensor) -> dict[str, float]:
    return {
        "largest_mean": float(mean.max()),
        "average_mean": float(mean.mean()),
        "largest_deviation": float(deviation.max()),
        "average_deviation": float(deviation.mean()),
    }


class Peak(TorchDispatchMode):
    """The most bytes at once in tensors made under it; what an operator uses within itself is not seen."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.most, self._now = 0, 0
        self._alive: Counter[int] = Counter()
        self._inputs = {tensor.untyped_storage().data_ptr() for tensor in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place in self._inputs:
            return
        if not self._alive[place]:
            self._now += size
            self.most = max(self.most, self._now)
        self._alive[place] += 1
        weakref.finalize(tensor, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._alive[place] -= 1
        if not self._alive[place]:
            self._now -= size


def peak(call: Callable[[], object], given: Estimates) -> int:
    """Bytes that a call holds at most beside what it is given."""
    sides = (given.prior, given.posterior)
    with Peak(given.uniform, *(tensor for side in sides for tensor in (side.mean, side.variance))) as memory:
        call()
    return memory.most


def run(repeats: int) -> dict[str, Any]:
    """Time, weigh and compare."""
    given = make()
    calls = contestants(given)
    record: dict[str, Any] = {"machine": measure.machine(), "shape": SHAPE, "weight": WEIGHT, "repeats": repeats}
    record["laws_of_bins_apart"] = check_peers(given)
    record["peak_bytes"] = {name: peak(call, given) for name, call in calls.items()}
    record["milliseconds"] = measure.interleaved(calls, repeats)
    least = {name: timing["least"] for name, timing in record["milliseconds"].items()}
    record["times_as_fast"] = {peer: {own: least[peer] / least[own] for own in (MEAN, DRAW)} for peer in PEERS}
    return record | {"difference_to_grid": differences(given), "compared_pixels": given.uniform.numel() // THINNED}


def as_markdown(record: Mapping[str, Any]) -> str:
    """Three tables: time and memory, ratios, and differences to the fine grid."""
    rows = [
        [name, f"{timing['least']:.1f}", f"{timing['median']:.1f}", f"{record['peak_bytes'][name] / 1e6:.1f}"]
        for name, timing in record["milliseconds"].items()
    ]
    ratios = [[peer, *(f"{ratio:.0f}" for ratio in row.values())] for peer, row in record["times_as_fast"].items()]
    apart = [[name, *(f"{value:.1e}" for value in row.values())] for name, row in record["difference_to_grid"].items()]
    side = record["shape"][-1]
    return "\n\n".join(
        [
            f"{measure.words(record['machine'])} One image of {side}x{side}x3, {record['repeats']} repeats:",
            measure.table(["", "CPU ms, least", "median", "MB of temporaries and results"], rows),
            "How many times as fast the closed form is:",
            measure.table(["than", MEAN, DRAW], ratios),
            f"Differences to the grid of 4,096 bins, over {record['compared_pixels']} pixels:",
            measure.table(["", "mean, largest", "average", "standard deviation, largest", "average"], apart),
        ]
    )


def targets(record: Mapping[str, Any]) -> list[str]:
    """What was aimed at, and what was measured, line by line."""
    lines = []
    for peer, row in record["times_as_fast"].items():
        for own, ratio in row.items():
            met = "met" if ratio >= TARGET else "NOT met"
            lines.append(f"{own}, against {peer}: {ratio:.0f} times as fast (target {TARGET:.0f}, {met})")
    found = record["difference_to_grid"]["closed form"]
    worst = max(found["largest_mean"], found["largest_deviation"])
    met = "met" if worst <= TOLERANCE else "NOT met"
    return [*lines, f"closed form against the fine grid: {worst:.1e} (target at most {TOLERANCE:g}, {met})"]


def main() -> int:
    """Run the benchmark; 2 if the input was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/fusion.json and the page's table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        record = run(args.repeats)
        text = "\n".join([as_markdown(record), "", *(f"* {line}" for line in targets(record))])
        print(text)
        if args.write:
            measure.write_json(measure.DOCS / "benchmarks" / "fusion.json", record)
            measure.write_block("fusion", text)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
