"""Showing how far a long step is: a bar with rate and time left in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_EVERY = 10.0
"""Seconds between two plain lines."""


class Bar(Protocol):
    """What a step in progress is told."""

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""
        ...

    def reach(self, done: int) -> None:
        """`done` units are done in all; may start above 0 after a resume."""
        ...

    def say(self, note: str) -> None:
        """Show a short note beside the bar."""
        ...


class PlainBar:
    """Lines for logs: now and then, and at the end."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.first, self.note = 0, None, ""  # type: int, int | None, str
        self.start = self.last = time.monotonic()

    def advance(self, n: int = 1) -> None:
        """Count on."""
        if self.first is None:
            self.first = self.done
        self.reach(self.done + n)

    def reach(self, done: int) -> None:
        """Count to `done`, and write a line if it is time."""
        now = time.monotonic()
        if self.first is None:  # what was done before is no work of this run
            self.first, self.start = done, now
        self.done = done
        if now - self.last >= PLAIN_EVERY or done >= self.total:
            self.last = now
            self._write(now)

    def say(self, note: str) -> None:
        """Append `note` to the next lines."""
        self.note = note

    def _write(self, now: float) -> None:
        text = f"{self.title}: {self.done}/{self.total} {self.unit}"
        worked, elapsed = self.done - (self.first or 0), now - self.start
        if worked > 0 and elapsed > 0:
            text += f", {pace(worked / elapsed)}, {clock((self.total - self.done) * elapsed / worked)} left"
        sys.stderr.write(f"{text}{', ' + self.note if self.note else ''}\n")
        sys.stderr.flush()


class RichBar:
    """A live bar."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit} {{task.fields[rate]}}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self.task = self.progress.add_task(title, total=total, rate="", note="")

    def advance(self, n: int = 1) -> None:
        """Count on."""
        self.progress.advance(self.task, n)
        self._rate()

    def reach(self, done: int) -> None:
        """Count to `done`."""
        self.progress.update(self.task, completed=done)
        self._rate()

    def _rate(self) -> None:
        speed = self.progress.tasks[self.task].speed
        self.progress.update(self.task, rate=pace(speed) if speed else "")

    def say(self, note: str) -> None:
        """Show `note` at the end of the bar."""
        self.progress.update(self.task, note=note)


def pace(rate: float) -> str:
    """Write units per second with three digits or as a whole number."""
    return f"{rate:.3g}/s" if rate < 100 else f"{rate:.0f}/s"


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss or m:ss."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def progress(title: str, total: int, unit: str = "steps") -> Iterator[Bar]:
    """Open a bar on standard error for the block."""
    if not sys.stderr.isatty():
        yield PlainBar(title, total, unit)
        return
    bar = RichBar(title, total, unit)
    with bar.progress:
        yield bar
