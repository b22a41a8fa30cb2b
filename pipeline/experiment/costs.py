"""What sampling takes, batch by batch; a batch that fails takes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from pipeline.diffusion.denoiser import Counted, Denoiser
from pipeline.experiment.progress import Bar
from pipeline.experiment.runtime import Stopwatch
from pipeline.experiment.sweep import Meter
from pipeline.watch import Watch


@dataclass
class Costs:
    """What finished batches took.

    Attributes:
        evaluations: of every kind, over all images and samples.
        seconds: of sampling.
        split: the part of the seconds that each part of steering took.
    """

    evaluations: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    split: dict[str, float] = field(default_factory=dict)

    def each(self, count: int) -> dict[str, float]:
        """Evaluations of every kind per sample, of which there are `count`."""
        return {kind: self.evaluations[kind] / count for kind in ("forwards", "backwards", "circuit", "codec")}

    def add(self, counted: Counted, meter: Meter | None, seconds: float) -> None:
        """Add a batch, for which `counted` and `meter` began at 0."""
        self.evaluations.update(forwards=counted.forwards, backwards=counted.backwards)
        self.seconds += seconds
        if meter:
            asked = meter.counts
            self.evaluations.update(circuit=asked["circuit"], codec=asked["encode"] + asked["decode"])
            for part, spent in meter.seconds.items():
                self.split[part] = self.split.get(part, 0.0) + spent


@contextmanager
def attempt(
    denoiser: Denoiser, meter: Meter | None, bar: Bar, count: int, costs: Costs, device: torch.device
) -> Iterator[tuple[Counted, Watch]]:
    """Sample a batch of `count` images with the denoiser and the watch given; costs and bar forget it if it fails."""
    counted, clock, moves = Counted(denoiser), Stopwatch(device), 0

    def watch(t: int, x_0: torch.Tensor) -> None:
        nonlocal moves
        moves += 1
        bar.advance(count)

    if meter:
        meter.clear()
    try:
        with clock.lap():
            yield counted, watch
    except Exception:
        bar.advance(-moves * count)
        raise
    costs.add(counted, meter, clock.seconds)
