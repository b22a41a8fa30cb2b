"""MLflow, the showcase of the experiments: what is on disk is shown there, and nothing is ever read back from it.

One experiment per profile, `tiramisu/<profile>`, holds flat runs: one per training and one per cell, told apart by the
tag `fingerprint`. This is the only module that imports MLflow, and only once a store is used. How records become runs
is in `showing`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pipeline.errors import UserError
from pipeline.experiment.entry import Data
from pipeline.experiment.showing import Report, Run, Scalar, project
from pipeline.experiment.turns import knock, make_once

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Report", "Run", "Store", "StoredRun", "TrackingError", "open_store", "project"]

logger = logging.getLogger(__name__)
T = TypeVar("T")

DEFAULTS = {  # for variables the user has not set: no telemetry, no chatter, and a dead server is noticed at once
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
SQLITE = "sqlite:///"


class TrackingError(UserError):
    """MLflow's store cannot be used; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """What a store says about a run; `content` is the digest of all it shows, None before it shows all of it."""

    run_id: str
    fingerprint: str
    content: str | None
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def open_store(root: Path, *, timeout: int = 2) -> Store:
    """Name the store of MLFLOW_TRACKING_URI, else `<root>/mlflow.db`; nothing is imported or reached before it is used.

    Args:
        root: the folder of the experiments, which holds `mlflow.db` and `mlartifacts/`.
        timeout: seconds a server may take to answer, unless MLFLOW_HTTP_REQUEST_TIMEOUT is set.
    """
    for name, value in (DEFAULTS | {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout)}).items():
        os.environ.setdefault(name, value)
    root = root.resolve()
    return Store(uri=os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{root / 'mlflow.db'}", root=root)


class Store:
    """One MLflow store, as one process uses it.

    All methods but `train_run` and `attempt` raise TrackingError when the store cannot be used.

    Attributes:
        uri: where MLflow keeps its runs.
        root: the folder of the experiments.
        artifacts: where files go, unless a server takes them: beside the database.
        lock: what those who bring the store up to date hold.
    """

    def __init__(self, *, uri: str, root: Path) -> None:
        home = Path(uri.removeprefix(SQLITE)).resolve().parent if uri.startswith(SQLITE) else root
        self.uri, self.root = uri, root
        self.artifacts, self.lock = home / "mlartifacts", home / "mlflow.db.projecting"
        self._client: MlflowClient | None = None
        self._off = False

    @property
    def served(self) -> bool:
        """Whether a server stands between us and the runs."""
        return self.uri.startswith(("http://", "https://", "databricks"))

    def train_run(self, record: Mapping[str, Any]) -> Run:
        """Begin to show a training; its record may still lack `metrics`, `artifacts` and `measured`. Never raises."""
        return Run(self, record)

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Do what the experiment can do without: the first failure is reported in one sentence, then nothing is tried.

        Returns:
            What `action` returns; None if it failed, or if an earlier one did.
        """
        if self._off:
            return None
        try:
            return action()
        except Exception as error:  # the experiment outlives whatever goes wrong here
            self._off = True
            logger.warning(
                "MLflow tracking is off for the rest of this process, the records on disk are complete, and "
                "`make track` fills MLflow in later: %s",
                _sentence(error),
            )
            return None

    def experiment(self, profile: str) -> str:
        """Return the id of a profile's experiment, which is created or restored if need be."""
        name, place = f"tiramisu/{profile}", None if self.served else str(self.artifacts / profile)
        with self.asked() as client:
            found = client.get_experiment_by_name(name) or _new_experiment(client, name, place)
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
        if place is not None and found.artifact_location.removeprefix("file://") != place:
            raise TrackingError(
                f"{_discreet(self.uri)} keeps the files of {name} in {found.artifact_location}, expected {place}: were "
                "the experiments moved? Delete mlflow.db and mlartifacts/, then run `make track`."
            )
        return str(found.experiment_id)

    def runs(self, experiment: str, fingerprint: str | None = None) -> Iterator[StoredRun]:
        """Iterate over the runs of an experiment, or over those of one fingerprint, newest first."""
        question, token = f"tags.fingerprint = '{fingerprint}'" if fingerprint else "", None
        while True:
            with self.asked() as client:
                page = client.search_runs([experiment], question, max_results=200, page_token=token)
            for run in page:
                tags, finished = run.data.tags, run.info.status == "FINISHED"
                yield StoredRun(
                    run_id=run.info.run_id,
                    fingerprint=tags.get("fingerprint", ""),
                    content=tags.get("content") if finished else None,
                    params=run.data.params,
                    metrics=run.data.metrics,
                )
            token = page.token
            if not token:
                return

    def begin(self, experiment: str, name: str, *, tags: Mapping[str, str], started: int) -> str:
        """Create a run and return its id; `started` in milliseconds since 1970."""
        with self.asked() as client:
            return str(client.create_run(experiment, started, dict(tags), name).info.run_id)

    def write(
        self, run: str, *, scalars: Sequence[Scalar] = (), params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
    ) -> None:
        """Add scalars, parameters and tags to a run, in as few requests as MLflow allows."""
        with self.asked() as client:
            from mlflow.entities import Metric, Param, RunTag

            metrics = [Metric(scalar.name, scalar.value, scalar.at, scalar.step) for scalar in scalars]
            texts, marks = [Param(*item) for item in params.items()], [RunTag(*item) for item in tags.items()]
            while metrics or texts or marks:
                client.log_batch(run, metrics=metrics[:800], params=texts[:100], tags=marks[:100])
                metrics, texts, marks = metrics[800:], texts[100:], marks[100:]

    def name_data(self, run: str, data: Data) -> None:
        """Say what a run read; saying it again changes nothing."""
        with self.asked() as client:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            source = json.dumps({"sha256": data.digest})
            dataset = Dataset(data.name, data.digest[:36], "local", source)  # MLflow keeps 36 characters
            client.log_inputs(run, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", data.context)])])

    def add_files(self, run: str, folder: Path, *, under: str | None = None) -> None:
        """Copy the files of a folder to a run."""
        with self.asked() as client:
            client.log_artifacts(run, str(folder), under)

    def end(self, run: str, status: Literal["FINISHED", "FAILED", "KILLED"], *, ended: int | None = None) -> None:
        """Set the last status of a run; `ended` in milliseconds since 1970, None for now."""
        with self.asked() as client:
            client.set_terminated(run, status, ended)

    def delete(self, run: str) -> None:
        """Delete a run, as the button in MLflow's pages does."""
        with self.asked() as client:
            client.delete_run(run)

    @contextmanager
    def asked(self) -> Iterator[MlflowClient]:
        """Yield a client of a store that can be used; a sqlite file that does not exist is created.

        What the store throws becomes a sentence for the user; errors of our own pass.
        """
        try:
            if self.uri.startswith(SQLITE):
                database = Path(self.uri.removeprefix(SQLITE))
                make_once(database, lambda draft: _create(draft, self.artifacts))
                knock(database)  # because MLflow waits for minutes when a file is locked
            if self._client is None:
                from mlflow import MlflowClient

                self._client = MlflowClient(tracking_uri=self.uri)
            with _silenced("urllib3.connectionpool"):  # which tells of every attempt
                yield self._client
        except Exception as error:
            origin = type(error).__module__.split(".")[0]
            if not (isinstance(error, sqlite3.Error | OSError | ImportError) or origin in ("mlflow", "sqlalchemy")):
                raise
            hint = "is its server running?" if self.served else "can the file be written, and does nobody else hold it?"
            raise TrackingError(
                f"MLflow's store {_discreet(self.uri)} cannot be used ({_sentence(_cause(error))}): {hint}"
            ) from error


def _new_experiment(client: MlflowClient, name: str, place: str | None) -> Any:
    """Create an experiment, unless another process is faster."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_experiment(name, artifact_location=place)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.get_experiment_by_name(name)


def _create(database: Path, artifacts: Path) -> None:
    """Create MLflow's tables in a sqlite file; in memory first, since a busy disk makes its many commits slow."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    engine = SqlAlchemyStore(f"{SQLITE}:memory:", str(artifacts)).engine
    with closing(engine.raw_connection()) as draft, closing(sqlite3.connect(database)) as target:
        draft.driver_connection.backup(target)
    engine.dispose()


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Let a logger pass errors only."""
    other = logging.getLogger(name)
    level = other.level
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        other.setLevel(level)


def _cause(error: BaseException) -> BaseException:
    """Return what the system said first, if an error goes back to that, else the error."""
    cause = error.__cause__ or error.__context__
    first = _cause(cause) if cause else error
    return first if isinstance(first, OSError | sqlite3.Error) else error


def _sentence(error: BaseException) -> str:
    """Say in one line what went wrong."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _discreet(text if isinstance(error, UserError) or len(text) <= 240 else f"{text[:240]}...")


def _discreet(text: str) -> str:
    """Hide user names and passwords in the addresses of a text."""
    return re.sub(r"//[^/@\s]*@", "//", text)
