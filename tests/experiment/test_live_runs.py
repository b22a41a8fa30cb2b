"""MLflow shows a training while it goes on, and however it ends one run is left of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiment.tracked import (
    bring_up_to_date,
    curve,
    files,
    history,
    running,
    runs,
    train_record,
    write_json,
    write_training,
)
from pipeline.experiment.tracking import Report, open_store

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("no_mlflow_settings")


@pytest.fixture
def root(tracked_root) -> Path:
    return tracked_root


def test_live_run_is_seen_while_it_goes_on_and_completed(root):
    folder = write_training(root, train_record(), curve(200))
    (folder / "record.json").unlink()  # written last by the stage
    with open_store(root).train_run(running()) as run:
        for point in curve(200)[:150]:
            run.metrics(point["step"], point["metrics"])
        (live,) = runs(root)
        assert live.info.status == "RUNNING"
        assert live.data.params["unet.channels"] == "[32, 64]"
        assert len(history(root, live, "train/loss")) >= 100
        run.finish(train_record(), folder)
    write_json(folder / "record.json", train_record())

    (done,) = runs(root)
    assert done.info.run_id == live.info.run_id
    assert done.info.status == "FINISHED"
    assert history(root, done, "train/loss") == [(step, 1 / (1 + step)) for step in range(200)]
    assert done.data.metrics["val/loss"] == 0.25
    assert files(done) == {"record.json", "samples.png"}
    assert bring_up_to_date(root) == Report(present=1)


def test_batches_are_sent_after_a_pause(root, monkeypatch):
    run = open_store(root).train_run(running())
    monkeypatch.setattr("pipeline.experiment.showing.PAUSE", 3600.0)
    run.metrics(1, {"train/loss": 1.0})
    assert history(root, runs(root)[0], "train/loss") == []
    monkeypatch.setattr("pipeline.experiment.showing.PAUSE", 0.0)
    run.metrics(2, {"train/loss": 2.0})
    assert history(root, runs(root)[0], "train/loss") == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_run_of_a_training_that_breaks_is_replaced(root, error, status):
    with pytest.raises(error), open_store(root).train_run(running()) as run:
        run.metrics(0, {"train/loss": 5.0})
        raise error
    (broken,) = runs(root)
    assert broken.info.status == status
    assert history(root, broken, "train/loss") == [(0, 5.0)]

    write_training(root, train_record(), curve())
    assert bring_up_to_date(root) == Report(updated=1)
    (done,) = runs(root)
    assert done.info.run_id != broken.info.run_id
    assert done.info.status == "FINISHED"
    assert len(history(root, done, "train/loss")) == 5


def test_abandoned_run_has_failed_and_a_finished_one_has_not(root):
    run = open_store(root).train_run(running())
    run.abandon()
    assert [run.info.status for run in runs(root)] == ["FAILED"]
    run = open_store(root).train_run(running())
    run.finish(train_record(), write_training(root, train_record(), curve()))
    run.abandon()
    assert [run.info.status for run in runs(root)] == ["FINISHED"]


def test_resumed_training_has_the_whole_curve_in_one_run(root):
    open_store(root).train_run(running()).metrics(0, {"train/loss": 1.0})  # killed: nothing more is heard of it
    folder = write_training(root, train_record(), curve(5))
    with open_store(root).train_run(running()) as run:
        for point in curve(5)[3:]:
            run.metrics(point["step"], point["metrics"])
        run.finish(train_record(), folder)
    (done,) = runs(root)
    assert history(root, done, "train/loss") == [(step, 1 / (1 + step)) for step in range(5)]


def test_repeated_training_leaves_one_run(root):
    folder = write_training(root, train_record(), curve())
    for _ in range(2):
        with open_store(root).train_run(running()) as run:
            run.finish(train_record(), folder)
    assert [run.info.status for run in runs(root)] == ["FINISHED"]


def test_killed_process_leaves_a_run_that_is_replaced(root):
    code = (
        "import json, os, sys; from pathlib import Path; from pipeline.experiment.tracking import open_store\n"
        "run = open_store(Path(sys.argv[1])).train_run(json.loads(sys.argv[2])); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, root, json.dumps(running())], cwd=REPOSITORY, check=False)
    assert killed.returncode == -9
    assert [run.info.status for run in runs(root)] == ["RUNNING"]
    write_training(root, train_record(), curve())
    assert bring_up_to_date(root) == Report(updated=1)
    assert [run.info.status for run in runs(root)] == ["FINISHED"]
