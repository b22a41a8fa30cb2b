"""What the records on disk say, in the words a tracker wants: flat parameters, tags, metrics, curves, pictures.

Everything here reads files and returns values; nothing knows MLflow. `tracking` shows the entries made here.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.experiment.record import Curve, read_json

logger = logging.getLogger(__name__)

PICTURES = 8  # images on a contact sheet
SIDE = 128  # largest side of a picture on a contact sheet, in pixels
GREY = np.uint8(128)  # stands for a pixel the method did not see


@dataclass(frozen=True, kw_only=True)
class Point:
    """One line of a training curve: metrics at a step, `seconds` after the start of the training."""

    step: int
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One training or one cell, ready to be shown.

    Attributes:
        fingerprint: what makes it one and the same, wherever and whenever it is computed.
        name: short title for people.
        record: the record as it stands on disk.
        params: flat parameters, as text.
        tags: coordinates, fingerprint and origin, as text.
        metrics: final scalars; for a cell its costs and, once scored, its metric means.
        scored: whether `metrics` holds the means of a score file.
        curve: points of a training, in the order of the file; empty for a cell.
        pictures: image files to copy beside the record.
        samples: the npz to draw a contact sheet from; None for a training, or when no npz is on disk.
        started: milliseconds since 1970; None if the record does not say.
        seconds: how long the work took; None if the record does not say.
    """

    fingerprint: str
    name: str
    record: Mapping[str, Any]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    scored: bool = False
    curve: tuple[Point, ...] = ()
    pictures: tuple[Path, ...] = ()
    samples: Path | None = None
    started: int | None = None
    seconds: float | None = None


def entries(runs_root: Path, cell_store: Path, profile: str) -> list[Entry]:
    """Read every training and every cell of a profile from its records on disk, one entry per fingerprint.

    Args:
        runs_root: the folder that holds one folder per profile.
        cell_store: the folder of `<fingerprint>.npz`; where one is missing, the copy beside `cells.json` is used.
        profile: name of the profile.

    Raises:
        InputError: a record is not JSON or lacks a key; the message names the file.
    """
    folder = runs_root / profile
    found: dict[str, Entry] = {}
    for path in sorted(folder.rglob("record.json")):
        with _reading(path):
            entry = train_entry(read_json(path), path.parent)
        found[entry.fingerprint] = entry
    means = _means(folder)
    for path in sorted(folder.glob("inpaint/*/*/cells.json")):
        with _reading(path):
            cells = list(_cells(path, cell_store, means))
        found |= {entry.fingerprint: entry for entry in cells}
    unseen = sum(entry.record["kind"] == "cell" and entry.samples is None for entry in found.values())
    if unseen:
        logger.warning("%d cells of %s have no npz on disk and are shown without pictures.", unseen, folder)
    return list(found.values())


def train_entry(record: Mapping[str, Any], folder: Path | None) -> Entry:
    """Describe a training by its record.

    Args:
        record: a training record; while the training runs, `metrics`, `artifacts` and `measured` may be missing.
        folder: where `curve.jsonl` and the pictures lie; None while the training runs.

    Returns:
        The entry; what the training chose for itself, as `chosen` in model.json says, are tags `chosen.<name>`.

    Raises:
        KeyError: the record lacks a key.
        InputError: a picture the record names is missing, or model.json is damaged.
    """
    pictures = tuple(folder / name for name in record.get("artifacts", ())) if folder else ()
    for picture in pictures:
        if not picture.is_file():
            raise InputError(f"{picture} is named by the record beside it but is not there; run `dvc repro` again.")
    common = _common(record)
    if folder:
        common["tags"] |= _chosen(folder / "model.json")
    return Entry(
        name=f"{record['stage']} {record['dataset']}",
        params=_params(record, {"dataset": record["dataset"], "stage": record["stage"]}),
        metrics={name: float(value) for name, value in record.get("metrics", {}).items()},
        curve=tuple(_curve(folder / "curve.jsonl")) if folder else (),
        pictures=pictures,
        seconds=record.get("measured", {}).get("seconds"),
        **common,
    )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Join nested keys by dots and write every leaf as text: strings as they are, the rest as JSON."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return leaves


def lay_out(entry: Entry, folder: Path) -> None:
    """Write the files to show with an entry into an empty folder: its record, its pictures, its contact sheet."""
    (folder / "record.json").write_text(json.dumps(entry.record, indent=2), encoding="utf-8")
    for path in entry.pictures:
        picture(path, folder / path.name)
    if entry.samples is not None:
        picture(contact_sheet(entry.samples), folder / "samples.png")


def picture(image: Path | NDArray[np.uint8], target: Path) -> None:
    """Copy a picture, or write uint8 [H, W, 3] as PNG."""
    from PIL import Image

    if isinstance(image, Path):
        shutil.copyfile(image, target)
    else:
        Image.fromarray(image).save(target)


def contact_sheet(samples: Path) -> NDArray[np.uint8]:
    """Draw the first images of a cell: above with hidden pixels grey, below the whole sample.

    Samples are raw sampler output, so the known pixels of both rows are the method's own, not the photograph's.

    Args:
        samples: npz with `samples` uint8 [I, S, H, W, 3] and `known` bool [I, H, W].

    Returns:
        uint8 [2 rows, up to 8 columns, 3], each picture in a white frame and at most 128 pixels wide.
    """
    with np.load(samples) as arrays:
        shown, known = arrays["samples"][:PICTURES, 0], arrays["known"][:PICTURES, :, :, None]
    stride = -(-shown.shape[1] // SIDE)
    shown, known = shown[:, ::stride, ::stride], known[:, ::stride, ::stride]
    pairs = np.stack([np.where(known, shown, GREY), shown])  # [2, I, h, w, 3]
    framed = np.pad(pairs, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    rows, columns, height, width, _ = framed.shape
    return framed.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)


def _cells(path: Path, cell_store: Path, means: Mapping[str, Mapping[str, float]]) -> Iterator[Entry]:
    """Describe the cells one `cells.json` lists."""
    for record in read_json(path)["cells"]:
        entry = _cell_entry(record, means.get(record["fingerprint"]))
        homes = cell_store / f"{entry.fingerprint}.npz", path.parent / f"{record['mask']}.npz"
        yield replace(entry, samples=next((home for home in homes if home.is_file()), None))


def _cell_entry(record: Mapping[str, Any], means: Mapping[str, float] | None) -> Entry:
    """Describe a cell by its record and, once it is scored, its metric means."""
    own = {key: record[key] for key in ("dataset", "mask", "method", "seed", "image_size", "samples")}
    images, per_image = len(record["image_ids"]), float(record["measured"]["seconds_per_image"])
    costs = {f"evaluations/{name}": float(value) for name, value in record["evaluations"].items()}
    return Entry(
        name=f"{record['method']} {record['mask']} {record['dataset']}",
        params=_params(record, own | {"images": images}),
        metrics={**costs, "seconds_per_image": per_image, **(means or {})},
        scored=means is not None,
        seconds=per_image * images,
        **_common(record),
    )


def _common(record: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an `Entry` that trainings and cells share."""
    measured = record.get("measured", {})
    tags = {key: record.get(key) for key in ("kind", "stage", "dataset", "mask", "method", "fingerprint", "profile")}
    tags |= {key: measured.get(key) for key in ("git_commit", "execution", "device")}
    tags["stage"] = tags["stage"] or "inpaint"  # a cell's record does not repeat the stage all cells come from
    tags["data_hash"] = record.get("inputs", {}).get("data")
    started = measured.get("started")
    return {
        "fingerprint": record["fingerprint"],
        "record": record,
        "tags": {key: str(value) for key, value in tags.items() if value is not None},
        "started": None if started is None else round(datetime.fromisoformat(started).timestamp() * 1000),
    }


def _params(record: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, str]:
    """Join the record's parameters and its coordinates `own`; a name both use is told apart as `params.<name>`."""
    return {f"params.{key}" if key in own else key: value for key, value in flat(record["params"]).items()} | flat(own)


def _means(folder: Path) -> dict[str, dict[str, float]]:
    """Read the metric means of all scored cells, by fingerprint."""
    means: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob("scores/*/score.json")):
        with _reading(path):
            for cell in read_json(path)["cells"]:
                scored = {name: float(value) for name, value in cell["metrics"].items() if value is not None}
                means[cell["fingerprint"]] = scored
    return means


def _chosen(path: Path) -> dict[str, str]:
    """Read what a training chose for itself from the description of its model, if it chose anything."""
    if not path.is_file():
        return {}
    with _reading(path):
        return flat(dict(read_json(path).get("chosen", {})), "chosen.")


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
