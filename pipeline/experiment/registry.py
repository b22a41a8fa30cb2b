"""Trained models in MLflow's registry: a model per network and dataset, a version per training that made other weights.

A version's files are copies among the artifacts of the run that shows its training: weights as safetensors, and their
description. Its tags name the data and the parents it was trained with. `register` may be called at any time; it adds
what is missing.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from pipeline.experiment.entry import Entry
from pipeline.experiment.provenance import file_digest
from pipeline.experiment.trackable import trainings
from pipeline.experiment.turns import alone

if TYPE_CHECKING:
    from pipeline.experiment.tracking import Store

FOLDER = "model"
"""Where the files of a model are among the artifacts of its run."""
CURRENT = "current"
"""Alias of the version whose weights are on disk."""


def register(store: Store, runs_root: Path, profile: str) -> int:
    """Give every trained model on disk a version in the registry, and the alias `current` to that version.

    Args:
        store: where the runs of the trainings are already, as `project` leaves them.
        runs_root: the folder that holds one folder per profile.
        profile: whose models.

    Returns:
        How many versions were added.

    Raises:
        TrackingError: the store cannot be used.
        InputError: a record does not have the promised form.
    """
    models = {entry.tags["weights"]: entry for entry in trainings(runs_root / profile) if entry.weights}
    experiment = store.experiment(profile)
    known: dict[str, str] = {}
    added = 0
    with alone(store.lock):
        for digest in TopologicalSorter({digest: _parents(models[digest], models) for digest in models}).static_order():
            run = next(run.run_id for run in store.runs(experiment, models[digest].fingerprint) if run.content)
            name = model_name(profile, models[digest])
            version, new = _settle(store, name, models[digest], run, known)
            known[digest] = f"{name} version {version}"
            added += new
    return added


def model_name(profile: str, entry: Entry) -> str:
    """Name of a training's model, "embedded.ddpm.faces"."""
    return f"{profile}.{entry.tags['stage'].removeprefix('train_')}.{entry.tags['dataset']}"


def _parents(entry: Entry, models: Container[str]) -> list[str]:
    """Digests of the models a training read."""
    return [digest for key, digest in entry.tags.items() if key.startswith("input.") and digest in models]


def _settle(store: Store, name: str, entry: Entry, run: str, known: Mapping[str, str]) -> tuple[str, bool]:
    """Leave one version of a training, with the files of the run that shows it; tell whether it had to be made."""
    found = None
    with store.asked() as client:
        for version in client.search_model_versions(f"name = '{name}'"):
            if version.tags.get("fingerprint") == entry.fingerprint:
                if version.run_id == run:
                    found = str(version.version)
                else:  # that run is gone, and its files with it
                    client.delete_model_version(name, str(version.version))
        number = found or _add(client, name, entry, run, known)
        if str(client.get_registered_model(name).aliases.get(CURRENT)) != number:
            client.set_registered_model_alias(name, CURRENT, number)
    return number, found is None


def _add(client: Any, name: str, entry: Entry, run: str, known: Mapping[str, str]) -> str:
    """Copy the files of a model to the run of its training and make a version of them."""
    if not client.search_registered_models(f"name = '{name}'"):
        kept = {key: entry.tags[key] for key in ("stage", "dataset")}
        client.create_registered_model(name, kept, f"What `{entry.tags['stage']}` trains on *{entry.tags['dataset']}*.")
    weights, description = entry.weights
    if file_digest(weights) != entry.tags["weights"]:
        raise InputError(f"{weights} does not hold the weights that {description} describes; run `dvc repro` again.")
    for path in entry.weights:
        client.log_artifact(run, str(path), FOLDER)
    parents = {
        f"parent.{key.removeprefix('input.')}": known[digest]
        for key, digest in entry.tags.items()
        if key.startswith("input.") and digest in known
    }
    text = _description(entry, parents)
    version = client.create_model_version(
        name, f"runs:/{run}/{FOLDER}", run, {**entry.tags, **parents}, description=text
    )
    return str(version.version)


def _description(entry: Entry, parents: Mapping[str, str]) -> str:
    """Say what a version was made from and how good it is."""
    origin = [f"data {entry.data.name}, {entry.data.digest[:12]}"] if entry.data else []
    origin += [f"{key.removeprefix('parent.')}: {value}" for key, value in parents.items()]
    tables = [
        "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values)])
        for values in ([(k, f"{v:.4g}") for k, v in entry.metrics.items()], entry.params.items())
    ]
    return "\n\n".join([f"Made from {'; '.join(origin) or 'nothing but its code'}.", *tables])
