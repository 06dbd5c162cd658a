"""The model as MLflow serves it: prompts in, waveforms out.

"Models from code": MLflow keeps this file with the model and runs it when the model is loaded, so nothing is pickled.
The bundle that comes with it is checked against its sha256 sums before anything is read. Load one with
`mlflow.pyfunc.load_model("models:/siren@champion")`, or serve it with `mlflow models serve`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types.schema import Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

SAMPLING = ("temperature", "top_k", "top_p", "guidance")
# The parameters of a request. None means: as the model was registered.
PARAMS: dict[str, tuple[str, Any]] = {
    "seed": ("long", 0),
    "seconds": ("double", None),
    "temperature": ("double", None),
    "top_k": ("long", None),
    "top_p": ("double", None),
    "guidance": ("double", None),
}


class Siren(PythonModel):
    """A column `prompt`, perhaps a column `seed` → a waveform per row, float32 [S] at `sample_rate`."""

    def load_context(self, context: Any) -> None:
        import torch

        from siren.generate.bundle import Bundle

        folder = Path(context.artifacts["model"])
        self.bundle = Bundle.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
        self.sample_rate = self.bundle.sample_rate

    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> list[np.ndarray]:
        """Raises ValueError for an empty prompt, naming its row, and for settings that cannot be."""
        given = {name: default for name, (_, default) in PARAMS.items()} | (params or {})
        prompts = [str(prompt) for prompt in model_input["prompt"]]
        for row, prompt in enumerate(prompts):
            if not prompt.strip():
                raise ValueError(f"the prompt in row {row} is empty; describe a sound")
        asked: list[Any] = list(model_input["seed"]) if "seed" in model_input else [None] * len(prompts)
        seeds = [given["seed"] if pandas.isna(seed) else int(seed) for seed in asked]
        changes = {name: given[name] for name in SAMPLING if given[name] is not None}
        sampling = dataclasses.replace(self.bundle.sampling, **changes) if changes else None
        return self.bundle.sample(prompts, seeds, given["seconds"], sampling)


def signature() -> ModelSignature:
    """Columns `prompt` and, optional, `seed`; the parameters of a request; an array of samples for each row."""
    columns = [ColSpec(DataType.string, "prompt"), ColSpec(DataType.long, "seed", required=False)]
    params = [ParamSpec(name, kind, default) for name, (kind, default) in PARAMS.items()]
    return ModelSignature(Schema(columns), Schema([ColSpec(Array(DataType.float))]), ParamSchema(params))


mlflow.models.set_model(Siren())
