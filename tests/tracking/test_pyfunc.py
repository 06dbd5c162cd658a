"""The registered model behind `mlflow models serve`."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from siren.generate.bundle import Bundle
from siren.stages import evaluate
from siren.tracking import registry
from tests.processes import free_port, wait_for
from tests.tracking import builders


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")  # MLflow's own use of SQLAlchemy
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
def test_mlflow_serves_the_sound_that_the_model_makes_here(
    tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(database, root)
    builders.write_models(root, builders.settings())
    builders.write_metrics(root)
    monkeypatch.chdir(root)
    for name in ("MLFLOW_TRACKING_URI", "SIREN_PIPELINE", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    evaluate.register(builders.settings("served"))
    folder = registry.fetch(registry.version("models:/served@challenger")).parent
    port = free_port()
    verb = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(folder), "--env-manager", "local"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it starts uvicorn by name
    log = tmp_path / "log"
    with log.open("w") as said:
        server = subprocess.Popen(
            [*verb, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            env={**os.environ, "PATH": path},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/ping", server, log)
        asked = {
            "dataframe_split": {"columns": ["prompt", "seed"], "data": [["a dog barks", 7], ["rain falls", 8]]},
            "params": {"seconds": 0.05, "temperature": 0.8},
        }
        answer = httpx.post(f"{url}/invocations", json=asked, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        sounds = np.array(answer.json()["predictions"], np.float32)
        bundle = Bundle.load(folder / "artifacts" / registry.BUNDLE)
        changed = dataclasses.replace(bundle.sampling, temperature=0.8)
        own = bundle.sample(["a dog barks", "rain falls"], [7, 8], 0.05, changed)
        np.testing.assert_allclose(sounds, np.stack(own), atol=1e-4)
        asked["dataframe_split"] = {"columns": ["prompt"], "data": [[" "]]}
        refused = httpx.post(f"{url}/invocations", json=asked, timeout=60, trust_env=False)
        assert refused.status_code == 400
        assert "the prompt in row 0 is empty" in refused.text
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
