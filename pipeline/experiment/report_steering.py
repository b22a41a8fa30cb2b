"""What the report says of steering: whether steered rows are better than their bases, and what they cost.

Every comparison is paired over images, with the statistics of `tables`. A row's parameters and times are those of its
cells' records.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.experiment.report_contents import Results, listing, tally
from pipeline.experiment.report_cost import PARTS
from pipeline.experiment.report_inputs import Findings, Record
from pipeline.experiment.report_table import Row, row_places, standing, table_rows
from pipeline.experiment.statistics import count_wins
from pipeline.experiment.tables import Metric

PUBLISHED = {"settings": 21, "better": 18, "best": 14}
"""Liu et al. 2024 (arXiv 2401.03349): Tiramisu against CoPaint, and against all methods."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A row compared with another over all settings, by the main metric."""

    to: str
    settings: int
    better: int
    """Settings with a better mean, as printed."""
    tied: tuple[str, ...]
    """Settings whose means print equal."""
    clearly_better: int
    """Settings in which the interval of the paired difference leaves out zero, on the better side."""
    clearly_worse: int
    mean: float
    """Paired difference, over all settings."""
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Split:
    """Seconds and evaluations per image and sample, means over a row's cells."""

    seconds: float
    parts: dict[str, float]
    """By the names of `PARTS`."""
    evaluations: dict[str, float]

    @property
    def steering(self) -> float:
        """Seconds of all parts."""
        return sum(self.parts.values())

    @property
    def rest(self) -> float:
        """Seconds of the network and the sampler."""
        return self.seconds - self.steering

    @property
    def passes(self) -> float:
        """Network passes, forward and backward together."""
        return self.evaluations["forwards"] + self.evaluations["backwards"]


@dataclass(frozen=True, kw_only=True)
class SteeredRow:
    """A steered row of the sweep."""

    name: str
    index: int
    """Among all rows of the sweep."""
    base: str
    settings: dict[str, Any]
    """`warm`, and how it is steered."""
    best: int
    """Settings in which no other row of the sweep has a better mean."""
    shared: int
    """Of these, settings in which another row's mean prints equal."""
    split: Split
    base_split: Split | None
    """None, like `effect`, if the base is not in the sweep."""
    effect: Effect | None

    @property
    def extra(self) -> float | None:
        """Additional time as a share of the base's."""
        return None if self.base_split is None else self.split.seconds / self.base_split.seconds - 1.0


@dataclass(frozen=True, kw_only=True)
class Steering:
    """Everything the page says of steering."""

    rows: tuple[SteeredRow, ...]
    lines: dict[str, list[Row]]
    """By base in the sweep: lines of the results with differences to it."""
    said: tuple[str, ...]
    """A sentence for each row whose base is in the sweep."""
    published: str | None
    """What the paper counted, if there are as many settings."""
    uneven: str
    """On what rows and bases were timed, if not all on the same; else empty."""

    def seconds(self, name: str) -> float:
        """Seconds per image of a row, or of a base that is in the sweep."""
        known = {row.name: row.split for row in self.rows} | {r.base: r.base_split for r in self.rows if r.base_split}
        return known[name].seconds

    @property
    def compared(self) -> tuple[SteeredRow, ...]:
        """Rows whose base is in the sweep."""
        return tuple(row for row in self.rows if row.effect)


def steering(findings: Findings, results: Results) -> Steering | None:
    """Collect what is known of the steered rows; None if the sweep has none.

    Raises:
        InputError: a record of a steered cell lacks what its stage promises, or cells of one row differ in parameters.
    """
    names = [name for name in findings.methods if any("steering" in cell["params"] for cell in _cells(findings, name))]
    if not names:
        return None
    told = {name: _params(findings, name) for name in names}
    bases = [base for base in dict.fromkeys(params["base"] for params in told.values()) if base in results.methods]
    lines = {base: differences(results, base) for base in bases}
    rows = tuple(_row(findings, results, name, told[name], lines) for name in names)
    found = [row for row in rows if row.effect]
    wanted = len(findings.datasets) * len(findings.masks) == PUBLISHED["settings"]
    return Steering(
        rows=rows,
        lines=lines,
        said=tuple(sentence(row, results.main, len(results.methods)) for row in found),
        published=_published() if wanted and found else None,
        uneven=_uneven(findings, [*names, *bases]),
    )


def differences(results: Results, reference: str) -> list[Row]:
    """Lines of the main metric's table, with differences to `reference`."""
    return table_rows(results.found[results.main.name], results.methods.index(reference))


def compare(lines: Sequence[Row], results: Results, name: str, to: str) -> Effect:
    """Count and average the differences of the row `name` to the row `to`, which `lines` are relative to."""
    metric, index, reference = results.main, results.methods.index(name), results.methods.index(to)
    settings = [line for line in lines if not line.is_average]
    placed = [row_places(line, metric)[[index, reference]] for line in settings]
    stands = [standing(line, metric)[index] for line in settings]
    last = lines[-1]
    return Effect(
        to=to,
        settings=len(settings),
        better=sum(bool(ours < theirs) for ours, theirs in placed),
        tied=tuple(
            f"{line.dataset} {line.mask}"
            for line, (ours, theirs) in zip(settings, placed, strict=True)
            if ours == theirs
        ),
        clearly_better=stands.count("better"),
        clearly_worse=stands.count("worse"),
        mean=float(last.difference[index]),
        low=float(last.difference_low[index]),
        high=float(last.difference_high[index]),
    )


def sentence(row: SteeredRow, metric: Metric, rows: int) -> str:
    """Say how a row stands to its base and to all rows."""
    effect = row.effect
    if effect is None:
        raise ValueError(f"{row.name} is compared with nothing")
    said = f"{row.name} is better than {row.base}, its base, in {effect.better} of {effect.settings} settings"
    if effect.tied:
        said += f" and equal in {listing(effect.tied) if len(effect.tied) <= 3 else len(effect.tied)}"
    said += f" by {metric.label}; the interval of the difference leaves out zero in {effect.clearly_better}"
    said += f", and in {effect.clearly_worse} where it is worse" if effect.clearly_worse else ""
    said += f". The mean difference is {metric.text(effect.mean, sign=True)}"
    if np.isfinite(effect.low):
        said += f" ({metric.text(effect.low, sign=True)} to {metric.text(effect.high, sign=True)})"
    shared = f", {row.shared} shared" if row.shared else ""
    return f"{said}. It is the best of all {rows} rows in {row.best} of {effect.settings} settings{shared}."


def numbers(found: Steering) -> list[dict[str, Any]]:
    """Everything the page says of each row in numbers, ready to be written as JSON; no interval is None."""
    told = []
    for row in found.rows:
        line: dict[str, Any] = {"row": row.name, "base": row.base, "settings": row.settings, "best": row.best}
        line |= {"shared": row.shared, "extra": row.extra}
        line["seconds"] = {"all": row.split.seconds, "rest": row.split.rest} | row.split.parts
        if row.effect:
            line["effect"] = vars(row.effect) | {
                end: value if np.isfinite(value) else None
                for end, value in (("low", row.effect.low), ("high", row.effect.high))
            }
        told.append(line)
    return told


def _published() -> str:
    return (
        f"Liu et al. 2024 (photographs of 256 × 256 pixels, LPIPS) count {PUBLISHED['better']} of "
        f"{PUBLISHED['settings']} settings in which Tiramisu is better than CoPaint, and {PUBLISHED['best']} in which "
        "it is the best of all methods."
    )


def _uneven(findings: Findings, names: Sequence[str]) -> str:
    """Name devices and batch sizes of rows, if they are not all the same."""
    told = {}
    for name in names:
        measured = [record["measured"] for record in _cells(findings, name)]
        told[name] = tally(f"{entry['device']}, batch {entry['batch_size']}" for entry in measured)
    return "" if len(set(told.values())) == 1 else "; ".join(f"{name} on {where}" for name, where in told.items())


def _cells(findings: Findings, name: str) -> list[Record]:
    return [record for (_, _, of), record in findings.cells.items() if of == name]


def _params(findings: Findings, name: str) -> dict[str, Any]:
    """The parameters that all cells of a steered row share: `base`, `warm`, `steering` and the base's own."""
    first, *others = (record["params"] for record in _cells(findings, name))
    lacking = {"base", "warm", "steering"} - first.keys()
    if lacking or first["base"] not in first or any(other != first for other in others):
        fault = f"lack {listing(sorted(lacking))}" if lacking else "differ between cells, or lack those of the base"
        raise InputError(f"Parameters of the steered row {name} {fault}; run the inpaint_steered stage for it again.")
    return dict(first)


def _row(
    findings: Findings, results: Results, name: str, params: Mapping[str, Any], lines: Mapping[str, list[Row]]
) -> SteeredRow:
    base, index, metric = params["base"], results.methods.index(name), results.main
    wins = count_wins(results.found[metric.name])
    return SteeredRow(
        name=name,
        index=index,
        base=base,
        settings={"warm": params["warm"], **params["steering"]},
        best=int(wins.total[index]),
        shared=int(wins.shared[index]),
        split=_split(_cells(findings, name), PARTS, name),
        base_split=_split(_cells(findings, base), (), base) if base in lines else None,
        effect=compare(lines[base], results, name, base) if base in lines else None,
    )


def _split(records: Sequence[Record], parts: Sequence[str], name: str) -> Split:
    try:
        split = {part: [record["measured"]["split"].get(part, 0.0) for record in records] for part in parts}
    except KeyError as error:
        raise InputError(
            f"A cell of the steered row {name} does not say how its time is split; run the inpaint_steered stage for "
            "it again."
        ) from error
    return Split(
        seconds=_mean(record["measured"]["seconds_per_image"] for record in records),
        parts={part: _mean(values) for part, values in split.items()},
        evaluations={kind: _mean(r["evaluations"][kind] for r in records) for kind in records[0]["evaluations"]},
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
