"""What the benchmarks share: a fair clock, what machine it was, and where results are written."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"

Timings = dict[str, dict[str, float]]
"""Milliseconds {"least", "median"} of each contestant."""


def interleaved(contestants: Mapping[str, Callable[[], object]], repeats: int) -> Timings:
    """CPU time of each contestant on one thread.

    They take turns, so that whatever else the machine does meets all of them alike, and caches hold what the others
    left there. The least of the repeats is what the work itself costs; the median says how noisy the machine was.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for call in contestants.values():
        call()
    for _ in range(repeats):
        for name, call in contestants.items():
            begun = time.process_time()
            call()
            seconds[name].append(time.process_time() - begun)
    return {name: {"least": 1e3 * min(s), "median": 1e3 * statistics.median(s)} for name, s in seconds.items()}


def matmul_rate(
    device: torch.device, dtype: torch.dtype, size: int, timed: Callable[[Callable[[], object]], float]
) -> float:
    """FLOP/s of a square matrix product of `size`, `timed` giving the seconds of a call: the peak that can be had."""
    a = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    return float(2 * size**3 / timed(lambda: torch.mm(a, a, out=out)))


def least_seconds(call: Callable[[], object], repeats: int = 10) -> float:
    """CPU seconds of a call, the least of some."""
    return interleaved({"call": call}, repeats)["call"]["least"] / 1e3


def machine() -> dict[str, Any]:
    """Processor, threads and versions, in generic words."""
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    names = ("torch", "libcirkit", "pyjuice", "diffusers", "deepinv")
    versions = {"python": platform.python_version()} | {
        name: metadata.version(name) for name in names if _installed(name)
    }
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": versions,
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def words(found: Mapping[str, Any]) -> str:
    """`machine` as a line of text."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['processor']} ({found['instructions']}), {found['threads']} thread(s); {versions}."


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a record, readable and with an end of line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_block(name: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between the comments `<!-- name -->` and `<!-- /name -->` of a page.

    Raises:
        InputError: the page has no such place.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise InputError(
            f"expected the comments {begin} and {end} in {page}, around the place for the table; add them."
        )
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
