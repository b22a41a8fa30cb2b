"""The machine: device, threads, versions, clocks. The one module that chooses a device."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import ConfigError

PACKAGES = ("torch", "numpy", "diffusers", "pytorch-lightning", "lpips", "torchmetrics", "pillow", "webdataset")


def choose_device() -> torch.device:
    """The device named by the environment variable TIRAMISU_DEVICE, else the first GPU, else the CPU.

    Raises:
        ConfigError: the variable names a device that is not there.
    """
    name = os.environ.get("TIRAMISU_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"TIRAMISU_DEVICE={name!r} cannot be used ({error}); unset it, or name 'cpu' or 'cuda:0'."
        ) from error
    return torch.device(name)


def make_deterministic() -> None:
    """Ask torch for algorithms that give the same bits every time on the same device."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


@cache
def versions() -> dict[str, str]:
    """Versions of what results depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


@cache
def major_versions() -> dict[str, str]:
    """The part of the versions that makes a stored result stale: two numbers of torch and diffusers."""
    return {name: ".".join(versions()[name].split("+")[0].split(".")[:2]) for name in ("torch", "diffusers")}


@cache
def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPU of this machine."""
    import psutil

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": gpu,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def git_commit() -> str | None:
    """The commit checked out, with "+changes" if tracked files differ from it; None outside git."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if dirty.strip() else commit


def execution() -> str:
    """Name of this execution of the pipeline: TIRAMISU_EXECUTION (set by make), else DVC's experiment, else "local"."""
    return os.environ.get("TIRAMISU_EXECUTION") or os.environ.get("DVC_EXP_NAME") or "local"


def jobs() -> int:
    """Datasets whose stages ran on this machine at the same time, which a time measured here should be read with."""
    return int(os.environ.get("TIRAMISU_JOBS", "1"))


def now() -> str:
    """The present moment in ISO format, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def circumstances(device: torch.device, started: str, seconds: float) -> dict[str, Any]:
    """What a record says about when, where and with what it was made."""
    return {
        "started": started,
        "seconds": round(seconds, 3),
        "device": str(device),
        "hardware": hardware(),
        "versions": versions(),
        "git_commit": git_commit(),
        "execution": execution(),
        "jobs": jobs(),
    }


@dataclass
class Stopwatch:
    """Adds up wall time, waiting for the device before it looks at the clock."""

    device: torch.device
    seconds: float = 0.0
    laps: list[float] = field(default_factory=list)

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Time the block."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.laps.append(time.perf_counter() - start)
        self.seconds += self.laps[-1]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
