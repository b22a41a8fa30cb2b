"""What stands beside the pages as CSV and JSON: every number on them, and plots for DVC."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.experiment.report_ablations import Study, plot_tables
from pipeline.experiment.report_circuit import Prior
from pipeline.experiment.report_circuit import headline as bits_headline
from pipeline.experiment.report_circuit import numbers as circuit_numbers
from pipeline.experiment.report_contents import Results
from pipeline.experiment.report_cost import Cost
from pipeline.experiment.report_inputs import Findings, Training
from pipeline.experiment.report_judge import Judgement
from pipeline.experiment.report_judge import numbers as judge_numbers
from pipeline.experiment.report_steering import numbers as steering_numbers
from pipeline.experiment.report_table import row_places
from pipeline.experiment.summary import headline, summarise
from pipeline.experiment.tables import KEYS


def number_files(
    findings: Findings,
    results: Results,
    costs: Sequence[Cost],
    circuits: Mapping[str, Prior],
    judgement: Judgement | None,
    studied: Study | None,
) -> dict[str, str]:
    """Everything written beside the pages, by path relative to the report's folder.

    Raises:
        ConfigError: a mask is called as the block of the bits is.
    """
    main, lines = results.main.name, _table_lines(results)
    columns = (*KEYS, *findings.metrics)
    scores = ([row[name] for name in columns] for rows in findings.scores.values() for row in rows)
    summed = summarise(results.found[main], results.cubes[main], results.methods, results.reference)
    table: dict[str, Any] = {"lpips": findings.lpips, "reference": results.methods[results.reference], "rows": lines}
    if circuits:
        table["circuit"] = {dataset: circuit_numbers(prior) for dataset, prior in circuits.items()}
    if judgement is not None:
        table["judge"] = judge_numbers(judgement)
    if studied is not None:
        table["steering"] = steering_numbers(studied.steering)
    files = {
        "scores.csv": _csv(columns, scores),
        "summary.csv": _csv(tuple(summed[0]), (line.values() for line in summed)),
        "table.csv": _csv(tuple(lines[0]), (line.values() for line in lines)),
        "table.json": pretty(table),
        "metrics.json": pretty({"all settings": headline(summed)} | _metrics_tree(results, circuits)),
        "plots/pareto.csv": _pareto_csv(results, costs),
    }
    for name, (header, rows) in (plot_tables(studied, results) if studied else {}).items():
        files[f"plots/{name}.csv"] = _csv(header, rows)
    for name, trainings in findings.trainings.items():
        for dataset, training in trainings.items():
            files[f"plots/curves/{name}_{dataset}.csv"] = _curve_csv(training)
    return files


def _pareto_csv(results: Results, costs: Sequence[Cost]) -> str:
    """Mean of the main metric, and seconds and evaluations per image, of each method."""
    name, overall = results.main.name, results.rows[results.main.name][-1].mean
    header = ("method", "metric", "mean", "seconds_per_image", *costs[0].evaluations)
    lines = ([c.method, name, mean, c.seconds, *c.evaluations.values()] for c, mean in zip(costs, overall, strict=True))
    return _csv(header, lines)


def _table_lines(results: Results) -> list[dict[str, Any]]:
    """One entry per (metric, dataset, mask, method), averages included; no interval is None."""
    fields = ("mean", "low", "high", "difference", "difference_low", "difference_high")
    lines = []
    for name, rows in results.rows.items():
        for row in rows:
            for index, method in enumerate(results.methods):
                line: dict[str, Any] = {"metric": name, "dataset": row.dataset, "mask": row.mask, "method": method}
                values = {field: float(getattr(row, field)[index]) for field in fields}
                line |= {field: value if np.isfinite(value) else None for field, value in values.items()}
                lines.append(line | {"place": int(row_places(row, results.metrics[name])[index])})
    return lines


def _metrics_tree(results: Results, circuits: Mapping[str, Prior]) -> dict[str, dict[str, dict[str, Any]]]:
    """Means of the main metric as {dataset: {mask: {method: mean}}}, averages among them; bits as {dataset: circuit}.

    Raises:
        ConfigError: a mask is called as the block of the bits is.
    """
    if circuits and "circuit" in results.masks:
        raise ConfigError("sweep.masks: a mask cannot be called circuit, because metrics.json does; rename the mask.")
    tree: dict[str, dict[str, dict[str, Any]]] = {}
    for row in results.rows[results.main.name]:
        means = {method: round(float(row.mean[index]), 6) for index, method in enumerate(results.methods)}
        tree.setdefault(row.dataset, {})[row.mask] = means
    for dataset, prior in circuits.items():
        tree[dataset]["circuit"] = bits_headline(prior)
    return tree


def _curve_csv(training: Training) -> str:
    """One line per step, one column per metric, blank where a metric was not measured at that step."""
    lines: dict[float, dict[str, float]] = {}
    for name, (steps, values) in training.curve.items():
        for step, seconds, value in zip(steps, training.seconds[name], values, strict=True):
            lines.setdefault(step, {"seconds": seconds})[name] = value
    columns = ("seconds", *training.curve)
    rows = ([int(step), *(lines[step].get(name, "") for name in columns)] for step in sorted(lines))
    return _csv(("step", *columns), rows)


def _csv(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def pretty(value: object) -> str:
    """Write as JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
