"""What the report shows: picture grids of the sweep, and curves and pictures of the trained networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import InputError
from pipeline.experiment.figures import Strip, curve_plot, encode, strips
from pipeline.experiment.report_inputs import Findings, Training
from pipeline.experiment.statistics import Array

Truth = Callable[[str], tuple[list[str], NDArray[np.uint8]]]
"""Gives the images of a dataset's split as (keys, uint8 [N, S, S, 3])."""

PICTURE_CHARACTERS = 10_000_000  # of all results on the page together
EXACT_SHEET = 2**18  # pixels of a contact sheet that is kept exactly
LEADING_CURVES = ("loss", "perplexity", "usage")  # shown first; a model's other curves wait behind a click


@dataclass(frozen=True, kw_only=True)
class Grids:
    """Picture grids of all settings, cut to what one page can carry."""

    strips: dict[tuple[str, str], list[Strip]]
    """Lines by (dataset, mask)."""
    truths: dict[tuple[str, int], str]
    """Data URIs of the true images that occur, by (dataset, index)."""
    hidden: dict[str, str]
    """Names of the distinct hidden regions, by SVG path."""
    samples: int
    """Samples per image that were drawn; the grids show the first."""
    wished: int
    """Images per grid that were asked for and are there; fewer are shown if the page would become too large."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the training of one kind of network left, for every dataset."""

    name: str
    plots: dict[str, list[tuple[str, str]]]
    """By dataset: (quantity, SVG), the leading quantities first."""
    pictures: dict[str, list[tuple[str, str]]]
    """By dataset: (title, data URI)."""
    metrics: dict[str, dict[str, float]]
    """By dataset: final numbers of the training by name."""


def grids(findings: Findings, truth: Truth, count: int, characters: int = PICTURE_CHARACTERS) -> Grids:
    """Lay out the first `count` images of every setting, fewer if the results would take more than `characters`."""
    found: dict[tuple[str, str], list[Strip]] = {}
    true_images: dict[str, NDArray[np.uint8]] = {}
    samples = 0
    for dataset in findings.datasets:
        keys, true_images[dataset] = truth(dataset)
        for mask in findings.masks:
            cells = {method: findings.arrays(dataset, method, mask, count) for method in findings.methods}
            ids = findings.cells[dataset, mask, findings.methods[0]]["image_ids"][:count]
            found[dataset, mask] = strips(cells, ids, keys, true_images[dataset], f"{dataset}, mask {mask}")
            samples = max(samples, *(cell["samples"].shape[1] for cell in cells.values()))
    wished = max(len(lines) for lines in found.values())
    weights = [sum(line.size for lines in found.values() for line in lines[n : n + 1]) for n in range(wished)]
    fitting = max(1, int(np.searchsorted(np.cumsum(weights), characters, side="right")))
    found = {setting: lines[:fitting] for setting, lines in found.items()}
    shown = dict.fromkeys((dataset, line.truth) for (dataset, _), lines in found.items() for line in lines)
    regions = dict.fromkeys(line.hidden for lines in found.values() for line in lines)
    return Grids(
        strips=found,
        truths={(dataset, index): encode(true_images[dataset][index], exact=True) for dataset, index in shown},
        hidden={path: f"h{number}" for number, path in enumerate(regions)},
        samples=samples,
        wished=wished,
    )


def model(name: str, trainings: Mapping[str, Training]) -> Model:
    """Draw the curves and collect the pictures and final numbers of one kind of network."""
    return Model(
        name=name,
        plots={dataset: _curves(training, f"{name} of {dataset}") for dataset, training in trainings.items()},
        pictures={
            dataset: [(path.stem, sheet(path)) for path in training.pictures] for dataset, training in trainings.items()
        },
        metrics={dataset: training.record["metrics"] for dataset, training in trainings.items()},
    )


def _curves(training: Training, of: str) -> list[tuple[str, str]]:
    """Draw one plot per quantity: `train/loss` and `val/loss` are two lines of `loss`."""
    quantities: dict[str, dict[str, tuple[Array, Array]]] = {}
    for name, curve in training.curve.items():
        split, _, quantity = name.rpartition("/")
        quantities.setdefault(quantity, {})[split or quantity] = curve

    def leading(quantity: str) -> int:
        return next((rank for rank, word in enumerate(LEADING_CURVES) if word in quantity), len(LEADING_CURVES))

    ordered = sorted(quantities, key=leading)
    return [(quantity, curve_plot(quantities[quantity], name=f"{of}: {quantity}")) for quantity in ordered]


def sheet(path: Path, *, exact: bool = False) -> str:
    """Read a contact sheet as a data URI, exactly unless it is large; always so if it is to be `exact`.

    Raises:
        InputError: the file is no picture.
    """
    try:
        with Image.open(path) as image:
            return encode(np.asarray(image.convert("RGB")), exact=exact or image.width * image.height <= EXACT_SHEET)
    except OSError as error:
        raise InputError(f"{path}: expected a picture, but {error}; run the stage that writes it again.") from error
