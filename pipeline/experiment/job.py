"""A training as the record sees it: what goes in, the curve, what comes out.

Killed at any moment, it goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.experiment import provenance, runtime
from pipeline.experiment.layout import Layout
from pipeline.experiment.progress import Bar, progress
from pipeline.experiment.record import Curve, write_bytes, write_json
from pipeline.training.batches import Batches, loader
from pipeline.training.fit import SeededModule, fit
from pipeline.training.settings import TrainerParams

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: everything that decides the result.

    Attributes:
        stage: name of the DVC stage, "train_ddpm".
        name: what the stage is repeated over, usually the dataset.
        params: the parameters it reads, seed and image size among them.
        inputs: digests of what it reads.
        code: modules whose source decides the result.
    """

    stage: str
    name: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str | None]
    code: tuple[str, ...]

    def fingerprint(self) -> str:
        """Digest of all of it, and of the versions of the libraries."""
        return provenance.digest(
            {
                "stage": self.stage,
                "name": self.name,
                "params": dict(self.params),
                "inputs": dict(self.inputs),
                "code": provenance.code_digest(*self.code),
                "versions": runtime.major_versions(),
            }
        )


class Job(AbstractContextManager["Job"]):
    """One training under way: its folder of checkpoints, its curve, its bar, its mirror in MLflow."""

    def __init__(self, task: Task, layout: Layout, out: Path, *, steps: int) -> None:
        """Prepare to write the result to `out`, which DVC empties before the stage.

        `steps` is the length of the bar.
        """
        self.task, self.layout, self.out, self.steps = task, layout, out, steps
        self.fingerprint = task.fingerprint()
        self.folder = layout.training(task.stage, task.name, self.fingerprint)
        self.device = runtime.choose_device()
        self.curve = Curve(self.folder / "curve.jsonl")
        self._bar: Bar
        self._opened: AbstractContextManager[Bar] | None = None
        self._mirror: Any = None

    def __enter__(self) -> Job:
        from pipeline.experiment import tracking

        self.folder.mkdir(parents=True, exist_ok=True)
        runtime.make_deterministic()
        rows = self.curve.rows()
        self.before = float(rows[-1]["seconds"]) if rows else 0.0
        self.started, self.start = runtime.now(), time.perf_counter()
        self._mirror = tracking.open_store(self.layout.root).train_run(self.record({}, []))
        self._opened = progress(f"{self.task.stage} {self.task.name}", self.steps)
        self._bar = self._opened.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            self._opened.__exit__(kind, error, trace)
        if kind is not None:
            self._mirror.abandon()

    def fit(self, module: SeededModule, examples: Batches, params: TrainerParams, seed: int) -> None:
        """Train `module` on `examples` to the end, going on where it was; 0 steps: not at all."""
        if params.steps:
            self.run(module, in_order(examples, params, seed), params)

    def fit_aside(
        self, module: SeededModule, examples: Batches, params: TrainerParams, seed: int, *, part: str
    ) -> None:
        """Train a network that the training asks for, likewise; its curve and bar are not the training's.

        The bar's text tells how far it is.
        """
        if params.steps:
            fit(
                module,
                in_order(examples, params, seed),
                params=params,
                folder=self.folder / part,
                device=self.device,
                log=lambda step, metrics: self._bar.say(f"{part} {step}/{params.steps}, {_in_words(metrics)}"),
                tick=lambda step: None,
            )

    def run(
        self, module: SeededModule, batches: DataLoader[Tensor], params: TrainerParams, part: str = "", before: int = 0
    ) -> None:
        """Train `module` on `batches` to the end, going on where it was.

        `part` names one of several trainings, and `before` are the steps of those before it.
        """
        fit(
            module,
            batches,
            params=params,
            folder=self.folder / part,
            device=self.device,
            log=lambda step, metrics: self.log(before + step, metrics),
            tick=lambda step: self.tick(before + step),
        )

    def tick(self, step: int) -> None:
        """Step number `step` is done."""
        self._bar.reach(step)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a row to the curve; a row of a step reported before the last interruption replaces it."""
        if self.curve.path.exists():
            rows = self.curve.rows()
            if rows and rows[-1]["step"] >= step:
                self.curve.keep_until(step - 1)
        self.curve.add(step, self.seconds(), metrics)
        self._bar.say(_in_words(metrics))
        self._mirror.metrics(step, metrics)

    def seconds(self) -> float:
        """Time spent so far, interruptions left out."""
        return self.before + time.perf_counter() - self.start

    def record(self, metrics: Mapping[str, float], artifacts: list[str]) -> dict[str, Any]:
        """The training's record as it stands."""
        return {
            "schema": 1,
            "kind": "train",
            "stage": self.task.stage,
            "dataset": self.task.name,
            "fingerprint": self.fingerprint,
            "profile": self.layout.profile,
            "params": dict(self.task.params),
            "inputs": dict(self.task.inputs),
            "metrics": dict(metrics),
            "artifacts": artifacts,
            "measured": runtime.circumstances(self.device, self.started, self.seconds()),
        }

    def finish(self, metrics: Mapping[str, float], artifacts: list[str]) -> None:
        """Write curve and record to `out`; the record last, and MLflow after it."""
        curve = self.curve.path.read_bytes() if self.curve.path.exists() else b""
        write_bytes(self.out / "curve.jsonl", curve)
        record = self.record(metrics, artifacts)
        write_json(self.out / "record.json", record)
        self._mirror.finish(record, self.out)
        log.info("%s %s: %s", self.task.stage, self.task.name, {k: round(v, 4) for k, v in metrics.items()})


def in_order(examples: Batches, params: TrainerParams, seed: int) -> DataLoader[Tensor]:
    """The batches of a training, the same each time."""
    return loader(examples, batch=params.batch, steps=params.checkpoint_every, seed=seed, workers=params.workers)


def _in_words(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name.rpartition('/')[2]} {value:.4g}" for name, value in metrics.items())


def seed_everything(seed: int) -> None:
    """Seed torch's global generators: for initial weights only, everything later is seeded by step."""
    torch.manual_seed(seed)
