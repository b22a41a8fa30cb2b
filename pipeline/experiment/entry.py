"""What a tracker is shown: one entry per training, cell, row of the comparison and report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.experiment import provenance


@dataclass(frozen=True, kw_only=True)
class Point:
    """One line of a training curve: metrics at a step, `seconds` after the start of the training."""

    step: int
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Data:
    """What was read: `name` and `digest` of the data, and the `context` it was read in."""

    name: str
    digest: str
    context: str


@dataclass(frozen=True, kw_only=True)
class Completions:
    """Where the pictures of a cell are.

    Attributes:
        samples: npz with `samples` uint8 [I, S, H, W, 3] and `known` bool [I, H, W].
        ids: keys of its I images.
        digest: of the split they are among.
        data: folder of the dataset the images are from.
        cache: folder of decoded images.
    """

    samples: Path
    ids: Sequence[str]
    digest: str
    data: Path
    cache: Path


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run, ready to be shown.

    Attributes:
        fingerprint: what makes it one and the same, wherever and whenever it is computed.
        name: short title for people.
        note: what it is, in Markdown.
        record: the record as it stands on disk, or what stands for it.
        params: flat parameters, as text.
        tags: coordinates, fingerprint and origin, as text.
        metrics: final scalars; for a cell its costs and, once scored, its metric means and its place.
        final: whether nothing is missing; what is shown already stays as it is until an entry is final.
        data: what was read; None where the record names no data.
        curve: points of a training, in the order of the file.
        files: files to show beside the record, by the name they shall have.
        table: rows to show as a table, all with the same keys.
        completions: pictures of a cell; None where there are none, or no npz is on disk.
        weights: the weights of a training and their description; empty while it runs.
        started: milliseconds since 1970; None if the record does not say.
        seconds: how long the work took; None if the record does not say.
    """

    fingerprint: str
    name: str
    note: str
    record: Mapping[str, Any]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    final: bool
    data: Data | None = None
    curve: tuple[Point, ...] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    table: tuple[Mapping[str, Any], ...] = ()
    completions: Completions | None = None
    weights: tuple[Path, ...] = ()
    started: int | None = None
    seconds: float | None = None

    @cached_property
    def content(self) -> str:
        """Digest of all that is shown: what a run that shows it is marked with."""
        texts = [self.name, self.note, self.record, self.params, self.tags, self.metrics, self.table]
        return provenance.digest([*texts, self.completions is not None])

    @property
    def metric_names(self) -> frozenset[str]:
        """Names of its scalars, those of the curve among them."""
        return frozenset(self.metrics).union(*(point.metrics for point in self.curve))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Join nested keys by dots and write every leaf as text: strings as they are, the rest as JSON."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return leaves


def milliseconds(moment: str | None) -> int | None:
    """Read an ISO date as milliseconds since 1970."""
    return None if moment is None else round(datetime.fromisoformat(moment).timestamp() * 1000)
