"""Errands for the tests of the engine, which workers import by name."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.experiment.engine.backend import parse
from pipeline.experiment.engine.dispatch import run_units


@dataclass(frozen=True)
class Errand:
    """Something to be done, and what comes of it."""

    kind: str
    name: str

    @property
    def group(self):
        return ("errands", self.kind)

    def __str__(self):
        return f"{self.kind}/{self.name}"


@dataclass
class Clerk:
    """Does errands in `folder`, notes every attempt, and counts what it did."""

    folder: Path
    done: int = 0

    def __call__(self, errand):
        before = self.attempts(errand)
        note = [os.getpid(), self.done, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS")]
        (self.folder / f"{errand.name}.{len(before)}.json").write_text(json.dumps(note))
        if errand.kind == "deadly" or (errand.kind == "killed" and not before):
            os.kill(os.getpid(), signal.SIGKILL)
        if errand.kind == "wrong":
            raise ZeroDivisionError("by nothing")
        if errand.kind == "refused":
            raise InputError("The shard is damaged; prepare it again.")
        os.system(f"echo said by {errand.name}")
        self.done += 1

    def attempts(self, errand):
        """What was noted of each attempt: process, errands done before, GPU, threads."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob(f"{errand.name}.*.json"))]


class Sleepy(Clerk):
    """Falls asleep over its errand."""

    def __call__(self, errand):
        super().__call__(errand)
        time.sleep(600)


def send(clerk, errands, backend, **settings):
    return {
        outcome.unit: outcome
        for outcome in run_units(errands, clerk, parse(backend), logs=clerk.folder / "logs", **settings)
    }
