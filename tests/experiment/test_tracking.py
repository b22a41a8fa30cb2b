"""MLflow shows exactly what is on disk, and its failures cost the experiment neither results nor time."""

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiment.tracked import (
    MASKS,
    ask,
    bring_up_to_date,
    curve,
    files,
    history,
    runs,
    train_record,
    write_cells,
    write_json,
    write_scores,
    write_training,
)
from pipeline.data.images import Sample
from pipeline.data.shards import write
from pipeline.errors import InputError
from pipeline.experiment.entry import flat
from pipeline.experiment.trackable import entries
from pipeline.experiment.tracking import Report, Store, TrackingError, open_store, project

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("no_mlflow_settings")


@pytest.fixture
def root(tracked_root) -> Path:
    return tracked_root


# ---- what is on disk is shown ---------------------------------------------------------------------------------------


def test_training_on_disk_becomes_one_finished_run(root):
    write_training(root, train_record(), curve())
    assert bring_up_to_date(root) == Report(created=1)
    (run,) = runs(root)
    assert run.info.status == "FINISHED"
    assert run.info.start_time == 1741064767000
    assert run.info.end_time == run.info.start_time + 12500
    assert run.data.params == {
        "steps": "300",
        "unet.channels": "[32, 64]",
        "unet.dropout": "0.0",
        "ema": "null",
        "dataset": "faces",
        "params.dataset": "a clash",
        "stage": "train_ddpm",
    }
    expected = {
        "kind": "train",
        "stage": "train_ddpm",
        "dataset": "faces",
        "fingerprint": "f" * 64,
        "profile": "embedded",
        "git_commit": "abc123",
        "execution": "e1",
        "data_hash": "d" * 64,
    }
    assert expected.items() <= run.data.tags.items()
    assert history(root, run, "train/loss") == [(step, 1 / (1 + step)) for step in range(5)]
    assert run.data.metrics["val/loss"] == 0.25  # the final value, not the last of the curve
    assert files(run) == {"record.json", "samples.png"}


def test_cells_are_found_by_params_and_tags(root):
    records = write_cells(root) + write_cells(root, method="blended")
    assert bring_up_to_date(root) == Report(created=4)
    (run,) = runs(root, "params.method = 'ddnm' and tags.mask = 'left'")
    assert run.data.tags["fingerprint"] == records[0]["fingerprint"]
    assert run.data.tags["kind"] == "cell"
    assert {"dataset": "faces", "mask": "left", "method": "ddnm", "eta": "0.85"}.items() <= run.data.params.items()
    assert run.data.params["samples"] == "2"
    assert run.data.params["params.samples"] == "a clash"
    assert run.data.metrics["evaluations/forwards"] == 50
    assert {"record.json", "samples.png"} <= files(run)
    assert json.loads((Path(run.info.artifact_uri.removeprefix("file://")) / "record.json").read_text()) == records[0]


def open_picture(run, name: str) -> np.ndarray:
    (path,) = Path(run.info.artifact_uri.removeprefix("file://")).glob(name)
    return np.asarray(Image.open(path).convert("RGB"))


def test_pictures_show_grey_where_hidden(root):
    (record, _) = write_cells(root)
    bring_up_to_date(root)
    (run,) = runs(root, "tags.mask = 'left'")
    sheet = open_picture(run, "samples.png")
    side = 128 + 2  # 16 pixels, each enlarged to 8 x 8, in a frame
    assert sheet.shape == (2 * side, 8 * side, 3)
    assert (sheet[1:129, 1:65] == 128).all()
    sample = np.load(root / "work" / "cells" / f"{record['fingerprint']}.npz")["samples"][0, 0]
    np.testing.assert_array_equal(sheet[1:129:8, 65:129:8], sample[:, 8:])
    np.testing.assert_array_equal(sheet[side + 1 : side + 129 : 8, 1:129:8], sample)


def write_dataset(root: Path) -> tuple[str, np.ndarray]:
    """Write a dataset; return digest and images of its test split."""
    images = np.random.default_rng(1).integers(0, 256, (12, 16, 16, 3), np.uint8)
    samples = [Sample(key=f"{index:03d}", image=image, attributes=None) for index, image in enumerate(images)]
    splits = {"train": samples[11:], "val": samples[10:11], "test": samples[:10]}
    data = write(root / "runs/embedded/data/faces", splits, dataset="faces", image_size=16, source={}, seed=0)
    return data["splits"]["test"]["digest"], images[:10]


def test_pages_show_what_was_seen_the_completion_and_the_truth(root):
    write_cells(root)
    digest, truth = write_dataset(root)
    path = root / "runs/embedded/inpaint/faces/ddnm/cells.json"
    path.write_text(path.read_text().replace("d" * 64, digest))
    bring_up_to_date(root)
    (run,) = runs(root, "tags.mask = 'left'")
    assert len([name for name in files(run) if name.startswith("images/")]) == 2 * 8
    for kind in ("3.png", "3+compressed.webp"):
        page = open_picture(run, f"images/completion+step+3+*{kind}")
        assert page.shape == (3 * 130, 3 * 130, 3)
        np.testing.assert_array_equal(page[1:129:8, 261:389:8], truth[3])


def test_images_of_another_dataset_are_not_shown_as_the_truth(root):
    write_cells(root)
    write_dataset(root)
    bring_up_to_date(root)
    (run,) = runs(root, "tags.mask = 'left'")
    assert open_picture(run, "samples.png").shape == (2 * 130, 8 * 130, 3)


def test_pages_are_named_as_mlflow_names_them(root):
    """What `log_image` writes is what MLflow's pages look for; our files must differ in nothing but time and id."""
    write_cells(root)
    bring_up_to_date(root)
    (run,) = runs(root, "tags.mask = 'left'")
    twin = ask(root).create_run(run.info.experiment_id)
    ask(root).log_image(twin.info.run_id, np.zeros((4, 4, 3), np.uint8), key="completion", step=3)
    twin = ask(root).get_run(twin.info.run_id)

    def anonymous(names: set[str]) -> set[str]:
        return {re.sub(r"timestamp\+\d+\+[0-9a-f-]+", "timestamp+ID", name) for name in names if "+step+3+" in name}

    assert anonymous(files(run)) == anonymous(files(twin)) != set()
    assert run.data.tags["mlflow.loggedImages"] == twin.data.tags["mlflow.loggedImages"]


def test_cell_without_npz_is_shown_without_picture(root, caplog):
    write_cells(root)
    shutil.rmtree(root / "work")
    (root / "runs/embedded/inpaint/faces/ddnm/left.npz").unlink()
    assert bring_up_to_date(root) == Report(created=2)
    assert "1 cells" in caplog.text
    shown = [files(run) for mask in MASKS for run in runs(root, f"tags.mask = '{mask}'")]
    assert shown[0] == {"record.json"}
    assert "samples.png" in shown[1]


def test_projecting_twice_changes_nothing(root):
    write_training(root, train_record(), curve())
    write_scores(
        root, write_cells(root), {"lpips_domain": 0.5, "psnr": 20.5, "ssim": float("nan"), "psnr_hidden": float("inf")}
    )
    bring_up_to_date(root)
    before = [repr(run.to_dictionary()) for run in runs(root)]  # as text, where NaN equals NaN
    assert bring_up_to_date(root) == Report(present=4)
    assert [repr(run.to_dictionary()) for run in runs(root)] == before


def test_scores_are_joined_by_fingerprint_and_follow_the_file(root):
    records = write_cells(root)
    bring_up_to_date(root)
    ids = {run.info.run_id for run in runs(root)}

    write_scores(root, records[:1], {"lpips_domain": 0.4, "psnr": 20.0})
    assert bring_up_to_date(root) == Report(updated=1, present=1, created=1)  # a row begins
    write_scores(root, records, {"lpips_domain": 0.3, "psnr": 20.0})
    assert bring_up_to_date(root) == Report(updated=3)
    assert {run.data.metrics["lpips_domain"] for run in runs(root)} == {0.3}
    assert {run.info.run_id for run in runs(root, "tags.kind = 'cell'")} == ids

    write_scores(root, records, {"lpips": 0.2, "psnr": 20.0})  # lpips_domain must not linger
    assert bring_up_to_date(root) == Report(updated=3)
    assert [set(run.data.metrics) & {"lpips", "lpips_domain", "psnr"} for run in runs(root)] == [{"lpips", "psnr"}] * 3


def test_deleted_database_is_rebuilt(root, schema):
    write_training(root, train_record(), curve())
    write_scores(root, write_cells(root), {"lpips_domain": 0.5, "psnr": 20.0})
    bring_up_to_date(root)

    def contents():
        kept = {run.data.tags["fingerprint"]: (run.data.params, run.data.tags, run.data.metrics) for run in runs(root)}
        return kept, sorted(map(sorted, map(files, runs(root))))

    before = contents()
    shutil.copy(schema, root / "mlflow.db")
    assert runs(root) == []
    assert bring_up_to_date(root) == Report(created=4)
    assert contents() == before


def test_experiment_deleted_in_the_browser_comes_back(root):
    write_cells(root)
    bring_up_to_date(root)
    store = open_store(root)
    ask(root).delete_experiment(store.experiment("embedded"))
    assert bring_up_to_date(root) == Report(present=2)


def test_two_runs_of_one_fingerprint_become_one(root):
    records = write_cells(root)
    bring_up_to_date(root)
    client = ask(root)
    twin = client.create_run(runs(root)[0].info.experiment_id, tags={"fingerprint": records[0]["fingerprint"]})
    assert bring_up_to_date(root) == Report(present=2)
    assert twin.info.run_id not in {run.info.run_id for run in runs(root)}
    assert len(runs(root)) == 2


def test_broken_record_is_named(root):
    folder = write_training(root, train_record(), curve())
    (folder / "record.json").write_text('{"kind": "train"')
    with pytest.raises(InputError, match=r"ddpm/faces/record\.json"):
        bring_up_to_date(root)
    write_json(folder / "record.json", {key: value for key, value in train_record().items() if key != "params"})
    with pytest.raises(InputError, match="params"):
        bring_up_to_date(root)


def test_no_records_no_runs(root):
    assert bring_up_to_date(root) == Report()
    assert entries(root / "runs", root / "work" / "cells", "embedded") == []


def test_flat_joins_by_dots():
    assert flat({"a": {"b": {"c": 1}, "d": {}}, "e": "text", "f": True}) == {
        "a.b.c": "1",
        "a.d": "{}",
        "e": "text",
        "f": "true",
    }


# ---- live trainings -------------------------------------------------------------------------------------------------


def running() -> dict:
    return {key: value for key, value in train_record().items() if key not in ("metrics", "artifacts", "measured")}


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


def test_points_cost_microseconds(root, monkeypatch):
    monkeypatch.setattr("pipeline.experiment.showing.PAUSE", 3600.0)
    run = open_store(root).train_run(running())
    start = time.process_time()
    for step in range(99):
        run.metrics(step, {"train/loss": 1.0})
    assert (time.process_time() - start) / 99 < 2e-4


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


# ---- stores that fail -----------------------------------------------------------------------------------------------


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


# ---- processes ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_that_start_together_all_succeed(tmp_path):
    write_cells(tmp_path)
    code = (  # imports once, then lets go of four processes that find no database
        "import os, sys; from pathlib import Path; import mlflow.store.tracking.sqlalchemy_store\n"
        "from pipeline.experiment.tracking import open_store, project\n"
        "root = Path(sys.argv[1])\n"
        "for _ in range(4):\n"
        "    if os.fork() == 0:\n"
        "        report = project(open_store(root), root / 'runs', root / 'work/cells', 'embedded')\n"
        "        os.write(1, f'{report.created} created {report.present} present\\n'.encode())\n"
        "        os._exit(0)\n"
        "sys.exit(any([os.wait()[1] for _ in range(4)]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["0 created 2 present"] * 3 + ["2 created 0 present"]
    assert len(runs(tmp_path)) == 2


def test_import_costs_no_mlflow():
    code = "import sys, pipeline.experiment.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
