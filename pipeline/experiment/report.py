"""The report of one profile: a single offline page, and the numbers behind it as CSV and JSON.

`report_inputs` reads and checks what the stages left, `tables` computes, `figures` draws, `report_contents` and
`report_pictures` put together what is said and shown; here it is written down.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from ruamel.yaml import YAML

from pipeline.experiment.record import write_bytes
from pipeline.experiment.report_contents import (
    Cost,
    Results,
    arrange,
    cost,
    cost_plots,
    duration,
    flat,
    provenance,
    times,
    verdict,
)
from pipeline.experiment.report_inputs import MODELS, Findings, Training, read_findings
from pipeline.experiment.report_pictures import Truth, grids, model
from pipeline.experiment.tables import KEYS, METRICS, average_ranks, count_wins, places, standing

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"


def write_report(*, profile: str, runs: Path, out: Path, params: Mapping[str, Any], truth: Truth) -> Path:
    """Write a profile's report into `out` and return the path of its page.

    Args:
        profile: name of the profile, a folder under `runs`.
        runs: folder that holds one folder per profile.
        out: folder for index.html, scores.csv, table.csv, table.json, metrics.json and plots/.
        params: resolved params.yaml; `sweep` says what must be there, `report` holds `reference` (a method of the
            sweep, by default its first), `images` (the most images of a picture grid) and `bootstrap` (resamples).
        truth: gives a dataset's test images as (keys, uint8 [N, S, S, 3]).

    Raises:
        InputError: something the sweep asks for is missing or does not fit the rest.
        ConfigError: the reference is not a method of the sweep.
    """
    findings = read_findings(runs / profile, params["sweep"])
    results = arrange(findings, params["report"])
    costs = [cost(findings, method) for method in findings.methods]
    page = _render(
        profile=profile,
        findings=findings,
        results=results,
        costs=costs,
        verdict=verdict(results, costs),
        plots=cost_plots(results, costs),
        grids=grids(findings, truth, params["report"]["images"]),
        models=[model(name, trainings) for name, trainings in findings.trainings.items()],
        provenance=provenance(findings),
        times=times(findings),
        params=_yaml(params),
        resamples=params["report"]["bootstrap"],
        size=params["image_size"],
    )
    files = _numbers(findings, results, costs)
    for stale in set((out / "plots" / "curves").glob("*.csv")) - {out / name for name in files}:
        stale.unlink()
    for name, text in (files | {"index.html": page}).items():
        write_bytes(out / name, text.encode())
    logger.info("Report of %s: %s (%.1f MB)", profile, out / "index.html", len(page) / 1e6)
    return out / "index.html"


def _render(**contents: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "METRICS": METRICS,
        "MODELS": MODELS,
        "average_ranks": average_ranks,
        "finite": np.isfinite,
        "flat": flat,
        "places": places,
        "standing": standing,
        "wins": count_wins,
    }
    environment.filters |= {"duration": duration, "pretty": _json, "svg": Markup}
    return environment.get_template("report.html.j2").render(contents)


def _numbers(findings: Findings, results: Results, costs: Sequence[Cost]) -> dict[str, str]:
    """Everything written beside the page, by path relative to the report's folder."""
    columns = (*KEYS, *findings.metrics)
    scores = ([row[name] for name in columns] for rows in findings.scores.values() for row in rows)
    lines = _table_lines(results)
    overall = results.rows[results.main.name][-1].mean
    passes = ("seconds_per_image", *costs[0].evaluations)
    pareto = (
        [entry.method, results.main.name, overall[index], entry.seconds, *entry.evaluations.values()]
        for index, entry in enumerate(costs)
    )
    files = {
        "scores.csv": _csv(columns, scores),
        "table.csv": _csv(tuple(lines[0]), (line.values() for line in lines)),
        "table.json": _json({"lpips": findings.lpips, "reference": results.methods[results.reference], "rows": lines}),
        "metrics.json": _json(_metrics_tree(results)),
        "plots/pareto.csv": _csv(("method", "metric", "mean", *passes), pareto),
    }
    for name, trainings in findings.trainings.items():
        for dataset, training in trainings.items():
            files[f"plots/curves/{name}_{dataset}.csv"] = _curve_csv(training)
    return files


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
                lines.append(line | {"place": int(places(row.mean, METRICS[name])[index])})
    return lines


def _metrics_tree(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """Means of the main metric as {dataset: {mask: {method: mean}}}, averages among them."""
    tree: dict[str, dict[str, dict[str, float]]] = {}
    for row in results.rows[results.main.name]:
        means = {method: round(float(row.mean[index]), 6) for index, method in enumerate(results.methods)}
        tree.setdefault(row.dataset, {})[row.mask] = means
    return tree


def _curve_csv(training: Training) -> str:
    """One line per step, one column per metric, blank where a metric was not measured at that step."""
    lines: dict[float, dict[str, float]] = {}
    for name, (steps, values) in training.curve.items():
        for step, value in zip(steps, values, strict=True):
            lines.setdefault(step, {})[name] = value
    rows = ([int(step), *(lines[step].get(name, "") for name in training.curve)] for step in sorted(lines))
    return _csv(("step", *training.curve), rows)


def _csv(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _yaml(value: Mapping[str, Any]) -> str:
    buffer = io.StringIO()
    YAML().dump(json.loads(json.dumps(value)), buffer)
    return buffer.getvalue()
