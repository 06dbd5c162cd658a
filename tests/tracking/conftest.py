"""A project's root with an MLflow database, and no exporter and no server."""

import shutil
from pathlib import Path

import pytest

from siren.tracking import store


@pytest.fixture(scope="session")
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database. Making one takes seconds, so it is kept in pytest's cache, where there is one."""
    from importlib.metadata import version

    cache = getattr(request.config, "cache", None)
    folder = cache.mkdir(f"mlflow-{version('mlflow')}") if cache else tmp_path_factory.mktemp("mlflow")
    path = folder / store.DATABASE
    if not path.is_file():
        partial = path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        store.connect(f"sqlite:///{partial}").search_experiments()
        partial.rename(path)
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
