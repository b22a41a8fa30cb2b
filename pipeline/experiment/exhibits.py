"""Files of a run: its record, its pictures, its table, named as MLflow's pages look for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.experiment.entry import Completions, Entry

Pixels = NDArray[np.uint8]

PICTURES = 8  # images of a cell that are shown
SIDE = 128  # side a picture is enlarged to, by whole pixels, and the most it is shown with
GREY = np.uint8(128)  # stands for a pixel the method did not see
PAGES = "completion"
"""Name of the pages of a cell, one per image: what was seen, what the method made of it, the truth."""
TABLE = "comparison.json"
DIGITS = 4  # of numbers in a table


def lay_out(entry: Entry, folder: Path) -> dict[str, str]:
    """Write the files to show with an entry into an empty folder.

    Returns:
        Tags that tell MLflow's pages of tables, and of pictures to leaf through.
    """
    (folder / "record.json").write_text(json.dumps(entry.record, indent=2), encoding="utf-8")
    for name, path in entry.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    tags, table = {}, list(entry.table)
    if entry.completions is not None:
        panels = _panels(entry.completions)
        Image.fromarray(contact_sheet(panels)).save(folder / "samples.png")
        pages = _write_pages(panels, folder, entry.started or 0)
        table = [{"image": key, PAGES: page} for key, page in zip(entry.completions.ids[:PICTURES], pages, strict=True)]
        tags["mlflow.loggedImages"] = "True"
    if table:
        (folder / TABLE).write_text(json.dumps(_table(table)), encoding="utf-8")
        tags["mlflow.loggedArtifacts"] = json.dumps([{"path": TABLE, "type": "table"}])
    return tags


def contact_sheet(panels: Sequence[Pixels]) -> Pixels:
    """Draw pictures uint8 [I, H, W, 3] of each panel in a row of their own, each picture in a white frame.

    Returns:
        uint8 [rows, columns, 3].
    """
    framed = np.pad(np.stack(panels), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    rows, columns, height, width, _ = framed.shape
    return framed.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)


def _panels(completions: Completions) -> list[Pixels]:
    """Read what was seen, the whole samples and, if the dataset on disk is theirs, the truth: each uint8 [I, h, w, 3].

    Samples are raw sampler output, so the known pixels of the first two are the method's own, not the photograph's.
    """
    with np.load(completions.samples) as arrays:
        shown, known = arrays["samples"][:PICTURES, 0], arrays["known"][:PICTURES, :, :, None]
    panels = [np.where(known, shown, GREY), shown]
    if (completions.data / "manifest.json").is_file():
        truth = _truth(completions.data, completions.cache, completions.digest)
        if truth is not None:
            panels.append(np.stack([truth[key] for key in completions.ids[:PICTURES]]))
    return [_fit(panel) for panel in panels]


def _fit(images: Pixels) -> Pixels:
    """Enlarge small pictures, and thin out large ones, by whole pixels to at most `SIDE`."""
    side = images.shape[1]
    if side > SIDE:
        stride = -(-side // SIDE)
        return images[:, ::stride, ::stride]
    return images.repeat(SIDE // side, axis=1).repeat(SIDE // side, axis=2)


@cache
def _truth(data: Path, decoded: Path, digest: str) -> Mapping[str, Pixels] | None:
    """Read the images, by key, of the split that has this digest; None if no split has."""
    from pipeline.data.images import SPLITS
    from pipeline.data.shards import read_manifest, read_split  # load torch, which the rest does without

    described = read_manifest(data)["splits"]
    for name in SPLITS:
        if described[name]["digest"] == digest:
            split = read_split(data, name, decoded)
            return dict(zip(split.keys, split.images, strict=True))
    return None


def _write_pages(panels: Sequence[Pixels], folder: Path, at: int) -> list[dict[str, str]]:
    """Write the panels of each image side by side, as MLflow's `log_image` with the image's number as step would.

    `log_image` itself takes three requests and 25 ms per picture, and doubles them when a run is brought up to date.

    Returns:
        The pages as cells of a table that MLflow shows.
    """
    (folder / "images").mkdir()
    pages = []
    for step, pictures in enumerate(zip(*panels, strict=True)):
        strip = contact_sheet([np.stack(pictures)])
        blank = strip.shape[1] - strip.shape[0]  # MLflow's table shows the upper half of a square
        page = Image.fromarray(np.pad(strip, ((0, blank), (0, 0), (0, 0)), constant_values=255))
        stem = f"images/{PAGES}+step+{step}+timestamp+{at}+{step:08d}"
        names = {"filepath": f"{stem}.png", "compressed_filepath": f"{stem}+compressed.webp"}
        for name in names.values():
            page.save(folder / name, lossless=True, quality=0, method=0)  # of WebP: as small takes 70 times as long
        pages.append({"type": "image", **names})
    return pages


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Arrange rows as MLflow's `log_table` would."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [[row.get(key) for key in columns] for row in rows]
    return {
        "columns": columns,
        "data": [[round(cell, DIGITS) if isinstance(cell, float) else cell for cell in line] for line in lines],
    }
