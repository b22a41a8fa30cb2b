"""The methods, one file per paper.

A method is a frozen dataclass whose fields are its hyperparameters (and its block in params.yaml) and a function
`method(denoiser, problem, noise, *, refine, watch) -> x_0`. To add one: its file, its line in `METHODS` and `PRESETS`,
its block in params.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from pipeline.diffusion.denoiser import Denoiser
from pipeline.diffusion.refine import Refine, unchanged
from pipeline.methods import (
    blended,
    copaint,
    daps,
    ddnm,
    ddrm,
    diffpir,
    dps,
    lanpaint,
    pigdm,
    repaint,
    resampling,
    tds,
)
from pipeline.noise import NoiseSource
from pipeline.problem import Problem
from pipeline.watch import Watch, ignore


class Method(Protocol):
    """An inpainting algorithm with its hyperparameters."""

    def nfe(self) -> int:
        """Network evaluations (forwards) per image, known before anything runs."""
        ...

    def nbe(self) -> int:
        """Gradients through the network (backwards) per image, 0 where none is taken."""
        ...

    def moves(self) -> list[tuple[int, int]]:
        """The walk: moves (i, j) between level indices in order, -1 = clean; j < i denoises, j > i goes back."""
        ...

    def __call__(
        self,
        denoiser: Denoiser,
        problem: Problem,
        noise: NoiseSource,
        *,
        refine: Refine = unchanged,
        watch: Watch = ignore,
    ) -> Tensor:
        """Sample one completion per problem, [B, C, H, W] in [-1, 1]."""
        ...


METHODS: dict[str, type[Any]] = {
    "blended": blended.Blended,
    "ddnm": ddnm.DDNM,
    "ddrm": ddrm.DDRM,
    "dps": dps.DPS,
    "copaint": copaint.CoPaint,
    "repaint": repaint.RePaint,
    "resampling": resampling.Resampling,
    "diffpir": diffpir.DiffPIR,
    "daps": daps.DAPS,
    "tds": tds.TDS,
    "pigdm": pigdm.PiGDM,
    "lanpaint": lanpaint.LanPaint,
}
"""Every method by the name of its file."""

PRESETS: dict[str, Mapping[str, Method]] = {
    "blended": blended.PRESETS,
    "ddnm": ddnm.PRESETS,
    "ddrm": ddrm.PRESETS,
    "dps": dps.PRESETS,
    "copaint": copaint.PRESETS,
    "repaint": repaint.PRESETS,
    "resampling": resampling.PRESETS,
    "diffpir": diffpir.PRESETS,
    "daps": daps.PRESETS,
    "tds": tds.PRESETS,
    "pigdm": pigdm.PRESETS,
    "lanpaint": lanpaint.PRESETS,
}
"""The settings under which a method was published (`paper`) or compared (`copaint_repo`)."""
