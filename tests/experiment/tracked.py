"""Records as the stages write them, and what MLflow holds once they are shown."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.experiment.tracking import Report, open_store, project

MASKS = ("left", "expand")


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def train_record(fingerprint: str = "f" * 64, **changes) -> dict:
    return {
        "schema": 1,
        "kind": "train",
        "stage": "train_ddpm",
        "dataset": "faces",
        "fingerprint": fingerprint,
        "profile": "embedded",
        "params": {"steps": 300, "unet": {"channels": [32, 64], "dropout": 0.0}, "dataset": "a clash", "ema": None},
        "inputs": {"data": "d" * 64, "code": "c" * 64},
        "metrics": {"val/loss": 0.25, "train/final": 0.5},
        "artifacts": ["samples.png"],
        "measured": {
            "seconds": 12.5,
            "started": "2025-03-04T05:06:07+00:00",
            "device": "cpu",
            "hardware": {"cpu": "toy"},
            "versions": {"torch": "2"},
            "git_commit": "abc123",
            "execution": "e1",
        },
    } | changes


def running() -> dict:
    """What is known of a training when it begins."""
    return {key: value for key, value in train_record().items() if key not in ("metrics", "artifacts", "measured")}


def curve(steps: int = 5) -> list[dict]:
    return [
        {"step": step, "seconds": step / 10, "metrics": {"train/loss": 1 / (1 + step), "val/loss": 2 / (1 + step)}}
        for step in range(steps)
    ]


def write_training(root: Path, record: dict, points: list[dict]) -> Path:
    folder = root / "runs" / "embedded" / "ddpm" / record["dataset"]
    write_json(folder / "record.json", record)
    (folder / "curve.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "samples.png")
    return folder


def cell_record(mask: str, method: str = "ddnm", dataset: str = "faces") -> dict:
    return {
        "schema": 1,
        "kind": "cell",
        "fingerprint": f"{dataset}-{method}-{mask}-fingerprint",
        "profile": "embedded",
        "dataset": dataset,
        "mask": mask,
        "method": method,
        "params": {"steps": 50, "eta": 0.85, "samples": "a clash"},
        "seed": 7,
        "image_size": 16,
        "image_ids": [f"{index:03d}" for index in range(10)],
        "samples": 2,
        "inputs": {"data": "d" * 64, "masks": "m" * 64, "denoiser": "n" * 64, "code": "c" * 64},
        "evaluations": {"forwards": 50.0, "backwards": 0.0, "circuit": 0.0, "codec": 0.0},
        "measured": {
            "seconds_per_image": 0.5,
            "batch_size": 8,
            "started": "2025-03-04T06:00:00+00:00",
            "device": "cpu",
            "hardware": {},
            "versions": {},
            "git_commit": "abc123",
            "execution": "e1",
        },
    }


def write_cells(root: Path, method: str = "ddnm", dataset: str = "faces") -> list[dict]:
    records = [cell_record(mask, method, dataset) for mask in MASKS]
    folder = root / "runs" / "embedded" / "inpaint" / dataset / method
    write_json(folder / "cells.json", {"cells": records})
    for record in records:
        samples = np.random.default_rng(0).integers(0, 256, (10, 2, 16, 16, 3), np.uint8)
        known = np.zeros((10, 16, 16), bool)
        known[:, :, 8:] = True
        blob = np.frombuffer(json.dumps(record).encode(), np.uint8)
        np.savez(folder / f"{record['mask']}.npz", samples=samples, known=known, record=blob)
        store = root / "work" / "cells"
        store.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / f"{record['mask']}.npz", store / f"{record['fingerprint']}.npz")
    return records


def write_scores(root: Path, records: list[dict], metrics: dict[str, float], dataset: str = "faces") -> None:
    keys = ("dataset", "mask", "method", "fingerprint")
    counts = {"images": 10, "samples": 2}
    column = "lpips" if "lpips" in metrics else "lpips_domain"
    cells = [{key: record[key] for key in keys} | counts | {"metrics": metrics} for record in records]
    score = {"schema": 1, "dataset": dataset, "lpips": {"column": column}, "cells": cells}
    write_json(root / "runs" / "embedded" / "scores" / dataset / "score.json", score)


def bring_up_to_date(root: Path) -> Report:
    return project(open_store(root), root / "runs", root / "work" / "cells", "embedded")


def ask(root: Path):
    """MLflow's own client, imported when its telemetry is off."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def runs(root: Path, question: str = "", profile: str = "embedded") -> list:
    client = ask(root)
    experiment = client.get_experiment_by_name(f"tiramisu/{profile}")
    return list(client.search_runs([experiment.experiment_id], question)) if experiment else []


def history(root: Path, run, name: str) -> list[tuple[int, float]]:
    points = ask(root).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in points)


def files(run) -> set[str]:
    home = Path(run.info.artifact_uri.removeprefix("file://"))
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
