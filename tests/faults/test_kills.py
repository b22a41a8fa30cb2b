"""Killed at any moment and started again, a stage ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults.processes import NO_MLFLOW, finish, kill, start
from faults.toy import OUTS, PROFILE, STAGES, settled

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", ["prepare", "train_ddpm", "inpaint", "score"])
def test_a_stage_killed_at_random_moments_ends_the_same(whole, root, undo, stage):
    chance, kills = random.Random(stage), 0
    undo(stage)
    begin = time.monotonic()
    finish(root, stage, *STAGES[stage])
    duration = time.monotonic() - begin
    undo(stage)
    while kills < 3:
        process = start(root, stage, *STAGES[stage])
        process.join(chance.uniform(0.1, 0.5) * duration)
        if kill(process):
            kills += 1
        else:  # it was faster this time
            undo(stage)
            duration /= 2
    finish(root, stage, *STAGES[stage])
    assert settled(root) == settled(whole)


def test_finished_cells_survive_the_death_of_the_process_group(whole, root, undo):
    """Two stages, one after the other, as a pipeline runs them; all processes die at once, as in a reboot."""
    undo("inpaint")
    undo("score")
    cells = root / "work" / "cells"
    line = " && ".join(f"{sys.executable} -m stages.{name} {' '.join(STAGES[name])}" for name in ("inpaint", "score"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": NO_MLFLOW, "TIRAMISU_DEVICE": "cpu"}
    with subprocess.Popen(["bash", "-c", line], cwd=root, env=environment, start_new_session=True) as group:
        while not list(cells.glob("*.npz")):
            assert group.poll() is None
            time.sleep(0.005)
        os.killpg(group.pid, signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in cells.glob("*.npz")}
    assert group.returncode == -signal.SIGKILL
    assert kept
    for stage in ("inpaint", "score"):
        finish(root, stage, *STAGES[stage])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert settled(root) == settled(whole)


def test_a_stage_started_twice_at_once_ends_the_same(whole, root, undo):
    undo("inpaint")
    both = [start(root, "inpaint", *STAGES["inpaint"]) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert settled(root) == settled(whole)
    assert {path.name for path in (root / "runs" / PROFILE / OUTS["inpaint"]).iterdir()} == {
        "cells.json", "left.npz", "expand1.npz", "wide.npz"
    }  # fmt: skip
