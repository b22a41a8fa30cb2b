"""The report of one profile: a folder of pages that open from disk, and the numbers behind them as CSV and JSON.

Every page holds all it needs, pictures included, so that it can be passed on by itself; links lead to the others.
`report_inputs` reads and checks what the stages left, `statistics` computes, the other `report_...` put together what
is said and shown; here it is written down.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from ruamel.yaml import YAML

from pipeline.experiment.record import write_bytes
from pipeline.experiment.report_ablations import study
from pipeline.experiment.report_circuit import BITS, hidden_share, priors, sentence, shows_nothing
from pipeline.experiment.report_contents import Results, arrange, duration, flat, provenance, times
from pipeline.experiment.report_cost import NETWORK, PARTS, cost, cost_plots
from pipeline.experiment.report_inputs import MODELS, Findings, read_findings
from pipeline.experiment.report_judge import BAND, COLUMNS, WORLDS, read_judgement
from pipeline.experiment.report_numbers import number_files, pretty
from pipeline.experiment.report_pictures import Truth, grids, model
from pipeline.experiment.report_sheets import INSIGHTS, insights, strips
from pipeline.experiment.report_table import row_places, standing
from pipeline.experiment.report_verdict import verdict
from pipeline.experiment.report_viewer import band, viewer
from pipeline.experiment.statistics import average_rank, count_wins

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
PAGES = {
    "index.html": "Verdict",
    "pictures.html": "Pictures",
    "steering.html": "Steering",
    "circuit.html": "The circuit",
    "methodology.html": "How it was judged",
    "record.html": "How it was made",
}
"""File of each page and its title; the template has the file's name."""

SPLITS = {"test": "test", "val": "validation"}
"""What the pages call the images of each split."""


def write_report(
    *, profile: str, runs: Path, out: Path, params: Mapping[str, Any], truth: Truth, judge: Path | None = None
) -> Path:
    """Write a profile's report into `out` and return the path of its first page.

    Args:
        profile: name of the profile, a folder under `runs`.
        runs: folder that holds one folder per profile.
        out: folder for the `PAGES`, scores.csv, summary.csv, table.csv, table.json, metrics.json and plots/.
        params: resolved params.yaml; `sweep` says what must be there, `report` holds `reference` (a method of the
            sweep, by default its first), `images` (the most images of a picture grid) and `bootstrap` (resamples).
        truth: gives the images of a dataset's split as (keys, uint8 [N, S, S, 3]).
        judge: record of the exact judge; without such a file nothing is said of it.

    Raises:
        InputError: something the sweep asks for is missing or does not fit the rest.
        ConfigError: the reference is not a method of the sweep.
    """
    findings = read_findings(runs / profile, params["sweep"])
    results = arrange(findings, params["report"])
    costs = [cost(findings, method) for method in findings.methods]
    circuits = priors(findings)
    judgement = read_judgement(judge)
    studied = study(findings, results)
    files = number_files(findings, results, costs, circuits, judgement, studied)
    files |= _pages(
        profile=profile,
        findings=findings,
        results=results,
        costs=costs,
        verdict=verdict(results, costs),
        plots=cost_plots(results, costs),
        models=[model(name, trainings) for name, trainings in findings.trainings.items() if name in MODELS],
        priors=circuits,
        judge=judgement,
        study=studied,
        strips=strips(findings),
        insights=insights(findings),
        provenance=provenance(findings),
        times=times(findings),
        **_shown(findings, results, truth, params["report"]["images"]),
        **_settings(params),
    )
    _write(out, files)
    size = sum(len(files[name].encode()) for name in PAGES) / 1e6
    logger.info("Report of %s: %s and %d more pages (%.1f MB)", profile, out / "index.html", len(PAGES) - 1, size)
    return out / "index.html"


def _shown(findings: Findings, results: Results, truth: Truth, count: int) -> dict[str, Any]:
    """Pictures of the sweep: all of them, those to page through, and those of the first page."""
    found = grids(findings, truth, count)
    return {"grids": found, "viewer": viewer(found, results), "band": band(found, results)}


def _settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """What the pages say of the parameters."""
    resamples, split = params["report"]["bootstrap"], SPLITS[params["sweep"]["split"]]
    return {"params": _yaml(params), "resamples": resamples, "size": params["image_size"], "split": split}


def _write(out: Path, files: Mapping[str, str]) -> None:
    """Write files by path relative to `out`, and remove plots that are no longer among them."""
    for stale in set((out / "plots").rglob("*.csv")) - {out / name for name in files}:
        stale.unlink()
    for name, text in files.items():
        write_bytes(out / name, text.encode())


def _pages(**contents: Any) -> dict[str, str]:
    """Render every page."""
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
        "MODELS": MODELS,
        "NETWORK": NETWORK,
        "PAGES": PAGES,
        "STEERING_PARTS": PARTS,
        "average_rank": average_rank,
        "circuit_sentence": sentence,
        "finite": np.isfinite,
        "flat": flat,
        "hidden_share": hidden_share,
        "places": row_places,
        "shows_nothing": shows_nothing,
        "standing": standing,
        "wins": count_wins,
    }
    environment.filters |= {"breakable": _breakable, "duration": duration, "pretty": pretty, "svg": Markup}
    return {name: environment.get_template(f"{name}.j2").render(contents, page=name) for name in PAGES}


def _breakable(name: str) -> Markup:
    """Let a name be broken after its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def _yaml(value: Mapping[str, Any]) -> str:
    buffer = io.StringIO()
    YAML().dump(json.loads(json.dumps(value)), buffer)
    return buffer.getvalue()
