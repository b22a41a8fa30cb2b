"""Counting what steering asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Counts images given to encoder, circuit and decoder, as "encode", "circuit", "decode"; may be made to time."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @contextmanager
    def part(self, name: str, images: int = 0) -> Iterator[None]:
        """Do one part of the work on some images; "fusion" is the part that asks nobody."""
        self.counts[name] += images
        yield
