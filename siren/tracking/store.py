"""Which MLflow store a project uses, and a client for it.

`MLFLOW_TRACKING_URI` wins; otherwise it is `mlflow.db` (SQLite) with `mlartifacts/` at the project's root. Away from
the project the store is found by looking upwards from the working directory, then in the checkout that the `siren`
command was installed from.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from siren.tracking.lineage import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
EXPERIMENT = "siren"
DATABASE = "mlflow.db"


def address(root: Path) -> str:
    """The tracking URI for the project at `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / DATABASE}"


def experiment_name() -> str:
    """The MLflow experiment that runs are kept under."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def find() -> str:
    """The tracking URI of the nearest project, for commands that people run anywhere. Raises ValueError if none."""
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return os.environ["MLFLOW_TRACKING_URI"]
    root = project_root()
    checkout = Path(__file__).resolve().parents[2]
    for folder in (root, *root.parents, checkout):
        if (folder / DATABASE).is_file():
            return address(folder)
    raise ValueError(
        f"no model registry found: neither MLFLOW_TRACKING_URI is set, nor does {DATABASE} lie in {root}, in a folder "
        f"above it, or in {checkout}; run the pipeline first (dvc repro), or set MLFLOW_TRACKING_URI to its store"
    )


def connect(uri: str) -> "MlflowClient":
    """A client for the tracking store and the registry at `uri`. Fails soon rather than late: callers retry."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import logging

    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # they would report every migration of a new database
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment(client: "MlflowClient", root: Path, uri: str, name: str) -> str:
    """The id of the experiment `name`, made if missing. A database file gets its artifacts beside it."""
    found: Any = client.get_experiment_by_name(name)
    if found is None:
        beside = (root.resolve() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
        made = client.create_experiment(name, artifact_location=beside)
        # The UI shows the view made for training runs, with charts, rather than the one for chat applications.
        client.set_experiment_tag(made, "mlflow.experimentKind", "custom_model_development")
        return str(made)
    return str(found.experiment_id)
