"""What the records on disk say, in the words a tracker wants: parameters, tags, metrics, curves, pictures.

Everything here reads files and returns entries; nothing knows MLflow. `showing` shows the entries made here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.experiment.entry import Completions, Data, Entry, Point, flat, milliseconds
from pipeline.experiment.record import Curve, read_json
from pipeline.experiment.standings import Board, board, color
from pipeline.experiment.summary_runs import report, rows

logger = logging.getLogger(__name__)

SOURCES = {"train_circuit": "tokens of {}", "train_transformer": "tokens of {}"}
"""What a stage's `data` is, where it is not images."""


def entries(runs_root: Path, cell_store: Path, profile: str, report_folder: Path | None = None) -> list[Entry]:
    """Read every training and every cell of a profile from its records on disk, and put cells together to rows.

    Args:
        runs_root: the folder that holds one folder per profile.
        cell_store: the folder of `<fingerprint>.npz`; where one is missing, the copy beside `cells.json` is used.
        profile: name of the profile.
        report_folder: where the profile's report is, if it is to be shown.

    Returns:
        One entry per fingerprint.

    Raises:
        InputError: a record is not JSON or lacks a key; the message names the file.
    """
    folder = runs_root / profile
    trained = list(trainings(folder))
    scores = _scores(folder)
    cells = list(_cells(folder, cell_store, scores, _circuits(trained)))
    unseen = sum(cell.completions is None for cell in cells)
    if unseen:
        logger.warning("%d cells of %s have no npz on disk and are shown without pictures.", unseen, folder)
    summaries = rows(cells, scores)
    if report_folder is not None and (report_folder / "index.html").is_file():
        summaries.append(report(report_folder, profile, summaries))
    return list({entry.fingerprint: entry for entry in [*trained, *cells, *summaries]}.values())


def trainings(folder: Path) -> Iterator[Entry]:
    """Describe every training below a folder by its `record.json`.

    Raises:
        InputError: a record is not JSON or lacks a key; the message names the file.
    """
    for path in sorted(folder.rglob("record.json")):
        with _reading(path):
            yield train_entry(read_json(path), path.parent)


def train_entry(record: Mapping[str, Any], folder: Path | None) -> Entry:
    """Describe a training by its record.

    Args:
        record: a training record; while the training runs, `metrics`, `artifacts` and `measured` may be missing.
        folder: where `curve.jsonl`, the pictures and the weights lie; None while the training runs.

    Returns:
        The entry; what the training chose for itself, as `chosen` in model.json says, are tags `chosen.<name>`.

    Raises:
        KeyError: the record lacks a key.
        InputError: a picture the record names is missing, or model.json is damaged.
    """
    files = {name: folder / name for name in record.get("artifacts", ())} if folder else {}
    for picture in files.values():
        if not picture.is_file():
            raise InputError(f"{picture} is named by the record beside it but is not there; run `dvc repro` again.")
    common = _common(record)
    common["tags"] |= _described(folder) if folder else {}
    stage, dataset = record["stage"], record["dataset"]
    return Entry(
        name=f"{stage} {dataset}",
        note=f"Training of *{dataset}* by the stage `{stage}`: its curve, final values and pictures.",
        params=_params(record, {"dataset": dataset, "stage": stage}),
        metrics={name: float(value) for name, value in record.get("metrics", {}).items()},
        final=folder is not None,
        data=_data(record, SOURCES.get(stage, "{}").format(dataset), "training"),
        curve=tuple(_curve(folder / "curve.jsonl")) if folder else (),
        files=files,
        weights=_weights(folder) if folder else (),
        seconds=record.get("measured", {}).get("seconds"),
        **common,
    )


def _cells(folder: Path, cell_store: Path, scores: Board, circuits: Mapping[str, Mapping[str, str]]) -> Iterator[Entry]:
    """Describe every cell below a folder; `circuits` are parameters of the circuits on disk, by digest."""
    for path in sorted(folder.glob("inpaint/*/*/cells.json")):
        with _reading(path):
            for record in read_json(path)["cells"]:
                inputs = record.get("inputs", {})
                homes = cell_store / f"{record['fingerprint']}.npz", path.parent / f"{record['mask']}.npz"
                pictures = [
                    Completions(
                        samples=home,
                        ids=record["image_ids"],
                        digest=inputs.get("data", ""),
                        data=folder / "data" / record["dataset"],
                        cache=cell_store.parent / "cache",
                    )
                    for home in homes
                    if home.is_file()
                ]
                yield _cell_entry(
                    record, scores, circuits.get(inputs.get("circuit", ""), {}), next(iter(pictures), None)
                )


def _cell_entry(
    record: Mapping[str, Any], scores: Board, circuit: Mapping[str, str], completions: Completions | None
) -> Entry:
    """Describe a cell by its record and, once it is scored, by its means and its place."""
    own = {key: record[key] for key in ("dataset", "mask", "method", "seed", "image_size", "samples")}
    images, per_image = len(record["image_ids"]), float(record["measured"]["seconds_per_image"])
    costs = {f"evaluations/{name}": float(value) for name, value in record["evaluations"].items()}
    scored = scores.metrics(record)
    base = record["params"].get("base")
    common = _common(record)
    common["tags"] |= {"family": base or record["method"], "mlflow.runColor": color(record["method"])}
    common["tags"] |= {"base": base} if base else {}
    return Entry(
        name=f"{record['method']} {record['mask']} {record['dataset']}",
        note=_cell_note(record, scores, scored),
        params={**_params(record, own | {"images": images}), **circuit},
        metrics={**costs, "seconds_per_image": per_image, **scored},
        final=bool(scored),
        data=_data(record, record["dataset"], "evaluation"),
        completions=completions,
        seconds=per_image * images,
        **common,
    )


def _cell_note(record: Mapping[str, Any], scores: Board, scored: Mapping[str, float]) -> str:
    """Say in two sentences what a cell is and how it did."""
    dataset, mask, method = record["dataset"], record["mask"], record["method"]
    text = f"**{method}** completes {len(record['image_ids'])} images of *{dataset}* behind the mask *{mask}*."
    if not scored:
        return f"{text} Not scored yet."
    column = scores.columns[dataset]
    text += (
        f" {column} {scored[column]:.3f}, place {scored['place']:.0f} among {scores.rivals(dataset, mask)} methods, "
        f"{record['measured']['seconds_per_image']:.2f} s per image"
    )
    if f"{column}_minus_base" in scored:
        text += f"; {scored[f'{column}_minus_base']:+.3f} against its base {record['params']['base']}"
    return f"{text}.\n\nIts rivals: `params.dataset = '{dataset}' and params.mask = '{mask}'`"


def _common(record: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an `Entry` that trainings and cells share."""
    measured, inputs = record.get("measured", {}), record.get("inputs", {})
    tags = {key: record.get(key) for key in ("kind", "stage", "dataset", "mask", "method", "fingerprint", "profile")}
    tags |= {key: measured.get(key) for key in ("git_commit", "execution", "device")}
    tags["stage"] = tags["stage"] or "inpaint"  # a cell's record does not repeat the stage all cells come from
    tags["data_hash"] = inputs.get("data")
    tags |= {"mlflow.source.name": f"stages.{tags['stage']}", "mlflow.source.type": "LOCAL"}  # MLflow's column Source
    tags |= {f"input.{name}": digest for name, digest in inputs.items()}
    return {
        "fingerprint": record["fingerprint"],
        "record": record,
        "tags": {key: str(value) for key, value in tags.items() if value is not None},
        "started": milliseconds(measured.get("started")),
    }


def _data(record: Mapping[str, Any], name: str, context: str) -> Data | None:
    """Name the data of a record, if it has any."""
    digest = record.get("inputs", {}).get("data")
    return Data(name=name, digest=digest, context=context) if digest else None


def _params(record: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, str]:
    """Join the record's parameters and its coordinates `own`; a name both use is told apart as `params.<name>`."""
    return {f"params.{key}" if key in own else key: value for key, value in flat(record["params"]).items()} | flat(own)


def _scores(folder: Path) -> Board:
    """Read the scores of a profile."""
    found = []
    for path in sorted(folder.glob("scores/*/score.json")):
        with _reading(path):
            found.append(read_json(path))
            board(found[-1:])  # so that the file at fault is named
    return board(found)


def _circuits(trained: Iterable[Entry]) -> dict[str, dict[str, str]]:
    """Parameters of the circuits on disk and what they chose, as steered cells show them, by digest of the weights."""
    found = {}
    for entry in trained:
        if entry.tags["stage"] == "train_circuit" and "weights" in entry.tags:
            chosen = {f"circuit.{name}": value for name, value in entry.tags.items() if name.startswith("chosen.")}
            own = {name: value for name, value in entry.params.items() if name.startswith("circuit.")}
            found[entry.tags["weights"]] = own | chosen
    return found


def _described(folder: Path) -> dict[str, str]:
    """Read the digest of a model's weights, and what its training chose for itself, from the model's description."""
    path = next((path for path in (folder / "model.json", folder / "trunk.json") if path.is_file()), None)
    if path is None:
        return {}
    with _reading(path):
        model = read_json(path)
        digest = {"weights": str(model["sha256"])} if "sha256" in model else {}
        return flat(dict(model.get("chosen", {})), "chosen.") | digest


def _weights(folder: Path) -> tuple[Path, ...]:
    """Weights of a model and their description, if both are on disk."""
    pairs = [(folder / f"{stem}.safetensors", folder / f"{stem}.json") for stem in ("model", "trunk")]
    return next((pair for pair in pairs if all(path.is_file() for path in pair)), ())


def _curve(path: Path) -> Iterator[Point]:
    """Read a training curve."""
    for row in Curve(path).rows():
        yield Point(step=row["step"], seconds=row["seconds"], metrics=row["metrics"])


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say which file is at fault when what is read in here does not have the promised form."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            f"{path} does not have the form its stage writes ({type(error).__name__}: {error}); "
            "delete it and run `dvc repro` again."
        ) from error
