"""What a metric says of each method in one line: over all settings, over each dataset's and over each mask's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.experiment.statistics import (
    Array,
    Comparison,
    Estimate,
    average,
    average_rank,
    beats,
    compare,
    count_wins,
    difference,
    duels,
)

ALL = "all"
"""The dataset, or the mask, of a line that averages over them."""


def summarise(
    found: Comparison, cubes: Mapping[str, Array], methods: Sequence[str], reference: int
) -> list[dict[str, Any]]:
    """Sum a metric up.

    Args:
        found: the comparison of the methods by it.
        cubes: the scores it was made from.
        methods: names of the methods.
        reference: index of the method that the others are compared with.

    Returns:
        One line per group of settings and method: `dataset`, `mask`, `method`; `mean`, `difference` to the reference,
        `rank` and `better`, the share of pictures that are better than the reference's, each with `..._low` and
        `..._high`, None where there is no interval; `settings`, and in how many of them the method is best (`wins`,
        `shared` with equals, `clear`) and clearly better or worse than the reference.
    """
    pictures = compare(
        beats(cubes, reference, higher=found.higher),
        found.masks,
        higher=True,
        digits=2,
        resamples=found.draws.shape[-1],
    )
    lines = []
    for dataset, mask in _groups(found):
        part, share = (each.only(dataset=dataset, mask=mask) for each in (found, pictures))
        place = {"dataset": dataset or ALL, "mask": mask or ALL}
        lines += [place | {"method": methods[i]} | line for i, line in enumerate(_lines(part, share, reference))]
    return lines


def headline(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The least that is worth tracking of each method, over all settings: mean, rank, wins and clear wins."""
    overall = [line for line in lines if (line["dataset"], line["mask"]) == (ALL, ALL)]
    return {line["method"]: {key: line[key] for key in ("mean", "rank", "wins", "clear")} for line in overall}


def _groups(found: Comparison) -> list[tuple[str | None, str | None]]:
    """All settings, then those of each dataset and of each mask if there are several."""
    datasets = found.datasets if len(found.datasets) > 1 else ()
    masks = found.masks if len(found.masks) > 1 else ()
    return [(None, None), *((dataset, None) for dataset in datasets), *((None, mask) for mask in masks)]


def _lines(found: Comparison, pictures: Comparison, reference: int) -> list[dict[str, Any]]:
    """A line for each method, over all settings of the comparison."""
    wins, clear = count_wins(found), duels(found).clear
    estimates = {
        "mean": average(found),
        "difference": difference(found, reference),
        "rank": average_rank(found),
        "better": average(pictures),
    }
    lines = []
    for index in range(found.mean.shape[2]):
        line: dict[str, Any] = {}
        for name, estimate in estimates.items():
            line |= _ends(name, estimate, index)
        line |= {"settings": wins.settings, "wins": int(wins.total[index]), "shared": int(wins.shared[index])}
        line |= {"clear": int(wins.clear[index]), "clearly_better": int(clear[index, reference])}
        lines.append(line | {"clearly_worse": int(clear[reference, index])})
    return lines


def _ends(name: str, estimate: Estimate, index: int) -> dict[str, float | None]:
    """A method's number and its interval, six digits after the point; None for what is not finite."""
    values = {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {key: round(float(of[index]), 6) if np.isfinite(of[index]) else None for key, of in values.items()}
