"""What happens to a unit at a worker: what it says goes to a log of its own, and only its status comes back."""

from __future__ import annotations

import logging
import os
import platform
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.errors import UserError

log = logging.getLogger(__name__)


class Report(NamedTuple):
    """What a worker says, or what is said of it.

    Attributes:
        status: ready = can take a unit; done, failed (an error in `text`) and refused (a sentence for the user in
            `text`) = can take the next; died = is no more, for the reason in `text`.
        text: words that go with it.
    """

    status: Literal["ready", "done", "failed", "refused", "died"]
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Where a worker sits.

    Attributes:
        fn: what is done with a unit.
        logs: folder of the units' logs.
        threads: of its computations.
        environment: variables that it finds set.
        folder: the working directory.
    """

    fn: Callable[[Any], object]
    logs: Path
    threads: int
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = field(default_factory=os.getcwd)

    def settle(self) -> Report:
        """Take the desk; GPUs are chosen here, before anything has looked for one."""
        os.chdir(self.folder)
        os.environ.update({**self.environment, "OMP_NUM_THREADS": str(self.threads)})
        torch = sys.modules.get("torch")  # read the variable when it was imported; if that is to come, it will
        if torch is not None:
            torch.set_num_threads(self.threads)
        return Report("ready")

    def attempt(self, unit: object) -> Report:
        """Do what is to be done with a unit."""
        log = self.logs / f"{unit}.log"
        with _speaking_to(log):
            host, moment = platform.node(), datetime.now(UTC).isoformat(timespec="seconds")
            sys.stderr.write(f"{moment} {unit}: process {os.getpid()} on {host}, {self.threads} thread(s)\n")
            try:
                self.fn(unit)
            except UserError as error:
                sys.stderr.write(f"{error}\n")
                return Report("refused", str(error))
            except Exception as error:
                traceback.print_exc()
                return Report("failed", f"{unit}: {type(error).__name__}: {error} (see {log})")
            return Report("done")


def threads_each(share: int) -> int:
    """Threads of a worker: what OMP_NUM_THREADS says, as for this process, else its share of the cores."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(named) if named.isdigit() else share)


def tell_of_threads(threads: int) -> None:
    """Say so if workers have other numbers of threads than this process, because sums then round differently."""
    torch = sys.modules.get("torch")
    if torch is not None and threads != torch.get_num_threads():
        log.warning(
            "A worker has %d thread(s), inline there would be %d: sums round differently, and a pixel here and there "
            "may be a grey value off. With the same OMP_NUM_THREADS the bits are the same.",
            threads,
            torch.get_num_threads(),
        )


@contextmanager
def _speaking_to(path: Path) -> Iterator[None]:
    """Append whatever the process and its libraries print within the block to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    streams = {1: sys.stdout, 2: sys.stderr}
    kept = {number: os.dup(number) for number in streams}
    with path.open("ab") as file:
        for number in streams:
            os.dup2(file.fileno(), number)
    try:
        yield
    finally:
        for number, stream in streams.items():
            stream.flush()
            os.dup2(kept[number], number)
            os.close(kept[number])
