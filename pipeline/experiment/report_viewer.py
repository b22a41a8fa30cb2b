"""What the pages show of the picture grids: everything to page through, and a band for the first page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.experiment.figures import Strip
from pipeline.experiment.report_contents import Results
from pipeline.experiment.report_pictures import Grids
from pipeline.experiment.statistics import places


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image under one mask."""

    dataset: str
    mask: str
    line: Strip
    truth: str
    """Data URI."""


def band(grids: Grids, results: Results) -> list[Scene]:
    """The first image of each dataset, each under another mask; not chosen by any result."""
    scenes = []
    for number, dataset in enumerate(results.ids):
        mask = results.masks[2 * number % len(results.masks)]
        line = grids.strips[dataset, mask][0]
        scenes.append(Scene(dataset=dataset, mask=mask, line=line, truth=grids.truths[dataset, line.truth]))
    return scenes


def viewer(grids: Grids, results: Results) -> dict[str, Any]:
    """Everything that the page of pictures can show, ready to be written as JSON.

    Of each image: the results' data URIs in the order of the methods, their scores as printed, and who is best.
    """
    return {
        "methods": results.methods,
        "masks": results.masks,
        "metric": results.main.label,
        "better": "higher" if results.main.higher else "lower",
        "datasets": [
            {
                "name": dataset,
                "truths": {str(index): uri for (of, index), uri in grids.truths.items() if of == dataset},
                "grids": [
                    [_shown(line, grids, results, dataset, mask) for line in grids.strips[dataset, mask]]
                    for mask in results.masks
                ],
            }
            for dataset in results.ids
        ],
    }


def _shown(line: Strip, grids: Grids, results: Results, dataset: str, mask: str) -> dict[str, Any]:
    metric = results.main
    scores = [results.score(dataset, mask, index, line.image_id) for index in range(len(results.methods))]
    place = places(metric.sign * np.array([scores]), metric.digits)[0]
    return {
        "id": line.image_id,
        "truth": line.truth,
        "hidden": grids.hidden[line.hidden],
        "results": line.results,
        "scores": [metric.text(score) for score in scores],
        "best": [bool(found == 1) for found in place],
    }
