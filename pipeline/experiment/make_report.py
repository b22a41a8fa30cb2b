"""The stage report: everything under runs/<profile> -> one page and its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.shards import read_split
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import Params, read_yaml
from pipeline.experiment.report import write_report
from pipeline.experiment.report_judge import RECORD


def make_report(params: Params, layout: Layout) -> Path:
    """Write the report of the profile and return its page."""

    def truth(dataset: str) -> tuple[list[str], NDArray[np.uint8]]:
        images = read_split(layout.data(dataset), params.sweep.split, layout.cache)
        return list(images.keys), images.images

    return write_report(
        profile=params.profile,
        runs=layout.root / "runs",
        out=layout.report,
        params=read_yaml(layout.root / "params.yaml"),
        truth=truth,
        judge=layout.root / RECORD,
    )
