"""What methods cost: seconds and evaluations per image, how the seconds split, and quality against both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.experiment.cost_figures import Point, pareto_plot
from pipeline.experiment.report_contents import Results, tally
from pipeline.experiment.report_inputs import Findings
from pipeline.experiment.tables import pareto_front

EVALUATIONS = ("forwards", "backwards", "circuit", "codec")
PARTS = ("encode", "circuit", "decode", "fusion")
"""Parts of steering that records time; what is left of a row's time is that of the network and the sampler."""
NETWORK = "network and sampler"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one method costs per image and sample."""

    method: str
    seconds: float
    """Median over its cells."""
    evaluations: dict[str, float]
    """Mean over its cells, for each kind of evaluation."""
    shares: dict[str, float]
    """Of the time: what the network and the sampler took, then each of `PARTS` that took any."""
    devices: str
    batch_sizes: str

    @property
    def passes(self) -> float:
        """Network passes, forward and backward together."""
        return self.evaluations["forwards"] + self.evaluations["backwards"]


def cost(findings: Findings, method: str) -> Cost:
    """Sum up what the records of a method's cells say of time and evaluations."""
    records = [record for (_, _, of), record in findings.cells.items() if of == method]
    measured = [record["measured"] for record in records]
    seconds = [entry["seconds_per_image"] for entry in measured]
    split = {part: sum(entry.get("split", {}).get(part, 0.0) for entry in measured) / sum(seconds) for part in PARTS}
    return Cost(
        method=method,
        seconds=float(np.median(seconds)),
        shares={NETWORK: 1.0 - sum(split.values())} | {part: share for part, share in split.items() if share},
        evaluations={k: float(np.mean([record["evaluations"].get(k, 0.0) for record in records])) for k in EVALUATIONS},
        devices=tally(entry["device"] for entry in measured),
        batch_sizes=tally(entry["batch_size"] for entry in measured),
    )


def cost_plots(results: Results, costs: Sequence[Cost]) -> list[str]:
    """Draw the overall mean of the main metric against seconds and against network passes."""
    metric, overall = results.main, results.rows[results.main.name][-1]
    y_label = f"{metric.label} ({'higher' if metric.higher else 'lower'} is better)"
    plots = []
    for x_label, values in (
        ("seconds per image", [cost.seconds for cost in costs]),
        ("network passes per image", [cost.passes for cost in costs]),
    ):
        front = pareto_front(np.array(values), metric.sign * overall.mean)
        points = [
            Point(
                label=method,
                x=values[index],
                y=overall.mean[index],
                low=overall.low[index],
                high=overall.high[index],
                front=bool(front[index]),
            )
            for index, method in enumerate(results.methods)
        ]
        plots.append(pareto_plot(points, x_label=x_label, y_label=y_label))
    return plots
