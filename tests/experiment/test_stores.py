"""A store that fails costs seconds and a sentence and loses nothing; stores may be shared, and set by the user."""

import contextlib
import logging
import os
import shutil
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from experiment.tracked import (
    bring_up_to_date,
    curve,
    files,
    running,
    runs,
    train_record,
    write_cells,
    write_training,
)
from pipeline.experiment.tracking import Report, Store, TrackingError, open_store, project

pytestmark = pytest.mark.usefixtures("no_mlflow_settings")


@pytest.fixture
def root(tracked_root) -> Path:
    return tracked_root


@contextlib.contextmanager
def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield f"http://somebody:secret@127.0.0.1:{port}"


@contextlib.contextmanager
def silent_server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def locked_file(root: Path):
    with contextlib.closing(sqlite3.connect(root / "mlflow.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield f"sqlite:///{root}/mlflow.db"


@contextlib.contextmanager
def unwritable_folder(root: Path):
    """A folder in which nothing can be created, not even by root."""
    if os.geteuid() == 0:
        yield "sqlite:////proc/mlflow.db"
    else:
        (root / "sealed").mkdir(mode=0o555)
        yield f"sqlite:///{root}/sealed/mlflow.db"


DEAD = ("closed port", "silent server", "locked file", "unwritable folder")


@pytest.fixture
def dead(request, root, monkeypatch):
    stores = {
        "closed port": closed_port,
        "silent server": silent_server,
        "locked file": lambda: locked_file(root),
        "unwritable folder": lambda: unwritable_folder(root),
    }
    with stores[request.param]() as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield open_store(root)


def train_with(store: Store, root: Path) -> float:
    """Train as a stage does and return the seconds it took."""
    folder = write_training(root, train_record(), curve())
    start = time.perf_counter()
    with store.train_run(running()) as run:
        for step in range(1000):
            run.metrics(step, {"train/loss": 1.0})
        run.finish(train_record(), folder)
    store.attempt(lambda: project(store, root / "runs", root / "work" / "cells", "embedded"))
    return time.perf_counter() - start


@pytest.mark.parametrize("dead", DEAD, indirect=True)
def test_dead_store_costs_seconds_and_one_sentence(dead, root, caplog):
    with caplog.at_level(logging.INFO, logger="pipeline"):
        assert train_with(dead, root) < 5
    (message,) = [record for record in caplog.records if record.name.startswith("pipeline")]
    assert message.levelno == logging.WARNING
    assert "`make track`" in message.getMessage()
    assert "\n" not in message.getMessage()
    assert "secret" not in message.getMessage()


@pytest.mark.parametrize("dead", DEAD, indirect=True)
def test_dead_store_is_an_error_when_projecting(dead, root, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr("pipeline.experiment.turns.BUSY", 0.1)
    write_cells(root)
    with pytest.raises(TrackingError, match=r"MLflow's store .* cannot be used"):
        project(dead, root / "runs", root / "work" / "cells", "embedded")


def test_store_that_dies_during_a_training_is_filled_in_later(root, caplog, monkeypatch):
    monkeypatch.setattr("pipeline.experiment.turns.BUSY", 0.1)
    store = open_store(root)
    folder = write_training(root, train_record(), curve())
    with store.train_run(running()) as run:
        run.metrics(0, {"train/loss": 1.0})
        with locked_file(root):
            start = time.perf_counter()
            run.finish(train_record(), folder)
            assert time.perf_counter() - start < 5
    assert caplog.text.count("tracking is off") == 1
    assert [run.info.status for run in runs(root)] == ["RUNNING"]
    assert bring_up_to_date(root) == Report(updated=1)
    assert [run.info.status for run in runs(root)] == ["FINISHED"]


def test_what_the_user_set_stays(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert open_store(root).uri == "http://tracking.example:5000"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "2"
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    open_store(root)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_moved_experiments_are_noticed(root, tmp_path_factory):
    write_cells(root)
    bring_up_to_date(root)
    moved = tmp_path_factory.mktemp("moved")
    shutil.copytree(root, moved, dirs_exist_ok=True)
    with pytest.raises(TrackingError, match="moved"):
        bring_up_to_date(moved)


def test_folders_may_share_a_store(root, tmp_path_factory, monkeypatch):
    """As the experiments of `dvc exp run --queue` do, each in a copy of the folder."""
    write_cells(root)
    bring_up_to_date(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    other = tmp_path_factory.mktemp("queued")
    write_cells(other, method="blended")
    assert bring_up_to_date(other) == Report(created=2)
    assert len(runs(root)) == 4
    assert all("record.json" in files(run) for run in runs(root))
    assert not (other / "mlartifacts").exists()


def test_folder_name_may_hold_blanks_and_percent_signs(tmp_path, schema):
    root = tmp_path / "100 % my runs"
    root.mkdir()
    shutil.copy(schema, root / "mlflow.db")
    write_cells(root)
    assert bring_up_to_date(root) == Report(created=2)
    assert bring_up_to_date(root) == Report(present=2)
    assert len(list((root / "mlartifacts").rglob("record.json"))) == 2
