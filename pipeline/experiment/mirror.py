"""Showing in MLflow what is finished on disk."""

from __future__ import annotations

from pipeline.experiment.layout import Layout


def show(layout: Layout) -> None:
    """Mirror the records on disk in MLflow, if MLflow can be reached."""
    from pipeline.experiment.tracking import open_store, project

    store = open_store(layout.root)
    store.attempt(lambda: project(store, layout.root / "runs", layout.cells, layout.profile))
