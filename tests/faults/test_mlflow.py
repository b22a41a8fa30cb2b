"""MLflow locked or gone: the stage says so once and ends as ever, and `make track` fills in what lacks."""

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import pytest

from faults.processes import SERVER, finish, start, until
from faults.toy import STAGES, settled

OFF = "MLflow tracking is off for the rest of this process"


def statuses(database):
    """How many runs that are not deleted have which status."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        question = "SELECT status, count(*) FROM runs WHERE lifecycle_stage = 'active' GROUP BY status"
        return dict(connection.execute(question))


def hold(database, held, enough):
    """Lock a sqlite file as another program does that writes to it."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        held.set()
        enough.wait()


def test_a_locked_store_costs_one_sentence_and_is_filled_in_later(whole, root, undo):
    database = root / "mlflow.db"
    address = f"sqlite:///{database}"
    undo("inpaint")
    finish(root, "track", MLFLOW_TRACKING_URI=address)
    assert statuses(database) == {"FINISHED": 2}  # the trainings
    held, enough = SERVER.Event(), SERVER.Event()
    other = SERVER.Process(target=hold, args=(str(database), held, enough), daemon=True)
    other.start()
    held.wait()
    words = finish(root, "inpaint", *STAGES["inpaint"], MLFLOW_TRACKING_URI=address)
    enough.set()
    other.join()
    assert words.count(OFF) == 1
    assert "database is locked" in words
    assert settled(root) == settled(whole)
    assert "4 runs created, 0 updated, 2 already complete" in finish(root, "track", MLFLOW_TRACKING_URI=address)
    assert statuses(database) == {"FINISHED": 6}


@contextlib.contextmanager
def serving(root, database):
    """An MLflow server; yields its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(root / "mlartifacts"), "--host", "127.0.0.1", "--port", str(port)]
    lean = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (
        (root / "server.log").open("w") as log,
        subprocess.Popen(
            [*command, "--workers", "1"],
            cwd=root,
            env=os.environ | lean,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as server,
    ):
        try:
            deadline = time.monotonic() + 120
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert server.poll() is None, (root / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", server
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_a_training(whole, root, undo):
    undo("train_ddpm")
    database = root / "served.db"
    with serving(root, database) as (address, server):
        training = start(root, "train_ddpm", *STAGES["train_ddpm"], MLFLOW_TRACKING_URI=address)
        until(lambda: database.exists() and statuses(database) == {"RUNNING": 1}, training)
        os.killpg(server.pid, signal.SIGKILL)
        training.join()
    words = (root / "train_ddpm.log").read_text()
    assert training.exitcode == 0, words
    assert words.count(OFF) == 1
    assert settled(root) == settled(whole)
    assert statuses(database) == {"RUNNING": 1}
    with serving(root, database) as (address, _):
        assert "5 runs created, 1 updated" in finish(root, "track", MLFLOW_TRACKING_URI=address)
    assert statuses(database) == {"FINISHED": 6}
