"""Counting what steering asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.steering.fusion import Normal


class Meter:
    """Counts images given to encoder, circuit and decoder, as "encode", "circuit", "decode".

    May be made to time, or to look on.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @contextmanager
    def part(self, name: str, images: int = 0) -> Iterator[None]:
        """Do one part of the work on some images; "fusion" is the part that asks nobody."""
        self.counts[name] += images
        yield

    def look(self, t: int, diffusion: Normal, circuit: Normal, mixed: Normal) -> None:
        """Be shown what both sides say of x_0 at time t, and what was made of it; a plain meter does not look."""
