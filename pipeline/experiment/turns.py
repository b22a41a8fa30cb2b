"""Turns of processes that share a disk: one at a time, made once, and never waited for without end.

For sqlite files and for folders on a local disk; file locks do not hold on every network file system.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

WAIT = 30.0  # how long another process may keep its turn, in seconds
BUSY = 2.0  # how long another process may be writing to a sqlite file, in seconds


@contextmanager
def alone(lock: Path, *, wait: float = WAIT) -> Iterator[None]:
    """Hold a lock file; it stays on disk, and is free again when its holder ends, however that happens.

    Raises:
        TimeoutError: another process held it for `wait` seconds.
        OSError: the file cannot be written.
    """
    deadline = time.monotonic() + wait
    with lock.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process has held {lock} for {wait:.0f} s") from None
                time.sleep(0.05)
        yield


def make_once(path: Path, make: Callable[[Path], None]) -> None:
    """Make a file unless it exists; of several processes one makes it, and nobody sees it half made.

    Args:
        path: the file.
        make: writes the file at the path it is given.
    """
    if path.exists():
        return
    with alone(path.with_name(f"{path.name}.lock")):
        if path.exists():
            return
        draft = path.with_name(f"{path.name}.new")
        draft.unlink(missing_ok=True)  # left by a process that was killed
        make(draft)
        draft.replace(path)


def knock(path: Path) -> None:
    """Ask whether a sqlite file can be written now.

    Raises:
        sqlite3.OperationalError: it is locked for longer than `BUSY` seconds, or cannot be written.
    """
    with closing(sqlite3.connect(path, timeout=BUSY, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
