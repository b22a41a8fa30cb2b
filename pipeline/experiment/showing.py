"""How records become runs: a training is shown while it goes on, and everything on disk whenever `project` is called.

The record on disk comes first, the tracker second: whatever a tracker missed, `project` adds later, and an empty store
is filled by it. A run that shows all of its entry is FINISHED, and its tag `content` is the entry's digest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pipeline.experiment.entry import Entry, Point
from pipeline.experiment.exhibits import lay_out
from pipeline.experiment.trackable import entries, train_entry
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
            if old.content is None:
                self._store.delete(old.run_id)
        run = self._store.begin(experiment, entry.name, tags=entry.tags, started=entry.started or _now())
        self._store.write(run, params=entry.params)
        return run

    def _flush(self) -> None:
        self._store.write(self._id, scalars=self._waiting)
        self._sent |= {(scalar.step, scalar.name) for scalar in self._waiting}
        self._waiting.clear()
        self._flushed = time.monotonic()

    def _finish(self, entry: Entry) -> None:
        self._flush()
        unsent = [replace(point, metrics=self._unsent(point)) for point in entry.curve]
        _fill(self._store, self._id, entry, unsent)
        self._store.end(self._id, "FINISHED")
        for old in list(self._store.runs(self._store.experiment(entry.record["profile"]), entry.fingerprint)):
            if old.run_id != self._id:
                self._store.delete(old.run_id)

    def _unsent(self, point: Point) -> dict[str, float]:
        return {name: value for name, value in point.metrics.items() if (point.step, name) not in self._sent}


def project(store: Store, runs_root: Path, cell_store: Path, profile: str, report_folder: Path | None = None) -> Report:
    """Make the store hold exactly one complete run for every entry that the records on disk give.

    A missing run is created, an incomplete one (its process died, or the store did) replaced, one that shows something
    else, such as old scores, corrected. Runs of fingerprints that are no longer on disk stay, as history.

    Args:
        store: where the runs go.
        runs_root: the folder that holds one folder per profile.
        cell_store: the folder of `<fingerprint>.npz`, for pictures.
        profile: whose records.
        report_folder: where the profile's report is, if it is to be shown.

    Raises:
        TrackingError: the store cannot be used.
        InputError: a record does not have the promised form.
    """
    found = entries(runs_root, cell_store, profile, report_folder)
    experiment = store.experiment(profile)
    with alone(store.lock):
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
    keep = next((run for run in stored if run.content and not _contradicts(run, entry)), None)
    right = keep is not None and (keep.content == entry.content or not entry.final)
    if keep is None:
        started = entry.started or _now()
        run_id = store.begin(experiment, entry.name, tags=entry.tags, started=started)
        _fill(store, run_id, entry, entry.curve)
        store.end(run_id, "FINISHED", ended=started + round((entry.seconds or 0) * 1000))
    elif not right:
        _fill(store, keep.run_id, entry, ())
    for run in stored:
        if run is not keep:
            store.delete(run.run_id)
    if not stored:
        return "created"
    return "present" if right else "updated"


def _fill(store: Store, run: str, entry: Entry, curve: Sequence[Point]) -> None:
    """Write all that an entry says, of its curve the points given, and last the digest of it."""
    with TemporaryDirectory() as folder:
        tags = lay_out(entry, Path(folder))
        store.add_files(run, Path(folder))
    if entry.data is not None:
        store.name_data(run, entry.data)
    started = entry.started or _now()
    points = [
        Scalar(name=name, value=value, step=point.step, at=started + round(point.seconds * 1000))
        for point in curve
        for name, value in point.metrics.items()
    ]
    last, now = entry.curve[-1].step if entry.curve else 0, _now()
    final = [Scalar(name=name, value=value, step=last, at=now) for name, value in entry.metrics.items()]
    tags |= {"mlflow.note.content": entry.note, "mlflow.runName": entry.name, "content": entry.content}
    store.write(run, scalars=points + final, params=entry.params, tags={**entry.tags, **tags})


def _contradicts(run: StoredRun, entry: Entry) -> bool:
    """Tell whether a run says what cannot be taken back: a parameter or a metric that is no longer given."""
    if not entry.final or run.content == entry.content:
        return False
    others = any(entry.params.get(name) != text for name, text in run.params.items())
    return others or not set(run.metrics) <= entry.metric_names


def _now() -> int:
    """Return milliseconds since 1970."""
    return round(time.time() * 1000)
