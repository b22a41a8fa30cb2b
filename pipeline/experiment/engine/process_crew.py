"""Workers that are processes of this machine: one per GPU, or sharing its cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pipeline.experiment.engine.backend import Backend
from pipeline.experiment.engine.desk import Desk, Report, tell_of_threads, threads_each

PATIENCE = 5.0
"""Seconds that a worker has to end when it is told to."""


@dataclass(frozen=True, kw_only=True)
class _Worker:
    process: BaseProcess
    line: Connection


class ProcessCrew:
    """Processes, each with a pipe of its own: one that dies cannot spoil what the others say."""

    def __init__(self, desks: list[Desk]) -> None:
        self._desks = desks
        self._workers: dict[int, _Worker] = {}
        self._context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU

    def hire(self, seat: int) -> None:
        """Start a process."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(self._desks[seat], theirs), daemon=True)
        process.start()
        theirs.close()  # so that the pipe ends when the process does
        self._workers[seat] = _Worker(process=process, line=ours)

    def give(self, seat: int, unit: Any) -> None:
        """Send a unit; should the worker just have died, that is reported soon."""
        try:
            self._workers[seat].line.send(unit)
        except OSError:
            self._workers[seat].process.kill()

    def reports(self) -> Iterator[tuple[int, Report]]:
        """Wait until a process speaks or ends."""
        speaking = wait([worker.line for worker in self._workers.values()])
        for seat, worker in list(self._workers.items()):
            if worker.line in speaking:
                try:
                    report = worker.line.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    report = Report("died", _cause(worker.process))
                yield seat, report

    def close(self) -> None:
        """End all processes, whatever they are at."""
        for worker in self._workers.values():
            worker.process.terminate()
        for worker in self._workers.values():
            worker.process.join(PATIENCE)
            worker.process.kill()
            worker.line.close()


@contextmanager
def process_crew(
    backend: Backend, fn: Callable[[Any], object], logs: Path, units: int
) -> Iterator[tuple[ProcessCrew, int]]:
    """A crew, and its number of seats: no more than there are units."""
    desks = desks_of(backend.workers, Desk(fn=fn, logs=logs, threads=1))[:units]
    crew = ProcessCrew(desks)
    try:
        yield crew, len(desks)
    finally:
        crew.close()


def desks_of(workers: int | None, desk: Desk) -> list[Desk]:
    """A desk per worker: each with a GPU, given out in turns; without GPUs each with its share of the cores."""
    gpus, cores = visible_gpus(), len(os.sched_getaffinity(0))
    count = workers or len(gpus) or cores
    desk = replace(desk, threads=threads_each(cores // count))
    if not gpus:
        tell_of_threads(desk.threads)
        return [desk] * count
    return [
        replace(desk, environment={"CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)], "TIRAMISU_DEVICE": "cuda:0"})
        for k in range(count)
    ]


def visible_gpus() -> list[str]:
    """Names of the GPUs that workers may use: all, unless TIRAMISU_DEVICE or CUDA_VISIBLE_DEVICES say less."""
    kind, _, index = os.environ.get("TIRAMISU_DEVICE", "cuda").partition(":")
    if kind != "cuda":
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]
    names = names[: torch.cuda.device_count()]
    return names[int(index) : int(index) + 1] if index else names


def _cause(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code == -signal.SIGKILL:
        return f"process {process.pid} was killed (SIGKILL; when memory runs out, the system does that)"
    return f"process {process.pid} ended by {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"


def _serve(desk: Desk, line: Connection) -> None:
    """What a worker does: take units until nobody gives any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the one who hired ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    line.send(desk.settle())
    while True:
        try:
            unit = line.recv()
        except EOFError:
            return
        line.send(desk.attempt(unit))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
