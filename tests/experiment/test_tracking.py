"""MLflow shows exactly what is on disk, and its failures cost the experiment neither results nor time."""

import json
import re
import shutil
import subprocess
import sys
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
from pipeline.experiment.tracking import Report, open_store

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("no_mlflow_settings")


@pytest.fixture
def root(tracked_root) -> Path:
    return tracked_root


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
