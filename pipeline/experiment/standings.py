"""Who stands where: scores of cells beside those of their rivals, and cells put together to rows of the comparison.

What `trackable` reads from disk is compared here, so that a tracker's lists and charts answer which method is best in
which setting, what it costs, and what steering changes. Intervals and paired tests are the report's.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.experiment.statistics import places
from pipeline.experiment.tables import METRICS


@dataclass(frozen=True, kw_only=True)
class Board:
    """Scores of a profile.

    Attributes:
        columns: the perceptual metric that decides, "lpips" or "lpips_domain", by dataset.
        means: metric means by (dataset, mask, method).
        fingerprints: of the cells that were scored, by (dataset, mask, method).
        place: 1 for the method with the best mean of the column in its setting and all that print equal, 2 for the
            next, by (dataset, mask, method).
    """

    columns: Mapping[str, str]
    means: Mapping[tuple[str, str, str], Mapping[str, float]]
    fingerprints: Mapping[tuple[str, str, str], str]
    place: Mapping[tuple[str, str, str], int]

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Pairs of dataset and mask, in the order of the score files."""
        return list(dict.fromkeys((dataset, mask) for dataset, mask, _ in self.means))

    def rivals(self, dataset: str, mask: str) -> int:
        """How many methods were scored in a setting."""
        return sum(key[:2] == (dataset, mask) for key in self.means)

    def metrics(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Means of a cell, its place and, if it is steered, its distance from its base; empty if it is not scored."""
        key = (record["dataset"], record["mask"], record["method"])
        if self.fingerprints.get(key) != record["fingerprint"]:
            return {}
        own, base = self.means[key], self.means.get((*key[:2], record["params"].get("base", "")))
        column = self.columns[record["dataset"]]
        apart = {f"{column}_minus_base": own[column] - base[column]} if base else {}
        return {**own, "place": float(self.place[key]), **apart}


def board(scores: Iterable[Mapping[str, Any]]) -> Board:
    """Arrange score files, one per dataset, passing over cells without the metric that decides.

    Raises:
        KeyError: a file lacks a key.
    """
    columns: dict[str, str] = {}
    means: dict[tuple[str, str, str], dict[str, float]] = {}
    fingerprints: dict[tuple[str, str, str], str] = {}
    for score in scores:
        columns[score["dataset"]] = column = score["lpips"]["column"]
        for cell in score["cells"]:
            if cell["metrics"].get(column) is not None:
                key = (score["dataset"], cell["mask"], cell["method"])
                means[key] = {name: float(value) for name, value in cell["metrics"].items() if value is not None}
                fingerprints[key] = cell["fingerprint"]
    return Board(columns=columns, means=means, fingerprints=fingerprints, place=_places(means, columns))


def color(method: str) -> str:
    """Colour of a method in charts, "#rrggbb": the same in every run, and its own for each method of ours."""
    lightness, hue = divmod(zlib.crc32(method.encode()), 127)
    rgb = colorsys.hls_to_rgb(hue / 127, (0.3, 0.5, 0.7)[lightness % 3], 0.65)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def _places(
    means: Mapping[tuple[str, str, str], Mapping[str, float]], columns: Mapping[str, str]
) -> dict[tuple[str, str, str], int]:
    """Place every cell among those of its setting."""
    place: dict[tuple[str, str, str], int] = {}
    for setting in dict.fromkeys(key[:2] for key in means):
        keys, metric = [key for key in means if key[:2] == setting], METRICS[columns[setting[0]]]
        ranked = places(metric.sign * np.array([means[key][metric.name] for key in keys]), metric.digits)
        place |= {key: int(rank) for key, rank in zip(keys, ranked, strict=True)}
    return place
