"""Running units of work somewhere: at least once each, whatever becomes of the workers.

A unit says what is to be done in a few plain values; the function it is given to writes the result where it belongs,
under a name that depends on nothing but the unit, and only the status travels back. A worker that dies, by SIGKILL, for
want of memory or with its machine, loses the unit it was at, which another worker takes up; a unit at which workers die
again and again is given up. An error in the function is not tried again, and one that the user must mend stops
everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from pipeline.errors import UserError
from pipeline.experiment.engine.backend import Backend
from pipeline.experiment.engine.desk import Report

RETRIES = 2
"""Times a unit is taken up again after a worker died at it."""


class Unit(Protocol):
    """A unit of work: small, frozen, and made of plain values. As text it is a relative path, and names its log."""

    @property
    def group(self) -> tuple[str, ...]:
        """What a worker has to open for it, from what changes least to what changes most."""
        ...


U = TypeVar("U", bound=Unit)


class UnitError(RuntimeError):
    """A unit failed in a worker; the message says how, and where its log is."""


class Outcome(NamedTuple, Generic[U]):
    """What became of a unit."""

    unit: U
    ok: bool
    error: Exception | None


class Crew(Protocol):
    """Workers at numbered seats."""

    def hire(self, seat: int) -> None:
        """Put a new worker on a seat; it reports when it is ready."""
        ...

    def give(self, seat: int, unit: Unit) -> None:
        """Hand a unit to a worker that is ready."""
        ...

    def reports(self) -> Iterable[tuple[int, Report]]:
        """Wait until a worker reports or dies."""
        ...


def run_units(
    units: Sequence[U],
    fn: Callable[[U], object],
    backend: Backend,
    *,
    logs: Path,
    retries: int = RETRIES,
) -> Iterator[Outcome[U]]:
    """Do `fn` with every unit, and say of each when it is finished; the order is the workers'.

    Args:
        units: what is to be done.
        fn: what does it; for other backends than inline something that can be pickled. A worker gets a copy of its own
            and keeps it, so that it may keep open what the next unit needs.
        backend: where.
        logs: folder of one log per unit, appended to at every attempt; inline, units speak to whoever listens here.
        retries: how often a unit is taken up again after a worker died at it.

    Raises:
        UserError: `fn` raised one; the units that others were at are lost.
        RuntimeError: workers die before they take up anything.
    """
    if not units:
        return
    if backend.kind == "inline":
        yield from _inline(units, fn)
        return
    with _crew(backend, fn, logs, len(units)) as (crew, seats):
        yield from _Dispatch(units, crew, retries).run(seats)


def _inline(units: Sequence[U], fn: Callable[[U], object]) -> Iterator[Outcome[U]]:
    for unit in tuple(units):
        try:
            fn(unit)
        except UserError:
            raise
        except Exception as error:
            yield Outcome(unit, False, error)
        else:
            yield Outcome(unit, True, None)


def _crew(
    backend: Backend, fn: Callable[[U], object], logs: Path, units: int
) -> AbstractContextManager[tuple[Crew, int]]:
    if backend.kind == "ray":
        from pipeline.experiment.engine.ray_crew import ray_crew

        return ray_crew(backend, fn, logs, units)
    from pipeline.experiment.engine.process_crew import process_crew

    return process_crew(backend, fn, logs, units)


class _Dispatch(Generic[U]):
    """Keeps every worker busy until all units are finished."""

    def __init__(self, units: Sequence[U], crew: Crew, retries: int) -> None:
        self.pending, self.crew, self.retries = list(units), crew, retries
        self.at: dict[int, U] = {}
        self.last: dict[int, U] = {}
        self.free: set[int] = set()
        self.deaths = Counter[U | None]()  # of workers at a unit; None: before they took up anything

    def run(self, seats: int) -> Iterator[Outcome[U]]:
        """Hire, hand out, and listen."""
        for seat in range(seats):
            self.crew.hire(seat)
        while self.pending or self.at:
            self.hand_out()
            for seat, report in self.crew.reports():
                yield from self.hear(seat, report)

    def hand_out(self) -> None:
        """Give a unit to everyone who is free."""
        for seat in sorted(self.free)[: len(self.pending)]:
            unit = choose(self.pending, self.last.get(seat), [self.last[k] for k in self.last if k != seat])
            self.pending.remove(unit)
            self.free.remove(seat)
            self.at[seat] = self.last[seat] = unit
            self.crew.give(seat, unit)

    def hear(self, seat: int, report: Report) -> Iterator[Outcome[U]]:
        """Note what a worker reports."""
        unit = self.at.pop(seat, None)
        if report.status == "refused":
            raise UserError(report.text)
        if report.status == "died":
            yield from self.replace(seat, unit, report.text)
            return
        self.free.add(seat)
        if unit is None:
            self.deaths[None] = 0
        else:
            ok = report.status == "done"
            yield Outcome(unit, ok, None if ok else UnitError(report.text))

    def replace(self, seat: int, unit: U | None, reason: str) -> Iterator[Outcome[U]]:
        """Put another worker on the seat of one that died, and its unit back, unless that has happened too often."""
        self.free.discard(seat)
        self.last.pop(seat, None)
        self.deaths[unit] += 1
        given_up = self.deaths[unit] > self.retries
        if unit is None and given_up:
            raise RuntimeError(f"{self.deaths[unit]} workers died before they took up anything; the last: {reason}")
        self.crew.hire(seat)
        if unit is not None and given_up:
            yield Outcome(unit, False, UnitError(f"{unit}: {self.deaths[unit]} workers died at it; the last: {reason}"))
        elif unit is not None:
            self.pending.insert(0, unit)


def choose(pending: Sequence[U], own: U | None, others: Iterable[U]) -> U:
    """The unit that a worker takes next: of the group it has open, else of one that no other has, else the first.

    Args:
        pending: what is left, at least one.
        own: what the worker did last.
        others: what the others did last, or are at.
    """
    mine, taken = own.group if own is not None else (), {other.group for other in others}

    def merit(unit: U) -> tuple[bool, bool, int]:
        alike = sum(unit.group[:end] == mine[:end] for end in range(1, len(unit.group) + 1))
        return unit.group == mine, unit.group not in taken, alike

    return max(pending, key=merit)
