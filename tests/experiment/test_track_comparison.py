"""A made-up sweep in MLflow: what the search lines of docs/mlflow.md find, and what rows and the report say."""

import json
import re
import shutil
from pathlib import Path

import pytest

from experiment.tracked import ask, cell_record, files, runs, train_record, write_json, write_training
from pipeline.experiment.tracking import Report, open_store, project

REPOSITORY = Path(__file__).parents[2]
DATASETS, MASKS = ("faces", "rooms"), ("left", "wide")
METHODS = {  # LPIPS of the mask left and of the mask wide, on faces; 0.01 more on rooms
    "ddnm": (0.30, 0.10),
    "copaint": (0.25, 0.12),
    "tiramisu": (0.20, 0.10),
}
CIRCUIT = "k" * 64


def lpips(method: str, mask: str, dataset: str) -> float:
    return METHODS[method][MASKS.index(mask)] + 0.01 * DATASETS.index(dataset)


def sweep_record(dataset: str, mask: str, method: str, until: float, circuit: str) -> dict:
    record = cell_record(mask, method, dataset)
    record["fingerprint"] += f"-{until}-{circuit[0]}" if method == "tiramisu" else ""
    if method == "tiramisu":
        record["params"] = {"base": "copaint", "copaint": {"steps": 50}, "steering": {"until": until}}
        record["inputs"] |= {"circuit": circuit}
    record["measured"] |= {"seconds_per_image": 0.5 * (1 + list(METHODS).index(method))}
    return record


def write_sweep(root: Path, until: float = 0.5, datasets: tuple[str, ...] = DATASETS, circuit: str = CIRCUIT) -> None:
    """Write cells and scores of all methods; tiramisu gains as it steers longer."""
    for dataset in datasets:
        scored = []
        for method in METHODS:
            cells = [sweep_record(dataset, mask, method, until, circuit) for mask in MASKS]
            write_json(root / "runs/embedded/inpaint" / dataset / method / "cells.json", {"cells": cells})
            for cell in cells:
                value = lpips(method, cell["mask"], dataset) + (0.5 - until) * (method == "tiramisu") / 10
                keys = ("dataset", "mask", "method", "fingerprint")
                scored.append({key: cell[key] for key in keys} | {"metrics": {"lpips": value, "psnr": 20.0}})
        score = {"schema": 1, "dataset": dataset, "lpips": {"column": "lpips"}, "cells": scored}
        write_json(root / "runs/embedded/scores" / dataset / "score.json", score)


def write_circuit(root: Path, structure: str = "hclt", digest: str = CIRCUIT) -> None:
    params = {"circuit": {"model": {"structures": [structure]}}}
    record = train_record(f"circuit {digest}", stage="train_circuit", artifacts=[], params=params)
    folder = write_training(root, record, [])
    write_json(folder / "model.json", {"sha256": digest, "chosen": {"structure": structure}})


def show(root: Path) -> Report:
    report = root / "reports/embedded"
    return project(open_store(root), root / "runs", root / "work/cells", "embedded", report)


def fill(root: Path) -> None:
    """Write a finished sweep and show it."""
    write_circuit(root)
    write_sweep(root)
    (root / "reports/embedded/plots").mkdir(parents=True)
    (root / "reports/embedded/index.html").write_text("<p>verdict</p>")
    (root / "reports/embedded/plots/pareto.csv").write_text("a,b\n1,2\n")
    assert show(root) == Report(created=12 + 3 + 1 + 1)


@pytest.fixture
def root(tracked_root) -> Path:
    """A sweep that is shown, to change."""
    fill(tracked_root)
    return tracked_root


@pytest.fixture(scope="module")
def shown(schema, tmp_path_factory) -> Path:
    """A sweep that is shown, to look at."""
    root = tmp_path_factory.mktemp("shown")
    shutil.copy(schema, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        fill(root)
    return root


def names(root: Path, question: str) -> set[str]:
    return {run.info.run_name for run in runs(root, question)}


EVERYWHERE = {f"{mask} {dataset}" for mask in MASKS for dataset in DATASETS}
FOUND = {
    "params.method = 'copaint' and tags.mask = 'left'": {"copaint left faces", "copaint left rooms"},
    "tags.kind = 'row'": {f"{method}, all settings" for method in METHODS},
    "params.dataset = 'faces' and params.mask = 'left'": {f"{method} left faces" for method in METHODS},
    "tags.kind = 'cell' and metrics.place = 1": {f"tiramisu {where}" for where in EVERYWHERE}
    | {"ddnm wide faces", "ddnm wide rooms"},
    "tags.family = 'copaint' and params.mask = 'left'": {
        f"{method} left {dataset}" for method in ("copaint", "tiramisu") for dataset in DATASETS
    },
    "metrics.lpips_minus_base < -0.03 and tags.kind = 'cell'": {"tiramisu left faces", "tiramisu left rooms"},
    "tags.kind = 'row' and metrics.seconds_per_image < 1.2": {"ddnm, all settings", "copaint, all settings"},
    "params.`steering.until` = '0.5' and params.`circuit.chosen.structure` = 'hclt'": {
        f"tiramisu {where}" for where in EVERYWHERE
    }
    | {"tiramisu, all settings"},
    "tags.kind = 'train' and metrics.`val/loss` < 0.3": {"train_circuit faces"},
    "tags.execution = 'e1' and tags.kind = 'train'": {"train_circuit faces"},
    "tags.kind = 'report'": {"report embedded"},
}


@pytest.mark.parametrize("question", FOUND)
def test_search_lines_find_what_they_say(shown, question):
    assert names(shown, question) == FOUND[question]


def test_search_lines_of_the_docs_are_those_tried_here():
    page = (REPOSITORY / "docs/mlflow.md").read_text()
    (block,) = re.findall(r"```sql\n(.*?)```", page, flags=re.DOTALL)
    assert {line.split("  --")[0].strip() for line in block.splitlines()} == set(FOUND)


def row(root: Path, method: str):
    (found,) = runs(root, f"tags.kind = 'row' and params.method = '{method}'")
    return found


def test_rows_are_the_lines_of_the_table(shown):
    metrics = row(shown, "tiramisu").data.metrics
    assert metrics["lpips/faces/left"] == pytest.approx(0.20)
    assert metrics["lpips/rooms"] == pytest.approx((0.21 + 0.11) / 2)
    assert metrics["lpips"] == pytest.approx((0.20 + 0.10 + 0.21 + 0.11) / 4)
    assert metrics["lpips_minus_base"] == pytest.approx((0.20 + 0.10 - 0.25 - 0.12) / 2)
    assert metrics["seconds_per_image"] == 1.5
    assert (metrics["wins"], metrics["place"]) == (4, 1)
    others = row(shown, "ddnm").data.metrics
    assert (others["wins"], others["place"]) == (2, 2)  # equal as printed is first too; third on the mask left
    assert "lpips_minus_base" not in others


def test_rows_stand_above_the_cells_and_say_in_words_how_they_did(shown):
    found = runs(shown)  # newest first, as the list
    kinds = [run.data.tags["kind"] for run in found if run.data.tags["kind"] in ("row", "cell")]
    assert kinds == ["row"] * 3 + ["cell"] * 12
    note = row(shown, "copaint").data.tags["mlflow.note.content"]
    assert "0.190 on average, first in 0, 1.00 s per image" in note
    assert "| faces | 0.250 | 0.120 | 0.185 |" in note
    (cell,) = runs(shown, "params.method = 'tiramisu' and params.mask = 'wide' and params.dataset = 'rooms'")
    assert (
        "lpips 0.110, place 1 among 3 methods, 1.50 s per image; -0.020 against its base copaint"
        in (cell.data.tags["mlflow.note.content"])
    )


def test_a_method_has_one_color_and_no_other_has_it(shown):
    told = [run.data.tags for run in runs(shown) if "method" in run.data.tags]
    colors = {(tags["method"], tags["mlflow.runColor"]) for tags in told}
    assert len(colors) == len({color for _, color in colors}) == len(METHODS)


def read_table(run) -> list[dict]:
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "comparison.json", "type": "table"}]
    table = json.loads((Path(run.info.artifact_uri.removeprefix("file://")) / "comparison.json").read_text())
    return [dict(zip(table["columns"], line, strict=True)) for line in table["data"]]


def test_tables_open_with_what_is_compared(shown):
    """MLflow's table view groups by the first column and compares the second."""
    (first, *_) = read_table(row(shown, "tiramisu"))
    assert list(first)[:2] == ["setting", "lpips"]
    assert first["setting"] == "faces/left"
    (report,) = runs(shown, "tags.kind = 'report'")
    assert read_table(report)[-1] == pytest.approx(
        {"setting": "rooms/wide", "copaint": 0.13, "ddnm": 0.11, "tiramisu": 0.11}
    )


def test_tables_are_read_by_mlflow(root):
    run = row(root, "ddnm")
    ask(root).log_table(run.info.run_id, {"setting": ["x"], "lpips": [1.0]}, "twin.json")
    twin = json.loads((Path(run.info.artifact_uri.removeprefix("file://")) / "twin.json").read_text())
    ours = json.loads((Path(run.info.artifact_uri.removeprefix("file://")) / "comparison.json").read_text())
    assert twin.keys() == ours.keys()
    tags = ask(root).get_run(run.info.run_id).data.tags["mlflow.loggedArtifacts"]
    assert [entry["type"] for entry in json.loads(tags)] == ["table", "table"]


def test_report_is_shown_with_its_pages_and_follows_them(root):
    (run,) = runs(root, "tags.kind = 'report'")
    assert {"index.html", "plots/pareto.csv"} <= files(run)
    best, *_ = re.findall(r"\| (\w+) \| [\d.]+ \|", run.data.tags["mlflow.note.content"])
    assert best == "tiramisu"
    (root / "reports/embedded/index.html").write_text("<p>another verdict</p>")
    assert show(root) == Report(updated=1, present=16)
    (again,) = runs(root, "tags.kind = 'report'")
    assert again.info.run_id == run.info.run_id
    assert "another" in (Path(run.info.artifact_uri.removeprefix("file://")) / "index.html").read_text()


def test_data_is_named(shown):
    (cell,) = runs(shown, "params.method = 'ddnm' and params.mask = 'left' and params.dataset = 'faces'")
    (used,) = cell.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("faces", "d" * 36)
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "evaluation")]
    assert cell.data.tags["input.denoiser"] == "n" * 64


def test_parameters_tried_one_after_another_stay_side_by_side(root):
    for until in (0.25, 0.0):
        write_sweep(root, until)
        assert show(root).created == 4 + 1
    tried = runs(root, "tags.kind = 'row' and params.method = 'tiramisu'")
    points = {run.data.params["steering.until"]: run.data.metrics["lpips"] for run in tried}
    assert points == pytest.approx({"0.5": 0.155, "0.25": 0.18, "0.0": 0.205})


def test_structures_tried_one_after_another_stay_side_by_side(root):
    write_circuit(root, "quadtree", "q" * 64)
    write_sweep(root, circuit="q" * 64)
    assert show(root).created == 1 + 4 + 1
    tried = runs(root, "tags.kind = 'row' and params.method = 'tiramisu'")
    assert {run.data.params["circuit.chosen.structure"] for run in tried} == {"hclt", "quadtree"}
    assert {run.data.params["circuit.model.structures"] for run in tried} == {'["hclt"]', '["quadtree"]'}


def test_rows_wait_for_all_settings(root):
    before = row(root, "tiramisu")
    write_sweep(root, 0.25, DATASETS[:1])  # the sweep has begun anew and stands at the second dataset
    assert show(root).created == 2
    after = row(root, "tiramisu")
    assert (after.info.run_id, after.data.metrics) == (before.info.run_id, before.data.metrics)


def test_shown_twice_changes_nothing(root):
    before = [repr(run.to_dictionary()) for run in runs(root)]
    assert show(root) == Report(present=17)
    assert [repr(run.to_dictionary()) for run in runs(root)] == before
