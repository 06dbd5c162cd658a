"""What trains runs on a machine that has torch, transformers, numpy, soundfile and pyarrow, and nothing of the rest."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from siren import cli, config, stages
from siren.tracking import export, records, store
from tests.test_config import ROOT, compose

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore:.*loader strategy is deprecated")

BARE = ("torch", "transformers", "numpy", "soundfile", "pyarrow")
# Only what is allowed is found; everything else is as if it had never been installed.
HEAD = """
import sys
from importlib.machinery import PathFinder
class Bare:
    find_spec = staticmethod(lambda name, path=None, target=None:
        None if name.split(".")[0] in BLOCKED else PathFinder.find_spec(name, path, target))
sys.meta_path[:] = [f for f in sys.meta_path if f.__module__.startswith("_frozen") and f is not PathFinder] + [Bare]
"""


def brought_by(packages: tuple[str, ...]) -> set[str]:
    """These packages and all that they require, without extras."""
    found: set[str] = set()
    queue = [name.lower() for name in packages]
    while queue:
        name = queue.pop().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        try:
            needed = map(Requirement, metadata.requires(name) or [])
        except metadata.PackageNotFoundError:  # optional on this platform
            continue
        queue += [r.name.lower() for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def blocked() -> set[str]:
    """Top-level modules of every installed package that a bare machine does not have."""
    allowed = brought_by(BARE)
    owners = metadata.packages_distributions()
    return {name for name, dists in owners.items() if not allowed & {d.lower().replace("_", "-") for d in dists}}


def bare(blocked: set[str], code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("SIREN_EXPORT", None)
    program = f"BLOCKED = {sorted(blocked - {'siren', 'flows'})!r}{HEAD}{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pipeline_s_tools_are_blocked_and_what_trains_is_not(blocked: set[str]) -> None:
    assert blocked >= {
        "dvc",
        "mlflow",
        "prefect",
        "great_expectations",
        "matplotlib",
        "pandas",
        "psutil",
        "soxr",
        "scipy",
    }
    assert not blocked & {"torch", "transformers", "numpy", "soundfile", "pyarrow", "safetensors", "yaml", "typer"}


def test_a_stage_there_leaves_a_record_that_is_imported_into_mlflow_here(
    blocked: set[str], root: Path, tmp_path: Path
) -> None:
    there = tmp_path / "bare"
    there.mkdir()
    code = f"""
from siren import cli, config, stages, tracking
import siren.train.stage1, siren.align.anticausal, siren.generate.bundle
assert list(cli.stage_functions()) == {list(cli.stage_functions())!r}
with tracking.stage("stage1@0", config.load({str(ROOT / "params.yaml")!r}), ("seed",)) as run:
    run.log(1, {{"loss": 2.5}})
    run.summary({{"val_loss": 2.25}})
"""
    bare(blocked, code, there)
    assert not (there / ".siren" / "exporter.log").exists()  # nobody to send to
    (folder,) = records.bring(there, root)
    assert export.flush(root) == 1
    client = store.connect(store.address(root))
    run = client.get_run(records.read_state(folder)["mlflow_run"])
    assert (run.info.run_name, run.info.status) == ("stage1@0", "FINISHED")
    assert run.data.metrics == {"loss": 2.5, "val_loss": 2.25}
    assert run.data.tags["host"] == json.loads((folder / "run.json").read_text())["host"]


@pytest.mark.slow
def test_every_training_command_runs_there(blocked: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIREN_EXPORT", "0")
    (tmp_path / "params.yaml").write_bytes(compose("tiny", tmp_path).read_bytes())
    for stage in (stages.fetch, stages.segment, stages.caption):
        stage(config.load())
    commands = [
        "codec",
        "clap",
        "imagebind",
        "judge",
        "score",
        "select",
        "tokenize",
        "stage1 0",
        "stage1 1",
        "stage1 2",
    ]
    code = f"""
import sys
from siren import cli
for command in {[*commands, "align"]!r}:
    sys.argv = ["siren", *command.split()]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, command
"""
    bare(blocked, code, tmp_path)
    assert (tmp_path / "models" / "aligned" / "model.safetensors").is_file()
    found = {json.loads((folder / "run.json").read_text())["name"] for folder in records.folders(tmp_path)}
    assert found >= {"codec", "clap", "imagebind", "judge", "stage1@0", "stage1@1", "stage1@2", "align"}
