"""What the report says in numbers and words: results, costs, a verdict and provenance, from what was found on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.experiment.figures import Point, pareto_plot
from pipeline.experiment.report_inputs import Findings
from pipeline.experiment.tables import METRICS, Array, Metric, Row, collect, count_wins, pareto_front, places, summarise

EVALUATIONS = ("forwards", "backwards", "circuit", "codec")


@dataclass(frozen=True, kw_only=True)
class Results:
    """Scores arranged and summarised; metrics in the order they are offered, the LPIPS in use first."""

    methods: tuple[str, ...]
    masks: tuple[str, ...]
    reference: int
    """Index of the method that differences are taken to."""
    ids: dict[str, list[str]]
    """Image ids by dataset, the last axis of its cubes."""
    cubes: dict[str, dict[str, Array]]
    """Metric name, then dataset -> [masks, methods, images]."""
    rows: dict[str, list[Row]]
    """Metric name -> lines of its table."""

    @property
    def main(self) -> Metric:
        """The LPIPS in use."""
        return METRICS[next(iter(self.rows))]

    def score(self, dataset: str, mask: str, method: int, image_id: str) -> float:
        """The main metric of one image, averaged over its samples."""
        cube = self.cubes[self.main.name][dataset]
        return float(cube[self.masks.index(mask), method, self.ids[dataset].index(image_id)])


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one method costs per image and sample."""

    method: str
    seconds: float
    """Median over its cells."""
    evaluations: dict[str, float]
    """Mean over its cells, for each kind of evaluation."""
    devices: str
    batch_sizes: str

    @property
    def passes(self) -> float:
        """Network passes, forward and backward together."""
        return self.evaluations["forwards"] + self.evaluations["backwards"]


def arrange(findings: Findings, options: Mapping[str, Any]) -> Results:
    """Collect and summarise every metric.

    Args:
        findings: what is on disk.
        options: `bootstrap`, the number of resamples, and `reference`, the method differences are taken to; without
            one, the first method of the sweep.

    Raises:
        ConfigError: the reference is not a method of the sweep.
        InputError: scores are missing, doubled or of different images.
    """
    methods, masks = findings.methods, findings.masks
    name = options.get("reference") or methods[0]
    if name not in methods:
        raise ConfigError(
            f"report.reference is {name!r}, which is not a method of the sweep; expected one of {', '.join(methods)}."
        )
    reference = methods.index(name)
    found = {
        dataset: collect(rows, findings.metrics, dataset=dataset, masks=masks, methods=methods)
        for dataset, rows in findings.scores.items()
    }
    cubes = {name: {dataset: values[name] for dataset, (_, values) in found.items()} for name in findings.metrics}
    rows = {
        name: summarise(cubes[name], masks, METRICS[name], reference=reference, resamples=options["bootstrap"])
        for name in findings.metrics
    }
    ids = {dataset: images for dataset, (images, _) in found.items()}
    return Results(methods=methods, masks=masks, reference=reference, ids=ids, cubes=cubes, rows=rows)


def cost(findings: Findings, method: str) -> Cost:
    """Sum up what the records of a method's cells say of time and evaluations."""
    records = [record for (_, _, of), record in findings.cells.items() if of == method]
    measured = [record["measured"] for record in records]
    return Cost(
        method=method,
        seconds=float(np.median([entry["seconds_per_image"] for entry in measured])),
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


def provenance(findings: Findings) -> list[tuple[str, str]]:
    """Say on what machine, from which commit and with which versions the records were made."""
    records = [training.record for found in findings.trainings.values() for training in found.values()]
    measured = [record["measured"] for record in [*records, *findings.cells.values()]]
    facts = [
        ("commit", tally(entry["git_commit"] for entry in measured)),
        ("execution", tally(entry["execution"] for entry in measured)),
        ("device", tally(entry["device"] for entry in measured)),
    ]
    for group in ("hardware", "versions"):
        for key in dict.fromkeys(key for entry in measured for key in entry[group]):
            values = [entry[group].get(key) for entry in measured]
            facts.append((key.replace("_", " "), tally("none" if value is None else value for value in values)))
    return facts


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a record by their path in it, apart from its schema and what was measured."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping) and key != "measured":
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key != "schema":
            found[prefix + key] = value
    return found


def times(findings: Findings) -> dict[str, dict[str, float]]:
    """Wall time in seconds by stage, then dataset; for inpainting, of the sampling of all images."""
    found: dict[str, dict[str, float]] = {}
    for trainings in findings.trainings.values():
        for dataset, training in trainings.items():
            found.setdefault(training.record["stage"], {})[dataset] = float(training.record["measured"]["seconds"])
    for name, record in findings.stages.items():
        if "seconds" in record.get("measured", {}):
            stage, _, dataset = str(Path(name).parent).partition("/")
            found.setdefault(stage, {})[dataset] = float(record["measured"]["seconds"])
    for (dataset, _, method), cell in findings.cells.items():
        seconds = cell["measured"]["seconds_per_image"] * len(cell["image_ids"]) * cell["samples"]
        line = found.setdefault(f"inpaint, {method}", {})
        line[dataset] = line.get(dataset, 0.0) + seconds
    return found


def tally(values: Iterable[object]) -> str:
    """Name the distinct values, with their counts if there are several, the most frequent first."""
    counts = Counter(map(str, values)).most_common()
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{value} ({count}×)" for value, count in counts)


def verdict(results: Results, costs: Sequence[Cost]) -> str:
    """Say in one sentence who is best how often, how surely and at what cost."""
    metric, methods, rows = results.main, results.methods, results.rows[results.main.name]
    wins, overall, seconds = count_wins(rows, metric), rows[-1].mean, [entry.seconds for entry in costs]
    top, fastest = int(wins.total.max()), int(np.argmin(seconds))
    leaders = [index for index in range(len(methods)) if wins.total[index] == top]
    if len(methods) == 1:
        result = f"{metric.label} {metric.text(overall[0])} on average over {wins.settings} settings"
        return f"{methods[0]} is the only method of this sweep: {result}, at {duration(seconds[0])} per image."
    sentence = (
        f"{listing([methods[i] for i in leaders])} {'has' if len(leaders) == 1 else 'each have'} "
        f"the {metric.best} {metric.label} in {top} of {wins.settings} settings"
    )
    if len(leaders) == 1:
        shared, clear = wins.shared[leaders[0]], wins.clear[leaders[0]]
        sentence += f" ({shared} shared)" if shared else ""
        sentence += f", {f'clearly in {clear}' if clear else 'in none clearly'} (paired 95 % intervals)"
    sentence += f", at {listing([duration(seconds[i]) for i in leaders])} per image"
    if leaders == [fastest]:
        sentence += ", the least time of all"
    else:
        times = listing([f"{seconds[i] / seconds[fastest]:.1f}" for i in leaders])
        sentence += f": {times} times as long as {methods[fastest]}, the fastest"
    best = [index for index, place in enumerate(places(overall, metric)) if place == 1]
    if not set(best) & set(leaders):
        names = listing([methods[i] for i in best])
        sentence += f"; the {metric.best} mean, {metric.text(overall[best[0]])}, is that of {names}"
    return sentence + "."


def listing(words: Sequence[str]) -> str:
    """Join words as one says them: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def duration(seconds: float) -> str:
    """Print a length of time, never broken between lines: 35 ms, 3.21 s, 4 min 10 s, 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 0.0995:
        text = f"{1000 * seconds:.2g} ms"
    elif seconds < 99.95:
        text = f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    else:
        text = f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
    return text.replace(" ", "\N{NO-BREAK SPACE}")
