"""How near each method comes to the exact posterior: `python -m benchmarks.posterior` (see docs/posterior.md).

Every method and preset draws `n` completions of one image in each world and behind each mask, from the same streams of
noise; `pipeline.oracles.distances` judges them. The first rows of every table are no methods: exact draws (the floor),
and ancestral sampling with the exact conditional denoiser, which shows what walking in steps costs by itself. The last
rows are methods again, steered by the circuit that is the law of the world's images, where it is one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure, posterior_page
from pipeline.diffusion.denoiser import Counted
from pipeline.diffusion.sampling import sample
from pipeline.errors import ConfigError, InputError, UserError
from pipeline.methods import PRESETS, Method
from pipeline.methods.steered import Base, Steered
from pipeline.noise import Noise, stream_seed
from pipeline.oracles.distances import MEASURES, Judge, interval
from pipeline.oracles.worlds import GRID, WORLDS, World
from pipeline.problem import Problem
from pipeline.steering.patches import PatchModel
from pipeline.steering.prior import TokenPrior
from pipeline.steering.settings import Steering

RECORD = measure.DOCS / "benchmarks" / "posterior.json"
MASKS = ("left", "expand1")
STEPS = 250
"""Levels walked with the exact conditional denoiser."""

BASES = (
    ("blended", "paper"),
    ("ddnm", "paper"),
    ("dps", "small"),
    ("copaint", "paper"),
    ("copaint", "fast"),
    ("repaint", "fast"),
)
"""What is steered as well; such a row is the method `STEERED` with method and preset of its base as preset."""
STEERED = posterior_page.STEERED
STEERING = Steering(rule="noisy", picture="patches", weighting="circuit", refresh=0.0, until=0.0)
"""Exact at all times: no estimate of the network can add to what the law itself says of x_t and the seen pixels."""


def exact_prior(world: World) -> TokenPrior | None:
    """The law of the world's images, as steering reads it; None if it is no circuit's."""
    law = world.tokens
    if law is None:
        return None
    patches = PatchModel(mean=law.mean, variance=law.variance, side=GRID)
    return TokenPrior(circuit=law.circuit, patches=patches)


def steered(base: Base, world: World) -> Steered | None:
    """A method, steered by the law of the world's images; None if that is no circuit's."""
    prior = exact_prior(world)
    return None if prior is None else Steered(base=base, steering=STEERING, prior=prior)


def streams(n: int) -> Noise:
    """The noise of the `n` completions, the same for every method."""
    return Noise([stream_seed("posterior", k) for k in range(n)], dtype=torch.float64)


def judged(judge: Judge, samples: Tensor, resamples: int) -> dict[str, Any]:
    """Measures of samples with their bootstrap intervals."""
    verdict, resampled = judge.judge(samples), judge.resampled(samples, resamples)
    ends = {name: interval(verdict, resampled, lambda v, name=name: getattr(v, name)) for name in MEASURES}
    return asdict(verdict) | {"intervals": ends}


def completions(world: World, problem: Problem, method: Method | Steered, n: int) -> tuple[Tensor, dict[str, float]]:
    """Run a method on `n` copies of a problem of one image; also evaluations per completion and CPU seconds."""
    many = Problem(y=problem.y.expand(n, -1, -1, -1), known=problem.known.expand(n, -1, -1, -1))
    counted, begun = Counted(world.denoiser), time.process_time()
    with torch.no_grad():
        x = method(counted, many, streams(n))
    seconds = time.process_time() - begun
    return x, {"forwards": counted.forwards / n, "backwards": counted.backwards / n, "seconds": seconds}


def scene(world_name: str, mask: str, runs: Sequence[tuple[str, str]], args: argparse.Namespace) -> dict[str, Any]:
    """Judge all runs on one problem."""
    world = WORLDS[world_name]()
    problem = world.problem(mask)
    exact = world.posterior(problem)
    judge = Judge(exact)
    floor = [asdict(verdict) for verdict in judge.floor(args.n, args.repeats)]
    spreads = {key: [verdict[key] for verdict in floor] for key in MEASURES}
    with torch.no_grad():
        walked = judged(judge, sample(exact, streams(args.n), STEPS), args.resamples)
    rows: list[dict[str, Any]] = []
    done: dict[tuple[bool, Method], dict[str, Any]] = {}  # two presets may be the same settings
    for name, preset in runs:
        settings = base_of(name, preset)
        method = steered(settings, world) if name == STEERED else settings
        if method is None:
            continue
        key = (name == STEERED, settings)
        if key not in done:
            x, cost = completions(world, problem, method, args.n)
            done[key] = judged(judge, x, args.resamples) | cost
            print(f"{world_name}, {mask}: {name} {preset}, {cost['seconds']:.0f} s", file=sys.stderr)
        rows.append({"method": name, "preset": preset} | done[key])
    return {
        "world": world_name,
        "mask": mask,
        "exact_modes": exact.modes[0].tolist(),
        "floor": {key: {"mean": statistics.mean(s), "sd": statistics.stdev(s)} for key, s in spreads.items()},
        "exact_denoiser": walked,
        "rows": rows,
    }


def every_run() -> list[tuple[str, str]]:
    """Method and preset of all rows, in the order of the registry, steered ones last."""
    plain = [(method, preset) for method, settings in PRESETS.items() for preset in settings]
    return [*plain, *((STEERED, f"{method} {preset}") for method, preset in BASES)]


def base_of(method: str, preset: str) -> Method:
    """Settings of a row, without its steering."""
    if method == STEERED:
        method, preset = preset.split()
    return PRESETS[method][preset]


def chosen(methods: Iterable[str] | None, presets: Iterable[str] | None) -> list[tuple[str, str]]:
    """Methods and presets that were asked for, in the order of `every_run`.

    Raises:
        ConfigError: a name that is not there.
    """
    runs = every_run()
    check(methods, {method for method, _ in runs})
    check(presets, {preset for _, preset in runs})
    return [(m, p) for m, p in runs if (not methods or m in methods) and (not presets or p in presets)]


def check(asked: Iterable[str] | None, there: Iterable[str]) -> None:
    """Refuse names that are not there.

    Raises:
        ConfigError: which, and which are.
    """
    if wrong := sorted(set(asked or ()) - set(there)):
        raise ConfigError(f"there is no {', '.join(wrong)}; choose from {', '.join(sorted(there))}")


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Scenes and rows of `old` that were not measured again, and all of `new`, in the order of `every_run`.

    Raises:
        InputError: `old` was measured with other settings, so that its rows do not belong beside the new ones.
    """
    if old["settings"] != new["settings"]:
        raise InputError(
            f"expected {RECORD.name} to hold rows measured with {new['settings']}, but it has {old['settings']}; "
            "delete it, or use its settings."
        )
    before, found = ({(s["world"], s["mask"]): s for s in record["scenes"]} for record in (old, new))
    places = [(world, mask) for world in WORLDS for mask in MASKS]
    scenes = [joined(before.get(place), found.get(place)) for place in places if place in before or place in found]
    return new | {"scenes": scenes}


def joined(old: dict[str, Any] | None, new: dict[str, Any] | None) -> dict[str, Any]:
    """One scene from what is there of it."""
    rows = {(r["method"], r["preset"]): r for scene in (old, new) if scene for r in scene["rows"]}
    return (new or old or {}) | {"rows": [rows[run] for run in every_run() if run in rows]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", metavar="WORLD", help=f"of {', '.join(WORLDS)}; all if not given")
    methods = ", ".join([*PRESETS, STEERED])
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=f"of {methods}; all if not given")
    parser.add_argument("--presets", nargs="+", metavar="PRESET", help="all if not given")
    parser.add_argument("--n", type=int, default=96, help="completions for each method, at least 2")
    parser.add_argument("--repeats", type=int, default=64, help="sets of exact draws for the floor, at least 2")
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/posterior.json, page and plot")
    return parser.parse_args()


def main(record: Path = RECORD) -> int:
    """Run the benchmark; 2 if the input was wrong."""
    args = _arguments()
    torch.set_num_threads(1)
    try:
        runs = chosen(args.methods, args.presets)
        check(args.worlds, WORLDS)
        worlds = [world for world in WORLDS if not args.worlds or world in args.worlds]
        settings = {"n": args.n, "repeats": args.repeats, "resamples": args.resamples, "steps": STEPS}
        found: dict[str, Any] = {"machine": measure.machine(), "settings": settings}
        found["scenes"] = [scene(world, mask, runs, args) for world in worlds for mask in MASKS]
        if args.write and record.exists():
            found = merged(json.loads(record.read_text()), found)
        print(posterior_page.text(found))
        if args.write:
            measure.write_json(record, found)
            posterior_page.write(found)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
