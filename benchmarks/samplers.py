"""What the samplers cost beside the network: `python -m benchmarks.samplers` (see docs/benchmarks.md).

RePaint against diffusers' scheduler, DPS against deepinv's, the time that every method spends outside the network, and
the memory that methods with gradients hold. All share one small U-Net object; contestants take turns in one process on
one thread, CPU time, and the least of the rounds counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks import measure
from benchmarks.rivals import deepinv_dps, diffusers_repaint
from benchmarks.samplers_page import as_markdown, targets
from benchmarks.stopwatch import Clock, Scale, TimedDenoiser, TimedNetwork
from pipeline.diffusion.denoiser import NetworkDenoiser
from pipeline.diffusion.schedule import Schedule
from pipeline.diffusion.unet import UNet, UNetParams
from pipeline.errors import UserError
from pipeline.methods import METHODS, PRESETS
from pipeline.methods.dps import DPS
from pipeline.methods.repaint import RePaint
from pipeline.noise import Noise
from pipeline.problem import Problem

SIDE = 64
SHAPE = UNetParams(patch=2, channels=(64, 64, 96), layers=1, attention=(8, 4), head_dim=32)
"""The network of configs/base.yaml, whose weights do not matter here."""

WALK = RePaint(steps=12, jump=3, repeats=4, kernel="ddim", eta=1.0)
SUBSTEPS = 4
"""Training times between two levels of `WALK`, as for 250 of 1000; diffusers goes up through each of them."""

PULLS = DPS(steps=12, kernel="ddim", sigma_y=0.0)
FITTING: dict[str, dict[str, Any]] = {"repaint": {"jump": 2}}
"""What a walk of few steps asks for beside `steps`."""

LENGTHS = (4, 8, 16)
"""Steps at which memory is weighed."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Something to run, and the clock of the network it calls."""

    call: Callable[[], object]
    clock: Clock


@dataclass(frozen=True, kw_only=True)
class Lap:
    """CPU seconds of one run, and its network evaluations in batches."""

    total: float
    forward: float
    backward: float
    forwards: int
    backwards: int

    @property
    def outside(self) -> float:
        """Seconds outside the network."""
        return self.total - self.forward - self.backward


def lap(contestant: Contestant) -> Lap:
    """Run once."""
    clock = contestant.clock
    before, begun = replace(clock), time.process_time()
    contestant.call()
    total = time.process_time() - begun
    return Lap(
        total=total,
        forward=clock.forward - before.forward,
        backward=clock.backward - before.backward,
        forwards=clock.forwards - before.forwards,
        backwards=clock.backwards - before.backwards,
    )


def take_turns(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, dict[str, Any]]:
    """Least milliseconds of each contestant, after one run that does not count."""
    laps: dict[str, list[Lap]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, contestant in contestants.items():
            laps[name].append(lap(contestant))
    return {name: summary(found[1:]) for name, found in laps.items()}


def summary(laps: Sequence[Lap]) -> dict[str, Any]:
    """What the laps say: milliseconds, evaluations, and the share of time outside the network."""
    network, outside = min(each.forward + each.backward for each in laps), min(each.outside for each in laps)
    least = min(each.total for each in laps)
    evaluations = laps[0].forwards + laps[0].backwards
    return {
        "forwards": laps[0].forwards,
        "backwards": laps[0].backwards,
        "total": 1e3 * least,
        "per_evaluation": 1e3 * least / evaluations,
        "outside": 1e3 * outside,
        "outside_per_evaluation": 1e3 * outside / evaluations,
        "share_outside": outside / (outside + network),
        "median_share_outside": statistics.median(each.outside / each.total for each in laps),
    }


def small_network() -> UNet:
    """The network behind all contestants, frozen."""
    torch.manual_seed(0)
    return UNet(SHAPE, SIDE).eval().requires_grad_(False)


def example(images: int) -> Problem:
    """Problems with the left half known."""
    x_0 = torch.rand(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2.0 - 1.0
    known = (torch.arange(SIDE) < SIDE // 2).expand(images, 1, SIDE, SIDE)
    return Problem.observe(x_0, known)


def sampler(method: Any, denoiser: Any, images: int) -> Callable[[], object]:
    """A run of one of our methods, as the sweep calls it."""
    problem = example(images)
    return torch.no_grad()(lambda: method(denoiser, problem, Noise(list(range(images)))))


def on_network(network: UNet, schedule: Schedule, method: Any, images: int) -> Contestant:
    """One of our methods with the clock around the bare network, as it is for the rivals."""
    timed = TimedNetwork(network)
    denoiser = NetworkDenoiser(timed, schedule, (3, SIDE, SIDE), "eps")
    return Contestant(call=sampler(method, denoiser, images), clock=timed.clock)


def against_diffusers(network: UNet, images: int, rounds: int) -> dict[str, Any]:
    """RePaint on both sides, the same moves with eta = 1, and ours as in the paper."""
    levels, timed = SUBSTEPS * WALK.steps, TimedNetwork(network)
    schedule = Schedule.linear(levels)
    rows = take_turns(
        {
            "ours": on_network(network, schedule, WALK, images),
            "diffusers": Contestant(call=diffusers_repaint(timed, example(images), WALK, levels), clock=timed.clock),
            "ours, learned variance": on_network(network, schedule, replace(WALK, kernel="ancestral"), images),
        },
        rounds,
    )
    return {"settings": asdict(WALK), "milliseconds": rows, "ratio": ratio(rows["ours"], rows["diffusers"])}


def against_deepinv(network: UNet, images: int, rounds: int) -> dict[str, Any]:
    """DPS on both sides, the same number of steps."""
    schedule, timed = Schedule.linear(), TimedNetwork(network)
    rival = deepinv_dps(timed, schedule, example(images), PULLS.steps)
    rows = take_turns(
        {"ours": on_network(network, schedule, PULLS, images), "deepinv": Contestant(call=rival, clock=timed.clock)},
        rounds,
    )
    return {"settings": asdict(PULLS), "milliseconds": rows, "ratio": ratio(rows["ours"], rows["deepinv"])}


def ratio(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Ours over theirs; below 1 we are faster."""
    return {key: ours[key] / theirs[key] for key in ("total", "per_evaluation", "outside", "outside_per_evaluation")}


def brief(name: str, steps: int) -> Any:
    """The method as published, on a walk of `steps` levels."""
    return replace(PRESETS[name]["paper"], steps=steps, **FITTING.get(name, {}))  # type: ignore[type-var]


def outside(network: UNet, images: int, steps: int, rounds: int) -> dict[str, Any]:
    """Every registered method, with the clock around `denoise`."""
    contestants = {}
    for name in METHODS:
        timed = TimedDenoiser(NetworkDenoiser(network, Schedule.linear(), (3, SIDE, SIDE), "eps"))
        contestants[name] = Contestant(call=sampler(brief(name, steps), timed, images), clock=timed.clock)
    return take_turns(contestants, rounds)


def memory(network: UNet) -> dict[str, dict[str, int]]:
    """Bytes that autograd keeps at most, for two images, by method with gradients and number of steps."""
    denoiser = NetworkDenoiser(network, Schedule.linear(), (3, SIDE, SIDE), "eps")
    found: dict[str, dict[str, int]] = {}
    for name in METHODS:
        if PRESETS[name]["paper"].nbe() == 0:
            continue
        found[name] = {}
        for steps in LENGTHS:
            scale = Scale()
            with scale.watching():
                sampler(brief(name, steps), denoiser, 2)()
            found[name][str(steps)] = scale.peak
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="images in a batch")
    parser.add_argument("--steps", type=int, default=6, help="levels of the walks of which the share is taken")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--own-only", action="store_true", help="leave deepinv out")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/samplers.json and the page's table")
    return parser.parse_args()


def main() -> int:
    """Run the benchmark; 2 if something it needs is missing."""
    args = _arguments()
    torch.set_num_threads(1)
    network = small_network()
    record: dict[str, Any] = {
        "machine": measure.machine(),
        "images": args.images,
        "side": SIDE,
        "network": asdict(SHAPE) | {"parameters": sum(p.numel() for p in network.parameters())},
        "rounds": args.rounds,
        "steps": args.steps,
    }
    try:
        record["repaint"] = against_diffusers(network, args.images, args.rounds)
        record["dps"] = None if args.own_only else against_deepinv(network, args.images, args.rounds)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    record["methods"] = outside(network, args.images, args.steps, args.rounds)
    record["memory"] = memory(network)
    print(as_markdown(record), *targets(record), sep="\n")
    if args.write:
        measure.write_json(measure.DOCS / "benchmarks" / "samplers.json", record)
        text = "\n".join([as_markdown(record), "", *(f"* {line}" for line in targets(record))])
        measure.write_block("samplers", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
