"""What steering costs: `python -m benchmarks.steering` beside a finished run (see docs/benchmarks.md).

The models are those of the first dataset of params.yaml. Base and steered rows take turns in one process on one thread;
CPU time; the parts of steering are timed within their runs. Nothing is scored here: see docs/results.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from pipeline.data.images import to_float
from pipeline.data.shards import read_split
from pipeline.diffusion.denoiser import Counted, Denoiser
from pipeline.errors import UserError
from pipeline.experiment.guides import load_prior
from pipeline.experiment.layout import Layout
from pipeline.experiment.masks import mask_of
from pipeline.experiment.metering import TimedMeter
from pipeline.experiment.models import load_denoiser
from pipeline.experiment.params import Params, load_params
from pipeline.methods import PRESETS, Method
from pipeline.methods.steered import Steered
from pipeline.noise import Noise
from pipeline.problem import Problem
from pipeline.steering.prior import TokenPrior
from pipeline.steering.settings import PRESETS as RULES

BASES = (("copaint", "fast"), ("copaint", "paper"), ("ddnm", "paper"))
TARGET = 0.05
"""Most extra time of steering, as a share of its base's."""

PARTS = ("encode", "circuit", "decode", "fusion")


def main() -> int:
    """Measure and print; with --write, also write docs/benchmarks/steering.json and the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steering", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        found = compare(load_params(), args.images, args.repeats)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(text(found))
    if args.write:
        measure.write_json(measure.DOCS / "benchmarks" / "steering.json", found)
        measure.write_block("steering", text(found))
    return 0


@torch.no_grad()
def compare(params: Params, images: int, repeats: int) -> dict[str, Any]:
    """Time every base and what is steered on it."""
    device, layout, dataset = torch.device("cpu"), Layout(Path.cwd(), params.profile), params.sweep.datasets[0]
    denoiser, _ = load_denoiser(layout.ddpm(dataset), params.ddpm, params.image_size, device)
    prior, _ = load_prior(params, layout, dataset, device)
    x_0 = to_float(read_split(layout.data(dataset), "val", layout.cache).images[:images])
    known = torch.from_numpy(mask_of(params, "left", layout.root, images))[:, None]
    problem = Problem.observe(x_0, known)
    rows = [row(denoiser, prior, problem, method, preset, repeats) for method, preset in BASES]
    return {"machine": measure.machine(), "images": images, "size": params.image_size, "rows": rows}


def row(
    denoiser: Denoiser, prior: TokenPrior, problem: Problem, method: str, preset: str, repeats: int
) -> dict[str, Any]:
    """One base, steered by ours with and without a warm start."""
    base, images, meter = PRESETS[method][preset], len(problem), TimedMeter(torch.device("cpu"))
    steered = Steered(base=base, steering=RULES["ours"], prior=prior, meter=meter)
    warm = Steered(base=base, steering=RULES["ours"], prior=prior, warm=0.8)
    contestants: dict[str, Method] = {"base": base, "steered": steered, "warm": warm}
    counts = {name: evaluations(denoiser, problem, contestant) for name, contestant in contestants.items()}
    meter.clear()
    calls = {name: runner(denoiser, problem, contestant) for name, contestant in contestants.items()}
    times = measure.interleaved(calls, repeats)
    parts = {name: 1e3 * meter.seconds[name] / (repeats + 1) / images for name in PARTS}  # one more to warm up
    return {
        "base": f"{method} {preset}",
        "milliseconds": {name: found["least"] / images for name, found in times.items()},
        "forwards": counts,
        "parts": parts,
    }


def runner(denoiser: Denoiser, problem: Problem, method: Method) -> Callable[[], object]:
    """A run from the same streams every time."""
    return lambda: method(denoiser, problem, Noise(range(len(problem))))


def evaluations(denoiser: Denoiser, problem: Problem, method: Method) -> float:
    """Network evaluations per image."""
    counted = Counted(denoiser)
    method(counted, problem, Noise(range(len(problem))))
    return counted.forwards / len(problem)


def text(found: dict[str, Any]) -> str:
    """The page's block."""
    rows = []
    for one in found["rows"]:
        ms, parts = one["milliseconds"], one["parts"]
        extra = ms["steered"] / ms["base"] - 1.0
        rows.append(
            [
                one["base"],
                f"{ms['base']:.0f} ({one['forwards']['base']:.0f})",
                f"{ms['steered']:.0f} ({one['forwards']['steered']:.0f})",
                f"{100 * extra:+.1f} % ({'met' if extra <= TARGET else 'NOT met'})",
                *(f"{parts[name]:.1f}" for name in PARTS),
                f"{ms['warm']:.0f} ({one['forwards']['warm']:.0f})",
                f"{100 * (ms['warm'] / ms['base'] - 1.0):+.1f} %",
            ]
        )
    header = ["base", "base, ms (evaluations)", "steered", f"extra (at most {100 * TARGET:.0f} %)", *PARTS]
    lines = [
        measure.words(found["machine"]),
        f"{found['images']} images of {found['size']}x{found['size']} behind `left`, per image, CPU time.",
        "",
        measure.table([*header, "with warm start", "extra"], rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
