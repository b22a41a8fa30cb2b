"""What the stages left under runs/<profile>, read and checked for the report.

Everything the sweep asks for must be there and of one piece: a missing file, scores of other cells than those on disk,
or two kinds of LPIPS are errors that name the file. Only what a profile's DAG has no stage for may be absent.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import Form, InputError, misfit, reason
from pipeline.experiment.cells import unpack
from pipeline.experiment.provenance import file_digest
from pipeline.experiment.record import read_json
from pipeline.experiment.tables import KEYS, METRICS

Record = dict[str, Any]
MODELS = {
    "vqgan": "VQ-GAN",
    "ddpm": "Diffusion model",
}  # folder and title of the networks that show images, in the order of the DAG
PRIORS = ("circuit", "transformer")  # folders of the models of tokens
LPIPS = ("lpips", "lpips_domain")


MEASURED: dict[Any, Form] = {"device": str, "git_commit": str | None, "execution": str}
SCORE: Form = {
    "lpips": {"column": str, "trunk_sha256": str, "reason": str},
    "cells": [{"mask": str, "method": str, "fingerprint": str}],
}
CELL: Form = {
    "mask": str,
    "fingerprint": str,
    "image_ids": [str],
    "samples": int,
    "params": dict,
    "evaluations": {"forwards": float, "backwards": float, str: float},
    "measured": MEASURED | {"seconds_per_image": float, "batch_size": int},
}
RECORD: Form = {
    "stage": str,
    "metrics": dict,
    "artifacts": [str],
    "measured": MEASURED | {"seconds": float},
}
"""What is read from score.json, from the cells of cells.json, and from a training's record.json."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One trained model as its stage left it in `folder`."""

    folder: Path
    record: Record
    curve: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    """(steps, values) per metric."""
    seconds: dict[str, NDArray[np.float64]]
    """Seconds of training at the points of `curve`, per metric."""
    pictures: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything the report says, as it stands on disk."""

    root: Path
    datasets: tuple[str, ...]
    masks: tuple[str, ...]
    methods: tuple[str, ...]
    scores: dict[str, list[dict[str, str]]]
    """Rows of scores.csv by dataset."""
    metrics: tuple[str, ...]
    """Metric columns in the order of `METRICS`; the first is the LPIPS in use."""
    lpips: Record
    """`column`, `trunk_sha256` and `reason`, the same for all datasets."""
    cells: dict[tuple[str, str, str], Record]
    """Cell records by (dataset, mask, method)."""
    trainings: dict[str, dict[str, Training]]
    """By model folder, then dataset; without the kinds of model that no dataset has, or only as an empty folder."""
    stages: dict[str, Record]
    """Other JSON records by path relative to `root`: manifests, tokens, the trunk, LPIPS."""
    hashes: dict[str, str]
    """sha256 of each of these files."""

    def arrays(self, dataset: str, method: str, mask: str, count: int) -> dict[str, NDArray[Any]]:
        """Read `samples` [count, S, H, W, 3] and `known` [count, H, W] of a cell's first images."""
        path = self.root / "inpaint" / dataset / method / f"{mask}.npz"
        if not path.is_file():
            raise InputError(f"{path} is missing; run the inpaint stage for dataset {dataset}, method {method}.")
        cell = unpack(path)
        return {"samples": cell.samples[:count], "known": cell.known[:count]}


def read_findings(root: Path, sweep: Mapping[str, Sequence[str]]) -> Findings:
    """Read what the stages of one profile left under `root` for the sweep's `datasets`, `masks` and rows.

    Raises:
        InputError: something the sweep asks for is missing or does not fit the rest; the message names the file.
    """
    datasets, masks = (tuple(sweep[key]) for key in ("datasets", "masks"))
    methods = (*sweep["methods"], *sweep.get("steered", ()))
    scored = {dataset: _json(root / "scores" / dataset / "score.json", "score", SCORE) for dataset in datasets}
    lpips = _agreed_lpips(root, {dataset: record["lpips"] for dataset, record in scored.items()})
    tables = {dataset: _score_rows(root / "scores" / dataset / "scores.csv", lpips["column"]) for dataset in datasets}
    columns = {dataset: tuple(rows[0].keys() - set(KEYS)) for dataset, rows in tables.items()}
    first = datasets[0]
    for dataset in datasets:
        if set(columns[dataset]) != set(columns[first]):
            odd = ", ".join(sorted(set(columns[dataset]) ^ set(columns[first])))
            raise InputError(
                f"scores.csv of {dataset} and {first} differ in the columns {odd}; run the score stage again."
            )
    cells = _cells(root, datasets, masks, methods)
    _check_fingerprints(root, scored, cells)
    stages = _stage_records(root, datasets)
    return Findings(
        root=root,
        datasets=datasets,
        masks=masks,
        methods=methods,
        scores=tables,
        metrics=tuple(name for name in METRICS if name in columns[first]),
        lpips=lpips,
        cells=cells,
        trainings={
            model: _trainings(root / model, datasets)
            for model in (*MODELS, *PRIORS)
            if any(path for dataset in datasets for path in (root / model / dataset).glob("*"))
        },
        stages=stages,
        hashes={name: file_digest(root / name) for name in stages},
    )


def _json(path: Path, stage: str, form: Form = dict) -> Record:
    if not path.is_file():
        raise InputError(f"{path} is missing, and the sweep asks for it; run the {stage} stage (dvc repro {stage}).")
    record = read_json(path)
    if wrong := misfit(record, form):
        raise InputError(f"{path}: {wrong}; run the {stage} stage again.")
    return record


def _agreed_lpips(root: Path, found: Mapping[str, Record]) -> Record:
    """Return the one LPIPS all datasets were scored with; two kinds or two trunks are never shown in one table."""
    first, *others = found
    for dataset in others:
        for key in ("column", "trunk_sha256"):
            if found[dataset][key] != found[first][key]:
                raise InputError(
                    f"Under {root / 'scores'}, {first} was scored with {key} {found[first][key]}, {dataset} with "
                    f"{found[dataset][key]}; they cannot stand in one table, so score both with the same LPIPS trunk."
                )
    if found[first]["column"] not in LPIPS:
        raise InputError(
            f"score.json of {first} names lpips.column {found[first]['column']!r}; expected one of {LPIPS}."
        )
    return found[first]


def _score_rows(path: Path, column: str) -> list[dict[str, str]]:
    """Read scores.csv and hold it to its columns: the keys, the LPIPS named in score.json and no other kind."""
    if not path.is_file():
        raise InputError(f"{path} is missing, and the sweep asks for it; run the score stage (dvc repro score).")
    rows = _table(path)
    header = set(rows[0]) if rows else set()
    if missing := [name for name in (*KEYS, column) if name not in header]:
        raise InputError(f"{path} lacks rows or the columns {', '.join(missing)}; run the score stage again.")
    if others := [name for name in LPIPS if name != column and name in header]:
        raise InputError(
            f"{path} holds {others[0]} beside {column}; the two are never mixed, so run the score stage again."
        )
    if unknown := sorted(header - set(KEYS) - set(METRICS)):
        raise InputError(f"{path} has columns of unknown meaning, {', '.join(unknown)}; name them in tables.METRICS.")
    return rows


def _table(path: Path) -> list[dict[str, str]]:
    """Read rows of a CSV file that have a value in every column, and numbers in all but the keys'."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            head, *lines = [*csv.reader(stream, strict=True)] or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: expected a table, but {reason(error)}; run the score stage again.") from error
    for number, line in enumerate(lines, 1):
        if len(line) != len(head) or len(set(head)) < len(head):
            raise InputError(
                f"{path}: expected {len(set(head))} columns, found {len(line)} values in row {number}; run the score "
                "stage again."
            )
        for name, text in zip(head, line, strict=True):
            if name in METRICS and not _is_number(text):
                raise InputError(
                    f"{path}: expected a finite number for {name} in row {number}, found {brief(text)}; run the score "
                    "stage again."
                )
    return [dict(zip(head, line, strict=True)) for line in lines]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _cells(
    root: Path, datasets: Sequence[str], masks: Sequence[str], methods: Sequence[str]
) -> dict[tuple[str, str, str], Record]:
    cells = {}
    for dataset in datasets:
        for method in methods:
            path = root / "inpaint" / dataset / method / "cells.json"
            records = {record["mask"]: record for record in _json(path, "inpaint", {"cells": [CELL]})["cells"]}
            for mask in masks:
                if mask not in records:
                    raise InputError(
                        f"{path} has no cell for mask {mask}, which the sweep asks for; run the inpaint stage."
                    )
                cells[dataset, mask, method] = records[mask]
    return cells


def _check_fingerprints(root: Path, scored: Mapping[str, Record], cells: Mapping[tuple[str, str, str], Record]) -> None:
    """Hold the scores to the cells on disk, so that numbers and pictures are of the same samples."""
    for dataset, record in scored.items():
        known = {(cell["mask"], cell["method"]): cell["fingerprint"] for cell in record["cells"]}
        for (of, mask, method), cell in cells.items():
            if of == dataset and known.get((mask, method)) != cell["fingerprint"]:
                raise InputError(
                    f"{root / 'scores' / dataset / 'score.json'}: for method {method}, mask {mask} it scores cell "
                    f"{known.get((mask, method), '(none)')}, but the samples on disk are cell {cell['fingerprint']}; "
                    "run the score stage again."
                )


def _trainings(folder: Path, datasets: Sequence[str]) -> dict[str, Training]:
    return {dataset: _training(folder / dataset, f"train_{folder.name}") for dataset in datasets}


def _training(folder: Path, stage: str) -> Training:
    record = _json(folder / "record.json", stage, RECORD)
    path = folder / "curve.jsonl"
    if not path.is_file():
        raise InputError(f"{path} is missing beside its record; run the {stage} stage again.")
    curve, seconds = _curve(path, stage)
    pictures = tuple(folder / name for name in record["artifacts"] if Path(name).suffix in {".png", ".webp", ".jpg"})
    if missing := [str(picture) for picture in pictures if picture.parent != folder or not picture.is_file()]:
        raise InputError(
            f"{', '.join(missing)} is named in the training record but missing; run the {stage} stage again."
        )
    return Training(folder=folder, record=record, curve=curve, seconds=seconds, pictures=pictures)


def _curve(
    path: Path, stage: str
) -> tuple[dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], dict[str, NDArray[np.float64]]]:
    """Read a curve as `Training.curve` and `Training.seconds`."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    try:
        points = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        wrong = misfit(points, [{"step": float, "seconds": float, "metrics": {str: float}}])
    except (OSError, ValueError, RecursionError) as error:
        wrong = reason(error)
    if wrong:
        raise InputError(
            f"{path}: expected lines with step, seconds and metrics, but {wrong}; run the {stage} stage again."
        )
    for point in points:
        for name, value in point["metrics"].items():
            found.setdefault(name, []).append((float(point["step"]), float(value), float(point["seconds"])))
    curves = {name: np.array(found[name], np.float64).T for name in sorted(found)}
    return {name: (rows[0], rows[1]) for name, rows in curves.items()}, {name: rows[2] for name, rows in curves.items()}


def _stage_records(root: Path, datasets: Sequence[str]) -> dict[str, Record]:
    """Read the records of stages that neither train nor sample; of those the DAG may lack, only if they ran."""
    names = {f"data/{dataset}/manifest.json": "prepare" for dataset in datasets}
    optional = {"trunk": {"trunk/trunk.json": "train_trunk"}, "lpips": {"lpips/lpips.json": "resolve_lpips"}}
    optional["tokens"] = {f"tokens/{dataset}/tokens.json": "encode" for dataset in datasets}
    for folder, files in optional.items():
        if (root / folder).is_dir():
            names |= files
    return {name: _json(root / name, stage) for name, stage in names.items()}
