"""The pipeline on one page, in order: each stage reads its files, calls the library, writes its files and logs.

Only this module knows paths, and they are those of `dvc.yaml`. A stage takes the settings and nothing else; its name
is the DVC stage, the CLI verb, the Prefect task and the MLflow run. Heavy imports are inside the stages, so that
each process loads only what it uses.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from siren import tracking
from siren.config import Config

CLIPS = Path("data/clips")
SEGMENTS = Path("data/segments")
CAPTIONS = Path("data/captions")
SCORES = Path("data/scores")
SPLITS = Path("data/splits")
TOKENS = Path("data/tokens")
MODELS = Path("models")
SAMPLES = Path("outputs/samples")
REPORTS = Path("reports")
