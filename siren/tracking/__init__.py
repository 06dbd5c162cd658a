"""Tracking: what was measured, by which code, on which bytes; and the registry of models that came out of it.

Unusual: a stage never talks to a tracking server. It appends to a local record (`run`), and one background process
mirrors all records to MLflow (`export`), so that a server that is slow or gone costs a training nothing and loses
nothing. Only `pyfunc`, which MLflow loads, imports mlflow at module level.
"""

from siren.tracking.run import Run, stage

__all__ = ["Run", "stage"]
