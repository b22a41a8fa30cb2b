"""What steering takes: images given to each part, and the time each part had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.experiment.runtime import Stopwatch
from pipeline.steering.meter import Meter


class TimedMeter(Meter):
    """A meter with a clock for each part, which waits for the device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self._watches = device, dict[str, Stopwatch]()

    @contextmanager
    def part(self, name: str, images: int = 0) -> Iterator[None]:
        """Count and time one part of the work."""
        watch = self._watches.setdefault(name, Stopwatch(self.device))
        with super().part(name, images), watch.lap():
            yield

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each part so far."""
        return {name: watch.seconds for name, watch in self._watches.items()}

    def clear(self) -> None:
        """Go back to 0."""
        self.counts.clear()
        self._watches.clear()
