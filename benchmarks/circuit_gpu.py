"""How close the circuit comes to what an accelerator can do: `python -m benchmarks.circuit --gpu`.

The bound is a roofline: a column cannot take less time than its matrix products need at the rate of one large product,
nor than its bytes need at the rate of one large copy; both rates are measured on the same device in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.columns import SIDE, batch, flops, least_bytes, make, own
from pipeline.circuit.circuit import Circuit
from pipeline.errors import ConfigError

Timed = Callable[[Callable[[], object]], float]
"""Seconds of a call."""

NO_PYJUICE = "PyJuice is not installed (pip install pyjuice), so its columns are left out."


def timer(device: torch.device, repeats: int) -> Timed:
    """Median seconds of a call: between CUDA events on an accelerator, CPU time otherwise. Warmed up three times."""

    def on_device(call: Callable[[], object]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def on_processor(call: Callable[[], object]) -> float:
        begun = time.process_time()
        call()
        return time.process_time() - begun

    once = on_device if device.type == "cuda" else on_processor

    def median(call: Callable[[], object]) -> float:
        for _ in range(3):
            call()
        return statistics.median(once(call) for _ in range(repeats))

    return median


def rates(device: torch.device, timed: Timed) -> dict[str, float]:
    """FLOP/s of a large float32 matrix product and bytes/s of a large copy (read and write counted)."""
    large = device.type == "cuda"
    a = torch.ones(2**28 if large else 2**24, device=device)
    b = torch.empty_like(a)
    copied = 2 * a.numel() * a.element_size() / timed(lambda: b.copy_(a))
    return {
        "matmul_flops": measure.matmul_rate(device, torch.float32, 8192 if large else 1024, timed),
        "copy_bytes": copied,
    }


def products(circuit: Circuit, images: int) -> dict[str, Callable[[], object]]:
    """Only the batched matrix products of each column, on factors of the same shapes."""
    sums = circuit.sums()
    ups = [sums.at(depth).transpose(1, 2) for depth in range(1, len(sums.levels))]
    states = [torch.rand(len(w), images, circuit.states, device=w.device) for w in ups]
    codes = torch.rand(images, circuit.tokens, circuit.codes, device=circuit.root.device).transpose(0, 1)
    home = torch.rand(circuit.tokens, images, circuit.states, device=circuit.root.device)
    up = list(zip(states, ups, strict=True))
    down = [(x, w.transpose(1, 2)) for x, w in up]
    pairs = [(x.transpose(1, 2), x) for x in states]
    inward, outward = [(codes, circuit.emissions)], [(home, circuit.emissions.transpose(1, 2))]
    lists = {
        "forward": up,
        "soft forward": inward + up,
        "posterior": inward + up + down + outward,
        "statistics": up + down + pairs,
    }

    def all_of(factors: list[tuple[Tensor, Tensor]]) -> Callable[[], object]:
        return lambda: [torch.bmm(a, b) for a, b in factors]

    return {name: all_of(factors) for name, factors in lists.items()}


def roofline(circuit: Circuit, images: int, peak: dict[str, float], timed: Timed) -> list[dict[str, Any]]:
    """Time, rate and bound of each column."""
    alone, work, moved = products(circuit, images), flops(circuit, images), least_bytes(circuit, images)
    rows = []
    for name, call in own(circuit, *batch(circuit, images)).items():
        seconds, inner = timed(call), timed(alone[name])
        bound = max(work[name] / peak["matmul_flops"], moved[name] / peak["copy_bytes"])
        rows.append(
            {
                "column": name,
                "milliseconds": 1e3 * seconds,
                "gigaflop": work[name] / 1e9,
                "of_peak": work[name] / seconds / peak["matmul_flops"],
                "products_alone_of_peak": work[name] / inner / peak["matmul_flops"],
                "roofline_milliseconds": 1e3 * bound,
                "bound_by": "memory" if moved[name] / peak["copy_bytes"] == bound else "arithmetic",
            }
        )
    return rows


def pyjuice(states: int, codes: int, tokens: Tensor, timed: Timed) -> dict[str, float]:
    """Milliseconds of PyJuice's forward and of its forward and backward with parameter flows, same structure and sizes.

    Its import lets float32 products be rounded to TensorFloat-32 for the whole process, so it comes after our columns.
    """
    import pyjuice as juice

    grid = [
        [
            juice.inputs(
                row * SIDE + column,
                num_node_blocks=1,
                block_size=states,
                dist=juice.distributions.Categorical(num_cats=codes),
            )
            for column in range(SIDE)
        ]
        for row in range(SIDE)
    ]
    while len(grid) > 1:
        width = states if len(grid) > 2 else 1
        grid = [
            [
                juice.summate(
                    juice.multiply(grid[r][c], grid[r][c + 1], grid[r + 1][c], grid[r + 1][c + 1]),
                    num_node_blocks=1,
                    block_size=width,
                )
                for c in range(0, len(grid), 2)
            ]
            for r in range(0, len(grid), 2)
        ]
    grid[0][0].init_parameters()
    model = juice.compile(grid[0][0])
    model.to(tokens.device)

    def both() -> None:
        model(tokens)
        model.backward(tokens, flows_memory=1.0)

    with torch.no_grad():
        return {"forward": 1e3 * timed(lambda: model(tokens)), "statistics": 1e3 * timed(both)}


def as_markdown(record: dict[str, Any]) -> str:
    """A table for each size, and what PyJuice took."""
    peak = record["peak"]
    parts = [
        f"{record['device']}, {record['images']} images, float32 products at precision "
        f'"{record["precision"]}"; {measure.words(record["machine"])} Peak: '
        f"{peak['matmul_flops'] / 1e12:.2f} TFLOP/s, {peak['copy_bytes'] / 1e9:.0f} GB/s."
    ]
    header = ["", "ms", "GFLOP", "of peak", "products alone, of peak", "roofline ms", "bound by"]
    for size in record["sizes"]:
        rows = [
            [
                row["column"],
                f"{row['milliseconds']:.2f}",
                f"{row['gigaflop']:.1f}",
                f"{row['of_peak']:.0%}",
                f"{row['products_alone_of_peak']:.0%}",
                f"{row['roofline_milliseconds']:.2f}",
                row["bound_by"],
            ]
            for row in size["columns"]
        ]
        parts += [f"H={size['states']}, K={size['codes']}:", measure.table(header, rows)]
        if "pyjuice" in size:
            times = ", ".join(f"{name} {value:.2f} ms" for name, value in size["pyjuice"].items())
            parts.append(f"PyJuice: {times}.")
    if not record["pyjuice"]:
        parts.append(NO_PYJUICE)
    return "\n\n".join(parts)


def run(sizes: list[tuple[int, int]], images: int, repeats: int, name: str, write: bool) -> None:
    """Measure, print and, if wanted, write the record and the page's table.

    Raises:
        ConfigError: the device is not there.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device was found; run on a machine that has one, or try --device cpu as a dry run.")
    if device.type == "cpu":
        torch.set_num_threads(1)
    timed, has_pyjuice = timer(device, repeats), find_spec("pyjuice") is not None and device.type == "cuda"
    record: dict[str, Any] = {
        "machine": measure.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (a dry run)",
        "precision": torch.get_float32_matmul_precision(),
        "images": images,
        "peak": rates(device, timed),
        "pyjuice": has_pyjuice,
        "sizes": [],
    }
    for states, codes in sizes:
        circuit = make(states, codes, name)
        circuit.memory = 2**34 if device.type == "cuda" else circuit.memory
        columns = roofline(circuit, images, record["peak"], timed)
        record["sizes"].append({"states": states, "codes": codes, "columns": columns})
    for size in record["sizes"] if has_pyjuice else ():
        tokens, _ = batch(make(size["states"], size["codes"], name), images)
        size["pyjuice"] = pyjuice(size["states"], size["codes"], tokens, timed)
    print(as_markdown(record))
    if write:
        measure.write_json(measure.DOCS / "benchmarks" / "circuit_gpu.json", record)
        measure.write_block("circuit-gpu", as_markdown(record))
