"""Stages as processes of their own that can be killed, forked from a server that has imported the heavy packages."""

import multiprocessing
import os
import resource
import runpy
import signal
import sys
import time

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch", "diffusers.models.unets.unet_2d", "pytorch_lightning", "torchmetrics", "mlflow.tracking"]
)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

NO_MLFLOW = "sqlite:////dev/null/mlflow.db"
"""A store that cannot be, and is given up at once."""


def start(root, stage, *arguments, largest=None, **environment):
    """Start `python -m stages.<stage>` in `root`, in a process group of its own; what it says goes to `<stage>.log`.

    `largest` is how many bytes a file may have.
    """
    environment = {"MLFLOW_TRACKING_URI": NO_MLFLOW, "TIRAMISU_DEVICE": "cpu"} | environment
    process = SERVER.Process(target=_run, args=(str(root), stage, arguments, largest, environment), daemon=True)
    process.start()
    return process


def _run(root, stage, arguments, largest, environment):
    import torch

    os.setsid()
    os.chdir(root)
    os.environ.update(environment)
    log = os.open(f"{stage}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    sys.argv = [stage, *arguments]
    runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)


def run(root, stage, *arguments, **settings):
    """Run a stage to its end; returns its exit status and what it said."""
    process = start(root, stage, *arguments, **settings)
    process.join()
    return process.exitcode, (root / f"{stage}.log").read_text()


def finish(root, stage, *arguments, **settings):
    """Run a stage that must succeed; returns what it said."""
    status, words = run(root, stage, *arguments, **settings)
    assert status == 0, words
    return words


def kill(process):
    """SIGKILL a whole process group; returns whether it was still running."""
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode == -signal.SIGKILL


def until(condition, process, seconds=120.0):
    """Wait until something is so; fails if the process ends before, or time does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), "the process ended before"
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)
