"""How fast the circuit is, next to cirkit: `python -m benchmarks.circuit` (see docs/benchmarks.md).

Batches of grids of 16x16 tokens, quad-tree structure, one thread, CPU time, all contestants in turns in one process.
Both sides hold the same parameters; that they compute the same numbers is checked before anything is timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import circuit_gpu, measure
from benchmarks.cirkit_oracle import Parameters, agreement, build
from benchmarks.columns import batch, make, own
from pipeline.errors import InputError, UserError

KINDS: tuple[Parameters, ...] = ("softmax", "probabilities", "logs")
SIZES, GPU_SIZES = ["64,256", "128,256"], ["1024,1024"]
TARGETS = {"forward": 2.0, "statistics": 3.0, "posterior": 0.5}
"""Times as fast as cirkit's forward, and as its forward and backward; milliseconds per image at (64, 256)."""


def rival(model: Any, kind: Parameters, tokens: Tensor) -> dict[str, Callable[[], object]]:
    """Columns of cirkit for one kind of parameters; gradients are made anew at each call."""

    def both() -> None:
        model.zero_grad(set_to_none=True)
        model(tokens).sum().backward()

    return {
        f"cirkit forward, {kind}": torch.no_grad()(lambda: model(tokens)),
        f"cirkit forward and backward, {kind}": both,
    }


def compare(states: int, codes: int, images: int, repeats: int, own_only: bool) -> dict[str, Any]:
    """Time all contestants at one size.

    Raises:
        InputError: the two sides do not compute the same.
    """
    circuit = make(states, codes)
    tokens, log_w = batch(circuit, images)
    contestants = own(circuit, tokens, log_w)
    row: dict[str, Any] = {"states": states, "codes": codes, "parameters": circuit.size()}
    if not own_only:
        models = {kind: build(circuit, kind) for kind in KINDS}
        apart = agreement(circuit, models["logs"], tokens)
        if apart.log_prob > 0.01 or apart.counts > 1e-3:
            raise InputError(f"the two sides should compute the same numbers, but differ: {apart}.")
        row["difference"] = {"log_prob_nats": apart.log_prob, "relative_counts": apart.counts}
        for kind, model in models.items():
            contestants |= rival(model, kind, tokens)
    row["milliseconds"] = measure.interleaved(contestants, repeats)
    least = {name: timing["least"] for name, timing in row["milliseconds"].items()}
    row["posterior_milliseconds_per_image"] = least["posterior"] / images
    if not own_only:
        row["times_as_fast"] = {
            kind: {
                "forward": least[f"cirkit forward, {kind}"] / least["forward"],
                "statistics": least[f"cirkit forward and backward, {kind}"] / least["statistics"],
            }
            for kind in KINDS
        }
    return row


def as_markdown(record: dict[str, Any]) -> str:
    """Two tables: milliseconds of a batch, and how many times as fast as cirkit."""
    rows = record["rows"]
    sizes = [f"H={row['states']}, K={row['codes']} ({row['parameters'] / 1e6:.1f}M parameters)" for row in rows]
    columns = list(rows[0]["milliseconds"])
    times = [[name, *(f"{row['milliseconds'][name]['least']:.1f}" for row in rows)] for name in columns]
    parts = [f"{measure.words(record['machine'])} CPU milliseconds for {record['images']} images:"]
    parts.append(measure.table(["", *sizes], times))
    if "times_as_fast" in rows[0]:
        names = {"forward": "forward / cirkit forward", "statistics": "statistics / cirkit forward and backward"}
        ratios = [
            [f"{name}, {kind}", *(f"{row['times_as_fast'][kind][key]:.1f}" for row in rows)]
            for key, name in names.items()
            for kind in KINDS
        ]
        parts += ["How many times as fast as cirkit:", measure.table(["", *sizes], ratios)]
    each = ", ".join(
        f"{row['posterior_milliseconds_per_image']:.2f} ms at {size}" for row, size in zip(rows, sizes, strict=True)
    )
    parts.append(f"The posterior of one image, all 256·K numbers: {each}.")
    return "\n\n".join(parts)


def targets(record: dict[str, Any]) -> list[str]:
    """What was aimed at, and what was measured, line by line; against the fastest of cirkit's kinds."""
    lines = []
    for row in record["rows"]:
        size = f"H={row['states']}, K={row['codes']}"
        for key in ("forward", "statistics") if "times_as_fast" in row else ():
            ratio = min(row["times_as_fast"][kind][key] for kind in KINDS)
            lines.append(_target(f"{size}: {key} against cirkit's fastest", ratio, TARGETS[key], ratio >= TARGETS[key]))
        if (row["states"], row["codes"]) == (64, 256):
            value = row["posterior_milliseconds_per_image"]
            lines.append(_target(f"{size}: posterior, ms per image", value, TARGETS["posterior"], value <= 0.5))
    return lines


def _target(what: str, value: float, target: float, met: bool) -> str:
    return f"{what}: {value:.2f} (target {target:g}, {'met' if met else 'NOT met'})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", metavar="H,K", help=f"states and codes; {SIZES}, of --gpu {GPU_SIZES}")
    parser.add_argument("--images", type=int, default=32, help="images in a batch")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--own-only", action="store_true", help="leave cirkit out")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/circuit.json and the page's table")
    parser.add_argument("--gpu", action="store_true", help="roofline of our columns on an accelerator instead")
    parser.add_argument("--device", default="cuda", help="of --gpu; cpu is a dry run")
    return parser.parse_args()


def main() -> int:
    """Run the benchmark; 2 if the input was wrong."""
    args = _arguments()
    args.sizes = args.sizes or (GPU_SIZES if args.gpu else SIZES)
    try:
        sizes = [(int(states), int(codes)) for states, codes in (size.split(",") for size in args.sizes)]
    except ValueError:
        print(f"expected sizes H,K such as 64,256, but got {' '.join(args.sizes)}", file=sys.stderr)
        return 2
    try:
        if args.gpu:
            circuit_gpu.run(sizes, args.images, args.repeats, args.device, args.write)
            return 0
        torch.set_num_threads(1)
        rows = [compare(states, codes, args.images, args.repeats, args.own_only) for states, codes in sizes]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    record = {"machine": measure.machine(), "images": args.images, "repeats": args.repeats, "rows": rows}
    print(as_markdown(record), *targets(record), sep="\n")
    if args.write:
        measure.write_json(measure.DOCS / "benchmarks" / "circuit.json", record)
        measure.write_block("circuit", "\n".join([as_markdown(record), "", *(f"* {line}" for line in targets(record))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
