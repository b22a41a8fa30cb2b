"""The stage resolve_lpips: which trunk LPIPS uses in this run."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.experiment.layout import Layout
from pipeline.experiment.lpips_trunk import resolve
from pipeline.experiment.params import Params

log = logging.getLogger(__name__)


def resolve_lpips(params: Params, layout: Layout) -> None:
    """Find the ImageNet-trained trunk, or say why the pipeline's own takes its place."""
    path = layout.root / Path(params.lpips.path).expanduser() if params.lpips.path else None
    resolution = resolve(path, params.lpips.download, layout.lpips)
    log.info("%s", resolution.reason)
