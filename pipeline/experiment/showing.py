"""How records become runs: a training is shown while it goes on, and everything on disk whenever `project` is called.

The record on disk comes first, the tracker second: whatever a tracker missed, `project` adds later, and an empty store
is filled by it. A run that holds all its record holds is FINISHED and carries the tag `complete`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.experiment.trackable import Entry, entries, lay_out, picture, train_entry
from pipeline.experiment.turns import alone

if TYPE_CHECKING:
    from pipeline.experiment.tracking import Store, StoredRun

BATCH = 100  # points of a running training that are sent at once,
PAUSE = 2.0  # or the points of so many seconds


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """A number with a name, at a step of a training and at a time in milliseconds since 1970."""

    name: str
    value: float
    step: int
    at: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """How many runs `project` created, completed or corrected, and found as they should be."""

    created: int = 0
    updated: int = 0
    present: int = 0


class Run:
    """A training that is being shown. Its methods never raise; scalars are sent in batches."""

    def __init__(self, store: Store, record: Mapping[str, Any]) -> None:
        self._store = store
        self._waiting: list[Scalar] = []
        self._sent: set[tuple[int, str]] = set()
        self._done = False
        self._id = store.attempt(lambda: self._begin(record)) or ""
        self._flushed = time.monotonic()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abandon("FAILED" if kind is None or issubclass(kind, Exception) else "KILLED")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Show scalars of a step."""
        at = _now()
        self._waiting += [Scalar(name=name, value=float(value), step=step, at=at) for name, value in values.items()]
        if len(self._waiting) >= BATCH or time.monotonic() - self._flushed > PAUSE:
            self._store.attempt(self._flush)
            self._waiting.clear()

    def image(self, name: str, image: Path | NDArray[np.uint8]) -> None:
        """Show a picture, a file or uint8 [H, W, 3], as `images/<name>`."""
        self._store.attempt(lambda: self._send(name, image))

    def finish(self, record: Mapping[str, Any], folder: Path) -> None:
        """Complete the run from the final record, and from `curve.jsonl` and the pictures beside it.

        Points that were not sent, such as those from before an interruption, are added; earlier runs of the same
        fingerprint are deleted.
        """
        self._done = True
        self._store.attempt(lambda: self._finish(train_entry(record, folder)))

    def abandon(self, status: Literal["FAILED", "KILLED"] = "FAILED") -> None:
        """End the run of a training that breaks, unless it is finished; leaving a `with` block does the same."""
        if not self._done:
            self._done = True
            self._store.attempt(self._flush)
            self._store.attempt(lambda: self._store.end(self._id, status))

    def _begin(self, record: Mapping[str, Any]) -> str:
        entry = train_entry(record, None)
        experiment = self._store.experiment(record["profile"])
        for old in list(self._store.runs(experiment, entry.fingerprint)):
            if not old.complete:
                self._store.delete(old.run_id)
        run = self._store.begin(experiment, entry.name, tags=entry.tags, started=entry.started or _now())
        self._store.write(run, params=entry.params)
        return run

    def _flush(self) -> None:
        self._store.write(self._id, scalars=self._waiting)
        self._sent |= {(scalar.step, scalar.name) for scalar in self._waiting}
        self._waiting.clear()
        self._flushed = time.monotonic()

    def _send(self, name: str, image: Path | NDArray[np.uint8]) -> None:
        with TemporaryDirectory() as folder:
            target = Path(folder) / f"{name}{image.suffix if isinstance(image, Path) else '.png'}"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture(image, target)
            self._store.add_files(self._id, Path(folder), under="images")

    def _finish(self, entry: Entry) -> None:
        self._flush()
        _fill(self._store, self._id, entry, self._sent)
        self._store.end(self._id, "FINISHED")
        for old in list(self._store.runs(self._store.experiment(entry.record["profile"]), entry.fingerprint)):
            if old.run_id != self._id:
                self._store.delete(old.run_id)


def project(store: Store, runs_root: Path, cell_store: Path, profile: str) -> Report:
    """Make the store hold exactly one complete run for every training and cell that has a record on disk.

    A missing run is created, an incomplete one (its process died, or the store did) replaced, a complete one left alone
    but for its scores. Runs of fingerprints that are no longer on disk stay, as history.

    Args:
        store: where the runs go.
        runs_root: the folder that holds one folder per profile.
        cell_store: the folder of `<fingerprint>.npz`, for pictures.
        profile: whose records.

    Raises:
        TrackingError: the store cannot be used.
        InputError: a record does not have the promised form.
    """
    found = entries(runs_root, cell_store, profile)
    experiment = store.experiment(profile)
    with alone(store.root / "mlflow.db.projecting"):
        stored: dict[str, list[StoredRun]] = {}
        for run in store.runs(experiment):
            stored.setdefault(run.fingerprint, []).append(run)
        outcomes = [_settle(store, experiment, entry, stored.get(entry.fingerprint, [])) for entry in found]
    return Report(
        created=outcomes.count("created"), updated=outcomes.count("updated"), present=outcomes.count("present")
    )


def _settle(
    store: Store, experiment: str, entry: Entry, stored: list[StoredRun]
) -> Literal["created", "updated", "present"]:
    """Leave exactly one run that says what `entry` says."""
    keep = next((run for run in stored if run.complete and not _superfluous(run, entry)), None)
    changed = _changed(keep, entry) if keep else {}
    if keep is None:
        started = entry.started or _now()
        run_id = store.begin(experiment, entry.name, tags=entry.tags, started=started)
        _fill(store, run_id, entry)
        store.end(run_id, "FINISHED", ended=started + round((entry.seconds or 0) * 1000))
    elif changed:
        store.write(keep.run_id, scalars=_scalars(changed, 0))
    for run in stored:
        if run is not keep:
            store.delete(run.run_id)
    if not stored:
        return "created"
    return "updated" if keep is None or changed else "present"


def _fill(store: Store, run: str, entry: Entry, sent: Collection[tuple[int, str]] = ()) -> None:
    """Write what a run still lacks and the tag that it is complete; points in `sent` are there already."""
    with TemporaryDirectory() as folder:
        lay_out(entry, Path(folder))
        store.add_files(run, Path(folder))
    started = entry.started or _now()
    curve = [
        Scalar(name=name, value=value, step=point.step, at=started + round(point.seconds * 1000))
        for point in entry.curve
        for name, value in point.metrics.items()
        if (point.step, name) not in sent
    ]
    final = _scalars(entry.metrics, entry.curve[-1].step if entry.curve else 0)
    store.write(run, scalars=curve + final, params=entry.params, tags={**entry.tags, "complete": "yes"})


def _scalars(values: Mapping[str, float], step: int) -> list[Scalar]:
    """Make final values the latest of their names."""
    at = _now()
    return [Scalar(name=name, value=value, step=step, at=at) for name, value in values.items()]


def _superfluous(run: StoredRun, entry: Entry) -> bool:
    """Tell whether a cell's run has scores that are no longer given; a single metric cannot be deleted."""
    return entry.scored and not set(run.metrics) <= set(entry.metrics)


def _changed(run: StoredRun, entry: Entry) -> dict[str, float]:
    """Return the metrics of a scored cell that its run lacks or has otherwise."""
    if not entry.scored:
        return {}
    return {name: new for name, new in entry.metrics.items() if not _same(run.metrics.get(name), new)}


def _same(old: float | None, new: float) -> bool:
    """Compare with a stored value; databases have no infinity and keep the largest number instead."""
    if old is None or math.isnan(new) or math.isnan(old):
        return old is not None and math.isnan(new) and math.isnan(old)
    return math.isclose(old, min(max(new, -sys.float_info.max), sys.float_info.max), rel_tol=1e-12)


def _now() -> int:
    """Return milliseconds since 1970."""
    return round(time.time() * 1000)
