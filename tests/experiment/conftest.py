"""Stores of MLflow for tests."""

import shutil
from pathlib import Path

import pytest

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
