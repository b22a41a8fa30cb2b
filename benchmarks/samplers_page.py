"""Tables and findings of docs/benchmarks.md about samplers, from the record of `benchmarks.samplers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks import measure

RATIO, SHARE, GROWTH = 1.0, 0.02, 1.01
"""At most: our time over theirs, the share of time outside the network, memory of the longest walk to the shortest."""


def as_markdown(record: Mapping[str, Any]) -> str:
    """Tables of the comparisons, of every method's time outside the network, and of memory."""
    network = record["network"]
    parts = [
        f"{measure.words(record['machine'])} {record['images']} images of {record['side']}x{record['side']}, "
        f"a U-Net of {network['parameters'] / 1e6:.1f}M parameters, least of {record['rounds']} rounds.",
        f"RePaint, {_walk(record['repaint']['settings'])}, CPU milliseconds for the batch:",
        _comparison(record["repaint"]),
    ]
    if record["dps"] is not None:
        steps = record["dps"]["settings"]["steps"]
        parts += [f"DPS, {steps} steps, CPU milliseconds for the batch:", _comparison(record["dps"])]
    parts += [f"Time outside the network, walks of {record['steps']} levels:", _shares(record["methods"])]
    parts += ["Memory that autograd keeps at most, MiB, by number of steps, two images:", _memory(record["memory"])]
    return "\n\n".join(parts)


def _walk(settings: Mapping[str, Any]) -> str:
    return f"{settings['steps']} levels, jumps of {settings['jump']}, {settings['repeats']} times"


def _comparison(found: Mapping[str, Any]) -> str:
    header = ["", "forwards", "backwards", "total", "per evaluation", "outside the network", "outside per evaluation"]
    keys = ("total", "per_evaluation", "outside", "outside_per_evaluation")
    rows = [
        [name, str(row["forwards"]), str(row["backwards"]), *(f"{row[key]:.2f}" for key in keys)]
        for name, row in found["milliseconds"].items()
    ]
    rows.append(["ratio, ours to theirs", "", "", *(f"{found['ratio'][key]:.3f}" for key in keys)])
    return measure.table(header, rows)


def _shares(methods: Mapping[str, Any]) -> str:
    header = ["method", "forwards", "backwards", "outside, ms per evaluation", "share", "share, median of rounds"]
    rows = [
        [
            name,
            str(row["forwards"]),
            str(row["backwards"]),
            f"{row['outside_per_evaluation']:.2f}",
            f"{row['share_outside']:.2%}",
            f"{row['median_share_outside']:.2%}",
        ]
        for name, row in methods.items()
    ]
    return measure.table(header, rows)


def _memory(found: Mapping[str, Mapping[str, int]]) -> str:
    lengths = list(next(iter(found.values())))
    rows = [[name, *(f"{row[steps] / 2**20:.1f}" for steps in lengths)] for name, row in found.items()]
    return measure.table(["method", *lengths], rows)


def targets(record: Mapping[str, Any]) -> list[str]:
    """What was aimed at, and what was measured, line by line."""
    lines = []
    for key, rival in (("repaint", "diffusers"), ("dps", "deepinv")):
        if record[key] is not None:
            for what in ("per_evaluation", "total"):
                value = record[key]["ratio"][what]
                lines.append(_target(f"{key} against {rival}, {what.replace('_', ' ')}", f"{value:.3f}", RATIO, value))
    name, row = max(record["methods"].items(), key=lambda pair: float(pair[1]["share_outside"]))
    share = float(row["share_outside"])
    lines.append(_target(f"largest share of time outside the network ({name})", f"{share:.2%}", SHARE, share))
    growth = {name: list(row.values())[-1] / next(iter(row.values())) for name, row in record["memory"].items()}
    name = max(growth, key=lambda each: growth[each])
    lines.append(
        _target(f"largest growth of memory with the steps ({name})", f"{growth[name]:.3f}", GROWTH, growth[name])
    )
    return lines


def _target(what: str, text: str, target: float, value: float) -> str:
    return f"{what}: {text} (target at most {target:g}, {'met' if value <= target else 'NOT met'})"
