"""The stages prepare and masks: raw images -> shards, mask functions and files -> mask images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from pipeline.data import shards, sources
from pipeline.experiment.layout import Layout
from pipeline.experiment.params import Params
from pipeline.experiment.progress import progress


def expected(source: sources.Source) -> int:
    """How many images a source is going to give, as far as its block says; at least 1."""
    counts = [
        getattr(source, name, None) for name in ("train", "val", "test", "train_images", "val_images", "test_images")
    ]
    return max(1, sum(count for count in counts if isinstance(count, int)))


def prepare(params: Params, layout: Layout, dataset: str) -> None:
    """Read the images of `dataset`, refuse what cannot be used, and write them as shards."""
    source = params.datasets[dataset]
    with progress(f"prepare {dataset}", expected(source), "images") as bar:
        shards.write(
            layout.data(dataset),
            sources.read(source, dataset=dataset, size=params.image_size, seed=params.seed),
            dataset=dataset,
            image_size=params.image_size,
            source=asdict(source),
            seed=params.seed,
            attributes=sources.attribute_classes(source),
            advance=bar.advance,
        )


def resolve(path: str, root: Path) -> Path:
    """A path of params.yaml: absolute, or below the root of the repository."""
    return root / Path(path).expanduser()
