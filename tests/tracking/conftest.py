"""A project's root with an MLflow database, and no exporter and no server."""

import shutil
from pathlib import Path

import pytest

from siren.tracking import store


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("mlflow") / store.DATABASE
    store.connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def root(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's root as the working directory, with no exporter and no server."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(database, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SIREN_EXPORT", "0")
    for name in ("MLFLOW_TRACKING_URI", "SIREN_PIPELINE", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return folder
