"""Stores of MLflow, and made-up profiles that were reported."""

import shutil
from pathlib import Path

import pytest

from experiment.made_up import PAIR, SMALL, World, read
from pipeline.experiment import tracking


@pytest.fixture
def no_mlflow_settings(monkeypatch) -> None:
    """An environment that says nothing of MLflow but to keep its telemetry off."""
    for name in [*tracking.DEFAULTS, "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_TRACKING_URI"]:
        monkeypatch.setenv(name, "")  # so that what `open_store` sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def schema(tmp_path_factory) -> Path:
    """A database whose tables exist: creating them takes seconds."""
    root = tmp_path_factory.mktemp("schema")
    tracking.open_store(root).experiment("unused")
    return root / "mlflow.db"


@pytest.fixture
def tracked_root(tmp_path, schema, no_mlflow_settings) -> Path:
    """A folder with an empty store."""
    shutil.copy(schema, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World(tmp_path_factory.mktemp("world"))
    made.report()
    return made


@pytest.fixture(scope="session")
def page(world: World) -> str:
    return read(world, "index")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small profile with true LPIPS, whose images have names that HTML would take for its own."""
    made = World(tmp_path_factory.mktemp("plain"), column="lpips", key="<script>{}", **SMALL)
    made.report()
    return made


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A profile with circuits and transformers."""
    made = World(tmp_path_factory.mktemp("told"), **PAIR, priors=("circuit", "transformer"))
    made.report()
    return made


@pytest.fixture
def small(tmp_path: Path) -> World:
    return World(tmp_path, **SMALL)
