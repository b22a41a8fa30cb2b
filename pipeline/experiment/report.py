"""The report of one profile: a single offline page, and the numbers behind it as CSV and JSON.

`report_inputs` reads and checks what the stages left, `tables` computes, `figures` draws, the other `report_...`
put together what is said and shown; here it is written down.
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

from pipeline.errors import ConfigError
from pipeline.experiment.record import write_bytes
from pipeline.experiment.report_ablations import Study, plot_tables, study
from pipeline.experiment.report_circuit import BITS, Prior, headline, hidden_share, numbers, priors, shows_nothing
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
from pipeline.experiment.report_judge import BAND, COLUMNS, WORLDS, Judgement, read_judgement
from pipeline.experiment.report_judge import numbers as judge_numbers
from pipeline.experiment.report_pictures import Truth, grids, model
from pipeline.experiment.report_sheets import INSIGHTS, insights, strips
from pipeline.experiment.report_steering import PARTS
from pipeline.experiment.report_steering import numbers as steering_numbers
from pipeline.experiment.tables import KEYS, METRICS, average_ranks, count_wins, places, standing

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    *, profile: str, runs: Path, out: Path, params: Mapping[str, Any], truth: Truth, judge: Path | None = None
) -> Path:
    """Write a profile's report into `out` and return the path of its page.

    Args:
        profile: name of the profile, a folder under `runs`.
        runs: folder that holds one folder per profile.
        out: folder for index.html, scores.csv, table.csv, table.json, metrics.json and plots/.
        params: resolved params.yaml; `sweep` says what must be there, `report` holds `reference` (a method of the
            sweep, by default its first), `images` (the most images of a picture grid) and `bootstrap` (resamples).
        truth: gives a dataset's test images as (keys, uint8 [N, S, S, 3]).
        judge: record of the exact judge; without such a file the page has no section on it.

    Raises:
        InputError: something the sweep asks for is missing or does not fit the rest.
        ConfigError: the reference is not a method of the sweep.
    """
    findings = read_findings(runs / profile, params["sweep"])
    results = arrange(findings, params["report"])
    costs = [cost(findings, method) for method in findings.methods]
    circuits = priors(findings)
    judgement = read_judgement(judge)
    studied = study(findings, results, params["report"]["bootstrap"])
    page = _render(
        profile=profile,
        findings=findings,
        results=results,
        costs=costs,
        verdict=verdict(results, costs),
        plots=cost_plots(results, costs),
        grids=grids(findings, truth, params["report"]["images"]),
        models=[model(name, trainings) for name, trainings in findings.trainings.items() if name in MODELS],
        priors=circuits,
        judge=judgement,
        study=studied,
        strips=strips(findings),
        insights=insights(findings),
        provenance=provenance(findings),
        times=times(findings),
        **_settings(params),
    )
    _write(out, _numbers(findings, results, costs, circuits, judgement, studied) | {"index.html": page})
    logger.info("Report of %s: %s (%.1f MB)", profile, out / "index.html", len(page) / 1e6)
    return out / "index.html"


def _settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """What the page says of the parameters."""
    return {"params": _yaml(params), "resamples": params["report"]["bootstrap"], "size": params["image_size"]}


def _write(out: Path, files: Mapping[str, str]) -> None:
    """Write files by path relative to `out`, and remove plots that are no longer among them."""
    for stale in set((out / "plots").rglob("*.csv")) - {out / name for name in files}:
        stale.unlink()
    for name, text in files.items():
        write_bytes(out / name, text.encode())


def _render(**contents: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "BITS": BITS,
        "INSIGHTS": INSIGHTS,
        "JUDGED": COLUMNS,
        "JUDGE_BAND": BAND,
        "JUDGE_WORLDS": WORLDS,
        "METRICS": METRICS,
        "MODELS": MODELS,
        "STEERING_PARTS": PARTS,
        "average_ranks": average_ranks,
        "finite": np.isfinite,
        "flat": flat,
        "hidden_share": hidden_share,
        "places": places,
        "shows_nothing": shows_nothing,
        "standing": standing,
        "wins": count_wins,
    }
    environment.filters |= {"duration": duration, "pretty": _json, "svg": Markup}
    return environment.get_template("report.html.j2").render(contents)


def _numbers(
    findings: Findings,
    results: Results,
    costs: Sequence[Cost],
    circuits: Mapping[str, Prior],
    judgement: Judgement | None,
    studied: Study | None,
) -> dict[str, str]:
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
    table: dict[str, Any] = {"lpips": findings.lpips, "reference": results.methods[results.reference], "rows": lines}
    if circuits:
        table["circuit"] = {dataset: numbers(prior) for dataset, prior in circuits.items()}
    if judgement is not None:
        table["judge"] = judge_numbers(judgement)
    if studied is not None:
        table["steering"] = steering_numbers(studied.steering)
    files = {
        "scores.csv": _csv(columns, scores),
        "table.csv": _csv(tuple(lines[0]), (line.values() for line in lines)),
        "table.json": _json(table),
        "metrics.json": _json(_metrics_tree(results, circuits)),
        "plots/pareto.csv": _csv(("method", "metric", "mean", *passes), pareto),
    }
    for name, (header, rows) in (plot_tables(studied, results) if studied else {}).items():
        files[f"plots/{name}.csv"] = _csv(header, rows)
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
        tree[dataset]["circuit"] = headline(prior)
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


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _yaml(value: Mapping[str, Any]) -> str:
    buffer = io.StringIO()
    YAML().dump(json.loads(json.dumps(value)), buffer)
    return buffer.getvalue()
