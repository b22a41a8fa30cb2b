"""How the circuit's time grows with its states and its codes: `python -m benchmarks.circuit_scaling`.

What was found is drawn in docs/images/circuit_scaling.png, next to the time that the matrix products alone would take.
"""

from __future__ import annotations

import argparse
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from benchmarks import measure
from benchmarks.columns import batch, flops, make, own

STATES, CODES = (16, 32, 64, 128, 256), (32, 64, 128, 256, 512, 1024)
FIXED_STATES, FIXED_CODES = 64, 256
COLUMNS = {"posterior": "tab:blue", "statistics": "tab:orange", "forward": "tab:green"}
NAMES = {
    "posterior": "posterior, soft evidence",
    "statistics": "forward and statistics",
    "forward": "forward, known tokens",
}


def point(states: int, codes: int, images: int, repeats: int) -> dict[str, Any]:
    """Milliseconds and FLOPs of each column at one size."""
    circuit = make(states, codes)
    columns = own(circuit, *batch(circuit, images))
    timings = measure.interleaved({name: columns[name] for name in COLUMNS}, repeats)
    return {
        "states": states,
        "codes": codes,
        "megabytes": circuit.size() * circuit.root.element_size() / 1e6,
        "milliseconds": {name: timing["least"] for name, timing in timings.items()},
        "flops": {name: flops(circuit, images)[name] for name in COLUMNS},
    }


def draw(axes: Axes, points: list[dict[str, Any]], key: str, rate: float) -> None:
    """One panel: what was measured, and what the matrix products alone would take at `rate` FLOP/s."""
    x = [p[key] for p in points]
    for name, colour in COLUMNS.items():
        axes.plot(x, [p["milliseconds"][name] for p in points], "o-", color=colour, label=NAMES[name])
        axes.plot(x, [1e3 * p["flops"][name] / rate for p in points], "--", color=colour, linewidth=1)
    axes.set(xscale="log", yscale="log", xticks=x, xticklabels=[str(value) for value in x])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def plot(record: dict[str, Any]) -> None:
    """Write docs/images/circuit_scaling.png."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    draw(left, record["by_states"], "states", record["matmul_flops"])
    draw(right, record["by_codes"], "codes", record["matmul_flops"])
    left.set(xlabel=f"states H (K = {FIXED_CODES} codes)", ylabel=f"CPU ms for {record['images']} images")
    right.set(xlabel=f"codes K (H = {FIXED_STATES} states)")
    left.plot([], [], "--", color="black", linewidth=1, label="its matrix products at peak rate")
    left.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path = measure.DOCS / "images" / "circuit_scaling.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, draw and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "machine": measure.machine(),
        "images": args.images,
        "matmul_flops": measure.matmul_rate(torch.device("cpu"), torch.float32, 1024, measure.least_seconds),
        "by_states": [point(states, FIXED_CODES, args.images, args.repeats) for states in STATES],
        "by_codes": [point(FIXED_STATES, codes, args.images, args.repeats) for codes in CODES],
    }
    measure.write_json(measure.DOCS / "benchmarks" / "circuit_scaling.json", record)
    plot(record)
    for key, axis in (("states", "by_states"), ("codes", "by_codes")):
        rows = [[str(p[key]), *(f"{p['milliseconds'][name]:.1f}" for name in COLUMNS)] for p in record[axis]]
        print(measure.table([key, *COLUMNS], rows))


if __name__ == "__main__":
    main()
