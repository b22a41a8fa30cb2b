"""Where everything lies: every path the pipeline reads or writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

WORK = "TIRAMISU_WORK"
"""Environment variable that names a folder instead of `work`: one for all copies of the repository that DVC makes."""


@dataclass(frozen=True)
class Layout:
    """Paths of one profile below the root of the repository.

    `runs/<profile>` and `reports/<profile>` hold outputs of DVC stages; `work` holds what must survive a stage being
    started again: finished cells, checkpoints of trainings under way, decoded images, logs.
    """

    root: Path
    profile: str

    @property
    def runs(self) -> Path:
        """Outputs of the profile's stages."""
        return self.root / "runs" / self.profile

    @property
    def report(self) -> Path:
        """The profile's report."""
        return self.root / "reports" / self.profile

    @property
    def work(self) -> Path:
        """What must survive a stage being started again: TIRAMISU_WORK, else the folder of that name."""
        return self.root / (os.environ.get(WORK) or "work")

    @property
    def cells(self) -> Path:
        """The content-addressed store of finished sweep cells, shared by all profiles."""
        return self.work / "cells"

    @property
    def logs(self) -> Path:
        """A log for each cell that a worker ran."""
        return self.work / "logs" / self.profile

    @property
    def cache(self) -> Path:
        """Decoded images, by the digest of their shards."""
        return self.work / "cache"

    def training(self, stage: str, name: str, fingerprint: str) -> Path:
        """Checkpoints of a training under way."""
        return self.work / "train" / f"{stage}-{name}-{fingerprint[:16]}"

    def data(self, dataset: str) -> Path:
        """Shards and manifest of a dataset."""
        return self.runs / "data" / dataset

    @property
    def masks(self) -> Path:
        """Masks as files, a folder each, and their index."""
        return self.runs / "masks"

    @property
    def trunk(self) -> Path:
        """The pipeline's own perceptual trunk."""
        return self.runs / "trunk"

    @property
    def lpips(self) -> Path:
        """Which trunk LPIPS uses, and its features."""
        return self.runs / "lpips"

    def vqgan(self, dataset: str) -> Path:
        """The VQ-GAN of a dataset."""
        return self.runs / "vqgan" / dataset

    def tokens(self, dataset: str) -> Path:
        """Token grids of a dataset."""
        return self.runs / "tokens" / dataset

    def circuit(self, dataset: str) -> Path:
        """The circuit of a dataset."""
        return self.runs / "circuit" / dataset

    def steering(self, dataset: str) -> Path:
        """Fitted trust of a dataset's steering."""
        return self.runs / "steering" / dataset

    def fusion(self, dataset: str) -> Path:
        """New images from regions of several references."""
        return self.runs / "fusion" / dataset

    def insight(self, dataset: str) -> Path:
        """What the circuit of a dataset says about masked images."""
        return self.runs / "insight" / dataset

    def strip(self, dataset: str) -> Path:
        """A steered walk beside its base's, time by time."""
        return self.runs / "strip" / dataset

    def transformer(self, dataset: str) -> Path:
        """The reference transformer of a dataset."""
        return self.runs / "transformer" / dataset

    def ddpm(self, dataset: str) -> Path:
        """The diffusion model of a dataset."""
        return self.runs / "ddpm" / dataset

    def inpaint(self, dataset: str, method: str) -> Path:
        """Finished cells of a (dataset, method or steered row), a file per mask."""
        return self.runs / "inpaint" / dataset / method

    def scores(self, dataset: str) -> Path:
        """Scores of all cells of a dataset."""
        return self.runs / "scores" / dataset


def find_root() -> Path:
    """The folder with params.yaml: where DVC runs the stages."""
    return Path.cwd()
