"""Workers that are actors of Ray: on this machine, or wherever a cluster has room (extra `ray`)."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.experiment.engine.backend import Backend
from pipeline.experiment.engine.desk import Desk, Report, tell_of_threads, threads_each

CARRIED = ("TIRAMISU_DEVICE", "TIRAMISU_EXECUTION", "TIRAMISU_WORK", "DVC_EXP_NAME")
"""Environment variables that workers on other machines must find as they are here."""

PATIENCE = 10.0
"""Seconds within which a cluster must answer."""

STORE = 100 * 2**20
"""Bytes of the object store of a Ray of our own: only statuses travel."""


class RayCrew:
    """Actors; one that dies, with or without its machine, is replaced wherever there is room."""

    def __init__(self, ray: Any, desk: Desk, needs: Mapping[str, int]) -> None:
        self._ray, self._desk = ray, desk
        path = os.pathsep.join(place or str(Path.cwd()) for place in sys.path)  # or they might import another pipeline
        environment = {"env_vars": {"PYTHONPATH": path}}
        self._hire = ray.remote(_Clerk).options(max_restarts=0, runtime_env=environment, **needs)
        self._actors: dict[int, Any] = {}
        self._awaited: dict[Any, int] = {}

    def hire(self, seat: int) -> None:
        """Ask for an actor; it may have to wait for room, without a unit."""
        self._actors[seat] = self._hire.remote(self._desk)
        self._awaited[self._actors[seat].settle.remote()] = seat

    def give(self, seat: int, unit: Any) -> None:
        """Hand over a unit."""
        self._awaited[self._actors[seat].attempt.remote(unit)] = seat

    def reports(self) -> Iterator[tuple[int, Report]]:
        """Wait until an actor answers or dies."""
        answered, _ = self._ray.wait(list(self._awaited))
        for reference in answered:
            seat = self._awaited.pop(reference)
            try:
                report = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                self._ray.kill(self._actors[seat])  # if it only cannot be reached, it must not go on either
                report = Report("died", " ".join(str(error).split()))
            yield seat, report

    def close(self) -> None:
        """End all actors, whatever they are at."""
        for actor in self._actors.values():
            self._ray.kill(actor)


class _Clerk:
    """An actor at its desk."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def settle(self) -> Report:
        return self._desk.settle()

    def attempt(self, unit: Any) -> Report:
        return self._desk.attempt(unit)


@contextmanager
def ray_crew(backend: Backend, fn: Callable[[Any], object], logs: Path, units: int) -> Iterator[tuple[RayCrew, int]]:
    """A crew on a Ray that runs already, in this process or at the address, or on one for this crew alone.

    Raises:
        ConfigError: Ray is not installed, or does not answer at the address.
    """
    if backend.address is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read by the import; without it no token would be shown
    ray = _import_ray()
    own = not ray.is_initialized()
    if own:
        _join(ray, backend)
    try:
        cores, gpus = int(ray.cluster_resources().get("CPU", 1)), _gpus(ray)
        seats = backend.workers or gpus or cores
        largest = max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])
        share = max(1, min(cores // seats, largest))  # a worker that needs more than a machine has would wait for ever
        environment = {name: os.environ[name] for name in CARRIED if name in os.environ}
        if gpus:
            environment["TIRAMISU_DEVICE"] = "cuda:0"  # Ray shows each actor its own GPU only
        else:
            tell_of_threads(threads_each(share))
        desk = Desk(fn=fn, logs=logs, threads=threads_each(share), environment=environment)
        crew = RayCrew(ray, desk, {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": share})
        try:
            yield crew, min(seats, units)
        finally:
            crew.close()
    finally:
        if own:
            ray.shutdown()


def _gpus(ray: Any) -> int:
    if os.environ.get("TIRAMISU_DEVICE") == "cpu":
        return 0
    return int(ray.cluster_resources().get("GPU", 0))


def _import_ray() -> Any:
    try:
        return import_module("ray")
    except ImportError as error:
        raise ConfigError(
            f"The engine ray needs Ray, which cannot be imported ({error}); pip install 'tiramisu-pipeline[ray]', or "
            "choose the engine process."
        ) from error


def _join(ray: Any, backend: Backend) -> None:
    """Join the cluster at the address; without one, start Ray on this machine."""
    quiet = {"log_to_driver": False, "logging_level": "WARNING"}
    if backend.address is None:
        cores = max(len(os.sched_getaffinity(0)), backend.workers or 1)
        ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=STORE, **quiet)
        return
    try:
        _knock(backend.address)
        ray.init(address=backend.address, **quiet)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"Ray does not let us in at {backend.address} ({' '.join(str(error).split())}); does it run there, and do "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH name the same token on all machines (docs/cluster.md)?"
        ) from error


def _knock(address: str) -> None:
    """See whether anybody answers; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
