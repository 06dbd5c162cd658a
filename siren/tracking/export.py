"""From the local records to MLflow (being written)."""

from pathlib import Path


def start(root: Path) -> None:
    """Start the exporter of the project at `root` unless one is alive."""
